"""A kubelet's stand-in for nodes that do not exist: every pod on them starts at once, works for so long, and ends well.

KWOK plays the nodes, but a stage of KWOK's cannot say what a worker says: a note on the very tasks of its pod, with a
checksum. So this process watches the pods, and writes their status as a kubelet would: Running when they are bound,
Succeeded with a note (by the contract's own `write_note`) when their time is over. Candidates take `--seconds`, with
made-up scores; prepare, select, conclude and export end at once; pods without tasks (a bare loop's) take `--seconds`
too. `--seconds inf`: candidates never end.
"""

import argparse
import asyncio
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import api

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/cluster/light"))

from light_answers import prepare, score

from evomerge_contract.answers import Result, success
from evomerge_contract.note import write_note
from evomerge_contract.report import ConcludeResult, EvaluateResult, ExportResult, SelectResult, SelectRow
from evomerge_contract.task import (
    ConcludeTask,
    EvaluateTask,
    ExportTask,
    PrepareTask,
    SelectTask,
    Task,
    task_adapter,
)
from evomerge_operator.kube.objects import TASKS
from evomerge_worker.evaluate.metrics import aggregate


async def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds = parser.parse_args().seconds
    seen: set[str] = set()
    async with api.session() as session, asyncio.TaskGroup() as group:
        async for event in api.watch(session, "/api/v1/pods"):
            pod = event["object"]
            bound = pod["spec"].get("nodeName", "").startswith("fake-")
            if event["type"] != "DELETED" and bound and pod["metadata"]["uid"] not in seen:
                seen.add(pod["metadata"]["uid"])
                group.create_task(_play(session, pod, seconds))


async def _play(session: api.Session, pod: dict[str, Any], seconds: float) -> None:
    lines = pod["metadata"].get("annotations", {}).get(TASKS, "").splitlines()
    tasks = [task_adapter.validate_json(line) for line in lines]
    started = _now()
    state: dict[str, Any] = {"running": {"startedAt": started}}
    await _say(session, pod, "Running", started, state)
    if not tasks or isinstance(tasks[0], EvaluateTask):
        await (asyncio.sleep(seconds) if math.isfinite(seconds) else asyncio.Event().wait())
    reports = [success(task, _result(task), seconds={"total": 5.0}) for task in tasks]
    note = write_note(tasks, reports) if tasks else ""
    ended = {"exitCode": 0, "reason": "Completed", "startedAt": started, "finishedAt": _now(), "message": note}
    await _say(session, pod, "Succeeded", started, {"terminated": ended})


async def _say(session: api.Session, pod: dict[str, Any], phase: str, started: str, state: dict[str, Any]) -> None:
    container = pod["spec"]["containers"][0]
    status = {"name": container["name"], "state": state, "ready": False, "restartCount": 0, "imageID": "", "image": ""}
    patch = {"status": {"phase": phase, "startTime": started, "containerStatuses": [status]}}
    metadata = pod["metadata"]
    path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
    await api.request(session, "PATCH", path, patch, missing=True)


def _result(task: Task) -> Result:
    match task:
        case PrepareTask():
            return prepare(task)
        case EvaluateTask():
            scores = {o.name: aggregate(o.metric, score(task.recipe, o, task.split)) for o in task.objectives}
            return EvaluateResult(scores=scores)
        case SelectTask():
            ranked = [SelectRow(index=f.index, fitness=f.fitness, score=f.fitness) for f in task.finalists]
            return SelectResult(ranked=ranked)
        case ConcludeTask():
            winner = task.finalists[0].index
            source = task.baselines[0].name
            return ConcludeResult(
                winner=winner, select=[], test=[], test_items=1, best_source=source, beats_best_source=False
            )
        case ExportTask():
            return ExportResult(out=task.out, files={})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


if __name__ == "__main__":
    asyncio.run(main())
