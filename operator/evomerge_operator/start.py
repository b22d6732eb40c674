"""The console command `evomerge-operator`. Helper processes load it as their main module, so it imports nothing yet."""

import os


def main() -> None:
    """Start the operator's process."""
    # Helper processes are the operator's parallelism: threads of theirs would only take memory.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from evomerge_operator.process import main as run

    run()
