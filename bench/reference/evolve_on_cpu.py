"""Run mergekit-evolve 0.1.5 on a machine without a GPU; runs in the reference environment, not in ours.

    EVOMERGE_RAY_FOLDER=<folder that is not there yet> python evolve_on_cpu.py ACTORS <arguments of mergekit-evolve>

It takes one GPU an actor and loads on "cuda"; so Ray is told of GPUs that are not there, and in every process, before
mergekit is imported: lm_eval gets a stand-in for its vLLM module (mergekit names its class even where vLLM is not
used), torch.cpu an empty_cache that does nothing, and lm_eval the CPU to evaluate on. Nothing else is changed.
"""

import functools
import os
import secrets
import sys
import types
from pathlib import Path


def prepare_process() -> None:
    """What mergekit-evolve needs in each process of its own to work without a GPU."""
    import lm_eval
    import lm_eval.models
    import torch

    stand_in = types.ModuleType("lm_eval.models.vllm_causallms")
    stand_in.VLLM = type("VLLM", (), {})
    sys.modules[stand_in.__name__] = stand_in
    lm_eval.models.vllm_causallms = stand_in
    torch.cpu.empty_cache = lambda: None
    lm_eval.simple_evaluate = functools.partial(lm_eval.simple_evaluate, device="cpu")


def main() -> None:
    """Start Ray with pretended GPUs, then mergekit-evolve."""
    folder = Path(os.environ["EVOMERGE_RAY_FOLDER"])
    folder.mkdir()
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # or Ray keeps one in the home folder
    import ray

    actors = int(sys.argv.pop(1))
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    import evolve_on_cpu  # by its name: Ray's processes import the hook from there

    ray.init(
        num_cpus=actors,
        num_gpus=actors,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
        log_to_driver=True,
        runtime_env={
            "worker_process_setup_hook": "evolve_on_cpu.prepare_process",
            "env_vars": {"PYTHONPATH": sys.path[0], "OMP_NUM_THREADS": "1"},
        },
    )
    evolve_on_cpu.prepare_process()
    from mergekit.scripts.evolve import main as evolve

    evolve()


if __name__ == "__main__":
    main()
