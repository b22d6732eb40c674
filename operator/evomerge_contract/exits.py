"""Exit codes, of every command. Imports nothing: a worker hears signals before it imports anything slow."""

EXIT_FAILURE = 1
"""The run, or the command, failed."""
EXIT_USAGE = 2
"""The command line or the environment is wrong."""
EXIT_INVALID_INPUT = 65
"""The input is wrong: never retried."""
EXIT_WORKER_FAILURE = 70
"""A worker failed for a reason that is neither of its input nor of what it depends on: another attempt may be made."""
EXIT_TRY_AGAIN = 75
"""A server did not answer, or somebody ended the worker: the same again, later."""
EXIT_INTERRUPTED = 130
"""Ctrl-C."""
