"""How many worker sessions a machine carries, and what each is given of it."""

import os
from pathlib import Path

from evomerge_contract.manifest import EvoMergeSpec


def default_workers(spec: EvoMergeSpec) -> int:
    """As many sessions as the manifest allows and the machine has GPUs or, without one, cores for."""
    fitting = len(_gpus()) or max(1, _cores() // spec.evaluation.threads)
    return max(1, min(spec.parallelism, fitting))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: what this process may use, not what the machine has
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_environments(workers: int) -> list[dict[str, str]]:
    """The variables of each worker: one GPU each, round robin, where there are GPUs."""
    gpus = _gpus()
    # Idle OpenMP threads that spin make neighbours many times slower.
    quiet = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}
    if not gpus:
        return [quiet]
    return [quiet | {"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(workers)]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu]
    return [str(i) for i, _ in enumerate(sorted(Path("/dev").glob("nvidia[0-9]*")))]
