"""mergekit as an oracle."""

from collections.abc import Iterator

import pytest

from oracle import Oracle, OracleError, ask_mergekit


@pytest.fixture(scope="session")
def oracle() -> Iterator[Oracle]:
    """The oracle. Fails where mergekit is not installed: parity that is not checked must not look checked."""
    try:
        with ask_mergekit() as ask:
            yield ask
    except OracleError as error:
        pytest.fail(str(error))
