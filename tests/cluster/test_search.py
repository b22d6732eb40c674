"""A search in the cluster, from `kubectl apply` to its end."""

from collections.abc import Callable

from operator_process import OperatorProcess
from s3 import S3Server
from searches import Search, log_of


def test_a_search_succeeds(light_search: Callable[..., Search], operator: OperatorProcess, s3: S3Server) -> None:
    search = light_search("first")
    status = search.succeeds()
    assert status["candidates"] == "4/4"
    assert len(log_of(s3, search)) == 1 + 3 + 4
