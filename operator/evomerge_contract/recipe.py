"""The recipe: a mergekit configuration, as people know, share and publish it (snake_case, mergekit's names)."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool

from evomerge_contract.base import digest_of

_TRUTHS = dict.fromkeys(("true", "yes", "on", "t", "y"), True) | dict.fromkeys(("false", "no", "off", "f", "n"), False)


def _truth(value: Any) -> Any:
    """A truth value that is written as text, as mergekit takes it."""
    return _TRUTHS.get(value.lower(), value) if isinstance(value, str) else value


Scalar = Annotated[StrictBool | float, BeforeValidator(_truth)]  # strict, or 1.0 would be read as true
_Gradient = list[Annotated[float, BeforeValidator(_truth)]]
DTypeName = Literal["float32", "float16", "bfloat16"]
_DType = Annotated[DTypeName, BeforeValidator(lambda value: str(value).removeprefix("torch."))]


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Filtered(_Recipe):
    """A value for the tensors whose source name contains `filter`; without one, for all. The first match wins."""

    filter: str | None = None
    value: Scalar | _Gradient


def _listed(setting: Any) -> Any:
    """One filter may stand alone, without a list around it."""
    return [setting] if isinstance(setting, dict | Filtered) else setting


Setting = Annotated[Scalar | list[Filtered] | _Gradient, Field(union_mode="left_to_right"), BeforeValidator(_listed)]
"""A scalar, a list of filters, or a gradient: numbers spread evenly over the layers and interpolated.

Numbers may be text: to YAML, 1e-5 is one.
"""
Settings = dict[str, Setting]


class RecipeModel(_Recipe):
    """A whole model that takes part."""

    model: str
    parameters: Settings | None = None


class SliceSource(_Recipe):
    """Layers [start, end) of a model."""

    model: str
    layer_range: tuple[int, int]
    parameters: Settings | None = None


class Slice(_Recipe):
    """Consecutive layers of the result, merged from as many layers of each source.

    A `base_model` of its own takes the place of the recipe's.
    """

    sources: list[SliceSource] = Field(min_length=1)
    base_model: str | None = None
    parameters: Settings | None = None


class Recipe(_Recipe):
    """Exactly one of `models` and `slices` is given. `dtype` is what is computed in, `out_dtype` what is written."""

    merge_method: str
    models: list[RecipeModel] | None = None
    slices: list[Slice] | None = None
    base_model: str | None = None
    parameters: Settings | None = None
    dtype: _DType | None = None
    out_dtype: _DType | None = None

    @property
    def named_models(self) -> list[str]:
        """Every model that the recipe names, once."""
        slices = self.slices or []
        named = [m.model for m in self.models or []] + [s.model for one in slices for s in one.sources]
        bases = [self.base_model, *(one.base_model for one in slices)]
        return list(dict.fromkeys([*named, *(base for base in bases if base is not None)]))

    def plain(self) -> dict[str, Any]:
        """The recipe as plain values, as mergekit's YAML has them."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def digest(self) -> str:
        """Digest of the recipe, whatever the order of its keys."""
        return digest_of(self.plain())
