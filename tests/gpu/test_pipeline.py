"""Tasks of every kind are carried out on the device that the pipeline finds by itself."""

from pathlib import Path

import torch

from evomerge_worker.pipeline import Pipeline
from pipeline_bench import Bench
from tiny_models import Tiny


def test_candidates_are_merged_and_evaluated_on_the_device(device: torch.device, tiny: Tiny, tmp_path: Path) -> None:
    bench = Bench(tmp_path, tiny)
    pipeline = Pipeline(tmp_path / "cache")
    for weight in (0.2, 0.7):
        report = pipeline.carry_out(bench.evaluate(weight))
        assert report.outcome == "Succeeded"
        assert {"load", "merge", "evaluate"} <= report.seconds.keys()
        assert pipeline._live is not None
        assert {p.device.type for p in pipeline._live.model.parameters()} == {device.type}


def test_prepare_conclude_and_export_succeed_on_the_device(tiny: Tiny, tmp_path: Path) -> None:
    bench = Bench(tmp_path, tiny)
    report = bench.done(bench.export((tmp_path / "out").as_uri()))
    assert report.outcome == "Succeeded"
    assert (tmp_path / "out" / "model.safetensors").exists()
