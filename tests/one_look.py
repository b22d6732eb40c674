"""One look of the operator at an EvoMerge, and what its status says then."""

import asyncio
import pickle
from collections.abc import Callable
from typing import Any, TypeVar, cast

from evomerge_contract.note import write_note
from evomerge_contract.report import Report
from evomerge_contract.task import Task
from evomerge_operator.kube.errors import GoneError
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.planning.pool import Pool
from evomerge_operator.services.known import Known
from evomerge_operator.services.reconcile import Reconciler
from evomerge_operator.services.tasks import step_task
from kube_documents import DEFAULTS, NOW, Document, job, known_of, pod, terminated

R = TypeVar("R")


class InOneProcess(Pool):
    """Calls without a helper process (which takes seconds to start) and without limits."""

    async def call(self, caller: str, function: Callable[..., R], *arguments: Any) -> R:
        there: tuple[Callable[..., R], tuple[Any, ...]] = pickle.loads(pickle.dumps((function, arguments)))
        back: R = pickle.loads(pickle.dumps(there[0](*there[1])))
        return back


def reported(made: Document, report: Report, code: int = 65) -> Known:
    """An EvoMerge whose first pod has ended with a note on this report."""
    known = known_of(made)
    note = write_note([first_task(made)], [report])
    of_job = job(known, step="prepare", index=None)
    known.saw_job(of_job, deleted=False)
    known.saw_pod(pod(of_job, phase="Failed", worker=terminated(code, message=note)), deleted=False)
    return known


def first_task(made: Document) -> Task:
    """The prepare task of an EvoMerge."""
    return asyncio.run(step_task(known_of(made), "prepare", cast(Gateway, Cluster()), InOneProcess()))


def message_of(known: Known) -> str | None:
    """The message of the status after one look."""
    known.observed_at = NOW
    asyncio.run(Reconciler(cast(Gateway, Cluster()), DEFAULTS, InOneProcess()).reconcile(known, NOW))
    return known.status.message


class Cluster:
    """An API server with nothing but one EvoMerge, which takes what is written to its status."""

    async def set_status(self, document: Document, patch: Document) -> Document:
        status = (document.get("status") or {}) | patch
        version = int(document["metadata"]["resourceVersion"]) + 1
        metadata = document["metadata"] | {"resourceVersion": str(version)}
        return document | {"metadata": metadata, "status": {k: v for k, v in status.items() if v is not None}}

    async def config_map(self, namespace: str, name: str) -> Document:
        raise GoneError(f"{namespace}/{name}")

    async def delete_job(self, *_: object) -> None: ...

    async def post_event(self, *_: object) -> None: ...
