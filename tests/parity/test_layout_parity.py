"""Our layouts, told from names alone, against mergekit's hand-written architectures."""

from evomerge_worker.shards import layout_of
from oracle import Oracle

NUMBERED_EMBEDDING = "MixFormerSequentialForCausalLM"
"""Phi-1's first code numbers its embedding as layer 0 and its head as the last one; no name tells it from a layer."""


def test_layers_embeddings_and_heads_are_those_of_mergekit(oracle: Oracle) -> None:
    known = oracle(ask="architectures")
    assert len(known) > 40
    wrong = {}
    for name, expected in known.items():
        if name == NUMBERED_EMBEDDING:
            continue
        numbered = [tensor for layer in expected["layers"] for tensor in layer]
        names = [*expected["before"], *expected["after"], *numbered]
        layout = layout_of(dict.fromkeys(names, (1,)))
        in_layers = [f"{layout.layer_prefix}{i}.{t}" for i in range(layout.layers) for t in layout.layer_tensors]
        ours = (layout.layers, sorted(layout.before), sorted(layout.after), sorted(in_layers))
        theirs = (3, sorted(expected["before"]), sorted(expected["after"]), sorted(numbered))
        if ours != theirs:
            wrong[name] = (ours, theirs)
    assert wrong == {}
