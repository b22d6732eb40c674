"""The Jobs that the operator makes: whole, as golden files, and how a manifest's pod template is laid over them.

`RENEW_GOLDEN=1 pytest tests/unit/test_jobs.py` writes the golden files anew; read the difference before it is kept.
"""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from documents import document
from evomerge_contract.manifest import EvoMergeSpec, PodTemplate
from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_contract.task import DataDigests, EvaluateTask, ExportTask, Source, task_adapter
from evomerge_operator.kube.jobs import (
    Attempt,
    Defaults,
    attempt_of,
    digest_of_text,
    gpus,
    make_job,
    tasks_config_map,
    tasks_text,
)
from evomerge_operator.kube.objects import DIGEST, TASKS, Parent
from evomerge_operator.kube.templates import merged, template_of

GOLDEN = Path(__file__).parent / "golden"
PARENT = Parent("team", "tiny", "0123abcd-0000-0000-0000-000000000000")
DEFAULTS = Defaults(image="registry.example.com/worker:1", template={})
S3 = {"endpoint": "https://s3.example.com", "secretName": "s3-credentials", "caConfigMap": "company-ca"}
QUEUE = "kueue.x-k8s.io/queue-name"


def spec_of(**spec: Any) -> EvoMergeSpec:
    return EvoMergeSpec.model_validate(document(**spec)["spec"])


def evaluate(index: int, models: int = 2) -> EvaluateTask:
    """A task as short as one can be, or with many models as long as wanted."""
    spec = spec_of()
    digest = "sha256:" + "0" * 64
    return EvaluateTask(
        sources=[Source(name=f"m{i}", uri=f"s3://models/m{i}", digest=digest) for i in range(models)],
        report_dir="s3://out/tiny/reports",
        timeout_seconds=60,
        trace={"stage": "ps", "index": index},
        recipe=Recipe(merge_method="linear", models=[RecipeModel(model="m0", parameters={"weight": index / 8})]),
        objectives=spec.evaluation.objectives,
        data={"sums": DataDigests(search=digest, select=digest, test=digest)},
    )


def attempt(*indices: int) -> Attempt:
    return Attempt(step="ps", kind="evaluate", indices=indices, attempts=tuple(1 + i % 2 for i in indices))


def job_of(spec: EvoMergeSpec, *indices: int, models: int = 2, defaults: Defaults = DEFAULTS) -> dict[str, Any]:
    tasks = [evaluate(index, models) for index in indices]
    return make_job(PARENT, spec, attempt(*indices), tasks, defaults)


FULL = {
    "storage": {"s3": S3, "huggingFace": {"secretName": "hub"}},
    "worker": {
        "image": "registry.example.com/worker:2",
        "resources": {"limits": {"nvidia.com/gpu": "2", "memory": "8Gi"}, "requests": {"cpu": "500m"}},
        "candidatesPerPod": 3,
        "cache": {"persistentVolumeClaim": {"claimName": "weights"}},
        "podTemplate": {
            "metadata": {"labels": {QUEUE: "gpus", "team": "merge"}, "annotations": {"example.com/sidecar": "no"}},
            "spec": {
                "serviceAccountName": "s3-reader",
                "imagePullSecrets": [{"name": "registry"}],
                "nodeSelector": {"gpu": "a100"},
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "priorityClassName": "low",
                "securityContext": {"fsGroup": 1000},
                "volumes": [{"name": "scratch", "emptyDir": {}}],
                "containers": [
                    {
                        "name": "worker",
                        "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}, {"name": "HOME", "value": "/scratch"}],
                        "volumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
                    },
                    {"name": "sidecar", "image": "registry.example.com/sidecar:1"},
                ],
            },
        },
    },
}


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("plain", job_of(spec_of(), 0)),
        ("full", job_of(spec_of(**FULL), 4, 5, 6)),
        ("host_path", job_of(spec_of(worker={"cache": {"hostPath": {"path": "/var/cache/evomerge"}}}), 1)),
        ("long_tasks", job_of(spec_of(worker={"cache": {"emptyDir": {"sizeLimit": "20Gi"}}}), 2, models=400)),
        (
            "export",
            make_job(
                PARENT,
                spec_of(),
                Attempt(step="export", kind="export", indices=(), attempts=(2,)),
                [
                    ExportTask.model_construct(
                        sources=[], report_dir="s3://out", out="s3://out/tiny", timeout_seconds=60, kind="export"
                    )
                ],
                DEFAULTS,
                facts=["tiny-0123abcd-facts-0000-11111111"],
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_is_as_it_was(name: str, job: dict[str, Any]) -> None:
    file = GOLDEN / f"job_{name}.yaml"
    text = yaml.safe_dump(job, sort_keys=False, width=120)
    if os.environ.get("RENEW_GOLDEN"):
        file.write_text(text)
    assert text == file.read_text()


def test_what_a_job_is_can_be_read_back_from_it() -> None:
    assert attempt_of(job_of(spec_of(), 4, 5, 6)) == attempt(4, 5, 6)
    assert attempt(5, 6).attempts == (2, 1)
    assert job_of(spec_of(), 5)["metadata"]["name"] == "tiny-0123abcd-ps-00005-a2"


def test_the_tasks_of_an_annotation_are_the_tasks() -> None:
    job = job_of(spec_of(), 4, 5)
    text = job["spec"]["template"]["metadata"]["annotations"][TASKS]
    assert [task_adapter.validate_json(line) for line in text.splitlines()] == [evaluate(4), evaluate(5)]
    assert job["metadata"]["annotations"][DIGEST] == digest_of_text(text)
    assert digest_of_text(text) in job["spec"]["template"]["spec"]["containers"][0]["command"]


@pytest.mark.parametrize(("bytes_", "inline"), [(32 * 1024, True), (32 * 1024 + 1, False)])
def test_tasks_go_into_a_config_map_from_32_kib_on(bytes_: int, inline: bool) -> None:
    config_map = tasks_config_map(PARENT, attempt(0), "x" * bytes_)
    assert (config_map is None) == inline


def test_long_tasks_lie_in_an_immutable_config_map_of_the_evomerge() -> None:
    job = job_of(spec_of(), 2, models=400)
    text = tasks_text([evaluate(2, 400)])
    config_map = tasks_config_map(PARENT, attempt(2), text)
    assert config_map is not None
    assert config_map["data"] == {"tasks.jsonl": text}
    assert config_map["immutable"] is True
    assert PARENT.owns(config_map)
    volumes = {volume["name"]: volume for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert volumes["task"]["configMap"] == {"name": config_map["metadata"]["name"]}
    assert TASKS not in job["spec"]["template"]["metadata"]["annotations"]


def test_the_name_of_a_config_map_tells_its_content() -> None:
    texts = ["x" * 40_000, "y" * 40_000]
    names = [m["metadata"]["name"] for t in texts if (m := tasks_config_map(PARENT, attempt(0), t))]
    assert len(set(names)) == 2


def test_a_queue_label_reaches_the_job_whose_suspension_is_the_queues_own() -> None:
    job = job_of(spec_of(**FULL), 0)
    assert job["metadata"]["labels"][QUEUE] == "gpus"
    assert job["spec"]["template"]["metadata"]["labels"][QUEUE] == "gpus"
    assert job["spec"].keys() == {"backoffLimit", "podReplacementPolicy", "template"}


def test_the_labels_by_which_jobs_are_found_are_not_the_manifests_to_change() -> None:
    wrong = {"app.kubernetes.io/managed-by": "me", "evomerge.dev/uid": "other", "evomerge.dev/stage": "other"}
    job = job_of(spec_of(worker={"podTemplate": {"metadata": {"labels": wrong}}}), 0)
    ours = {"app.kubernetes.io/managed-by": "evomerge", "evomerge.dev/uid": PARENT.uid, "evomerge.dev/stage": "ps"}
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert {key: labels[key] for key in ours} == ours


def test_the_operators_template_lies_beneath_the_manifests() -> None:
    below = {"metadata": {"labels": {"team": "platform", "cost": "1"}}, "spec": {"priorityClassName": "high"}}
    template = {"metadata": {"labels": {"team": "merge"}}, "spec": {"nodeSelector": {"gpu": "yes"}}}
    spec = spec_of(worker={"podTemplate": template})
    pod = job_of(spec, 0, defaults=Defaults("image", below))["spec"]["template"]
    assert (pod["metadata"]["labels"]["team"], pod["metadata"]["labels"]["cost"]) == ("merge", "1")
    assert (pod["spec"]["priorityClassName"], pod["spec"]["nodeSelector"]) == ("high", {"gpu": "yes"})


@pytest.mark.parametrize(
    ("below", "above", "together"),
    [
        ({"a": 1, "b": {"c": 2}}, {"b": {"d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": {"b": 1}}, {"a": 2}, {"a": 2}),
        (
            [{"name": "x", "value": "1"}, {"name": "y", "value": "2"}],
            [{"name": "y", "value": "3"}, {"name": "z", "value": "4"}],
            [{"name": "x", "value": "1"}, {"name": "y", "value": "3"}, {"name": "z", "value": "4"}],
        ),
        (
            [{"name": "cache", "mountPath": "/cache"}],
            [{"name": "cache", "mountPath": "/models", "readOnly": True}],
            [
                {"name": "cache", "mountPath": "/cache"},
                {"name": "cache", "mountPath": "/models", "readOnly": True},
            ],
        ),
        (
            [{"name": "metrics", "containerPort": 1}],
            [{"containerPort": 1, "hostPort": 2}],
            [{"name": "metrics", "containerPort": 1, "hostPort": 2}],
        ),
        ([{"key": "a"}], [{"key": "b"}], [{"key": "b"}]),
        (["a"], ["b", "c"], ["b", "c"]),
        ([], [{"name": "x"}], [{"name": "x"}]),
        ([{"name": "x"}], [], [{"name": "x"}]),
        ({"a": [1]}, {}, {"a": [1]}),
    ],
    ids=[
        "mappings are merged",
        "null stays",
        "another kind of value replaces",
        "named things are merged by name",
        "mounts are told apart by their path",
        "ports without a name by their number",
        "other lists are replaced",
        "texts are replaced",
        "into nothing",
        "nothing named takes nothing away",
        "nothing changes nothing",
    ],
)
def test_merged(below: Any, above: Any, together: Any) -> None:
    before = copy.deepcopy((below, above))
    assert merged(below, above) == together
    assert (below, above) == before


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, 0),
        ({"cpu": "4", "memory": "8Gi"}, 0),
        ({"nvidia.com/gpu": "2"}, 2),
        ({"amd.com/gpu": "1", "memory": "8Gi"}, 1),
        ({"nvidia.com/gpu": "2.0", "example.com/gpu": "2000m"}, 4),
    ],
)
def test_gpus_are_counted_by_their_limits(limits: dict[str, str], count: int) -> None:
    assert gpus(spec_of(worker={"resources": {"limits": limits}}).worker) == count


def test_the_operators_template_is_read_from_its_setting() -> None:
    text = '{"metadata":{"labels":{"team":"merge"}},"spec":{"tolerations":[]}}'
    assert PodTemplate.model_validate(template_of(text)).metadata.labels == {"team": "merge"}
    assert template_of("") == PodTemplate().wire()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "it: Invalid JSON"),
        ("[]", "it: Input should be"),
        ('{"containers":[]}', "containers: Extra inputs are not permitted"),
        ('{"metadata":{"labels":{"a":1}}}', "metadata.labels.a: Input should be a valid string"),
    ],
)
def test_a_template_that_is_none_is_an_error_in_words(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"EVOMERGE_WORKER_TEMPLATE must be a pod template as JSON, but {words}"):
        template_of(text)


@pytest.mark.parametrize(("limit", "number"), [("20Gi", 20 << 30), ("1.5M", 1_500_000), ("4096", 4096), ("2k", 2000)])
def test_a_worker_knows_how_much_its_cache_may_hold(limit: str, number: int) -> None:
    """Or else the pod would be evicted, attempt after attempt, and nobody told why."""
    made = job_of(spec_of(worker={"cache": {"emptyDir": {"sizeLimit": limit}}}), 0)
    environment = made["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {"name": "EVOMERGE_CACHE_BYTES", "value": str(number)} in environment
