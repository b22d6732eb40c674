"""The supervisor and the executor above it: what a bad session costs is one task, and never the next."""

import io
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evomerge_contract.recipe import Recipe
from evomerge_contract.report import Report
from evomerge_contract.task import EvaluateTask
from evomerge_operator.local.executor import LocalExecutor
from evomerge_worker.process.serving import serve

BAD_SESSION = [sys.executable, str(Path(__file__).parent / "bad_session.py")]
SUPERVISOR = [
    sys.executable,
    "-c",
    "import sys; from evomerge_worker.process.serving import serve;"
    f"sys.exit(serve(iter(sys.stdin.buffer.readline, b''), sys.stdout.buffer, {BAD_SESSION!r}))",
]


def task(do: str, timeout: int = 60) -> EvaluateTask:
    return EvaluateTask(
        sources=[],
        report_dir="file:///nowhere",
        recipe=Recipe(merge_method="linear"),
        objectives=[],
        data={},
        timeout_seconds=timeout,
        trace={"do": do},
    )


def reports(*tasks: EvaluateTask) -> list[Report]:
    out = io.BytesIO()
    lines = [t.model_dump_json(exclude_none=True, by_alias=True).encode() for t in tasks]
    assert serve(lines, out, BAD_SESSION) == 0
    return [Report.model_validate_json(line) for line in out.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("do", "reason", "message"),
    [
        ("crash", "Crashed", "ended by signal 9"),
        ("exit", "Crashed", "ended with exit 3"),
        ("garbage", "Garbage", "Loading checkpoint shards"),
        ("another", "Garbage", "instead of a report"),
        ("close", "Garbage", "closed its output without a report"),
    ],
)
def test_a_bad_session_costs_its_task_and_the_next_gets_a_fresh_one(do: str, reason: str, message: str) -> None:
    first, bad, last = reports(task("answer"), task(do), task("answer"))
    assert (bad.outcome, bad.reason) == ("Failed", reason)
    assert message in (bad.message or "")
    assert bad.trace == {"do": do}
    assert first.evaluate is not None
    assert last.evaluate is not None
    assert first.evaluate.scores != last.evaluate.scores  # another process


def test_a_session_that_hangs_is_ended_at_the_deadline() -> None:
    hung, after = reports(task("hang", timeout=1), task("answer"))
    assert hung.reason == "TimedOut"
    assert "longer than 1 s" in (hung.message or "")
    assert after.outcome == "Succeeded"


def test_good_tasks_share_one_session() -> None:
    scores = [r.evaluate.scores for r in reports(task("answer"), task("answer")) if r.evaluate]
    assert scores[0] == scores[1]


def test_a_line_that_is_no_task_is_refused_with_exit_65() -> None:
    out = io.BytesIO()
    assert serve([b'{"kind": "dance"}'], out, BAD_SESSION) == 65
    assert out.getvalue() == b""


@pytest.fixture
def executor(tmp_path: Path) -> Iterator[LocalExecutor]:
    with LocalExecutor(2, tmp_path / "worker.log", command=SUPERVISOR) as running:
        yield running


def collect(executor: LocalExecutor, count: int) -> dict[str, Report]:
    found: dict[str, Report] = {}
    while len(found) < count:
        for done, report in executor.wait(timeout=60):
            found[(done.trace or {})["do"]] = report
    return found


def test_the_executor_reports_a_crash_of_one_worker_and_the_other_goes_on(executor: LocalExecutor) -> None:
    executor.start(task("crash"))
    executor.start(task("answer"))
    assert executor.idle == 0
    found = collect(executor, 2)
    assert found["crash"].reason == "Crashed"
    assert found["answer"].outcome == "Succeeded"
    assert executor.idle == 2


def test_a_supervisor_that_is_killed_costs_its_task_and_is_started_again(executor: LocalExecutor) -> None:
    executor.start(task("hang"))
    for slot in executor._slots:
        assert slot.process is not None
        slot.process.send_signal(signal.SIGKILL)
    assert collect(executor, 1)["hang"].message == "the worker process ended"
    executor.start(task("answer"))
    assert collect(executor, 1)["answer"].outcome == "Succeeded"


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from test_supervisor import SUPERVISOR, task\n"
        "from evomerge_operator.local.executor import LocalExecutor\n"
        f"e = LocalExecutor(1, Path({str(tmp_path / 'log')!r}), command=SUPERVISOR); e.start(task('hang'))\n"
        "print('up', flush=True); time.sleep(600)"
    )
    folder = Path(__file__).parent
    parent = subprocess.Popen([sys.executable, "-c", script, str(folder)], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"up\n"
    descendants = _waits_for(lambda: [c for s in children(parent.pid) for c in [s, *children(s)] if children(s)])
    assert len(descendants) == 2
    parent.kill()
    parent.wait()
    assert _waits_for(lambda: not any(alive(pid) for pid in descendants))


def children(pid: int) -> list[int]:
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _waits_for(condition, seconds: float = 30.0):  # type: ignore[no-untyped-def]
    """The first true value of `condition`, or its last one after `seconds`."""
    end = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return value
