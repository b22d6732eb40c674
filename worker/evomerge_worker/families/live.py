"""A model that stays in memory while candidate after candidate is merged straight into it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evomerge_contract.recipe import Recipe
from evomerge_worker.families.loading import load_model, load_state
from evomerge_worker.families.slots import find_slots
from evomerge_worker.merge.export import result_dtype, weights_dtype
from evomerge_worker.merge.plan import TensorPlan, anchor_of, plan_merge
from evomerge_worker.merge.run import checksum, merge_tensor, merged, not_finite
from evomerge_worker.merge.vocabulary import Vocabularies
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.tokenizer import load_tokenizer
from evomerge_worker.store.wanted import companions

_COSMETIC = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # config keys that change no computation


class LiveModel:
    """A causal language model and its tokenizer: parameter for parameter and buffer for buffer what `from_pretrained`
    gives for the exported result of the last merge (of the opened checkpoint before the first one).

    `model` and `tokenizer` may be other objects after a merge: do not hold on to them.
    """

    model: Any
    tokenizer: Any

    def __init__(self, device: torch.device, *, trust_remote_code: bool) -> None:
        self.model = self.tokenizer = None
        self._device = device
        self._trust_remote_code = trust_remote_code
        self._opened: tuple[str, torch.dtype] | None = None
        self._slots: dict[str, Tensor] | None = None
        self._identities: dict[Checkpoint, str] = {}
        self._vocabularies = Vocabularies(trust_remote_code=trust_remote_code)

    @classmethod
    def open(
        cls,
        checkpoint: Checkpoint,
        *,
        device: torch.device,
        trust_remote_code: bool = False,
        dtype: torch.dtype | None = None,
    ) -> "LiveModel":
        """Load `checkpoint` (that of a run's recipes' base or first model, to be quick) in `dtype`, else its own.

        Where recipes name a vocabulary, `open_for` is quicker.

        Raises:
            InputError: transformers cannot load the model or its tokenizer.
        """
        live = cls(device, trust_remote_code=trust_remote_code)
        live._open(checkpoint, dtype or weights_dtype(checkpoint))
        return live

    def open_for(self, recipe: Recipe, checkpoints: Mapping[str, Checkpoint]) -> None:
        """Load the model that `recipe` is merged into, unless there is one already.

        Raises:
            InputError: transformers cannot load it or its tokenizer, or the vocabularies cannot be aligned.
        """
        if self.model is None:
            anchor = self._vocabularies.aligned(recipe, checkpoints)[anchor_of(recipe)]
            self._open(anchor, weights_dtype(anchor))

    def merge(self, recipe: Recipe, checkpoints: Mapping[str, Checkpoint], mask_seed: int) -> None:
        """Carry out `recipe` on the sources `checkpoints` and put the result in place.

        A result with another config, tokenizer or dtype than the model that is open has that one opened first.

        Raises:
            InputError: recipe or sources are wrong.
            CandidateError: the result is not finite. The model is then unusable until the next merge.
        """
        checkpoints = self._vocabularies.aligned(recipe, checkpoints)
        plans = plan_merge(recipe, checkpoints)
        anchor = checkpoints[anchor_of(recipe)]
        wanted = (self._identity(anchor), result_dtype(plans, anchor))
        if self._opened != wanted:
            self._open(anchor, wanted[1])
        with torch.no_grad():
            if self._slots is not None and {plan.name for plan in plans} == set(anchor.names):
                self._merge_in_place(plans, checkpoints, mask_seed)
                return
            state = dict(merged(plans, checkpoints, mask_seed))
        self._opened = None
        self.model = load_state(self.model, state, dtype=wanted[1], device=self._device)
        if self._slots is None:  # slots would be those of the model before
            self._opened = wanted

    def _open(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self._opened = None
        self.model = load_model(checkpoint, dtype=dtype, device=self._device, trust_remote_code=self._trust_remote_code)
        self.tokenizer = load_tokenizer(checkpoint, trust_remote_code=self._trust_remote_code)
        self._slots = find_slots(self.model, checkpoint)
        self._opened = (self._identity(checkpoint), dtype)

    def _merge_in_place(self, plans: list[TensorPlan], checkpoints: Mapping[str, Checkpoint], mask_seed: int) -> None:
        sums, names = [], []
        for plan in plans:
            slot = (self._slots or {}).get(plan.name)
            if slot is None:
                continue  # a tensor that the architecture has no use for
            tensor = merge_tensor(plan, checkpoints, mask_seed, self._device)
            slot.copy_(tensor if slot.dtype == plan.dtype else tensor.to(plan.dtype))
            if slot.is_floating_point():
                sums.append(checksum(slot))
                names.append(plan.name)
        finite = torch.stack(sums).isfinite()
        if not bool(finite.all()):
            raise not_finite(names[int(finite.logical_not().nonzero()[0])])

    def _identity(self, checkpoint: Checkpoint) -> str:
        """A digest of all but the weights: names of the tensors, config, tokenizer and generation config."""
        if checkpoint not in self._identities:
            config = {key: value for key, value in checkpoint.config.items() if key not in _COSMETIC}
            digest = hashlib.sha256(json.dumps([checkpoint.names, config], sort_keys=True).encode())
            for path in companions(checkpoint.folder, code=self._trust_remote_code):
                digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
            self._identities[checkpoint] = digest.hexdigest()
        return self._identities[checkpoint]
