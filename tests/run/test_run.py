"""`evomerge run` end to end on the quickstart's trained models: what a person gets, and that nothing interrupts it."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from quickstart_runs import CANDIDATES, EVOMERGE, QUICKSTART, evomerge, log_of, manifest, outcome


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two workers that nothing disturbed."""
    folder = tmp_path_factory.mktemp("run")
    ended = evomerge("run", manifest(folder), "--out", "out", "--workers", "2", cwd=folder)
    assert ended.returncode == 0, ended.stderr + (folder / "out" / "worker.log").read_text()
    (folder / "stdout").write_text(ended.stdout)
    return folder / "out"


def test_a_run_leaves_the_log_the_winner_its_recipe_and_a_report(finished: Path) -> None:
    entries = log_of(finished)
    assert [e["candidate"]["stage"] for e in entries[1:]] == ["baselines"] * 6 + ["weights"] * CANDIDATES
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        p.name for p in (finished / "best").iterdir()
    }
    assert yaml.safe_load((finished / "recipe.yaml").read_text())["merge_method"] == "linear"
    report = (finished / "report.html").read_text()
    assert "http://" not in report.replace("http://www.w3.org", "")
    assert "<svg" in report


def test_the_terminal_shows_progress_and_ends_with_a_table_and_paths(finished: Path) -> None:
    stdout = (finished.parent / "stdout").read_text()
    assert "8 dimensions · GA" in stdout
    assert f"{CANDIDATES}/{CANDIDATES}" in stdout
    for words in ("winner", "plain average", "source reader", "base (not in the pool)", "report.html"):
        assert words in stdout


def test_the_exported_winner_loaded_plainly_reproduces_its_score(finished: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(finished / "best", dtype="auto").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished / "best")
    right = 0
    items = [json.loads(line) for line in (finished.parent / "test.jsonl").read_text().splitlines()]
    for item in items:
        prompt = tokenizer(item["prompt"], return_tensors="pt", return_token_type_ids=False)
        generated = model.generate(**prompt, max_new_tokens=4, do_sample=False)
        answer = tokenizer.decode(generated[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        right += answer == item["answer"]
    rows = json.loads((finished / "run.json").read_text())["conclusion"]["test"]
    assert next(r for r in rows if r["role"] == "winner")["score"] == pytest.approx(right / len(items), abs=0)


def test_the_recipe_merged_by_hand_is_the_winner_bit_for_bit(finished: Path) -> None:
    out = finished.parent / "by-hand"
    ended = evomerge("merge", finished / "recipe.yaml", out)
    assert ended.returncode == 0, ended.stderr
    assert (out / "model.safetensors").read_bytes() == (finished / "best" / "model.safetensors").read_bytes()
    again = evomerge("merge", finished / "recipe.yaml", out)
    assert again.returncode == 65
    assert "exists already" in again.stderr


def test_killed_three_times_and_with_one_worker_the_run_ends_the_same(finished: Path, tmp_path: Path) -> None:
    file = manifest(tmp_path)
    everything = 1 + 5 + CANDIDATES  # then the conclusion begins
    for lines in (4, 11, everything):
        process = subprocess.Popen([*EVOMERGE, "run", file, "--out", "out", "--workers", "1"], cwd=tmp_path,
                                   stdout=subprocess.DEVNULL)  # fmt: skip
        _wait_for_lines(tmp_path / "out" / "log.jsonl", lines, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    ended = evomerge("run", file, "--out", "out", "--workers", "1", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "going on after" in ended.stdout
    assert outcome(tmp_path / "out") == outcome(finished)


def test_ctrl_c_ends_tidily_and_says_how_to_go_on(tmp_path: Path) -> None:
    file = manifest(tmp_path, candidates=1000)  # so that it has not ended by then
    process = subprocess.Popen([*EVOMERGE, "run", file, "--out", "out"], cwd=tmp_path, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=_heed_ctrl_c)  # fmt: skip
    _wait_for_lines(tmp_path / "out" / "log.jsonl", 3, process)
    second = evomerge("run", file, "--out", "out", cwd=tmp_path)
    assert second.returncode == 1
    assert "in use by another evomerge process" in second.stderr
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr.strip() == "evomerge: interrupted; the same command goes on where it was"
    drawn = evomerge("report", tmp_path / "out")
    assert drawn.returncode == 0, drawn.stderr
    assert "<svg" in (tmp_path / "out" / "report.html").read_text()


def test_ctrl_c_in_a_merge_says_that_nothing_was_written(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    process = subprocess.Popen([*EVOMERGE, "merge", "recipe.yaml", "out"], cwd=tmp_path, text=True,
                               stderr=subprocess.PIPE, preexec_fn=_heed_ctrl_c, start_new_session=True)  # fmt: skip
    with (tmp_path / "recipe.yaml").open("w"):  # waits until it is read
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stderr == "evomerge: interrupted; out was not written, and the same command starts anew\n"


def test_a_directory_of_another_manifest_is_refused_and_left_as_it_was(finished: Path, tmp_path: Path) -> None:
    before = outcome(finished)
    ended = evomerge("run", manifest(tmp_path, seed=99), "--out", finished)
    assert ended.returncode == 1
    assert "holds a run of another manifest (differing: stages[0].search.seed was 0, now 99)" in ended.stderr
    assert outcome(finished) == before


def test_a_kill_in_the_middle_of_the_export_leaves_nothing_missing(finished: Path) -> None:
    before, recipe = outcome(finished), (finished / "recipe.yaml").read_text()
    # What is there between the two renames of an export, and before what follows it.
    (finished / "best").rename(finished / ".best.old")
    (finished / "recipe.yaml").unlink()
    (finished / "report.html").unlink()
    ended = evomerge("run", finished.parent / "evomerge.yaml", "--out", finished)
    assert ended.returncode == 0, ended.stderr
    assert outcome(finished) == before
    assert (finished / "recipe.yaml").read_text() == recipe
    assert (finished / "report.html").exists()
    assert not (finished / ".best.old").exists()


def test_an_unwritable_output_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = evomerge("run", manifest(tmp_path), "--out", tmp_path / "file" / "out")
    assert ended.returncode == 65
    assert "cannot be written" in ended.stderr
    assert "--out" in ended.stderr


def test_files_that_no_run_wrote_are_not_replaced(tmp_path: Path) -> None:
    notes = tmp_path / "out" / "best" / "notes.txt"
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    ended = evomerge("run", manifest(tmp_path), "--out", tmp_path / "out")
    assert ended.returncode == 65
    assert "holds files that no run wrote" in ended.stderr
    assert notes.read_text() == "mine"


def test_validate_finds_mistakes_in_models_and_data_at_once_and_run_leaves_nothing(tmp_path: Path) -> None:
    file = manifest(tmp_path)
    doc = yaml.safe_load(file.read_text())
    doc["spec"]["models"][1]["uri"] = str(QUICKSTART / "models")
    file.write_text(yaml.safe_dump(doc))
    (tmp_path / "select.jsonl").write_text('{"prompt": "J1+1=", "answer": "二"}\nnot json\n')
    for command in (["validate", file], ["run", file, "--out", tmp_path / "out"]):
        ended = evomerge(*command)
        assert ended.returncode == 65, ended.stderr
        assert "spec.models[1].uri" in ended.stderr
        assert "one level too high" in ended.stderr
        assert "spec.evaluation.objectives[0].jsonl.select" in ended.stderr
        assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out").exists()


def test_a_recipe_and_a_manifest_are_told_apart(tmp_path: Path) -> None:
    file, recipe = manifest(tmp_path), tmp_path / "recipe.yaml"
    recipe.write_text("merge_method: linear\nmodels: [{model: a}, {model: b}]\n")
    for arguments, words in (
        (["merge", file, tmp_path / "out"], "is the manifest of a search, not a recipe; run it with evomerge run"),
        (["run", recipe], "is a recipe, not the manifest of a search; use evomerge merge"),
    ):
        ended = evomerge(*arguments, cwd=tmp_path)
        assert ended.returncode == 65
        (told,) = ended.stderr.splitlines()[1:]
        assert told.endswith(words)


def test_plan_says_what_would_run(tmp_path: Path) -> None:
    ended = evomerge("plan", manifest(tmp_path))
    assert ended.returncode == 0, ended.stderr
    for words in ("8 dimensions over 8 groups", f"{CANDIDATES} candidates", "s a candidate", "items"):
        assert words in ended.stdout


@pytest.mark.parametrize("command", [[], ["run"], ["validate"], ["plan"], ["merge"], ["report"]])
def test_help_is_there_for_every_command(command: list[str]) -> None:
    ended = evomerge(*command, "--help")
    assert ended.returncode == 0
    assert "Usage:" in ended.stdout


def _heed_ctrl_c() -> None:
    """A shell lets the commands that it runs in the background ignore it, and all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _wait_for_lines(path: Path, count: int, process: subprocess.Popen[Any]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL) if process.poll() is None else None
    raise AssertionError(f"the log never had {count} lines (exit {process.poll()})")
