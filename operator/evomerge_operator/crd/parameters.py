"""What a merge method asks of its parameters, and a parameter of itself."""

from evomerge_contract.methods import SEARCHABLE
from evomerge_operator.crd.cel import Rule, names_in, rule

_TRUTHS = "['true', 'false']"


def space_rules() -> list[Rule]:
    """What a method asks of its parameters."""
    switches = sorted({name for method in SEARCHABLE.values() for name in method.switches})
    per_model = sorted({name for method in SEARCHABLE.values() for name in method.per_model})
    return [
        *_known_parameters(),
        *_needed_parameters(),
        *_ranges(),
        rule(
            f"self.parameters.all(k, !(k in {names_in(switches)}) || "
            f"(has(self.parameters[k].value) && self.parameters[k].value in {_TRUTHS}))",
            f'{", ".join(switches)} are switches: give value "true" or "false"',
            field=".parameters",
        ),
        rule(
            f"self.parameters.all(k, k in {names_in(switches)} || "
            f"!has(self.parameters[k].value) || !(self.parameters[k].value in {_TRUTHS}))",
            'a parameter that is no switch takes a number as its value, not "true" or "false"',
            field=".parameters",
        ),
        rule(
            f"self.parameters.all(k, !self.parameters[k].sumsToOne || k in {names_in(per_model)})",
            f"only per-model parameters ({', '.join(per_model)}) can sum to one; the others have one value",
            field=".parameters",
        ),
        rule(
            "self.parameters.exists(k, !has(self.parameters[k].value))",
            "all parameters are fixed: nothing is left to search; give at least one min and max",
            field=".parameters",
        ),
    ]


def _known_parameters() -> list[Rule]:
    methods: dict[tuple[str, ...], list[str]] = {}
    for name, method in SEARCHABLE.items():
        methods.setdefault((*method.real, *method.switches), []).append(name)
    return [
        _of(
            names,
            f"self.parameters.all(k, k in {names_in(known)})",
            f"the parameters allowed are {', '.join(known)}",
        )
        for known, names in methods.items()
    ]


def _needed_parameters() -> list[Rule]:
    methods: dict[str, list[str]] = {}
    for name, method in SEARCHABLE.items():
        for parameter in method.real:
            if parameter not in method.defaults:
                methods.setdefault(parameter, []).append(name)
    return [
        _of(
            names,
            f"'{parameter}' in self.parameters",
            f"the parameter {parameter} is missing (give min and max, or value)",
        )
        for parameter, names in methods.items()
    ]


def _of(methods: list[str], check: str, message: str) -> Rule:
    """A rule for the parameters of some methods alone."""
    named = f"{', '.join(methods)}: {message}"
    return rule(f"!(self.method in {names_in(methods)}) || {check}", named, field=".parameters")


def _ranges() -> list[Rule]:
    """Most parameters have one range in every method that knows them; where they differ, a rule names its methods."""
    knowing: dict[str, list[str]] = {}
    bounds: dict[tuple[str, str, float], list[str]] = {}
    for method_name, method in SEARCHABLE.items():
        for name, allowed in method.real.items():
            knowing.setdefault(name, []).append(method_name)
            for said, bound in (("below", allowed.low), ("above", allowed.high)):
                if bound is not None:
                    bounds.setdefault((name, said, bound), []).append(method_name)
    return [
        _bound(name, said, bound, None if methods == knowing[name] else methods)
        for (name, said, bound), methods in bounds.items()
    ]


def _bound(name: str, said: str, bound: float, methods: list[str] | None) -> Rule:
    """`name` lies nowhere `said` (below or above) `bound`, in `methods` or in all."""
    sign, end = (">=", "smallest") if said == "below" else ("<=", "largest")
    elsewhere = "" if methods is None else f"!(self.method in {names_in(methods)}) || "
    checks = [
        f"(!has(self.parameters['{name}'].{field}) || {_skip(name, field)}"
        f"double(self.parameters['{name}'].{field}) {sign} {bound})"
        for field in ("min", "max", "value")
    ]
    return rule(
        f"{elsewhere}!('{name}' in self.parameters) || ({' && '.join(checks)})",
        f"{name} is {said} {bound:g}, the {end} {name}",
        field=".parameters",
    )


def _skip(name: str, field: str) -> str:
    return f"self.parameters['{name}'].value in {_TRUTHS} || " if field == "value" else ""


PARAMETER_RULES = [
    rule(
        "!has(self.value) || !(has(self.min) || has(self.max) || has(self.start) || self.sumsToOne)",
        "min, max, start and sumsToOne have no meaning beside value; a parameter is fixed or searched, not both",
    ),
    rule("has(self.value) || (has(self.min) && has(self.max))", "min or max is missing; give min and max, or value"),
    rule(
        "!has(self.min) || !has(self.max) || double(self.min) < double(self.max)",
        "max must be above min",
        words="'max \"' + self.max + '\" must be above min \"' + self.min + '\"'",
    ),
    rule(
        "!has(self.start) || !has(self.min) || !has(self.max) || "
        "(double(self.min) <= double(self.start) && double(self.start) <= double(self.max))",
        "start must lie between min and max",
        words="'start \"' + self.start + '\" is not between min \"' + self.min + '\" and max \"' + self.max + '\"'",
    ),
]
