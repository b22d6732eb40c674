"""Sets of names as patterns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge_contract.name_pattern import PatternError, compress, expand
from published_names import llava, mixtral, sdxl_unet

PARTS = st.one_of(
    st.sampled_from(["a", "b", "c", "weight", "bias", "0", "1", "2", "3", "9", "10", "11", "007", "1000000000000"]),
    st.text(st.characters(exclude_characters="{},.", codec="utf-8"), min_size=1, max_size=4),
)
NAMES = st.sets(st.lists(PARTS, min_size=1, max_size=5).map(".".join), min_size=1, max_size=40)


@given(NAMES)
def test_a_pattern_stands_for_exactly_its_names(names: set[str]) -> None:
    pattern = compress(names)
    assert pattern is not None
    assert expand(pattern) == sorted(names)


@pytest.mark.parametrize("names", [sdxl_unet(), mixtral(8), mixtral(256, layers=4), llava()])
def test_names_of_published_models_make_short_patterns(names: list[str]) -> None:
    pattern = compress(names)
    assert pattern is not None
    assert len(pattern) < 2500
    assert expand(pattern) == names


def test_numbers_are_written_as_a_range_and_what_is_alike_once() -> None:
    names = [f"h.{i}.{m}.{t}" for i in range(12) for m in ("k", "q") for t in ("bias", "weight")]
    assert compress([*names, "h.12", "norm"]) == "{h.{{0..11}.{k,q}.{bias,weight},12},norm}"


def test_a_name_may_be_the_beginning_of_another() -> None:
    assert compress(["a", "a.b", "a.c.d"]) == "a{,.b,.c.d}"
    assert expand("a{,.b,.c.d}") == ["a", "a.b", "a.c.d"]


@pytest.mark.parametrize("name", ["", "a..b", ".a", "a{b", "a,b", "a.}", ".".join("a" * 51)])
def test_names_that_a_pattern_cannot_hold_have_none(name: str) -> None:
    assert compress(["model.norm", name]) is None


@pytest.mark.parametrize("text", ["a{b", "a}", "a,b", "{", "{a}}", "{a,b}c{"])
def test_a_text_that_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(PatternError, match=r"a brace or comma stands alone|never closed"):
        expand(text)


@pytest.mark.parametrize(
    "text",
    ["{0..999999999}", "{0..9}" * 20, "{a,b}" * 40, "{}" * 10_000 + "{0..999}", "x" * 100_000 + "{0..99}"],
    ids=["range", "product of ranges", "product", "empty pieces", "long names"],
)
def test_a_pattern_of_too_many_names_is_refused_before_they_are_made(text: str) -> None:
    with pytest.raises(PatternError, match="more names than any model has tensors"):
        expand(text)


def test_a_pattern_that_nests_too_deep_is_refused() -> None:
    with pytest.raises(PatternError, match="more than 50 braces in one another"):
        expand("{" * 10_000)
