"""The recipe: a mergekit configuration, as people know, share and publish it (snake_case, mergekit's names)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, field_validator, model_validator
from pydantic_core import PydanticCustomError

from evomerge_contract.base import digest_of

_TRUTHS = dict.fromkeys(("true", "yes", "on", "t", "y"), True) | dict.fromkeys(("false", "no", "off", "f", "n"), False)


def _truth(value: Any) -> Any:
    """A truth value that is written as text, as mergekit takes it."""
    return _TRUTHS.get(value.lower(), value) if isinstance(value, str) else value


Scalar = Annotated[StrictBool | float, BeforeValidator(_truth)]  # strict, or 1.0 would be read as true
_Gradient = Annotated[list[Annotated[float, BeforeValidator(_truth)]], Field(min_length=1)]
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


_Filters = Annotated[list[Filtered], Field(min_length=1)]
Setting = Annotated[Scalar | _Filters | _Gradient, Field(union_mode="left_to_right"), BeforeValidator(_listed)]
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


UNION = "union"
"""The `tokenizer_source` that means the tokens of all models."""
BASE_TOKENIZER = "base"
"""The `tokenizer_source` that means the vocabulary of the base_model, else of the first model."""


class TokenizerSettings(_Recipe):
    """mergekit's longer way to write `tokenizer_source`."""

    source: str = UNION
    pad_to_multiple_of: int | None = Field(None, ge=1)
    tokens: None = None

    @field_validator("tokens", mode="before")
    @classmethod
    def _no_tokens(cls, value: object) -> None:
        if value:
            raise PydanticCustomError(
                "unsupported",
                "embeddings of single tokens cannot be chosen here; leave tokens out, and each token has the embedding "
                "of the models that know it",
            )


_NAMING = ("model", "base_model", "config_source")


class Recipe(_Recipe):
    """Exactly one of `models` and `slices` is given. What is written is `out_dtype`, or else `dtype`; what is computed
    in is always float32.

    `tokenizer_source` gives the result's vocabulary: `union`, `base`, or the name of a model. Without it all models
    must have the same tokens.
    `config_source`, which mergekit passes over, names the model whose config the result has where those of the models
    differ in what they compute. Without it they must not.
    """

    merge_method: str
    models: list[RecipeModel] | None = None
    slices: list[Slice] | None = None
    base_model: str | None = None
    parameters: Settings | None = None
    dtype: _DType | None = None
    out_dtype: _DType | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerSettings | None = None
    config_source: str | None = None

    @model_validator(mode="after")
    def _one_tokenizer(self) -> "Recipe":
        if self.tokenizer_source is not None and self.tokenizer is not None:
            raise PydanticCustomError("unsupported", "give either tokenizer_source or tokenizer, not both")
        return self

    @property
    def vocabulary(self) -> str | None:
        """Whose tokens the result has: `union`, `base`, the name of a model, or None: those that all models share."""
        return self.tokenizer_source if self.tokenizer is None else self.tokenizer.source

    def with_vocabulary(self, source: str) -> "Recipe":
        """The recipe with the vocabulary of `source`."""
        if self.tokenizer is None:
            return self.model_copy(update={"tokenizer_source": source})
        return self.model_copy(update={"tokenizer": self.tokenizer.model_copy(update={"source": source})})

    def renamed(self, names: Mapping[str, str]) -> "Recipe":
        """The recipe with other names for its models, where `names` has them."""
        plain = self.model_dump(exclude_none=True)
        slices = plain.get("slices", [])
        for part in (
            plain,
            *plain.get("models", []),
            *slices,
            *(source for one in slices for source in one["sources"]),
        ):
            part.update({key: names.get(part[key], part[key]) for key in _NAMING if key in part})
        recipe, giver = Recipe.model_validate(plain), self.vocabulary
        if giver is None or giver in (UNION, BASE_TOKENIZER):
            return recipe
        return recipe.with_vocabulary(names.get(giver, giver))

    @property
    def merged_models(self) -> list[str]:
        """Every model whose weights take part, once."""
        slices = self.slices or []
        named = [m.model for m in self.models or []] + [s.model for one in slices for s in one.sources]
        bases = [base for base in (self.base_model, *(one.base_model for one in slices)) if base is not None]
        return list(dict.fromkeys([*named, *bases]))

    @property
    def named_models(self) -> list[str]:
        """Every model that the recipe names, once; those whose vocabulary and config the result has are models too."""
        givers = [] if self.vocabulary in (None, UNION, BASE_TOKENIZER) else [str(self.vocabulary)]
        givers += [] if self.config_source is None else [self.config_source]
        return list(dict.fromkeys([*self.merged_models, *givers]))

    def plain(self) -> dict[str, Any]:
        """The recipe as plain values, as mergekit's YAML has them."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def digest(self) -> str:
        """Digest of the recipe, whatever the order of its keys."""
        return digest_of(self.plain())
