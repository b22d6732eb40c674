"""An API server in memory with one EvoMerge, and pods whose tasks are answered at once: for tests of what the operator
makes of a run from look to look. What a real cluster does is for the tests that have one."""

import asyncio
import base64
import copy
import gzip
import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from random import Random
from typing import Any, cast

from evomerge_contract.note import write_note
from evomerge_contract.report import Report
from evomerge_contract.task import Task, task_adapter
from evomerge_operator.kube.errors import GoneError
from evomerge_operator.kube.gateway import Gateway
from evomerge_operator.kube.objects import CONFIG_MAPS, STAGE_LABEL, TASKS, Parent, candidate_name
from evomerge_operator.services.known import Known
from evomerge_operator.services.reconcile import Reconciler
from kube_documents import DEFAULTS, NOW, Document, pod, terminated, time
from one_look import Cluster, InOneProcess

LOOKS = 500
_PAGE = 4


class MemoryCluster(Cluster):
    """Objects by name, as the operator has written them."""

    def __init__(self, made: Document, answer: Callable[[Task], Report], seed: int = 0) -> None:
        self.made, self._answer, self._random = made, answer, Random(seed)
        self.candidates: dict[str, Document] = {}
        self.config_maps: dict[str, Document] = {}
        self.running: dict[str, Document] = {}
        self.ended: dict[str, Document] = {}
        """Pods by the names of their Jobs."""
        self.tasks: list[Task] = []
        """All that were carried out, in that order."""
        self._uids = 0

    def carry_out(self) -> None:
        """Some of the running pods end, in any order."""
        waiting = [name for name in self.running if name not in self.ended]
        for name in self._random.sample(waiting, k=min(len(waiting), self._random.randint(1, 3))):
            job = self.running[name]
            tasks = self._tasks_of(job)
            self.tasks += tasks
            note = write_note(tasks, [self._answer(task) for task in tasks])
            self.ended[name] = pod(
                job, uid=f"pod-of-{name}", phase="Succeeded", worker=terminated(0, "Completed", note)
            )

    def _tasks_of(self, job: Document) -> list[Task]:
        text = job["spec"]["template"]["metadata"]["annotations"].get(TASKS)
        if text is None:
            long = job["metadata"]["annotations"][CONFIG_MAPS].split(",")[0]
            text = self.config_maps[long]["data"]["tasks.jsonl"]
        return [task_adapter.validate_json(line) for line in text.splitlines()]

    def facts(self) -> Document:
        """What the operator gave the export of the run."""
        parts = [b["binaryData"] for name, b in sorted(self.config_maps.items()) if "-facts-" in name]
        packed = b"".join(base64.b64decode(content) for part in parts for content in part.values())
        found: Document = json.loads(gzip.decompress(packed))
        return found

    def _stored(self, document: Document) -> Document:
        self._uids += 1
        made = copy.deepcopy(document)
        made["metadata"] |= {"uid": f"uid-{self._uids}", "resourceVersion": "1", "creationTimestamp": time(0)}
        return made

    async def evomerge(self, *_: object) -> Document:
        return self.made

    async def set_status(self, document: Document, patch: Document) -> Document:
        self.made = await super().set_status(document, json.loads(json.dumps(patch)))
        return self.made

    async def config_map(self, namespace: str, name: str) -> Document:
        if name not in self.config_maps:
            raise GoneError(f"{namespace}/{name}")
        return self.config_maps[name]

    async def create_config_map(self, config_map: Document, _: Parent) -> Document:
        return self.config_maps.setdefault(config_map["metadata"]["name"], self._stored(config_map))

    async def delete_config_map(self, _: str, name: str) -> None:
        if "-facts-" not in name:  # kept for `facts`
            self.config_maps.pop(name, None)

    async def jobs(self, _: Parent) -> list[Document]:
        return list(self.running.values())

    async def pods(self, _: Parent) -> list[Document]:
        return list(self.ended.values())

    async def check_job(self, _: Document) -> None: ...

    async def create_job(self, job: Document, _: Parent) -> Document:
        return self.running.setdefault(job["metadata"]["name"], self._stored(job))

    async def delete_job(self, *names: object) -> None:
        self.running.pop(str(names[1]), None)
        self.ended.pop(str(names[1]), None)

    async def events_about(self, *_: object) -> list[Document]:
        return []

    async def candidate_page(self, _: Parent, following: str, *, stage: str) -> bytes:
        labelled = [d for _, d in sorted(self.candidates.items())]
        of_stage = [d for d in labelled if stage == d["metadata"]["labels"][STAGE_LABEL]]
        first = int(following or 0)
        rest = str(first + _PAGE) if first + _PAGE < len(of_stage) else ""
        return json.dumps({"metadata": {"continue": rest}, "items": of_stage[first : first + _PAGE]}).encode()

    async def candidate(self, parent: Parent, stage: str, index: int) -> Document:
        return self.candidates[candidate_name(parent, stage, index)]

    async def create_candidate(self, candidate: Document, _: Parent) -> Document:
        there = self.candidates.setdefault(candidate["metadata"]["name"], self._stored(candidate))
        assert there["spec"] == candidate["spec"]
        return there

    async def tell_candidate(self, candidate: Document, status: Document) -> Document:
        name = candidate["metadata"]["name"]
        self.candidates[name] = self.candidates[name] | {"status": json.loads(json.dumps(status))}
        return self.candidates[name]


def run_to_end(cluster: MemoryCluster, *, restarts: bool = False) -> Known:
    """Look until the EvoMerge has ended; with `restarts` each look is that of an operator that has just begun."""
    return asyncio.run(_run_to_end(cluster, restarts))


async def _run_to_end(cluster: MemoryCluster, restarts: bool) -> Known:
    reconciler = Reconciler(cast(Gateway, cluster), DEFAULTS, InOneProcess())
    known = Known.of(cluster.made)
    for look in range(LOOKS):
        if restarts:
            known = Known.of(cluster.made)
        known.observed_at = None  # everything is looked at anew: nothing is told by watches
        await reconciler.reconcile(known, NOW + timedelta(seconds=look))
        if known.status.phase in ("Succeeded", "Failed"):
            return known
        cluster.carry_out()
    raise AssertionError(f"it has not ended after {LOOKS} looks: {known.status}")


def log_of(cluster: MemoryCluster) -> Sequence[Any]:
    """What the MergeCandidates hold, but for what may differ between two runs."""
    varying = ("attempts", "seconds", "host")
    return [
        (name, document["spec"], {k: v for k, v in document["status"].items() if k not in varying})
        for name, document in sorted(cluster.candidates.items())
    ]
