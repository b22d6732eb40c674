"""Tiny models that know different tokens, for tests."""

from tiny_models import SPECIALS, VOCABULARY

OF_BASE = VOCABULARY
OF_A = [*reversed(VOCABULARY[4:-3]), *SPECIALS, "é", "«", "»", "ö", "<tool>"]
"""Other numbers, the last three characters missing, five tokens that the base lacks."""
OF_B = [*SPECIALS, "ß", *VOCABULARY[5:], "é", "<think>", "ö"]
"""One character missing, two tokens that only `OF_A` has too, two of its own."""
