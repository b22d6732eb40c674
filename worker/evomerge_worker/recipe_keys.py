"""The keys of a published recipe that mergekit does not read.

mergekit passes over every key that it does not know. So does `evomerge merge`, with a warning, unless the key looks
like a slip: one that is nearly a key that means something, another word for one, or that means something in another
place.
"""

from collections.abc import Collection, Iterator, Mapping, Set
from copy import deepcopy
from typing import Any

from evomerge_contract.methods import EXTENSIONS, METHODS, Method, any_of
from evomerge_contract.recipe import Filtered, Recipe, RecipeModel, Slice, SliceSource, TokenizerSettings
from evomerge_contract.report import Problem
from evomerge_contract.spelling import nearest
from evomerge_worker.recipe_forms import as_text

_PASSED_OVER = "is passed over, as mergekit does: "
_FILTER = "a value in parameters"
_RECIPE = {*Recipe.model_fields, "modules"}
_LEVELS: Mapping[str, Collection[str]] = {
    "the recipe itself": _RECIPE,
    "models[]": RecipeModel.model_fields,
    "slices[]": Slice.model_fields,
    "slices[].sources[]": SliceSource.model_fields,
    "modules.NAME": ("models", "slices", "parameters"),
    "tokenizer": TokenizerSettings.model_fields,
    _FILTER: Filtered.model_fields,
}
"""The keys that mean something, by where they stand."""
_PARTS = {"models": "models[]", "slices": "slices[]", "sources": "slices[].sources[]"}
"""Where the parts stand that are listed under a key."""
_OTHER_WORDS: Mapping[str, tuple[str, ...]] = {
    "base": ("base_model",),
    "layers": ("slices", "layer_range"),
    "method": ("merge_method",),
    "params": ("parameters",),
    "path": ("model",),
    "range": ("layer_range",),
    "source": ("sources",),
    "template": ("chat_template",),
    "torch_dtype": ("dtype",),
    "val": ("value",),
}
"""Other words for keys, each with those that it may stand for."""
_IN_THE_NAME = {"lora", "adapter", "revision"}
"""What is a part of a model's name."""
_STACKS = {"models", "slices", "modules"}
"""Of these a recipe has one."""
_NO_PARAMETER = {"int8_mask"}
"""Parameters that change no result: mergekit's for how it computes."""
_READ_BUT_UNUSED = {"residual_weight"}


class Keys:
    """A recipe's document without the keys that mean nothing; what they were, as `problems` and `warnings`.

    `lent` are top-level keys that only hold what others use by a YAML alias: they cannot be misspelt.
    """

    def __init__(self, document: Mapping[Any, Any], lent: Set[str] = frozenset()) -> None:
        self.problems: list[Problem] = []
        self.document: dict[Any, Any] = deepcopy(dict(document))
        self._passed: dict[tuple[str, str], list[str]] = {}  # the places of each key that is passed over, with why
        self._nothing: list[tuple[dict[Any, Any], str]] = []  # what is taken out in the end: an alias repeats places
        self._meant: list[tuple[dict[Any, Any], str, Any]] = []  # what is put in, or it would also count as missing
        given = str(document.get("merge_method", document.get("method")))
        self._method_name = nearest(given, METHODS) or given
        self._method = METHODS.get(self._method_name)
        self._outer = document.get("parameters")
        self._walk(self.document, "the recipe itself", "recipe", lent)
        for holder, key in self._nothing:
            holder.pop(key, None)
        for holder, key, value in self._meant:
            holder.setdefault(key, value)

    @property
    def warnings(self) -> list[Problem]:
        """One for each key that is passed over, wherever it stands."""
        told = []
        for (_, message), (first, *more) in self._passed.items():
            also = f" (and in {len(more)} more place{'s' if len(more) > 1 else ''})" if more else ""
            told.append(Problem(path=first, message=message + also))
        return told

    def _walk(self, part: dict[Any, Any], level: str, path: str, lent: Set[str] = frozenset()) -> None:
        """Look at the keys of a part of the document and of all parts in it."""
        known = _LEVELS[level]
        for key in [key for key in part if isinstance(key, str) and key not in known]:
            self._judge(part, key, level, f"{path}.{key}", helper=key in lent)
        part = {key: value for holder, key, value in self._meant if holder is part} | part
        for key, below in _PARTS.items():
            for index, one in _mappings(part.get(key) if key in known else None):
                self._walk(one, below, f"{path}.{key}[{index}]")
        if "tokenizer" in known and isinstance(part.get("tokenizer"), dict):
            self._walk(part["tokenizer"], "tokenizer", f"{path}.tokenizer")
        if "modules" in known and isinstance(part.get("modules"), dict):
            for name, one in part["modules"].items():
                if isinstance(one, dict):
                    self._walk(one, "modules.NAME", f"{path}.modules.{name}")
        if "parameters" in known and isinstance(part.get("parameters"), dict):
            self._parameters(part["parameters"], level, f"{path}.parameters")

    def _judge(self, part: dict[Any, Any], key: str, level: str, path: str, *, helper: bool = False) -> None:
        """Say of a key that means nothing where it stands in `part` what comes of it."""
        self._nothing.append((part, key))
        if key in _READ_BUT_UNUSED:
            self._pass(key, path, "it reads the key and does nothing with it")
        elif helper or self._without_effect(key, part[key]):
            self._pass(key, path, "a recipe has no such key there")
        elif key in _IN_THE_NAME and part[key]:
            write = f'write "model: {_whole_name(part)}"'
            self._add(path, f"is a part of the model's name; {write}; mergekit would pass over it here")
        elif near := _meant(key, level):
            self._misspelt(part, key, near, path)
        elif key in self._known() and "parameters" in _LEVELS[level]:
            self._add(path, "belongs to parameters, one level further down; mergekit would pass over it here")
            self._mean(part, key, part[key], path)
        elif belongs := _place(key):
            self._add(path, f"belongs to {belongs}; mergekit would pass over it here")
        elif near := nearest(key, _LEVELS[level]):
            self._misspelt(part, key, near, path)
        elif other := next(iter(_OTHER_WORDS.get(key.lower(), ())[-1:]), None):
            self._add(path, f"is not a key that is known here; did you mean {other}? That belongs to {_place(other)}")
        elif "parameters" in _LEVELS[level] and (near := nearest(key, self._known())):
            self._add(path, f"is not a key that is known here; did you mean {near}, below parameters?")
            self._mean(part, near, part[key], path)
        else:
            self._pass(key, path, "a recipe has no such key there")

    def _misspelt(self, part: dict[Any, Any], key: str, near: str, path: str) -> None:
        """Say what `key` should have been called, and take it for that: it does not also count as missing."""
        if near not in _STACKS or not part.keys() & _STACKS:
            self._meant.append((part, near, part[key]))
        self._add(path, f"is not a key that is known here; did you mean {near}?")

    def _mean(self, part: dict[Any, Any], name: str, value: Any, path: str) -> None:
        """Take a value that stands at `path` in `part` itself for that of the parameter `name` of it."""
        if isinstance(part.setdefault("parameters", {}), dict):
            self._meant.append((part["parameters"], name, value))
            self._filter_keys(value, path)

    def _parameters(self, settings: dict[Any, Any], level: str, path: str) -> None:
        """Look at the names of parameters that stand together, and at the keys of filters."""
        if self._method is None:
            return
        beside_model = level in ("models[]", "slices[].sources[]")
        for name in [name for name in settings if isinstance(name, str)]:
            where = f"{path}.{name}"
            if name not in self._known():
                self._judge_parameter(settings, name, where)
            elif beside_model and name not in self._of_model() and self._without_effect(name, settings[name]):
                self._nothing.append((settings, name))
                self._pass(name, where, f"beside a model, {name} has no effect")
            else:
                self._filter_keys(settings[name], where)

    def _filter_keys(self, setting: object, path: str) -> None:
        """Look at the keys of the filters of a parameter."""
        for one, where in _filters(setting, path):
            for key in [key for key in one if isinstance(key, str) and key not in Filtered.model_fields]:
                self._judge(one, key, _FILTER, f"{where}.{key}")

    def _judge_parameter(self, settings: dict[Any, Any], name: str, path: str) -> None:
        self._nothing.append((settings, name))
        if name in _RECIPE:
            self._add(path, "belongs to the recipe itself, outside parameters; mergekit would pass over it here")
        elif name in EXTENSIONS:
            its = any_of([method for method, known in METHODS.items() if name in _parameters_of(known)])
            self._add(path, f"is a parameter of {its} alone, and {self._method_name} would do without it; leave it out")
        elif name not in _anywhere() and (near := nearest(name, self._known())):
            self._meant.append((settings, near, settings[name]))
            self._add(path, f"is not a parameter of {self._method_name}; did you mean {near}?")
            self._filter_keys(settings[name], path)
        else:
            self._pass(name, path, f"{self._method_name} has no parameter {name}")

    def _without_effect(self, name: str, value: object) -> bool:
        """Whether a parameter that stands where it is not read would change nothing there that is not so already."""
        if name in _NO_PARAMETER:
            return True
        if self._method is None or name in self._of_model() or name not in self._known():
            return False
        usual = self._method.switches.get(name, self._method.defaults.get(name))
        holds = self._outer.get(name, usual) if isinstance(self._outer, dict) else usual
        return value is not None and value == holds

    def _known(self) -> Set[str]:
        """The parameters of the method."""
        return _parameters_of(self._method) if self._method is not None else set()

    def _of_model(self) -> Set[str]:
        """Those that a model has a value of its own for."""
        return {*self._method.per_model, *self._method.unused} if self._method is not None else set()

    def _add(self, path: str, message: str) -> None:
        self.problems.append(Problem(path=path, message=message))

    def _pass(self, key: str, path: str, why: str) -> None:
        self._passed.setdefault((key, _PASSED_OVER + why), []).append(path)


def _meant(key: str, level: str) -> str | None:
    """The key of a level that `key` is another word for."""
    return next((name for name in _OTHER_WORDS.get(key.lower(), ()) if name in _LEVELS[level]), None)


def _whole_name(part: Mapping[Any, Any]) -> str:
    """The name of a model with the revision and the adapter that stand beside it."""
    model, revision = part.get("model", "NAME"), part.get("revision")
    whole = {"path": model, "revision": revision} if revision else model
    name = as_text({"model": whole, "lora": part.get("lora") or part.get("adapter")})
    return name if isinstance(name, str) else "NAME@REVISION+ADAPTER"


def _place(key: str) -> str | None:
    """Where a key means something; None if nowhere."""
    if key == "layer_range":
        return "slices[].sources[]; to merge some layers of a model, write slices instead of models"
    return " or ".join(level for level, keys in _LEVELS.items() if key in keys) or None


def _parameters_of(method: Method) -> Set[str]:
    return {*method.per_model, *method.unused, *method.shared, *method.numerics, *method.switches}


def _anywhere() -> Set[str]:
    """The parameters of all methods."""
    return {name for method in METHODS.values() for name in _parameters_of(method)}


def _mappings(parts: object) -> Iterator[tuple[int, dict[Any, Any]]]:
    for index, part in enumerate(parts if isinstance(parts, list) else []):
        if isinstance(part, dict):
            yield index, part


def _filters(setting: object, path: str) -> Iterator[tuple[dict[Any, Any], str]]:
    """The filters of a parameter, with their places."""
    if isinstance(setting, dict):
        yield setting, path
    for index, one in _mappings(setting):
        yield one, f"{path}[{index}]"
