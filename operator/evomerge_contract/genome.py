"""Genomes as text. Genes lie on a grid of 1e-6, so both forms are exact.

Short genomes are decimals with commas between: "0.5,-0.25,1". Long ones are packed: the genes as whole numbers of the
grid, little-endian in as many bytes each as the text says before a colon, in base64: "3:IKEHADAw".
"""

import base64

from evomerge_contract.base import GRID_DECIMALS
from evomerge_contract.candidate import Genome

PACKED_ABOVE = 1000
"""Genomes of more genes are packed: decimals of the paper's 4,288 genes would take twice the room."""
_UNITS = 10**GRID_DECIMALS
_WIDTHS = (3, 6)
"""Bytes a gene: three reach to 8.388607, six further than a manifest's reals do."""


def genome_text(genome: Genome) -> str:
    """The text of a genome, as a MergeCandidate holds it."""
    if len(genome) <= PACKED_ABOVE:
        return ",".join(_decimal(gene) for gene in genome)
    units = [round(gene * _UNITS) for gene in genome]
    width = next(w for w in _WIDTHS if all(-(1 << (8 * w - 1)) <= unit < 1 << (8 * w - 1) for unit in units))
    raw = b"".join(unit.to_bytes(width, "little", signed=True) for unit in units)
    return f"{width}:{base64.b64encode(raw).decode()}"


def genome_of(text: str) -> Genome:
    """The genome that a text names.

    Raises:
        ValueError: it is the text of none.
    """
    width_text, packed, encoded = text.partition(":")
    if not packed:
        return tuple(float(part) for part in text.split(","))
    raw, width = base64.b64decode(encoded, validate=True), int(width_text)
    if width not in _WIDTHS or len(raw) % width:
        raise ValueError(f"a packed genome of {len(raw)} bytes, {width_text} each")
    numbers = (int.from_bytes(raw[i : i + width], "little", signed=True) for i in range(0, len(raw), width))
    return tuple(number / _UNITS for number in numbers)


def _decimal(gene: float) -> str:
    text = f"{gene:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
