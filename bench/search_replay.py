"""search.replay: a log of the size of the paper's data-flow search read back: seconds, and memory beside the process.

12,800 candidates of 4,288 genes (arXiv 2403.13187, section 4.2), packed in MergeCandidates, in pages as the API server
sends them, are read as the operator reads them after a restart, and taken over into its run; a proposer of SepCMA-ES of
population 128 is a pickle between two pages. Every step runs in this one process, so that the memory is an upper bound
for the operator and for its helper alike. The genomes are what the algorithm itself asks for, made beforehand and
outside the figures. Memory is the growth of the process's peak (VmHWM) over the replay, in MB of 10^6 bytes.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

from figures import figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from documents import LAYOUT, document, prepared, stage
from evomerge_contract.genome import genome_text
from evomerge_contract.manifest import EvoMerge
from evomerge_contract.status import CandidateSpec, CandidateStatus
from evomerge_operator.kube.candidates import candidate_document
from evomerge_operator.kube.gateway import PAGE
from evomerge_operator.kube.objects import Parent
from evomerge_operator.manifest import parse_manifest
from evomerge_operator.plan.proposer import Proposer, begin_stage
from evomerge_operator.plan.run import Run, make_run
from evomerge_operator.planning import calls
from evomerge_operator.services.live_run import LiveRun

POPULATION = 128
MODELS, LAYERS = 32, 132
"""32 models x (132 layers, embeddings, head) are the paper's 4,288 genes."""
PARENT = Parent("bench", "replayed", "01234567-0000-0000-0000-000000000000")
REPORTS = "s3://bench/reports"


def main() -> None:
    """Write a log, then replay it in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=12_800)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--replay", type=Path, help="(used by the bench itself)")
    options = parser.parse_args()
    if options.replay is not None:
        replay(options.replay, options.candidates)
        return
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as folder:
        log = Path(folder)
        genes = write(log, options.candidates)
        size = sum(page.stat().st_size for page in log.iterdir()) / 1e6
        command = [sys.executable, __file__, "--replay", str(log), "--candidates", str(options.candidates)]
        runs = [
            [float(n) for n in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]
            for _ in range(options.repeats)
        ]
    told = {"candidates": options.candidates, "genes": genes, "log_mb": round(size, 1)}
    seconds, memory = zip(*runs, strict=True)
    figure("search_replay", "search.replay", list(seconds), "s", reference="absolute", goal="<= 60", **told)
    figure("search_replay", "search.replay.memory", list(memory), "MB", reference="absolute", goal="<= 150", **told)


def manifest(candidates: int) -> EvoMerge:
    """Every layer's weights of 32 models."""
    models = [{"name": f"m{i}", "uri": f"s3://bench/m{i}"} for i in range(MODELS)]
    of_layers = stage(
        groups={"everyLayer": True}, algorithm="SepCMA-ES", candidates=candidates, population=POPULATION, seed=1
    )
    return parse_manifest(document(models=models, stages=[of_layers]), source="bench", folder=Path("/"))


def begun(candidates: int) -> tuple[Run, bytes]:
    """The run before its first candidate, and its proposer, as the operator has them."""
    made = manifest(candidates)
    found = calls.begin(made, prepared(made, LAYOUT.model_copy(update={"layers": LAYERS})), REPORTS, [])
    if isinstance(found, list):
        raise SystemExit(str(found))
    return found


def write(log: Path, candidates: int) -> int:
    """Ask for every genome and write the pages that a list of the MergeCandidates would have; returns the genes."""
    made = manifest(candidates)
    run = make_run(made, prepared(made, LAYOUT.model_copy(update={"layers": LAYERS})), REPORTS, [])
    proposer = begin_stage(run, 0)
    made_of = documents(run, proposer)
    pages = math.ceil(candidates / PAGE)
    for number in range(pages):
        following = {"continue": f"{number + 1:04d}"} if number + 1 < pages else {}
        listed = {"metadata": following, "items": list(islice(made_of, PAGE))}
        (log / f"{number:04d}").write_text(json.dumps(listed), "ascii")
    return len(run.stage.genes)


def documents(run: Run, proposer: Proposer) -> Iterator[dict[str, Any]]:
    """The finished MergeCandidates, by index; only the first recipes are compared when a log is read."""
    for index in range(run.stage.candidates):
        genome = proposer.search.ask()
        score = Random(index).random()
        proposer.search.tell({"sums": score})
        digest = proposer.space.decode(genome).digest if index < 16 else "sha256:" + "0" * 64
        asked = {"stage": "ps", "index": index, "generation": index // POPULATION, "algorithm": run.stage.version}
        spec = CandidateSpec(**asked, recipe_digest=digest, genome=genome_text(genome))
        seconds = {"pull": 1.25, "load": 2.5, "merge": 3.125, "evaluate": 40.5, "total": 50.25, "wait": 12.125}
        status = CandidateStatus(
            outcome="Succeeded", fitness=score, scores={"sums": score}, attempts=1, seconds=seconds, host="node-0001"
        )
        written = candidate_document(PARENT, spec)
        written["metadata"] |= {"uid": PARENT.uid, "resourceVersion": str(100_000 + index)}
        yield written | {"status": status.wire()}


def replay(log: Path, candidates: int) -> None:
    """Print the seconds and the MB that the replay takes."""
    live = LiveRun(*begun(candidates))
    before, began = peak_mb(), time.perf_counter()
    following = "0000"
    while following:
        page = calls.read(live.proposer, (log / following).read_bytes())
        if page.problem is not None:
            raise SystemExit(page.problem)
        live.read(page)
        following = page.following
    took = time.perf_counter() - began
    if live.done != candidates:
        raise SystemExit(f"{live.done} candidates were replayed")
    print(took, peak_mb() - before)


def peak_mb() -> float:
    """The most resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
