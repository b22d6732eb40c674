"""The examples' manifests: valid, and as large as their pages say."""

from pathlib import Path

import pytest

from documents import LAYOUT, prepared
from evomerge_contract.report import Flow
from evomerge_operator.local.preview import spaces_of
from evomerge_operator.manifest import load_manifest
from evomerge_operator.plan.proposer import begin_stage
from evomerge_operator.plan.run import default_names, make_run
from evomerge_operator.services.decide import log_too_large, refusal

EXAMPLES = Path(__file__).parents[2] / "examples"
MANIFESTS = sorted(EXAMPLES.glob("*/*.yaml"))


@pytest.mark.parametrize("file", MANIFESTS, ids=[str(file.relative_to(EXAMPLES)) for file in MANIFESTS])
def test_an_example_is_valid(file: Path) -> None:
    manifest = load_manifest(file)
    on_cluster = manifest.spec.export is not None
    assert bool(refusal(manifest)) != on_cluster


@pytest.mark.parametrize(
    ("file", "dimensions"), [("evomerge.yaml", {"ps": 6, "dfs": 4288}), ("dfs.yaml", {"dfs": 4288})]
)
def test_the_papers_searches_have_the_papers_dimensions(file: str, dimensions: dict[str, int]) -> None:
    manifest = load_manifest(EXAMPLES / "evollm-jp" / file)
    names = [model.name for model in manifest.spec.models]
    flow = Flow(divided=["mlp.down_proj.weight", "self_attn.o_proj.weight"], layers=dict.fromkeys(names, 32))
    found = prepared(manifest, LAYOUT.model_copy(update={"layers": 32, "flow": flow}))
    run = make_run(manifest, found, "s3://out/reports", default_names(manifest, found))
    spaces = spaces_of(run, begin_stage(run, 0))
    assert {name: len(space.genes) for name, space in spaces.items()} == dimensions
    assert spaces["dfs"].deepest == 48
    assert log_too_large(run) is None
