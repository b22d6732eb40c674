"""Stages that follow each other: the winner of each is written and is a model of the next."""

from pathlib import Path

import pytest

from documents import document, prepared, stage
from evomerge_contract.report import Flow, Report, RunReport
from evomerge_contract.task import ConcludeTask, EvaluateTask, ExportTask, PrepareTask, SelectTask, Source, Task
from evomerge_operator.errors import InputError
from evomerge_operator.kube.objects import STAGE_LABEL, Parent
from evomerge_operator.manifest import parse_manifest
from evomerge_operator.plan.run import BASELINES, default_names, identity
from kube_documents import Document, evomerge, manifest_of
from memory_cluster import MemoryCluster, log_of, run_to_end
from simulated_workers import answer_any, failing

NAMES = ["a", "b", "plain average"]
STAGES = ("ps", "more", "third")


def stages(**of_second: object) -> list[Document]:
    first = stage(groups={"layers": 2}, candidates=9, lag=5, seed=3)
    second = stage(algorithm="CMA-ES", candidates=7, lag=3, seed=4) | {"name": "more"}
    third = stage(groups={"components": True}, candidates=5, seed=5) | {"name": "third"}
    third["parameterSpace"]["models"] = ["b", "more"]
    second["parameterSpace"] |= of_second
    return [first, second, third]


def cluster(seed: int = 0, alone: dict[str, float] | None = None, **of_second: object) -> MemoryCluster:
    made = evomerge(stages=stages(), parallelism=4, worker={"candidatesPerPod": 2})
    made["spec"]["stages"][1] |= of_second
    any_task = answer_any(manifest_of(made), alone)

    def answer(task: Task) -> Report:
        return failing(share=6)(task) if task.kind == "evaluate" else any_task(task)

    return MemoryCluster(made, answer, seed)


def of_stage(of: MemoryCluster, name: str) -> list[EvaluateTask]:
    """The tasks of a stage's candidates, those that were tried again too."""
    return [task for task in of.tasks if isinstance(task, EvaluateTask) and (task.trace or {})["stage"] == name]


def steps(of: MemoryCluster) -> list[Task]:
    return [task for task in of.tasks if not isinstance(task, EvaluateTask)]


def models(task: EvaluateTask) -> set[str]:
    return set(task.recipe.named_models)


def test_each_stage_merges_the_winners_of_those_before_it_or_the_models_that_it_names() -> None:
    of = cluster()
    known = run_to_end(of)
    assert known.status.phase == "Succeeded", known.status.message
    by_stage = {name: of_stage(of, name) for name in (BASELINES, *STAGES)}
    asked = {name: {(t.trace or {})["index"] for t in tasks} for name, tasks in by_stage.items()}
    assert asked == {BASELINES: set(range(3)), "ps": set(range(9)), "more": set(range(7)), "third": set(range(5))}
    assert {frozenset(models(t)) for t in by_stage["ps"]} == {frozenset({"a", "b"})}
    assert {frozenset(models(t)) for t in by_stage["more"]} == {frozenset({"a", "b", "ps"})}
    assert {frozenset(models(t)) for t in by_stage["third"]} == {frozenset({"b", "more"})}
    assert [task.kind for task in steps(of)] == [
        "prepare",
        *(["select", "export", "prepare"] * 3),
        "conclude",
        "export",
    ]
    assert {name: counters.succeeded for name, counters in known.status.steps.items()} == {
        "prepare": 4,
        "select": 3,
        "write": 3,
        "conclude": 1,
        "export": 1,
    }


def test_a_winner_is_written_once_pinned_by_its_content_and_dropped_with_the_export() -> None:
    of = cluster()
    known = run_to_end(of)
    exports = [task for task in of.tasks if isinstance(task, ExportTask)]
    selects = [task for task in of.tasks if isinstance(task, SelectTask)]
    *written, last = exports
    assert [task.card is None for task in exports] == [True, True, True, False]
    for name, task, select, over in zip(STAGES, written, selects, known.status.stages, strict=True):
        assert over.name == name
        assert over.uri == task.out
        assert task.out.endswith(f"/stages/{name}")
        assert task.recipe == {f.index: f.recipe for f in select.finalists}[over.selected.ranked[0].index]
    assert last.drop == [task.out for task in written]
    second, third = (of_stage(of, name)[0].sources for name in ("more", "third"))
    ps, more = (Source(name=s.name, uri=s.uri, digest=s.digest) for s in known.status.stages[:2])
    assert ps.digest is not None
    assert (second[2:], third[2:]) == ([ps], [ps, more])
    prepares = [task for task in of.tasks if isinstance(task, PrepareTask)]
    assert [[s.digest is None for s in task.sources] for task in prepares] == [
        [True, True],
        [False, False, True],
        [False, False, False, True],
        [False, False, False, False, True],
    ]


def test_the_run_is_concluded_with_the_stage_that_is_best_on_select_items_beside_the_others() -> None:
    of = cluster()
    known = run_to_end(of)
    best = max(known.status.stages, key=lambda s: s.selected.ranked[0].score)
    [conclude] = [task for task in of.tasks if isinstance(task, ConcludeTask)]
    assert conclude.stage == best.name
    assert conclude.selected == best.selected
    assert [b.name for b in conclude.baselines if b.role == "stage"] == [n for n in STAGES if n != best.name]
    assert all(b.recipe.named_models == [b.name] for b in conclude.baselines if b.role == "stage")
    facts = RunReport.model_validate(of.facts())
    assert [c.stage for c in facts.candidates] == ["ps"] * 9 + ["more"] * 7 + ["third"] * 5
    assert facts.stages is not None
    assert [(s.name, len(s.genes)) for s in facts.stages] == [("ps", 8), ("more", 3), ("third", 8)]
    assert len(facts.genes) == {s.name: len(s.genes) for s in facts.stages}[best.name]


def test_where_no_finalist_is_better_the_best_model_of_the_pool_takes_the_winners_place() -> None:
    of = cluster(alone={"b": 0.5, "ps": 0.5})
    known = run_to_end(of)
    written = [task for task in steps(of) if isinstance(task, ExportTask) and task.card is None]
    assert [task.recipe.named_models for task in written] == [["b"], ["b"], ["b"]], "of equals the earlier"
    assert known.status.phase == "Succeeded"
    assert [stage.selected.gained for stage in known.status.stages] == [False] * 3
    best = known.status.stages[0].selected.best_of_pool
    assert best is not None
    assert (best.name, best.score) == ("b", 0.5)


@pytest.mark.parametrize("restarts", [False, True])
def test_a_stage_without_gain_may_end_the_run(restarts: bool) -> None:
    of = cluster(alone={"ps": 0.5}, onNoGain="Stop")
    known = run_to_end(of, restarts=restarts)
    assert known.status.phase == "Succeeded"
    assert [stage.name for stage in known.status.stages] == ["ps", "more"]
    assert not of_stage(of, "third")
    assert [task.kind for task in steps(of)][-5:] == ["select", "export", "prepare", "conclude", "export"]


def test_a_stages_workers_have_its_own_resources_and_time() -> None:
    gpu = {"resources": {"limits": {"nvidia.com/gpu": "2"}}, "timeoutSeconds": 77}
    of, made = cluster(worker=gpu), []
    create = of.create_job

    async def creating(job: Document, parent: Parent) -> Document:
        made.append(job)
        return await create(job, parent)

    of.create_job = creating  # type: ignore[method-assign]
    run_to_end(of)
    limits = {
        job["metadata"]["labels"][STAGE_LABEL]: job["spec"]["template"]["spec"]["containers"][0]["resources"].get(
            "limits"
        )
        for job in made
    }
    assert {name for name, found in limits.items() if found} == {"more"}
    assert {task.timeout_seconds for task in of_stage(of, "more")} == {77}
    assert {task.timeout_seconds for task in of_stage(of, "third")} == {3600}
    identities = [identity(manifest_of(each.made), prepared(manifest_of(each.made))) for each in (of, cluster())]
    assert identities[0] == identities[1]


@pytest.mark.parametrize("seed", [1, 2])
def test_restarts_and_the_order_in_which_pods_end_change_nothing(seed: int) -> None:
    undisturbed, restarted = cluster(), cluster(seed)
    run_to_end(undisturbed)
    run_to_end(restarted, restarts=True)
    assert log_of(restarted) == log_of(undisturbed)
    assert steps(restarted) == steps(undisturbed)


def test_a_lock_that_was_deleted_ends_the_run_with_the_reason() -> None:
    of = cluster()
    run_to_end(of)
    for name in [name for name in of.config_maps if name.endswith("-lock-1")]:
        del of.config_maps[name]
    of.made["status"] |= {"phase": "Searching", "conclusion": None, "exported": None}
    known = run_to_end(of)
    assert (known.status.phase, known.status.reason) == ("Failed", "LogDamaged")
    assert "-lock-1, which pins models, was deleted" in (known.status.message or "")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"models": ["a", "more"]}, 'spec.stages[1].parameterSpace.models[1]: "more" is the stage itself'),
        ({"models": ["a", "third"]}, 'spec.stages[1].parameterSpace.models[1]: "third" is a later stage'),
        ({"models": ["a", "c"]}, 'spec.stages[1].parameterSpace.models[1]: "c" is not known; allowed: a, b, ps'),
        ({"models": ["a", "a"]}, 'spec.stages[1].parameterSpace.models[1]: "a" is named twice'),
        (
            {"method": "slerp", "parameters": {"t": {"min": "0", "max": "1"}}},
            "spec.stages[1].parameterSpace.models: slerp merges exactly 2 models, not 3",
        ),
    ],
)
def test_models_that_a_stage_cannot_have_are_told(change: Document, problem: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_manifest(document(stages=stages(**change)), source="x", folder=Path("/"))
    assert problem in "; ".join(f"{p.path}: {p.message}" for p in raised.value.problems)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ps", '"ps" is also the name of spec.stages[0]; names must differ'),
        ("a", '"a" is also the name of spec.models[0], and later stages know its winner by it'),
        ("base", '"base" means spec.base; choose another name'),
    ],
)
def test_a_stage_cannot_have_the_name_of_another_model(name: str, message: str) -> None:
    two = stages()[:2]
    two[1]["name"] = name
    with pytest.raises(InputError) as raised:
        parse_manifest(document(stages=two), source="x", folder=Path("/"))
    assert [(p.path, p.message) for p in raised.value.problems] == [("spec.stages[1].name", message)]


def test_models_of_different_depth_are_compared_one_by_one_alone() -> None:
    manifest = manifest_of(evomerge(base={"uri": "s3://models/base"}))
    found = prepared(manifest)
    layers = {"a": 4, "b": 6, "base": 4}
    deep = found.model_copy(
        update={"layout": found.layout.model_copy(update={"flow": Flow(divided=["x.weight"], layers=layers)})}
    )
    assert default_names(manifest, deep) == ("a", "b", "base")
    assert default_names(manifest, found) == ("a", "b", "plain average", "task arithmetic", "default DARE-TIES", "base")
