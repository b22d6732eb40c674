"""Writing an EvoMerge's status: all of it passes through here."""

from evomerge_contract.status import EvoMergeStatus, StepCounters
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.services.known import Known


async def write_status(known: Known, gateway: Gateway, status: EvoMergeStatus) -> None:
    """Write a status where it differs from what is there."""
    before = known.document.get("status") or {}
    if status == EvoMergeStatus.model_validate(before):
        return
    wanted = status.wire()
    patch = dict.fromkeys(before.keys() - wanted.keys()) | wanted  # a merge patch removes what it names null
    known.saw_evomerge(await gateway.set_status(known.document, patch))


async def write_step(
    known: Known, gateway: Gateway, step: str, counters: StepCounters, changes: dict[str, object] | None = None
) -> None:
    """Write the counters of a step, and what else its attempt has changed, at once."""
    steps = {"steps": {**known.status.steps, step: counters}}
    await write_status(known, gateway, known.status.model_copy(update=(changes or {}) | steps))
