"""RAM+, tensor by tensor: as RAM, but what only one model changed grows by how much else of it is shared (2601.13572).

The paper counts over the whole model; this is mergekit's variant, which counts over each tensor.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from evomerge_worker.merge.formula import Formula, elements, pieces
from evomerge_worker.merge.method import InputTensor
from evomerge_worker.merge.methods.ram import changes, reinforced


def merge(sources: Sequence[InputTensor], base: Tensor, shared: Mapping[str, float]) -> Formula:
    """As RAM; what only one source changed is multiplied by 1 + r * min(rho, alpha).

    rho is how many elements the source changed that others changed too, over how many it alone did.
    """
    tensors, origin, epsilon = [elements(source.tensor) for source in sources], elements(base), shared["epsilon"]
    shared_counts, unique_counts = [0] * len(sources), [0] * len(sources)
    for part in pieces(origin) if sources else ():
        _, changed = changes(tensors, origin, part, epsilon)
        number = torch.stack(changed).sum(dim=0)
        for i, mine in enumerate(changed):
            unique_counts[i] += int((mine & (number == 1)).sum())
            shared_counts[i] += int((mine & (number > 1)).sum())
    gains = [
        1 + shared["r"] * min(both / max(1, alone), shared["alpha"])
        for both, alone in zip(shared_counts, unique_counts, strict=True)
    ]
    return reinforced(sources, base, epsilon, gains)
