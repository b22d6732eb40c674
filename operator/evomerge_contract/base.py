"""What every value that crosses a border has in common: frozen, typed, unknown fields refused."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

GRID_DECIMALS = 6
GRID = 10.0**-GRID_DECIMALS
"""Genes and recipe values lie on a grid of 1e-6, so that their decimal text is exact."""

Real = Annotated[
    str,
    StringConstraints(pattern=r"^-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,6})?$", max_length=14, strict=True),
]
"""A real number as text, at most six digits before and after the point: "0.5".

Text, because Kubernetes keeps no floats it can be trusted with and a Quantity rounds."""

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=30)]
StageName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=12)]
Digest = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]


class Contract(BaseModel):
    """A frozen record; camelCase on the wire, snake_case in Python."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, serialize_by_alias=True
    )

    def wire(self) -> dict[str, Any]:
        """The record as plain JSON values; fields that are None are left out."""
        return self.model_dump(mode="json", exclude_none=True)


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, NaN and infinity refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: Any) -> str:
    """`sha256:<hex>` of the canonical JSON of `value`."""
    return "sha256:" + hashlib.sha256(canonical_json(value).encode()).hexdigest()
