"""A session's pipeline in this process, on tiny models: each kind of task, and what it keeps between tasks."""

import gzip
import hashlib
import json
import shutil
from pathlib import Path

import pytest

from evomerge_contract.recipe import Recipe, RecipeModel
from evomerge_contract.report import RunReport
from evomerge_contract.task import Baseline, ConcludeTask, DataDigests, EvaluateTask, Finalist, SelectTask, mask_seeds
from evomerge_operator.local.log import RunLog
from evomerge_worker.errors import CandidateError, InputError, StorageError
from evomerge_worker.merge import statistics_cache
from evomerge_worker.pipeline import Pipeline
from evomerge_worker.process.session import carry_out
from evomerge_worker.report import render
from example_runs import finished_run, manifest
from pipeline_bench import Bench, mix
from tiny_models import Tiny


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


def test_a_conclusion_scores_each_mask_seed_as_an_evaluation_with_it_does(bench: Bench) -> None:
    """Other masks give other figures, and the test items meet the run's own."""
    for split in ("search", "select", "test"):
        texts = [json.dumps({"text": f"{split} {n} = {n * n}"}) for n in range(4)]
        (bench.folder / f"{split}.jsonl").write_text("\n".join(texts))
    splits = ("search", "select", "test")
    digests = {s: f"sha256:{hashlib.sha256((bench.folder / f'{s}.jsonl').read_bytes()).hexdigest()}" for s in splits}
    objective = bench.objectives[0].model_copy(update={"metric": "perplexity"})
    bench.common |= {"objectives": [objective], "data": {"sums": DataDigests(**digests)}}
    models = [RecipeModel(model="b", parameters={"weight": 1.0, "density": 0.3})]
    recipe = Recipe(merge_method="dare_ties", models=models, base_model="a", dtype="float32", out_dtype="float32")
    task = ConcludeTask(
        **bench.common,
        finalists=[Finalist(index=3, fitness=0.5, recipe=recipe)],
        baselines=[Baseline(name="a", role="source", recipe=mix(1.0))],
        mask_seed=7,
        mask_seeds=mask_seeds(7),
    )
    conclusion = bench.done(task).conclude
    assert conclusion is not None
    selection = SelectTask(**bench.common, finalists=task.finalists, mask_seed=7, mask_seeds=mask_seeds(7))  # type: ignore[arg-type]
    selected = bench.done(selection).select
    assert selected is not None
    assert selected.ranked == conclusion.select
    assert bench.done(task.model_copy(update={"selected": selected})).conclude == conclusion
    scores = {}
    for split, seed in [*(("select", seed) for seed in mask_seeds(7)), ("test", 7)]:
        evaluated = bench.done(
            EvaluateTask(**bench.common, recipe=recipe, mask_seed=seed, split=split)  # type: ignore[arg-type]
        ).evaluate
        assert evaluated is not None
        scores[split, seed] = -evaluated.scores["sums"]
    assert conclusion.select[0].mask_scores == [scores["select", seed] for seed in mask_seeds(7)]
    assert len(set(conclusion.select[0].mask_scores)) == 5
    assert conclusion.test[0].score == scores["test", 7]


def test_a_selection_that_was_reported_is_not_made_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    task = SelectTask(**bench.common, finalists=[Finalist(index=3, fitness=0.5, recipe=mix(0.5))])  # type: ignore[arg-type]
    first = bench.done(task)
    session = Pipeline(bench.folder / "cache")
    monkeypatch.setattr(session, "_merge_and_score", None)
    assert session.carry_out(task.model_copy(update={"trace": {"attempt": 2}})) == first.model_copy(
        update={"trace": {"attempt": 2}}
    )


@pytest.mark.parametrize("changed", ["model", "data"])
def test_content_that_changed_since_it_was_prepared_is_refused(bench: Bench, changed: str) -> None:
    if changed == "model":
        shutil.copy(bench.models["b"] / "model.safetensors", bench.models["a"] / "model.safetensors")
    else:
        (bench.folder / "search.jsonl").write_text('{"prompt": "1+1=", "answer": "2"}\n')
    with pytest.raises(StorageError, match="not what it was when the run was prepared") as raised:
        bench.done(bench.evaluate())
    assert [p.path for p in raised.value.problems] == [{"model": "models.a", "data": "objectives.sums.search"}[changed]]


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
    out = bench.folder / "best"
    exported = bench.done(bench.export(out.as_uri())).export
    assert exported is not None
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.json"} <= exported.files.keys()
    assert all((out / name).is_file() for name in exported.files)


def test_an_export_knows_what_candidates_have_found_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves what it finds out itself."""
    monkeypatch.setattr(statistics_cache, "_WORTH_KEEPING", 1)
    models = [RecipeModel(model=name) for name in "ab"]
    recipe = Recipe(merge_method="slerp", models=models, base_model="a", parameters={"t": 0.4}, dtype="float32")
    bench.done(bench.export((bench.folder / "best").as_uri()).model_copy(update={"recipe": recipe}))
    (found,) = (bench.folder / "cache").glob("*/statistics.safetensors")
    before = found.stat().st_mtime_ns
    bench.done(bench.evaluate().model_copy(update={"recipe": recipe}))
    (again,) = (bench.folder / "cache").glob("*/statistics.safetensors")
    assert (again, again.stat().st_mtime_ns) == (found, before)


def test_an_export_with_facts_holds_the_runs_records(bench: Bench) -> None:
    run = finished_run(manifest()).model_copy(update={"identity": {"seed": 3}})
    write_facts(run, bench.folder / "facts")
    task = bench.export(
        (bench.folder / "best").as_uri(),
        facts=str(bench.folder / "facts"),
        recipe_text="# mine\nmerge_method: linear\n",
    )
    exported = bench.done(task).export
    assert exported is not None
    assert {"run.json", "log.jsonl", "report.html", "recipe.yaml"} <= exported.files.keys()
    best = bench.folder / "best"
    assert RunReport.model_validate_json((best / "run.json").read_bytes()) == run
    log = RunLog(best / "log.jsonl", run.identity, baselines=[])  # which refuses the log of another identity
    assert (log.baselines, log.found) == (run.baseline_names, [*run.baselines, *run.candidates])
    assert (best / "report.html").read_text() == render(run)
    assert (best / "recipe.yaml").read_text() == task.recipe_text


def test_an_export_may_do_without_a_card_and_take_others_with_it(bench: Bench) -> None:
    stage, other = bench.folder / "stage", bench.folder / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert bench.done(bench.export(stage.as_uri(), card=None)).export is not None
    assert "README.md" not in {path.name for path in stage.iterdir()}
    assert bench.done(bench.export((bench.folder / "best").as_uri(), drop=[stage.as_uri(), other.as_uri()])).export
    assert not stage.exists()
    assert (other / "notes.txt").read_text() == "mine", "no export wrote it"


@pytest.mark.parametrize("damage", ["missing", "torn"])
def test_facts_that_are_damaged_are_refused(damage: str, bench: Bench) -> None:
    write_facts(finished_run(manifest()), bench.folder / "facts")
    last = sorted((bench.folder / "facts").glob("part-*"))[-1]
    last.write_bytes(last.read_bytes()[:-20]) if damage == "torn" else shutil.rmtree(bench.folder / "facts")
    task = bench.export((bench.folder / "best").as_uri(), facts=str(bench.folder / "facts"))
    with pytest.raises(InputError, match=r"the run's facts in .* cannot be read"):
        bench.done(task)
    assert not (bench.folder / "best").exists()


def write_facts(run: RunReport, folder: Path) -> None:
    """As the kubelet mounts projected ConfigMaps: links to what lies in a hidden folder."""
    hidden = folder / "..data"
    hidden.mkdir(parents=True)
    content = gzip.compress(run.model_dump_json(by_alias=True, exclude_none=True).encode())
    for number, start in enumerate(range(0, len(content), 1000)):
        (hidden / f"part-{number:04}").write_bytes(content[start : start + 1000])
        (folder / f"part-{number:04}").symlink_to(f"..data/part-{number:04}")
