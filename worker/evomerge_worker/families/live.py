"""A model that stays in memory while candidate after candidate is merged straight into it."""

import gc
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge_contract.recipe import Recipe
from evomerge_worker.families.loading import load_model, load_state
from evomerge_worker.families.slots import find_slots
from evomerge_worker.families.stack import Stack, stack_of
from evomerge_worker.merge.export import result_dtype, weights_dtype
from evomerge_worker.merge.fit import is_computed
from evomerge_worker.merge.layers import moved_kinds, read_as, result_config
from evomerge_worker.merge.plan import anchor_of, plan_merge
from evomerge_worker.merge.run import Merger
from evomerge_worker.merge.statistics_cache import Statistics
from evomerge_worker.merge.vocabulary import Vocabularies
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.tied import held_heads, own_heads, ties_head, untied
from evomerge_worker.shards.tokenizer import load_tokenizer
from evomerge_worker.store.companions import settings

_COSMETIC = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")  # config keys that change no computation


@contextmanager
def _uncollected() -> Iterator[None]:
    """Nobody looks for circles of garbage: among all that a process with a model holds, it takes as long as a plan."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class LiveModel:
    """A causal language model and its tokenizer: parameter for parameter and buffer for buffer what `from_pretrained`
    gives for the exported result of the last merge (of the opened checkpoint before the first one).

    `model` and `tokenizer` may be other objects after a merge: do not hold on to them.
    """

    model: Any
    tokenizer: Any

    def __init__(self, device: torch.device, *, trust_remote_code: bool, cache: Path | None = None) -> None:
        """`cache` is where statistics of the sources are kept."""
        self.model = self.tokenizer = None
        self._device = device
        self._trust_remote_code = trust_remote_code
        self._opened: tuple[str, torch.dtype] | None = None
        self._class: Any = None  # this and what follows: of the model that was opened
        self._config: Any = None
        self._generation_config: Any = None
        self._has_slots = False
        self._slots: dict[str, Tensor] | None = None  # of `model`, if it is still the one that was opened
        self._stack: Stack | None = None  # that holds `model`, if its layers have moved and can be put in one by one
        self._identities: dict[Checkpoint, str] = {}
        self._statistics = Statistics(cache)
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
        if self._opened is None:
            anchor = self._vocabularies.aligned(recipe, checkpoints)[anchor_of(recipe)]
            self._open(anchor, weights_dtype(anchor))

    def merge(self, recipe: Recipe, checkpoints: Mapping[str, Checkpoint], mask_seed: int) -> None:
        """Carry out `recipe` on the sources `checkpoints` and put the result in place.

        A result with another tokenizer, config (but for layers that move) or dtype than the model that is open has that
        one opened first. Layers that have moved are stacked anew. Where tensors are converted on loading in a way that
        neither `find_slots` nor `stack_of` knows, a new model is built each time, once the one before it is gone.

        Raises:
            InputError: recipe or sources are wrong.
            CandidateError: the result is not finite. The model is then unusable until the next merge.
        """
        checkpoints = self._vocabularies.aligned(recipe, checkpoints)
        with _uncollected():
            plans = plan_merge(recipe, checkpoints)
        anchor = checkpoints[anchor_of(recipe)]
        config = result_config(recipe, checkpoints)
        wanted = (self._identity(anchor), result_dtype(plans, checkpoints))
        as_loaded = untied(anchor.config) if ties_head(anchor.config) and own_heads([anchor]) else anchor.config
        moved = config != as_loaded
        names, of_anchor = {plan.name for plan in plans}, set(anchor.names) - held_heads(anchor)
        ordinary = not moved and names <= of_anchor and all(map(is_computed, of_anchor - names))
        if self._opened != wanted or (ordinary and self._slots is None and self._has_slots):
            self._open(anchor, wanted[1])
        merger = Merger(checkpoints, mask_seed, self._device, self._statistics)
        with torch.no_grad():
            if ordinary and self._slots is not None:
                with _uncollected():
                    merger.merge_all(plans, self._slots)  # what has no slot is of no use to the architecture
                return
            model_config = read_as(type(self._config), config) if moved else self._config
            kinds = moved_kinds(recipe, checkpoints)
            if kinds is None or self._stack is None or not self._stack.suits(plans, kinds, wanted[1]):
                self._let_go()
                state = dict(merger.merged(plans))
                self.model = load_state(self._class, state, model_config, dtype=wanted[1], device=self._device)
                self.model.generation_config = self._generation_config
                if kinds is not None:
                    self._stack = stack_of(self.model, anchor.layout.layer_prefix, plans, kinds, wanted[1])
            if kinds is not None and self._stack is not None:  # the first one too: all are to have the same memory
                self._stack.put(plans, model_config, kinds, checkpoints, merger)

    def _open(self, checkpoint: Checkpoint, dtype: torch.dtype) -> None:
        self._opened = None
        self._let_go()
        self.model = load_model(checkpoint, dtype=dtype, device=self._device, trust_remote_code=self._trust_remote_code)
        self.tokenizer = load_tokenizer(checkpoint, trust_remote_code=self._trust_remote_code)
        self._class, self._config = type(self.model), self.model.config
        self._generation_config = self.model.generation_config
        self._slots = find_slots(self.model, checkpoint)
        self._has_slots = self._slots is not None
        self._opened = (self._identity(checkpoint), dtype)

    def _let_go(self) -> None:
        """Free the model's memory, so that no two of them take it at a time."""
        if self.model is not None:
            self.model = self._slots = self._stack = None
            gc.collect()  # modules refer to each other in circles

    def _identity(self, checkpoint: Checkpoint) -> str:
        """A digest of all but the weights: names of the tensors, config, tokenizer and generation config."""
        if checkpoint not in self._identities:
            config = {key: value for key, value in checkpoint.config.items() if key not in _COSMETIC}
            digest = hashlib.sha256(json.dumps([checkpoint.names, config], sort_keys=True).encode())
            for path in settings(checkpoint.folder, code=self._trust_remote_code):
                digest.update(f"\n{path.name}\n".encode() + path.read_bytes())
            self._identities[checkpoint] = digest.hexdigest()
        return self._identities[checkpoint]
