"""search.candidates_per_hour: whole searches, ours and mergekit-evolve 0.1.5's, over the same models and items.

Each side is its command from start to end: start-up, 300 candidates (merged linearly with a weight a layer, 500
generated answers each), on two cores with two workers of one thread; ours also scores baselines and finalists, writes
the winner and the report. Theirs saves no winner, evaluates on the CPU (see reference/evolve_on_cpu.py), and gets the
same batch size. It is slow, so it is given 44 candidates: those after the first generation cost the same each, and its
time for 300 is worked out from that; --whole runs them all. --size 0.5B compares random models of 0.5 B parameters,
with fewer candidates and items.

EVOMERGE_EVOLVE_PYTHON names the interpreter of mergekit-evolve's environment (`make .venv-mergekit-evolve/.ready`).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import yaml
from figures import figure
from random_models import QUICKSTART, large_quickstart

from evomerge_contract.manifest import EvoMerge
from evomerge_operator.local.log import read_log
from evomerge_operator.manifest import load_manifest

HERE = Path(__file__).parent
EVOLVE = os.environ.get("EVOMERGE_EVOLVE_PYTHON", str(HERE.parent / ".venv-mergekit-evolve" / "bin" / "python"))
WORKERS = 2
LARGE_CANDIDATES, LARGE_ITEMS = 16, 50
THEIR_CANDIDATES = 44
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "TOKENIZERS_PARALLELISM": "false",
}


class Search(NamedTuple):
    """One search: candidates evaluated, seconds from start to end, seconds a candidate once under way."""

    candidates: int
    seconds: float
    each: float

    @property
    def per_hour(self) -> float:
        """Candidates an hour, start-up included."""
        return 3600 * self.candidates / self.seconds

    def of(self, candidates: int) -> "Search":
        """What the search would have taken for so many candidates."""
        return Search(candidates, self.seconds + (candidates - self.candidates) * self.each, self.each)


def main() -> None:
    """Search here and there, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=("quickstart", "0.5B"), default="quickstart")
    parser.add_argument("--candidates", type=int, help="300, and 16 of 0.5B")
    parser.add_argument("--whole", action="store_true", help="let mergekit-evolve, too, evaluate all candidates")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    large = options.size == "0.5B"
    with tempfile.TemporaryDirectory(prefix="evb-") as temporary:  # Ray's sockets lie in it: a short path
        folder = Path(temporary)
        manifest = large_quickstart(folder, LARGE_ITEMS) if large else load_manifest(QUICKSTART / "evomerge.yaml")
        candidates = options.candidates or (LARGE_CANDIDATES if large else 300)
        measured = candidates if options.whole else min(THEIR_CANDIDATES, candidates)
        pairs = []
        for repeat in range(options.repeats):
            ours = our_search(manifest, candidates, folder / f"ours-{repeat}")
            theirs = their_search(manifest, measured, 12 if large else 1, folder / f"t{repeat}")
            pairs.append((ours, theirs if options.whole else theirs.of(candidates)))
    report(options.size, pairs)


def report(size: str, pairs: list[tuple[Search, Search]]) -> None:
    """How many times as many candidates an hour."""
    figure(
        "candidates_per_hour",
        f"search.candidates_per_hour.{size.lower()}",
        [ours.per_hour / theirs.per_hour for ours, theirs in pairs],
        "times as many",
        reference="mergekit-evolve 0.1.5 on the same models and items, two workers each, start-up included",
        goal=">= 8" if size == "quickstart" else "",
        ours=[_described(ours) for ours, _ in pairs],
        theirs=[_described(theirs) for _, theirs in pairs],
    )


def _described(search: Search) -> dict[str, float]:
    return {"candidates": search.candidates, "seconds": round(search.seconds, 1), "each": round(search.each, 3)}


def our_search(manifest: EvoMerge, candidates: int, folder: Path) -> Search:
    """`evomerge run` with this many candidates."""
    folder.mkdir()
    wire = manifest.wire()
    wire["spec"]["stages"][0]["search"]["candidates"] = candidates
    (folder / "evomerge.yaml").write_text(yaml.safe_dump(wire), "utf-8")
    command = [sys.executable, "-m", "evomerge_operator.cli", "run", str(folder / "evomerge.yaml")]
    began = time.perf_counter()
    with (folder / "out.log").open("wb") as out:
        ended = subprocess.run(
            [*command, "--out", str(folder / "run"), "--workers", str(WORKERS)],
            env=os.environ | QUIET | {"CUDA_VISIBLE_DEVICES": ""},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    took = time.perf_counter() - began
    if ended.returncode:
        raise SystemExit((folder / "out.log").read_text("utf-8"))
    _, done = read_log(folder / "run" / "log.jsonl")
    seconds = [c.seconds["total"] for c in done if c.genome is not None]
    return Search(len(seconds), took, sum(seconds) / len(seconds) / WORKERS)


def their_search(manifest: EvoMerge, candidates: int, layers: int, folder: Path) -> Search:
    """mergekit-evolve with at least this many candidates (it ends with a generation), a weight every `layers` layers.

    Its population grows with the number of weights, and two generations at least are needed.
    """
    configuration = write_their_configuration(manifest, layers, folder)
    command = [EVOLVE, str(HERE / "reference" / "evolve_on_cpu.py"), str(WORKERS), str(configuration)]
    command += ["--storage-path", str(folder / "storage"), "--task-search-path", str(folder / "tasks")]
    command += ["--num-gpus", str(WORKERS), "--no-merge-cuda", "--no-save-final-model"]
    command += ["--max-fevals", str(candidates), "--batch-size", str(manifest.spec.evaluation.batch_size)]
    generations: list[tuple[float, int]] = []  # when each began, and of how many
    heard, ended = [], 0.0
    began = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=folder,  # its optimiser leaves a folder of its own wherever it runs
        env=os.environ | QUIET | {"HF_HOME": str(folder / "hf"), "EVOMERGE_RAY_FOLDER": str(folder / "ray")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            heard.append(line)
            if found := re.search(r"Received (\d+) genotypes", line):
                generations.append((time.perf_counter(), int(found[1])))
            if "OPTIMIZATION COMPLETE" in line:
                ended = time.perf_counter()
    took = time.perf_counter() - began
    if process.returncode or not ended:
        raise SystemExit("".join(heard[-60:]))
    if len(generations) < 2:
        raise SystemExit("mergekit-evolve made a single generation: give it more candidates")
    _, (second, _), *_ = generations
    evaluated = sum(count for _, count in generations)
    return Search(evaluated, took, (ended - second) / (evaluated - generations[0][1]))


def write_their_configuration(manifest: EvoMerge, layers: int, folder: Path) -> Path:
    """mergekit-evolve's configuration, and lm-eval's task over the same search items."""
    [objective] = manifest.spec.evaluation.objectives
    task = {
        "task": "bench_items",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": _path(objective.evaluator.uris["search"])}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "{{answer}}",
        "target_delimiter": "",
        "generation_kwargs": {"until": ["</s>"], "max_gen_toks": objective.max_new_tokens, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    genome = {
        "models": [_path(model.uri) for model in manifest.spec.models],
        "merge_method": "linear",
        "layer_granularity": layers,
        "allow_negative_weights": True,
    }
    configuration = {
        "genome": genome,
        "tasks": [{"name": task["task"], "metric": "exact_match,none"}],
        "apply_chat_template": False,
    }
    (folder / "tasks").mkdir(parents=True)
    (folder / "tasks" / "bench_items.yaml").write_text(yaml.safe_dump(task), "utf-8")
    (folder / "evolve.yaml").write_text(yaml.safe_dump(configuration), "utf-8")
    return folder / "evolve.yaml"


def _path(uri: str) -> str:
    return unquote(urlsplit(uri).path)


if __name__ == "__main__":
    main()
