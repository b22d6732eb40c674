"""Genomes as text: both forms give back the very numbers, and the short one is what it always was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evomerge_contract.base import GRID_DECIMALS
from evomerge_contract.genome import PACKED_ABOVE, genome_of, genome_text
from evomerge_contract.status import GenomeText

LONGEST = 999_999_999_999
"""The largest whole number of the grid that a decimal of a manifest reaches: 999999.999999."""
gene = st.integers(-LONGEST, LONGEST).map(lambda units: units / 10**GRID_DECIMALS)
near = st.integers(-2_000_000, 2_000_000).map(lambda units: units / 10**GRID_DECIMALS)
text: TypeAdapter[str] = TypeAdapter(GenomeText)


@given(st.lists(gene, min_size=1, max_size=12).map(tuple))
def test_a_short_genome_comes_back_from_its_decimals(genome: tuple[float, ...]) -> None:
    written = text.validate_python(genome_text(genome))
    assert ":" not in written
    assert genome_of(written) == genome


@given(st.lists(gene | near, min_size=1, max_size=12), st.sampled_from([near, gene]), st.data())
def test_a_long_genome_comes_back_from_its_packed_form(
    first: list[float], other: st.SearchStrategy[float], data: st.DataObject
) -> None:
    genome = (*first, *[data.draw(other)] * PACKED_ABOVE)
    written = text.validate_python(genome_text(genome))
    assert written[:2] in ("3:", "6:")
    assert genome_of(written) == genome


@pytest.mark.parametrize(
    ("genome", "written"),
    [
        ((0.5,), "0.5"),
        ((0.5, -0.25, 1.0), "0.5,-0.25,1"),
        ((0.0, -0.0), "0,0"),
        ((0.1, 0.123457, -1e-06, 100000.0), "0.1,0.123457,-0.000001,100000"),
        ((0.25,) * PACKED_ABOVE, ",".join(["0.25"] * PACKED_ABOVE)),
    ],
)
def test_decimals_are_those_that_version_0_1_0_wrote(genome: tuple[float, ...], written: str) -> None:
    assert genome_text(genome) == written
    assert genome_of(written) == genome


@pytest.mark.parametrize(
    ("gene", "width"), [(8.388607, 3), (-8.388608, 3), (8.388608, 6), (-8.388609, 6), (999999.999999, 6)]
)
def test_as_few_bytes_a_gene_are_taken_as_the_widest_needs(gene: float, width: int) -> None:
    genome = (gene, *[0.5] * PACKED_ABOVE)
    written = genome_text(genome)
    assert written.startswith(f"{width}:")
    assert len(written) == pytest.approx(len(genome) * width * 4 / 3, abs=6)
    assert genome_of(written) == genome


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("", "could not convert string to float"),
        ("0.5,", "could not convert string to float"),
        ("half", "could not convert string to float"),
        ("3:AAA", "padding"),
        ("3:AA AA", "base64"),
        ("3:AAA=", "a packed genome of 2 bytes, 3 each"),
        ("6:AAAA", "a packed genome of 3 bytes, 6 each"),
        ("4:AAAAAAAA", "a packed genome of 6 bytes, 4 each"),
        (":AAAA", "invalid literal"),
    ],
)
def test_what_is_no_genome_is_refused(wrong: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        genome_of(wrong)


@pytest.mark.parametrize("wrong", ["", "0.5,", "1e-3", "0.1234567", "-", "4:AAAA", "3:", "3:AA AA", "0.5\n"])
def test_what_a_mergecandidate_may_not_hold_is_refused_by_its_schema(wrong: str) -> None:
    with pytest.raises(ValidationError):
        text.validate_python(wrong)
