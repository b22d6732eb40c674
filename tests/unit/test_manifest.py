"""Reading a manifest: what is accepted, and that each mistake is found, with its place and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from documents import document, stage
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.methods import SEARCHABLE
from evomerge_operator.errors import InputError
from evomerge_operator.manifest import absolute_uri, load_manifest, parse_manifest

Change = Callable[[dict[str, Any]], None]


def problems(doc: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InputError) as raised:
        parse_manifest(doc, source="m.yaml", folder=Path("/"))
    return {p.path: p.message for p in raised.value.problems}


def test_a_small_manifest_is_accepted_and_defaults_are_filled_in() -> None:
    manifest = parse_manifest(document(), source="m.yaml", folder=Path("/home"))
    assert manifest.spec.stages[0].search.algorithm == "GA"
    assert manifest.spec.models[0].uri == "file:///home/models/a"
    assert manifest.spec.evaluation.objectives[0].jsonl.test == "file:///home/test.jsonl"


def test_the_wire_form_of_a_manifest_reads_back_as_the_same_manifest() -> None:
    manifest = parse_manifest(document(), source="m.yaml", folder=Path("/home"))
    assert EvoMerge.model_validate(manifest.wire()) == manifest


def test_an_adapter_may_lie_beside_the_manifest_too() -> None:
    models = [{"name": "a", "uri": "a", "adapter": "lora"}, {"name": "b", "uri": "b"}]
    base = {"uri": "base", "adapter": "s3://bucket/lora"}
    spec = parse_manifest(document(models=models, base=base), source="m.yaml", folder=Path("/home")).spec
    assert [m.adapter for m in spec.models] == ["file:///home/lora", None]
    assert spec.base is not None
    assert spec.base.adapter == "s3://bucket/lora"


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("models/a", "file:///home/models/a"),
        ("file:models/a", "file:///home/models/a"),
        ("file:///data/a", "file:///data/a"),
        ("/data/with space", "file:///data/with%20space"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("hf://org/model@abc", "hf://org/model@abc"),
    ],
)
def test_relative_uris_are_relative_to_the_manifest(uri: str, absolute: str) -> None:
    assert absolute_uri(uri, Path("/home")) == absolute


def change(path: str, value: Any) -> Change:
    def apply(doc: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for part in parents:
            doc = doc[int(part)] if part.isdigit() else doc[part]
        if value is KeyError:
            del doc[last]
        else:
            doc[last] = value

    return apply


PS = "spec.stages.0.parameterSpace"
STAGE_PS = "spec.stages[0].parameterSpace"

MISTAKES: list[tuple[str, Change, str, str]] = [
    ("unknown field", change("spec.evaluation.batch", 3), "spec.evaluation.batch", "allowed: objectives, batchSize"),
    (
        "unknown field in a list",
        change("spec.models.0.url", "x"),
        "spec.models[0].url",
        "allowed: uri, adapter, license, name",
    ),
    (
        "unknown field in a mapping",
        change(f"{PS}.parameters.weight.sumToOne", True),
        "spec.stages[0].parameterSpace.parameters.weight.sumToOne",
        "is not a field that is known here; did you mean sumsToOne?",
    ),
    (
        "field at the wrong level",
        change("spec.stages.0.population", 8),
        "spec.stages[0].population",
        "does not belong here, but to spec.stages[].search",
    ),
    (
        "field of one of several levels",
        change("spec.secretName", "s"),
        "spec.secretName",
        "does not belong here, but to spec.storage.s3 or spec.storage.huggingFace",
    ),
    ("missing field", change("spec.models", KeyError), "spec.models", "is missing"),
    ("time span", change("spec.budget", {"deadline": "5 days"}), "spec.budget.deadline", '"5 days" is not a time span'),
    (
        "quantity",
        change("spec.worker", {"resources": {"limits": {"memory": "4 GB"}}}),
        "spec.worker.resources.limits.memory",
        '"4 GB" is not a quantity',
    ),
    (
        "local export",
        change("spec.export", {"uri": "out"}),
        "spec.export.uri",
        '"out" is not of the form s3://bucket/folder',
    ),
    (
        "relative path on the node",
        change("spec.worker", {"cache": {"hostPath": {"path": "cache"}}}),
        "spec.worker.cache.hostPath.path",
        '"cache" is not an absolute path',
    ),
    (
        "two caches",
        change("spec.worker", {"cache": {"emptyDir": {}, "hostPath": {"path": "/cache"}}}),
        "spec.worker.cache",
        "gives 2 places; at most one",
    ),
    ("wrong kind", change("kind", "EvoMerg"), "kind", "allowed: 'EvoMerge'"),
    ("name", change("metadata.name", "My Run"), "metadata.name", "lower-case"),
    ("two of one name", change("spec.models.1.name", "a"), "spec.models[1].name", "spec.models[0]"),
    ("base's name", change("spec.models.1.name", "base"), "spec.models[1].name", "spec.base"),
    (
        "tokens of nobody",
        change("spec.tokenizerSource", "c"),
        "spec.tokenizerSource",
        '"c" is not known; allowed: union, a, b',
    ),
    ("tokens of no base", change("spec.tokenizerSource", "base"), "spec.tokenizerSource", '"base" means spec.base'),
    (
        "figures per token of different tokens",
        lambda document: (
            document["spec"].update(tokenizerSource="union")
            or document["spec"]["evaluation"]["objectives"][0].update(metric="perplexity")
        ),
        "spec.evaluation.objectives[0].metric",
        "perplexity is a figure per token",
    ),
    ("one model", change("spec.models", [{"name": "a", "uri": "a"}]), "spec.models", "at least 2"),
    ("zero budget", change("spec.stages.0.search.candidates", 0), "spec.stages[0].search.candidates", "equal to 1"),
    ("stage's name", change("spec.stages.0.name", "baselines"), "spec.stages[0].name", "baselines"),
    ("metric", change("spec.evaluation.objectives.0.metric", "f1"), "spec.evaluation.objectives[0].metric", "allowed:"),
    (
        "split used twice",
        change("spec.evaluation.objectives.0.jsonl.test", "select.jsonl"),
        "spec.evaluation.objectives[0].jsonl.test",
        "disjoint",
    ),
    (
        "misspelt method",
        change(f"{PS}.method", "dare-ties"),
        f"{STAGE_PS}.method",
        '"dare-ties" is not known; did you mean dare_ties?',
    ),
    ("method", change(f"{PS}.method", "magic"), "spec.stages[0].parameterSpace.method", "allowed: linear, slerp"),
    (
        "no base",
        change(f"{PS}.method", "task_arithmetic"),
        "spec.base",
        "add spec.base or choose linear, slerp, nuslerp, multislerp",
    ),
    (
        "number not quoted",
        change(f"{PS}.parameters.weight.min", 0.5),
        "spec.stages[0].parameterSpace.parameters.weight.min",
        'write "0.5" in quotes',
    ),
    (
        "not a number",
        change(f"{PS}.parameters.weight.min", "half"),
        "spec.stages[0].parameterSpace.parameters.weight.min",
        "plain number",
    ),
    (
        "bounds the wrong way round",
        change(f"{PS}.parameters.weight", {"min": "1", "max": "0"}),
        "spec.stages[0].parameterSpace.parameters.weight.max",
        'must be above min "1"',
    ),
    (
        "start outside",
        change(f"{PS}.parameters.weight.start", "2"),
        "spec.stages[0].parameterSpace.parameters.weight.start",
        "not between",
    ),
    (
        "unknown parameter",
        change(f"{PS}.parameters.density", {"min": "0", "max": "1"}),
        "spec.stages[0].parameterSpace.parameters.density",
        "allowed: weight",
    ),
    (
        "impossible sum",
        change(f"{PS}.parameters.weight", {"min": "0.6", "max": "1", "sumsToOne": True}),
        "spec.stages[0].parameterSpace.parameters.weight.sumsToOne",
        "cannot sum to one",
    ),
    (
        "nothing searched",
        change(f"{PS}.parameters.weight", {"value": "1"}),
        "spec.stages[0].parameterSpace.parameters",
        "nothing is left to search",
    ),
    (
        "two groupings",
        change(f"{PS}.groups", {"layers": 2, "everyLayer": True}),
        "spec.stages[0].parameterSpace.groups",
        "exactly one",
    ),
    ("no grouping", change(f"{PS}.groups", {}), "spec.stages[0].parameterSpace.groups", "exactly one"),
    ("odd address", change("spec.models.0.uri", "x\0y"), "spec.models[0].uri", "control characters"),
    (
        "a pattern named as the rest",
        change(f"{PS}.groups", {"patterns": [{"name": "rest", "regex": "mlp"}]}),
        "spec.stages[0].parameterSpace.groups.patterns[0].name",
        "what no pattern matches",
    ),
    (
        "bad pattern",
        change(f"{PS}.groups", {"patterns": [{"name": "x", "regex": "("}]}),
        "spec.stages[0].parameterSpace.groups.patterns[0].regex",
        "not a regular expression",
    ),
    (
        "nothing to search",
        change(f"{PS}.method", "karcher"),
        f"{STAGE_PS}.method",
        "has nothing to search, only a recipe",
    ),
    (
        "nothing to search between a base and a source",
        change(f"{PS}.method", "arcee_fusion"),
        f"{STAGE_PS}.method",
        "has nothing to search, only a recipe",
    ),
    (
        "ram without a base",
        lambda doc: doc["spec"].update(stages=[stage("ram", parameters={"epsilon": {"min": "0", "max": "0.01"}})]),
        "spec.base",
        "ram needs a base",
    ),
    (
        "a change larger than any",
        lambda doc: doc["spec"].update(
            base={"uri": "base"}, stages=[stage("ramplus_tl", parameters={"epsilon": {"min": "0", "max": "1.5"}})]
        ),
        "spec.stages[0].parameterSpace.parameters.epsilon.max",
        '"1.5" is above 1, the largest epsilon',
    ),
    ("no space", change("spec.stages.0.parameterSpace", KeyError), "spec.stages[0]", "names 0 spaces; exactly one is"),
    ("two spaces", change("spec.stages.0.dataFlowSpace", {}), "spec.stages[0]", "names 2 spaces; exactly one is allow"),
    *(
        (
            f"data flow: {place} {words}",
            lambda doc, space=space: doc["spec"]["stages"][0].update(parameterSpace=None, dataFlowSpace=space),
            f"spec.stages[0].dataFlowSpace.{place}",
            words,
        )
        for space, place, words in (
            ({"models": ["a", "c"]}, "models[1]", '"c" is not known; allowed: a, b'),
            ({"models": ["b", "b"]}, "models[1]", '"b" is named twice; to lay its layers in a row again, use repeats'),
            ({"repeats": 9}, "repeats", "less than or equal to 8"),
            ({"scales": {"per": "Hop"}}, "scales.per", "'Hop' is not known; allowed: 'Slot' or 'Pair'"),
            ({"scales": {"min": "-0.5"}}, "scales.min", '"-0.5" is below 0.05, the smallest scale'),
            ({"scales": {"min": "0"}}, "scales.min", '"0" is below 0.05, the smallest scale'),
            ({"scales": {"min": "1.2"}}, "scales.min", '"1.2" is above 1, the scale that the search starts with'),
            ({"scales": {"max": "0.9"}}, "scales.max", '"0.9" is below 1, the scale that the search starts with'),
            ({"scales": {"max": "9"}}, "scales.max", '"9" is above 8, the largest scale'),
            ({"scales": {"min": "1", "max": "1"}}, "scales.max", '"1" must be above min "1"'),
            ({"layers": {"min": 1}}, "layers.min", "greater than or equal to 2"),
            ({"layers": {"min": 9, "max": 8}}, "layers.max", "8 must not be below min 9"),
        )
    ),
    ("one source only", change(f"{PS}.method", "passthrough"), f"{STAGE_PS}.method", "only a recipe can name it"),
    (
        "density and epsilon",
        lambda doc: doc["spec"].update(
            base={"uri": "base"},
            stages=[stage("della", parameters={"weight": {"value": "1"}, "density": {"min": "0.1", "max": "0.9"}})],
        ),
        f"{STAGE_PS}.parameters.density",
        "must lie between 0.15 and 0.85, these two excluded: epsilon reaches 0.15",
    ),
    (
        "nuslerp of three",
        lambda doc: doc["spec"].update(
            models=[{"name": n, "uri": n} for n in "abc"],
            stages=[stage("nuslerp")],
        ),
        "spec.models",
        "nuslerp merges exactly 2 models, not 3",
    ),
    (
        "slerp of three",
        lambda doc: doc["spec"].update(
            models=[{"name": n, "uri": n} for n in "abc"],
            stages=[stage("slerp", parameters={"t": {"min": "0", "max": "1"}})],
        ),
        "spec.models",
        "exactly 2",
    ),
    (
        "density above 1",
        lambda doc: doc["spec"].update(
            base={"uri": "base"},
            stages=[
                stage("ties", parameters={"weight": {"value": "1"}, "density": {"min": "0.1", "max": "1.5"}}),
            ],
        ),
        "spec.stages[0].parameterSpace.parameters.density.max",
        '"1.5" is above 1, the largest density',
    ),
]


@pytest.mark.parametrize(("apply", "path", "words"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_named_with_its_field_and_what_is_allowed(apply: Change, path: str, words: str) -> None:
    doc = document()
    apply(doc)
    found = problems(doc)
    assert list(found) == [path]
    assert words in found[path]


@pytest.mark.parametrize(
    ("density", "epsilon"),
    [
        ({"min": "0.2", "max": "0.8"}, None),
        ({"value": "1"}, {"min": "0", "max": "1"}),
        (None, {"value": "0.5"}),
        ({"min": "0.4", "max": "0.6"}, {"min": "0.1", "max": "0.3"}),
    ],
)
def test_a_density_that_keeps_its_margin_is_accepted(
    density: dict[str, str] | None, epsilon: dict[str, str] | None
) -> None:
    given = {"weight": {"min": "0", "max": "1"}, "density": density, "epsilon": epsilon}
    chosen = stage("della", parameters={name: value for name, value in given.items() if value is not None})
    doc = document(base={"uri": "base"}, stages=[chosen])
    assert parse_manifest(doc, source="m.yaml", folder=Path("/"))


@pytest.mark.parametrize("name", sorted(SEARCHABLE))
def test_every_method_with_something_to_search_may_be_named(name: str) -> None:
    method = SEARCHABLE[name]
    narrow = method.margin[1:] if method.margin else ()
    searched = {parameter: {"min": "0.4", "max": "0.5"} for parameter in method.real if parameter not in narrow}
    switches = {switch: {"value": "true"} for switch in method.switches}
    base = {"base": {"uri": "base"}} if method.needs_base else {}
    assert parse_manifest(
        document(stages=[stage(name, parameters=searched | switches)], **base), source="m.yaml", folder=Path("/")
    )


def test_all_mistakes_are_found_at_once() -> None:
    doc = document()
    change("spec.models.1.name", "a")(doc)
    change(f"{PS}.parameters.weight", {"min": "1", "max": "0"})(doc)
    change("spec.evaluation.objectives.0.weight", "0")(doc)
    assert len(problems(doc)) == 3


def test_an_unknown_field_or_method_does_not_hide_other_mistakes() -> None:
    doc = document(extra=1)
    change("spec.models.1.name", "a")(doc)
    change(f"{PS}.method", "magic")(doc)
    change(f"{PS}.parameters.weight", {"min": "1", "max": "0"})(doc)
    assert list(problems(doc)) == [
        "spec.extra",
        "spec.models[1].name",
        "spec.stages[0].parameterSpace.method",
        "spec.stages[0].parameterSpace.parameters.weight.max",
    ]


@pytest.mark.parametrize("text", ["", "- a list", "a: [", "\x00"])
def test_a_file_that_is_no_manifest_is_refused_in_one_sentence(tmp_path: Path, text: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as raised:
        load_manifest(file)
    assert [p.path for p in raised.value.problems] == ["file"]
    assert "\n" not in raised.value.problems[0].message


@pytest.mark.parametrize(
    ("text", "path", "words"),
    [
        ("spec: {models: [{name: 2024-13-01}]}", "spec.models[0].name", "2024-13-01 in line 1 looks like a date"),
        ("metadata: &x {labels: *x}", "metadata.labels", "holds itself by an alias"),
        ("metadata: " + "[" * 5000, "file", "is nested too deeply"),
        ("merge_method: linear", "file", "is a recipe, not the manifest of a search; use evomerge merge"),
        ("base_model: a\nexperts: []", "file", "is a configuration of mergekit-moe"),
        ("genome: {models: [a]}\ntasks: []", "file", "is a configuration of mergekit-evolve; write a manifest"),
        ("pop_size: 4\nn_iter: 5", "file", "is a configuration of mergenetic; write a manifest"),
        (
            "name: x\nmerge_method: ties\n---\nmerge_method: ties",
            "file",
            "holds 2 recipes, as mergekit-multi reads",
        ),
        ("kind: EvoMerge\n---\nkind: EvoMerge", "file", "holds 2 YAML documents, divided by ---; write each"),
    ],
)
def test_what_no_manifest_can_hold_is_named_by_its_place(tmp_path: Path, text: str, path: str, words: str) -> None:
    assert [(p, m[: len(words)]) for p, m in problems_of(text, tmp_path)] == [(path, words)]


def test_a_key_given_twice_is_told_beside_what_else_is_wrong(tmp_path: Path) -> None:
    twice = "kind: EvoMerge\n" + yaml.safe_dump(document())
    line = twice.splitlines().index("kind: EvoMerge", 1) + 1
    told = ("kind", f"is given in line 1 and again in line {line}; leave one out")
    assert problems_of(twice, tmp_path) == [told]
    wrong = twice.replace("spec:\n", "spec:\n  seeds: 1\n")
    assert [path for path, _ in problems_of(wrong, tmp_path)] == ["kind", "spec.seeds"]


def test_a_name_that_is_a_date_to_yaml_is_to_be_quoted() -> None:
    doc = document()
    doc["metadata"]["name"] = yaml.safe_load("2024-12-01")
    assert problems(doc) == {"metadata.name": 'must be text: write "2024-12-01" in quotes'}


def problems_of(text: str, folder: Path) -> list[tuple[str, str]]:
    (folder / "m.yaml").write_text(text)
    with pytest.raises(InputError) as raised:
        load_manifest(folder / "m.yaml")
    return [(p.path, p.message) for p in raised.value.problems]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_manifest(tmp_path / "nowhere.yaml")


def test_the_quickstart_manifest_is_valid() -> None:
    file = Path(__file__).parents[2] / "examples" / "quickstart" / "evomerge.yaml"
    manifest = load_manifest(file)
    assert manifest.metadata.name == yaml.safe_load(file.read_text())["metadata"]["name"]
