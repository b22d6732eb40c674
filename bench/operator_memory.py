"""operator.memory: the most memory that the operator takes, across a restart, with long searches under way.

Ten searches with 1,000 finished candidates each and 200 workers running: on a real API server, with KWOK's nodes and
`pod_stand_in.py` in the kubelets' place. The finished candidates are what the real planner asks for and makes of
scores; they are stored as the operator stores them. Then the operator starts, reads all of it, starts the 200; it is
killed, and a second one starts among them. The figure is the larger of the two peaks (VmHWM, of the
process and its helpers together), goal and reference are in MB of 10^6 bytes.
"""

import argparse
import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import api
import fake_nodes
from figures import figure
from sandboxed import inside_the_sandbox

from evomerge_contract.answers import success
from evomerge_contract.base import canonical_json
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import EvaluateResult
from evomerge_contract.status import CandidateStatus
from evomerge_operator.kube.candidates import candidate_document, finished_status
from evomerge_operator.kube.objects import Parent
from evomerge_operator.plan.next import next_keys
from evomerge_operator.plan.proposer import begin_stage
from evomerge_operator.plan.run import Run, default_names, make_run
from evomerge_operator.plan.settle import settle
from evomerge_operator.services.act import candidate_spec
from evomerge_operator.services.known import Known
from evomerge_operator.services.settle import BASELINES_KEY, LOCK_KEY, lock_name
from evomerge_operator.services.tasks import report_dir
from lab import binaries

NAMESPACE = "bench"
Document = dict[str, Any]


async def main() -> None:
    """Measure, inside the cluster's sandbox."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--searches", type=int, default=10)
    parser.add_argument("--finished", type=int, default=1000)
    parser.add_argument("--running", type=int, default=200)
    options = parser.parse_args()
    each = options.running // options.searches
    await fake_nodes.prepare(NAMESPACE)
    async with api.session() as session:
        for number in range(options.searches):
            await store_search(session, f"search-{number}", options.finished, each)
            print(f"search {number} is stored", flush=True)
        peaks = []
        with fake_nodes.kubelets(seconds=float("inf")):
            for _ in range(2):
                with fake_nodes.operator(NAMESPACE) as pid:
                    await all_run(session, options.searches * each)
                    await asyncio.sleep(75)  # and a periodic look at everything besides
                    peaks.append(peak_mb(pid))
                    print(f"{peaks[-1]:.0f} MB", flush=True)
                    os.kill(pid, signal.SIGKILL)
    figure(
        "operator_memory",
        "operator.memory",
        max(peaks),
        "MB",
        reference="absolute",
        goal="<= 300",
        before_and_after_the_restart=[round(p) for p in peaks],
        searches=options.searches,
        finished_each=options.finished,
        running=options.running,
    )


async def store_search(session: api.Session, name: str, finished: int, running: int) -> None:
    """A search in the middle: prepared, with so many candidates finished and none running."""
    manifest = fake_nodes.manifest(name, NAMESPACE, finished + 10 * running, running)
    made = await api.request(session, "POST", fake_nodes.path(NAMESPACE), manifest)
    known = Known.of(made)
    parsed = EvoMerge.model_validate(manifest)
    prepared = fake_nodes.prepared(parsed)
    names = default_names(parsed, prepared)
    run = make_run(parsed, prepared, report_dir(manifest["spec"]["export"]["uri"], known.parent), names)
    data = {LOCK_KEY: canonical_json(prepared.wire()), BASELINES_KEY: canonical_json(names)}
    lock = {"metadata": known.parent.metadata(lock_name(known)), "data": data}
    await api.request(session, "POST", f"/api/v1/namespaces/{NAMESPACE}/configmaps", lock)
    stored = list(finished_candidates(run, known.parent, finished))
    await api.gather([_store(session, *one) for one in stored])


def finished_candidates(run: Run, parent: Parent, count: int) -> Iterator[tuple[Document, Document]]:
    """The baselines and so many candidates, as the planner asks for and settles them: document and status."""
    proposer = begin_stage(run, 0)
    progress = run.stage.progress
    while len(progress.finished) < count:
        proposer.tell(progress.untold)
        progress.untold.clear()
        left = count - len(progress.finished) + len(run.baselines) - len(run.compared.finished)
        for start in proposer.starts(next_keys(run, set(), min(16, left)), {}):
            scores = {o.name: (start.key.index * 37 % 100) / 100 for o in start.task.objectives}
            seconds = {"wait": 1.5, "pull": 0.25, "load": 1.125, "merge": 0.5, "evaluate": 12.75, "total": 15.125}
            report = success(start.task, EvaluateResult(scores=scores), seconds=seconds, host="fake-0")
            candidate = settle(run, start, report)
            run.progress(start.key.stage).finish(candidate)
            status = finished_status(candidate, CandidateStatus(), run.report_dir).wire()
            yield candidate_document(parent, candidate_spec(run, start)), status


async def _store(session: api.Session, document: Document, status: Document) -> None:
    path = f"/apis/evomerge.dev/v1alpha1/namespaces/{NAMESPACE}/mergecandidates"
    await api.request(session, "POST", path, document)
    await api.request(session, "PATCH", f"{path}/{document['metadata']['name']}/status", {"status": status})


async def all_run(session: api.Session, count: int) -> None:
    """Until so many pods run."""
    running: set[str] = set()
    async for event in api.watch(session, f"/api/v1/namespaces/{NAMESPACE}/pods"):
        if event["object"]["status"].get("phase") == "Running":
            running.add(event["object"]["metadata"]["uid"])
        if len(running) >= count:
            return


def peak_mb(pid: int) -> float:
    """The most resident memory that a process and its helper processes have had, added up."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(_peak_mb(each) for each in (pid, *map(int, children)))


def _peak_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    inside_the_sandbox(lambda: asyncio.run(main()), lambda _: binaries.build_kwok())
