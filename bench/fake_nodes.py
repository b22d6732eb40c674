"""What the operator's benches share: nodes that KWOK plays, and the operator as a process."""

import copy
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import api

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/cluster"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests/cluster/light"))

import light_answers

from evomerge_contract.manifest import EvoMerge
from evomerge_contract.report import PrepareResult
from evomerge_operator.kube.jobs import Attempt, Defaults, make_job
from evomerge_operator.kube.objects import Parent
from evomerge_operator.plan.run import prepare_task
from lab.places import BIN, KUBECONFIG, REPOSITORY

HERE = Path(__file__).parent
NODES = 4
_TAINT = {"key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule"}
_TEMPLATE = {"spec": {"nodeSelector": {"type": "kwok"}, "tolerations": [{"key": _TAINT["key"], "operator": "Exists"}]}}
_STAGE = """\
apiVersion: kwok.x-k8s.io/v1alpha1
kind: Stage
metadata: {name: ready}
spec:
  resourceRef: {apiGroup: v1, kind: Node}
  selector:
    matchExpressions:
      - key: '.status.conditions.[] | select(.type == "Ready") | .status'
        operator: NotIn
        values: ["True"]
  next:
    statusTemplate: |
      conditions:
        - {type: Ready, status: "True", reason: KubeletReady, message: played, lastHeartbeatTime: {{ Now | Quote }}}
"""
"""KWOK renews the nodes' Leases and says that they are ready; their pods are the stand-in's."""
Document = dict[str, Any]


async def prepare(namespace: str) -> None:
    """The kinds, a namespace and the nodes; a namespace that is there is emptied."""
    _kubectl("apply", f"--filename={REPOSITORY / 'crds'}")
    _kubectl("wait", "--for=condition=Established", "crd", "--all")
    _kubectl("get", "evomerges,mergecandidates", "--all-namespaces")  # waits while their storage is made ready
    _kubectl("delete", "namespace", namespace, "--ignore-not-found")
    _kubectl("create", "namespace", namespace)
    _kubectl("wait", "--for=create", "serviceaccount/default", f"--namespace={namespace}")
    async with api.session() as session:
        for number in range(NODES):
            await _make_node(session, f"fake-{number}")


def _kubectl(*arguments: str) -> None:
    subprocess.run(["kubectl", *arguments], check=True, stdout=subprocess.DEVNULL)


async def _make_node(session: api.Session, name: str) -> None:
    node = {
        "metadata": {"name": name, "labels": {"type": "kwok"}, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "spec": {"taints": [_TAINT]},
    }
    room = {"cpu": "1000", "memory": "1000Gi", "pods": "1000"}
    ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "played"}
    await api.request(session, "DELETE", f"/api/v1/nodes/{name}", missing=True)
    await api.request(session, "POST", "/api/v1/nodes", node)
    status = {"status": {"capacity": room, "allocatable": room, "conditions": [ready]}}
    await api.request(session, "PATCH", f"/api/v1/nodes/{name}/status", status)


@contextmanager
def kubelets(seconds: float) -> Iterator[None]:
    """KWOK for the nodes and the stand-in for their pods, which work for so long."""
    with tempfile.TemporaryDirectory() as folder:
        stage = Path(folder) / "stages.yaml"
        stage.write_text(_STAGE)
        kwok = [
            *(BIN / "kwok", f"--config={stage}", f"--kubeconfig={KUBECONFIG}", "--manage-all-nodes=false"),
            *("--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake", "--node-lease-duration-seconds=40"),
        ]
        with (Path(folder) / "kwok.log").open("wb") as log:
            nodes = subprocess.Popen(kwok, stdout=log, stderr=log)
        command = [sys.executable, HERE / "pod_stand_in.py", f"--seconds={seconds}"]
        pods = subprocess.Popen(command)
        try:
            yield
        finally:
            for process in (nodes, pods):
                process.terminate()
                process.wait()


@contextmanager
def operator(namespace: str) -> Iterator[int]:
    """An operator for the namespace, with a service account's usual rights and an administrator's besides; its pid."""
    environment = {
        "KUBECONFIG": str(KUBECONFIG),
        "POD_NAME": "bench",
        "POD_NAMESPACE": namespace,
        "EVOMERGE_NAMESPACES": namespace,
        "EVOMERGE_WORKER_IMAGE": "none:0",
        "EVOMERGE_WORKER_TEMPLATE": json.dumps(_TEMPLATE),
        "EVOMERGE_PORT": "8089",
        "PATH": os.environ["PATH"],
    }
    log = Path(tempfile.gettempdir()) / "evomerge-bench-operator.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "evomerge-operator"], env=environment, stdout=file, stderr=file
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def cpu_seconds(pid: int) -> float:
    """The CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def path(namespace: str) -> str:
    """Where EvoMerges are."""
    return f"/apis/evomerge.dev/v1alpha1/namespaces/{namespace}/evomerges"


def manifest(name: str, namespace: str, candidates: int, parallelism: int) -> Document:
    """A search of two made-up models of four layers: twelve genes."""
    jsonl = {split: f"s3://data/{split}.jsonl" for split in ("search", "select", "test")}
    return {
        "apiVersion": "evomerge.dev/v1alpha1",
        "kind": "EvoMerge",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "models": [{"name": model, "uri": f"s3://models/{model}"} for model in ("one", "two")],
            "storage": {"s3": {"endpoint": "http://nowhere", "region": "us-east-1", "secretName": "none"}},
            "evaluation": {"objectives": [{"name": "sums", "jsonl": jsonl, "metric": "exact_match"}]},
            "stages": [
                {
                    "name": "ps",
                    "parameterSpace": {
                        "method": "linear",
                        "groups": {"layers": 4},
                        "parameters": {"weight": {"min": "0", "max": "1"}},
                    },
                    "search": {"candidates": candidates, "lag": min(1024, 2 * parallelism), "seed": 7},
                }
            ],
            "parallelism": parallelism,
            "worker": {"resources": {"requests": {"cpu": "10m"}}},
            "export": {"uri": f"s3://out/{name}"},
        },
    }


def prepared(of: EvoMerge) -> PrepareResult:
    """What prepare finds for a manifest."""
    return light_answers.prepare(prepare_task(of, "s3://out"))


def bare_job(name: str, namespace: str, labels: dict[str, str]) -> Document:
    """A Job as the operator makes them, without a task."""
    spec = EvoMerge.model_validate(manifest("bare", namespace, 1, 1)).spec
    attempt = Attempt(step="ps", kind="evaluate", indices=(0,), attempts=(1,))
    job = make_job(Parent(namespace, "bare", "0" * 32), spec, attempt, [], Defaults("none:0", _TEMPLATE))
    job["metadata"] = {"name": name, "labels": labels}
    return copy.deepcopy(job)
