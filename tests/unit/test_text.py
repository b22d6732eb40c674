"""Figures as people read them."""

import pytest

from evomerge_contract.text import listing, score, seconds, seconds_of, signed, size


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (score(0.6384), "0.638"),
        (score(-12.345), "−12.35"),
        (score(-0.0001), "0.000"),
        (score(-2e7), "−2e+07"),
        (score(431.26), "431.3"),
        (signed(0.0123), "+0.012"),
        (signed(-0.5), "−0.500"),
        (signed(0.0), "0.000"),
        (seconds(0.0041), "4.1 ms"),
        (seconds(0.214), "0.21 s"),
        (seconds(59.99), "60.0 s"),
        (seconds(192), "3 min 12 s"),
        (seconds(7500), "2 h 5 min"),
        (size(999), "999 B"),
        (size(2_582_144), "2.58 MB"),
        (size(14_500_000_000), "14.5 GB"),
        (listing(["a"]), "a"),
        (listing(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_as_text(text: str, wanted: str) -> None:
    assert text == wanted


@pytest.mark.parametrize(("text", "value"), [("90s", 90), ("30m", 1800), ("72h", 259_200), ("7d", 604_800)])
def test_a_manifests_time_span_in_seconds(text: str, value: int) -> None:
    assert seconds_of(text) == value
