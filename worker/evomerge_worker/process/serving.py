"""The supervisor's work: tasks in, handed one by one to a session, one line out per report.

The supervisor holds no torch. Its child, the session, does the work; when the child crashes, hangs or prints garbage,
that costs the task it was on and no other: a failure is reported and the next task gets a fresh child.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import BinaryIO

from pydantic import ValidationError

from evomerge_contract.exits import EXIT_INVALID_INPUT, EXIT_TRY_AGAIN
from evomerge_contract.report import Report
from evomerge_contract.task import Task, task_adapter
from evomerge_worker.process.child import Child
from evomerge_worker.process.tally import PORT_VARIABLE, Tally

SESSION = (sys.executable, "-m", "evomerge_worker.process.session")
_EXIT_CODES = {"InvalidInput": EXIT_INVALID_INPUT, "TryAgain": EXIT_TRY_AGAIN}


def serve(lines: Iterable[bytes], out: BinaryIO, command: Sequence[str] = SESSION) -> int:
    """Carry out the tasks, one a line, in a child `command`; the exit code: 0 reported, 65 wrong input, 75 later."""
    code = 0
    with session(out, command) as carry_out:
        for line in lines:
            if not line.strip():
                continue
            try:
                task = task_adapter.validate_json(line)
            except ValidationError as error:
                sys.stderr.write(f"evomerge-worker: a line is not a task: {error}\n")
                code = max(code, EXIT_INVALID_INPUT)
                continue
            code = max(code, exit_code(carry_out(task)))
    return code


@contextmanager
def session(out: BinaryIO, command: Sequence[str], tasks: int = 0) -> Iterator[Callable[[Task], Report]]:
    """A function that has a task carried out, prints the line on it to `out` and returns its report.

    Its metrics are served where a port is given for them; `tasks` is how many are known to come.
    """
    tally = Tally(tasks)
    if port := os.environ.get(PORT_VARIABLE):
        from evomerge_worker.process.prometheus import serve_metrics  # not wanted outside pods

        serve_metrics(tally, port)
    with closing(Child(command, tally.update)) as child:

        def carry_out(task: Task) -> Report:
            tally.begin()
            report = child.run(task)
            out.write(report.line().encode() + b"\n")
            out.flush()
            tally.end(report)
            return report

        yield carry_out


def exit_code(report: Report) -> int:
    """What one report makes of the worker's exit."""
    return _EXIT_CODES.get(report.reason or "", 0)
