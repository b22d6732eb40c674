"""Carry out a recipe with mergekit and say how long it took; runs in the reference environment, not in ours.

    python mergekit_merge.py RECIPE OUT THREADS

Prints {"seconds": all of the merge, imports apart, "writing": seconds of it in which tensors were being written}.
"""

import json
import sys
import time
from pathlib import Path

import yaml
from mergekit.config import MergeConfiguration
from mergekit.io.tensor_writer import TensorWriter
from mergekit.merge import run_merge
from mergekit.options import MergeOptions

writing = 0.0


def timed(method):
    """`method` of the tensor writer, its time added to `writing`."""

    def run(*arguments, **named):
        global writing
        began = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            writing += time.perf_counter() - began

    return run


def main() -> None:
    """Merge, as `mergekit-yaml` does with its defaults."""
    recipe, out, threads = sys.argv[1:]
    TensorWriter.save_tensor = timed(TensorWriter.save_tensor)
    TensorWriter.finalize = timed(TensorWriter.finalize)
    options = MergeOptions(num_threads=int(threads), quiet=True)
    options.apply_global_options()
    configuration = MergeConfiguration.model_validate(yaml.safe_load(Path(recipe).read_text("utf-8")))
    began = time.perf_counter()
    run_merge(configuration, out, options=options)
    print(json.dumps({"seconds": time.perf_counter() - began, "writing": writing}))


if __name__ == "__main__":
    main()
