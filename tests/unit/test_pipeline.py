"""A session's pipeline in this process, on tiny models: each kind of task, and what it keeps between tasks."""

import json
import shutil
from pathlib import Path

import pytest

from conftest import Tiny
from evomerge_contract.manifest import Jsonl, Objective
from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_contract.report import Report
from evomerge_contract.task import (
    Baseline,
    CardFacts,
    ConcludeTask,
    DataDigests,
    EvaluateTask,
    ExportTask,
    Finalist,
    PrepareTask,
    Source,
    Task,
)
from evomerge_worker.errors import CandidateError, InputError
from evomerge_worker.pipeline import Pipeline
from evomerge_worker.session import carry_out


class Bench:
    """Two tiny models, a data set, and tasks about them that report into `folder`."""

    def __init__(self, folder: Path, tiny: Tiny) -> None:
        self.folder = folder
        self.models = {}
        for seed, name in enumerate("ab", start=1):
            self.models[name] = folder / name
            shutil.copytree(tiny("llama", seed=seed), self.models[name])
        for split, first in (("search", 0), ("select", 10), ("test", 20)):
            items = [{"prompt": f"{n}+1=", "answer": str(n + 1)} for n in range(first, first + 4)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
        jsonl = Jsonl(**{s: (folder / f"{s}.jsonl").as_uri() for s in ("search", "select", "test")})
        self.objectives = [Objective(name="sums", jsonl=jsonl, metric="exact_match", max_new_tokens=3)]
        self.common = {"report_dir": (folder / "reports").as_uri(), "objectives": self.objectives}
        sources = [Source(name=n, uri=path.as_uri()) for n, path in self.models.items()]
        prepared = self.done(PrepareTask(**self.common, sources=sources, methods=["linear"])).prepare
        assert prepared is not None
        digests = {s.name: s.digest for s in prepared.sources}
        self.common["sources"] = [s.model_copy(update={"digest": digests[s.name]}) for s in sources]
        data = DataDigests(**{split: found.digest for split, found in prepared.data["sums"].items()})
        self.common["data"] = {"sums": data}

    def done(self, task: Task) -> Report:
        return Pipeline(self.folder / "cache").carry_out(task)

    def evaluate(self, weight: float = 0.5) -> EvaluateTask:
        return EvaluateTask(**self.common, recipe=mix(weight), trace={"index": 7})


def mix(weight: float) -> Recipe:
    models = [RecipeModel(model=n, parameters={"weight": w}) for n, w in (("a", weight), ("b", 1 - weight))]
    return Recipe(merge_method="linear", models=models, dtype="float32")


@pytest.fixture
def bench(tmp_path: Path, tiny: Tiny) -> Bench:
    return Bench(tmp_path, tiny)


def test_an_evaluation_is_durable_and_found_again_with_the_asking_tasks_trace(bench: Bench) -> None:
    task = bench.evaluate()
    report = bench.done(task)
    assert report.evaluate is not None
    assert len(report.evaluate.items["sums"]) == 4
    assert report.trace == {"index": 7}
    again = bench.done(task.model_copy(update={"trace": {"index": 8}}))
    assert again.trace == {"index": 8}
    assert again.model_copy(update={"trace": None}) == report.model_copy(update={"trace": None})
    assert again.seconds == report.seconds  # it was not carried out a second time


def test_one_session_scores_as_fresh_ones_do_in_any_order(bench: Bench) -> None:
    tasks = [bench.evaluate(w) for w in (0.2, 0.9, 0.5)]
    fresh = [bench.done(task).evaluate for task in tasks]
    shutil.rmtree(bench.folder / "reports")
    session = Pipeline(bench.folder / "cache")
    assert [session.carry_out(task).evaluate for task in reversed(tasks)] == fresh[::-1]


@pytest.mark.parametrize("changed", ["model", "data"])
def test_content_that_changed_since_it_was_prepared_is_refused(bench: Bench, changed: str) -> None:
    if changed == "model":
        shutil.copy(bench.models["b"] / "model.safetensors", bench.models["a"] / "model.safetensors")
    else:
        (bench.folder / "search.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    with pytest.raises(InputError, match="not what it was when the run was prepared"):
        bench.done(bench.evaluate())


def test_memory_that_does_not_suffice_costs_the_candidate(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")

    session = Pipeline(bench.folder / "cache")
    monkeypatch.setattr(session, "_merge_and_score", full)
    with pytest.raises(CandidateError) as raised:
        session.carry_out(bench.evaluate())
    assert raised.value.reason == "OutOfMemory"
    assert carry_out(session, bench.evaluate()).reason == "OutOfMemory"


def test_a_failure_is_reported_and_not_kept(bench: Bench) -> None:
    broken = bench.evaluate().model_copy(
        update={"recipe": Recipe(merge_method="magic", models=[RecipeModel(model="a")])}
    )
    report = carry_out(Pipeline(bench.folder / "cache"), broken)
    assert (report.outcome, report.reason) == ("Failed", "InvalidInput")
    assert report.problems
    assert not (bench.folder / "reports" / f"{broken.digest.removeprefix('sha256:')}.json").exists()


def test_the_end_of_a_run_is_concluded_and_exported(bench: Bench) -> None:
    conclude = ConcludeTask(
        **bench.common,
        finalists=[Finalist(index=3, fitness=0.5, recipe=mix(0.3))],
        baselines=[Baseline(name=n, role="source", recipe=mix(w)) for n, w in (("a", 1.0), ("b", 0.0))],
    )
    conclusion = bench.done(conclude).conclude
    assert conclusion is not None
    assert conclusion.winner == 3
    assert [row.role for row in conclusion.test] == ["winner", "source", "source"]
    out = bench.folder / "best"
    fields = {k: v for k, v in bench.common.items() if k not in ("objectives", "data")}
    card = CardFacts(
        run="tiny",
        method="linear",
        algorithm="GA/1",
        candidates=4,
        seed=0,
        objectives=bench.objectives,
        data=bench.common["data"],
        conclusion=conclusion,
    )
    exported = bench.done(ExportTask(**fields, out=out.as_uri(), recipe=mix(0.3), card=card)).export
    assert exported is not None
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= exported.files.keys()
    assert all((out / name).is_file() for name in exported.files)
