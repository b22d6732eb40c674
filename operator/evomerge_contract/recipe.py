"""The recipe: a mergekit configuration, as people know, share and publish it (snake_case, mergekit's names)."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from evomerge_contract.base import digest_of

_TRUTHS = dict.fromkeys(("true", "yes", "on", "t", "y"), True) | dict.fromkeys(("false", "no", "off", "f", "n"), False)


def _truth(value: Any) -> Any:
    """A truth value that is written as text, as mergekit takes it."""
    return _TRUTHS.get(value.lower(), value) if isinstance(value, str) else value


Scalar = Annotated[StrictBool | float, BeforeValidator(_truth)]  # strict, or 1.0 would be read as true
Gradient = Annotated[list[Annotated[float, BeforeValidator(_truth)]], Field(min_length=1)]
DTypeName = Literal["float32", "float16", "bfloat16"]
_DType = Annotated[DTypeName, BeforeValidator(lambda value: str(value).removeprefix("torch."))]


class _Recipe(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Filtered(_Recipe):
    """A value for the tensors whose source name contains `filter`; without one, for all. The first match wins."""

    filter: str | None = None
    value: Scalar | Gradient


def _listed(setting: Any) -> Any:
    """One filter may stand alone, without a list around it."""
    return [setting] if isinstance(setting, dict | Filtered) else setting


_Filters = Annotated[list[Filtered], Field(min_length=1)]
Setting = Annotated[Scalar | _Filters | Gradient, Field(union_mode="left_to_right"), BeforeValidator(_listed)]
"""A scalar, a list of filters, or a gradient: numbers spread evenly over the layers and interpolated.

Numbers may be text: to YAML, 1e-5 is one.
"""
Parameters = dict[str, Setting]


class RecipeModel(_Recipe):
    """A whole model that takes part."""

    model: str
    parameters: Parameters | None = None


class SliceSource(_Recipe):
    """Layers [start, end) of a model."""

    model: str
    layer_range: tuple[int, int]
    parameters: Parameters | None = None


class Slice(_Recipe):
    """Consecutive layers of the result, merged from as many layers of each source.

    A `base_model` of its own takes the place of the recipe's.
    """

    sources: list[SliceSource] = Field(min_length=1)
    base_model: str | None = None
    parameters: Parameters | None = None


UNION = "union"
"""The `tokenizer_source` that means the tokens of all models."""
BASE_TOKENIZER = "base"
"""The `tokenizer_source` that means the vocabulary of the base_model, else of the first model."""


class ZeroEmbedding(_Recipe):
    """A row of zeros."""

    kind: Literal["zero"]


class TokenOf(_Recipe):
    """The row that a model has for one of its tokens: exactly one of `token` and `token_id` is given."""

    kind: Literal["model_token"]
    model: str
    token: str | None = None
    token_id: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _one_token(self) -> "TokenOf":
        if (self.token is None) == (self.token_id is None):
            raise PydanticCustomError("unsupported", "give either token or token_id")
        return self


class TokenEmbedding(_Recipe):
    """Whose row a token has in the models that do not know it; with `force` also in those that do.

    `source` is a model that knows the token, another token of a model, or zeros.
    """

    source: str | ZeroEmbedding | TokenOf
    force: bool = False

    @property
    def model(self) -> str | None:
        """The model whose row it is; None for zeros."""
        return self.source if isinstance(self.source, str) else getattr(self.source, "model", None)

    def renamed(self, names: Mapping[str, str]) -> "TokenEmbedding":
        """The same with another name for the model, where `names` has one."""
        if isinstance(self.source, str):
            return self.model_copy(update={"source": names.get(self.source, self.source)})
        if isinstance(self.source, TokenOf):
            model = names.get(self.source.model, self.source.model)
            return self.model_copy(update={"source": self.source.model_copy(update={"model": model})})
        return self


class TokenizerSettings(_Recipe):
    """mergekit's longer way to write `tokenizer_source`. Of `tokens`, those that the vocabulary lacks are added."""

    source: str = UNION
    pad_to_multiple_of: int | None = Field(None, ge=1)
    tokens: dict[str, TokenEmbedding] | None = None

    def renamed(self, names: Mapping[str, str]) -> "TokenizerSettings":
        """The same with other names for the models that give tokens their rows, where `names` has them."""
        tokens = self.tokens and {token: given.renamed(names) for token, given in self.tokens.items()}
        return self.model_copy(update={"tokens": tokens})


_NAMING = ("model", "base_model", "config_source")


class Recipe(_Recipe):
    """Exactly one of `models` and `slices` is given. What is written is `out_dtype`, or else `dtype`; what is computed
    in is always float32.

    `tokenizer_source` gives the result's vocabulary: `union`, `base`, or the name of a model. Without it all models
    must have the same tokens. `chat_template` is a template, the name of one, or `auto`: the one most models have.
    `config_source`, which mergekit passes over, names the model whose config the result has where those of the models
    differ in what they compute. Without it they must not.
    """

    merge_method: str
    models: list[RecipeModel] | None = None
    slices: list[Slice] | None = None
    base_model: str | None = None
    parameters: Parameters | None = None
    dtype: _DType | None = None
    out_dtype: _DType | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerSettings | None = None
    chat_template: str | None = None
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
        """The recipe with other names for its models, where `names` has them.

        `base` as the vocabulary is the model of that name where `names` has one; else it means the base_model.
        """
        plain = self.model_dump(exclude_none=True)
        slices = plain.get("slices", [])
        for part in (
            plain,
            *plain.get("models", []),
            *slices,
            *(source for one in slices for source in one["sources"]),
        ):
            part.update({key: names.get(part[key], part[key]) for key in _NAMING if key in part})
        recipe, donor = Recipe.model_validate(plain), self.vocabulary
        if recipe.tokenizer is not None:
            recipe = recipe.model_copy(update={"tokenizer": recipe.tokenizer.renamed(names)})
        if donor is None or donor == UNION:
            return recipe
        return recipe.with_vocabulary(names.get(donor, donor))

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
        donors = [] if self.vocabulary in (None, UNION, BASE_TOKENIZER) else [str(self.vocabulary)]
        donors += [] if self.config_source is None else [self.config_source]
        return list(dict.fromkeys([*self.merged_models, *donors]))

    def plain(self) -> dict[str, Any]:
        """The recipe as plain values, as mergekit's YAML has them."""
        return self.model_dump(mode="json", exclude_none=True)

    @property
    def digest(self) -> str:
        """Digest of the recipe, whatever the order of its keys."""
        return digest_of(self.plain())
