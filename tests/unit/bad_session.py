"""A session that does what its task's trace tells it to: answer, crash, hang, print garbage. Run by the tests."""

import os
import signal
import sys
import time

from evomerge_contract.report import EvaluateResult, Report
from evomerge_contract.task import task_adapter

print("ready", flush=True)
for line in sys.stdin:
    task = task_adapter.validate_json(line)
    trace = task.trace or {}
    match trace["do"]:
        case "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        case "close":
            os.close(1)
            time.sleep(600)
        case "exit":
            sys.exit(3)
        case "hang":
            time.sleep(600)
        case "garbage":
            print("Loading checkpoint shards: 100%", flush=True)
            continue
        case "another":
            task = task.model_copy(update={"batch_size": 99})
    scores = EvaluateResult(scores={"pid": float(os.getpid())})
    print(
        Report(task=task.digest, kind="evaluate", outcome="Succeeded", evaluate=scores, trace=trace).line(), flush=True
    )
