"""A worker that merges nothing: it sleeps for a time that the task's digest decides, spread over 4 to 1.

    python sleeping_worker.py SHORTEST_SECONDS SALT

It reports a fitness that the digest decides too, and how long it slept.
"""

import hashlib
import sys
import time

from evomerge_contract.answers import success
from evomerge_contract.report import EvaluateResult
from evomerge_contract.task import task_adapter

SPREAD = 4.0


def main() -> None:
    """Answer tasks until standard input ends."""
    shortest, salt = float(sys.argv[1]), sys.argv[2]
    for line in sys.stdin:
        task = task_adapter.validate_json(line)
        drawn = hashlib.sha256(f"{salt} {task.digest}".encode()).digest()
        duration, fitness = (int.from_bytes(part, "big") / 2**64 for part in (drawn[:8], drawn[8:16]))
        began = time.perf_counter()
        time.sleep(shortest * (1 + (SPREAD - 1) * duration))
        scores = EvaluateResult(scores={o.name: fitness for o in getattr(task, "objectives", [])})
        report = success(task, scores, seconds={"evaluate": time.perf_counter() - began})
        print(report.line(), flush=True)


main()
