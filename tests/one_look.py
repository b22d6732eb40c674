"""One look of the operator at an EvoMerge, and what its status says then."""

import asyncio
from typing import cast

from evomerge_contract.note import write_note
from evomerge_contract.report import Report
from evomerge_operator.kube.errors import GoneError
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.services.known import Known
from evomerge_operator.services.reconcile import Reconciler
from evomerge_operator.services.tasks import step_task
from kube_documents import DEFAULTS, NOW, Document, job, known_of, pod, terminated


def reported(made: Document, report: Report, code: int = 65) -> Known:
    """An EvoMerge whose first pod has ended with a note on this report."""
    known = known_of(made)
    note = write_note([step_task(known, "prepare")], [report])
    of_job = job(known, step="prepare", index=None)
    known.saw_job(of_job, deleted=False)
    known.saw_pod(pod(of_job, phase="Failed", worker=terminated(code, message=note)), deleted=False)
    return known


def message_of(known: Known) -> str | None:
    """The message of the status after one look."""
    known.observed_at = NOW
    asyncio.run(Reconciler(cast(Gateway, Cluster()), DEFAULTS).reconcile(known, NOW))
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
