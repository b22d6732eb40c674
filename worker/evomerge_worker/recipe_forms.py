"""The other forms that mergekit has for what a recipe can say: one module of layers, models as mappings."""

from typing import Any

from evomerge_contract.report import Problem

_ONE_MODULE = "default"
"""mergekit's name for the only module of a language model."""
_HOLDERS = ("modules", _ONE_MODULE, "models", "slices", "sources", "tokenizer")
"""Keys below which models are named."""
_NAMES = ("model", "base_model", "tokenizer_source", "config_source")
_SEVERAL = (
    "is not done here: only models of one module are merged, which mergekit calls default; write its models or slices "
    "without modules"
)


def unwrapped(document: dict[Any, Any]) -> tuple[dict[Any, Any], list[Problem]]:
    """The document with models named by texts and without `modules`, and what keeps those from being taken out.

    A single module under another name is taken out too, so that what is wrong in it can be told at the same time.
    """
    plain = _as_texts(document)
    if "modules" not in plain:
        return plain, []
    modules = plain.pop("modules")
    if not modules:
        return plain, []
    module = next(iter(modules.values())) if isinstance(modules, dict) and len(modules) == 1 else None
    if not isinstance(module, dict):
        return plain, [Problem(path="recipe.modules", message=_SEVERAL)]
    problems = [] if _ONE_MODULE in modules else [Problem(path="recipe.modules", message=_SEVERAL)]
    if both := [key for key in ("models", "slices") if plain.get(key)]:
        return plain, [Problem(path="recipe.modules", message=f"give either {both[0]} or modules, not both")]
    parts = {key: module[key] for key in ("models", "slices") if key in module}
    outer, inner = plain.get("parameters"), module.get("parameters")
    if isinstance(inner, dict) and isinstance(outer, dict):
        parts["parameters"] = outer | {name: _within(setting, outer.get(name)) for name, setting in inner.items()}
    elif inner is not None:
        parts["parameters"] = inner
    return plain | parts, problems


def _within(setting: Any, outer: Any) -> Any:
    """A module's setting of a parameter that the recipe sets too: what no filter of it matches has the recipe's."""
    cases = _filters(setting)
    if cases is None or outer is None:
        return setting
    others = _filters(outer)
    return [*cases, *([{"value": outer}] if others is None else others)]


def _filters(setting: Any) -> list[Any] | None:
    """A setting's filters; None if it has none."""
    if isinstance(setting, dict):
        return [setting]
    return setting if isinstance(setting, list) and setting and isinstance(setting[0], dict) else None


def _as_texts(part: Any) -> Any:
    """`part` with every model that is written as a mapping named by a text, where one says the same."""
    if isinstance(part, list):
        return [_as_texts(item) for item in part]
    if not isinstance(part, dict):
        return part
    plain = {key: _as_texts(value) if key in _HOLDERS else value for key, value in part.items()}
    return plain | {key: as_text(plain[key]) for key in _NAMES if key in plain}


def as_text(model: Any) -> Any:
    """{model: …, lora: …}, each a text or {path: …, revision: …}, as model@revision+lora@revision."""
    if not isinstance(model, dict) or not set(model) <= {"model", "lora"} or "model" not in model:
        return model
    parts = [_path(part) for part in (model["model"], model.get("lora")) if part is not None]
    return "+".join(parts) if all(isinstance(part, str) for part in parts) else model


def _path(part: Any) -> Any:
    if not isinstance(part, dict) or not set(part) <= {"path", "revision"} or not isinstance(part.get("path"), str):
        return part
    return part["path"] if part.get("revision") is None else f"{part['path']}@{part['revision']}"
