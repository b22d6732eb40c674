"""`evomerge-worker`: the command. It is light on purpose: signals are heard before anything slow is imported."""

import sys
from collections.abc import Callable, Sequence

from evomerge_contract.exits import EXIT_INTERRUPTED, EXIT_USAGE
from evomerge_worker.process.signals import end_at_signals

_USAGE = """\
evomerge-worker: carries out tasks (prepare, evaluate, select, conclude, export).

  evomerge-worker serve [FILE]      tasks as JSON lines from FILE or standard input, one line out per report
  evomerge-worker serve FILE --digest sha256:HEX --note PATH
                                    the same in a pod: only when FILE has this digest, and what became of the tasks
                                    goes to PATH in the end, the container's termination message
  evomerge-worker merge RECIPE OUT  merge a mergekit recipe to disk (see `evomerge merge --help`)
  evomerge-worker render OUT.html   a run report as JSON on standard input, an HTML page out

Exit: 0 every task is reported, 65 the input is wrong, 75 try again later, anything else a failure.
EVOMERGE_WORKER_PORT, where set, is the port that Prometheus finds the worker's metrics on.
"""


def main(session: Sequence[str] | None = None) -> None:
    """The console command; `session` is the command of another session than this package's."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        sys.exit(0 if arguments else EXIT_USAGE)
    commands: dict[str, Callable[[list[str]], int]] = {
        "serve": lambda rest: _serve(rest, session),
        "merge": _merge,
        "render": _render,
    }
    command = commands.get(arguments[0])
    if command is None:
        sys.exit(_misused(f"{arguments[0]!r} is not a command"))
    sys.exit(command(arguments[1:]))


def _serve(arguments: list[str], session: Sequence[str] | None) -> int:
    end_at_signals()
    from evomerge_worker.process import pod, serving  # slow, and not before signals are heard

    command = serving.SESSION if session is None else session
    match arguments:
        case []:
            return serving.serve(iter(sys.stdin.buffer.readline, b""), sys.stdout.buffer, command)
        case [file]:
            with open(file, "rb") as lines:  # noqa: PTH123 - no Path needed to read lines
                return serving.serve(lines, sys.stdout.buffer, command)
        case [file, "--digest", digest, "--note", note]:
            return pod.serve_file(file, digest, note, sys.stdout.buffer, command)
        case _:
            return _misused(f"serve does not take {' '.join(arguments)!r}")


def _misused(what: str) -> int:
    sys.stderr.write(f"evomerge-worker: {what}\n{_USAGE}")
    return EXIT_USAGE


def _merge(arguments: list[str]) -> int:
    from evomerge_worker.standalone import merge  # imports torch, which serving must not

    try:
        return merge(arguments)
    except KeyboardInterrupt:  # the command line, which Ctrl-C ends too, has the words
        return EXIT_INTERRUPTED


def _render(arguments: list[str]) -> int:
    from evomerge_worker.standalone import render

    return render(arguments)


if __name__ == "__main__":
    main()
