"""search.replay: the paper's data-flow search read back from its log: seconds, and memory beside the process.

12,800 candidates of 4,288 genes (arXiv 2403.13187, section 4.2), packed as MergeCandidates hold them, in pages as the
API server sends them, are shown to SepCMA-ES of population 128 and its outcomes told, page by page as the operator does
it: the algorithm is a pickle between two pages. The genomes are what the algorithm itself asks for, made beforehand and
outside the figures. Memory is the growth of the process's peak (VmHWM) over the replay, in MB of 10^6 bytes.
"""

import argparse
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from figures import figure

from evomerge_contract.genome import genome_of, genome_text
from evomerge_contract.manifest import Jsonl, Objective, Search
from evomerge_operator.search import Gene, SearchAlgorithm, make_search

POPULATION = 128
PAGE = 500
OBJECTIVE = Objective(name="o", jsonl=Jsonl(search="a", select="b", test="c"), metric="acc")


def main() -> None:
    """Write a log, then replay it in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--candidates", type=int, default=12_800)
    parser.add_argument("--genes", type=int, default=4_288)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--replay", type=Path, help="(used by the bench itself)")
    options = parser.parse_args()
    if options.replay is not None:
        replay(options.replay, options.candidates, options.genes)
        return
    with tempfile.TemporaryDirectory(prefix="evomerge-bench-") as folder:
        log = Path(folder) / "log"
        write(log, options.candidates, options.genes)
        command = [sys.executable, __file__, "--replay", str(log), "--candidates", str(options.candidates)]
        command += ["--genes", str(options.genes)]
        runs = [
            [float(n) for n in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]
            for _ in range(options.repeats)
        ]
    told = {"candidates": options.candidates, "genes": options.genes, "log_mb": round(log_mb(options), 1)}
    seconds, memory = zip(*runs, strict=True)
    figure("search_replay", "search.replay", list(seconds), "s", reference="absolute", goal="<= 60", **told)
    figure("search_replay", "search.replay.memory", list(memory), "MB", reference="absolute", goal="<= 150", **told)


def log_mb(options: argparse.Namespace) -> float:
    """What the packed genomes take."""
    return options.candidates * options.genes * 4 / 1e6


def algorithm(candidates: int, genes: int) -> SearchAlgorithm:
    """SepCMA-ES over genes of the relaxed kind: in when positive, and scales."""
    search = Search(algorithm="SepCMA-ES", candidates=candidates, population=POPULATION, seed=1)
    return make_search(search, [Gene("w", str(g), None, -1.0, 1.0, 0.0) for g in range(genes)], "dfs", [OBJECTIVE])


def fitness(index: int) -> float:
    """Some score of a candidate."""
    return Random(index).random()


def write(log: Path, candidates: int, genes: int) -> None:
    """Ask for every genome and write its text, a line each."""
    asked = algorithm(candidates, genes)
    with log.open("w", encoding="ascii") as file:
        for index in range(candidates):
            file.write(genome_text(asked.ask()) + "\n")
            asked.tell({"o": fitness(index)})


def pages(log: Path) -> Iterator[list[str]]:
    """The log's lines, so many at a time as a list of MergeCandidates has."""
    with log.open(encoding="ascii") as file:
        while page := [line.rstrip() for _, line in zip(range(PAGE), file, strict=False)]:
            yield page


def replay(log: Path, candidates: int, genes: int) -> None:
    """Print the seconds and the MB that the replay takes."""
    state = pickle.dumps(algorithm(candidates, genes))
    before, began, index = peak_mb(), time.perf_counter(), 0
    for page in pages(log):
        shown: SearchAlgorithm = pickle.loads(state)
        for text in page:
            shown.replay(genome_of(text))
            shown.tell({"o": fitness(index)})
            index += 1
        state = pickle.dumps(shown)
    took = time.perf_counter() - began
    if index != candidates or len(pickle.loads(state).ask()) != genes:
        raise SystemExit(f"{index} candidates were replayed")
    print(took, peak_mb() - before)


def peak_mb() -> float:
    """The most resident memory that this process has had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
