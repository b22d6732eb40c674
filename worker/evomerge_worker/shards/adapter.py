"""LoRA adapters (arXiv 2106.09685) as PEFT writes them: what each makes of the tensors of its model.

A pair A [rank, in], B [out, rank] of a linear module changes its weight W [out, in] into W + s B A, with s = alpha /
rank, or alpha / sqrt(rank) where the adapter says use_rslora (arXiv 2312.03732). Tensors that are saved as a whole
(modules_to_save, biases) take the place of the model's.
"""

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError
from evomerge_worker.shards.adapter_config import MEND, rank_of, refusals, scale_of
from evomerge_worker.shards.adapter_names import bare_name, split, target_of, untowered
from evomerge_worker.shards.checkpoint import Checkpoint, all_finite
from evomerge_worker.shards.dtypes import FLOATS
from evomerge_worker.shards.tied import held_heads, tied_embeddings
from evomerge_worker.shards.token_rows import row_tensors
from evomerge_worker.store.index import POINTER, is_pointer
from evomerge_worker.store.wanted import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_ROWS = 1 << 10  # of a weight that are worked on at once: they are 64 bits wide
_SHOWN = 5

_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Families whose linear layers have their weights as [in, out]."""


class _OwnError(ValueError):
    """The adapter's files do not go together, whatever the model is; the message says what to do."""


class _Shard(Protocol):
    """What is used of an open safetensors file."""

    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> Any: ...
    def get_tensor(self, name: str) -> torch.Tensor: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """`a` [rank, in] and `b` [out, rank] by name; W + `scale` b a, turned around where W is [in, out]."""

    a: str
    b: str
    scale: float
    turned: bool


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of a tensor: the adapter's tensor `whole` takes its place, a pair is added, or both in turn."""

    whole: str | None = None
    pair: Pair | None = None


@dataclass(frozen=True, eq=False)
class Adapter:
    """An adapter's folder, opened: its config has been checked, and the header of its weights read."""

    folder: Path
    config: Mapping[str, Any]
    _shard: _Shard

    @classmethod
    def open(cls, folder: Path, where: str) -> "Adapter":
        """Open `folder`; problems are reported at `where`.

        Raises:
            InputError: it is damaged, or of a kind that cannot be merged into weights here: every reason.
        """
        if is_pointer(folder / ADAPTER_WEIGHTS):
            raise InputError.at(where, f"the adapter's {ADAPTER_WEIGHTS} {POINTER}")
        try:
            config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
            shard: _Shard = safe_open(folder / ADAPTER_WEIGHTS, framework="pt")
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError.at(where, f"the adapter cannot be read ({error}); fetch it again") from error
        if not isinstance(config, dict):
            raise InputError.at(where, f"the adapter's {ADAPTER_CONFIG} is not a JSON object")
        if reasons := list(refusals(config)):
            raise InputError(*(Problem(path=where, message=reason) for reason in reasons))
        return cls(folder, config, shard)

    def resized(self, model: Checkpoint) -> Checkpoint:
        """`model` with as many rows in embeddings and head as the adapter brings, which may have learnt more tokens.

        What it brings is saved whole; until `changes` has seen that it does so for all of them, rows hold nothing.
        """
        tables = {name: model.shape(name) for name in row_tensors(model)}
        for name in sorted(self._shard.keys()):
            bare, shape = bare_name(name), self._shape(name)
            like = [of_model for table, of_model in tables.items() if untowered(table) == untowered(bare)]
            if split(name)[0] is None and like and like[0] != shape and like[0][1:] == shape[1:]:
                empty = {table: partial(_empty, model, table, shape[0]) for table in tables}
                return model.with_rows(shape[0], empty)
        return model

    def changes(self, model: Checkpoint, where: str) -> dict[str, Change]:
        """What becomes of the tensors of `model`, by their names.

        Raises:
            InputError: all that does not fit: tensors without a counterpart, shapes, ranks.
        """
        found: dict[str, Change] = {}
        names = set(self._shard.keys())
        trained_on = self.config.get("base_model_name_or_path")
        advice = "name the model that it was trained on" + (f" ({trained_on})" if trained_on else "")
        wrong: list[str] = [] if names else ["the adapter holds no tensors; fetch it again"]
        for name in sorted(names):
            try:
                target, change = self._change(name, names, model)
                if target is not None:
                    found[target] = _joined(found.get(target, Change()), change, target)
            except _OwnError as mistake:
                wrong.append(f"the adapter {mistake}")
            except ValueError as mistake:
                wrong.append(f"the adapter does not fit: {mistake}; {advice}")
        if wrong:
            more = [f"and {len(wrong) - _SHOWN} more of its tensors do not fit"] if len(wrong) > _SHOWN else []
            raise InputError(*(Problem(path=where, message=message) for message in wrong[:_SHOWN] + more))
        self._check_rows(model, found, where)
        embeddings = tied_embeddings(model)
        absent = {name for name in found if name not in model}
        return found if embeddings is None else self.tied(found, embeddings, absent, where)

    def tied(self, changes: dict[str, Change], embeddings: str, heads: Set[str], where: str) -> dict[str, Change]:
        """`changes` without those of `heads`, which are tied to `embeddings`: what changes these changes the heads.

        PEFT writes the changes of both where it is told to keep them tied (ensure_weight_tying), a pair turned around.
        Where it is not, and trains a copy of the embeddings that it saves whole, the head stays behind.

        Raises:
            InputError: they would not be tied any more.
        """
        change, of_heads = changes.get(embeddings, Change()), sorted(heads & changes.keys())
        other = next((head for head in of_heads if not self._alike(changes[head], change)), None)
        kept = of_heads or change.pair or self.config.get("ensure_weight_tying")
        if other is not None:
            message = f"changes {other}, which the model ties to {embeddings}, in another way than those"
        elif change.whole and not kept:
            message = f"saves {embeddings} whole, and the head, which the model ties to them, has stayed what it was"
        else:
            return {name: change for name, change in changes.items() if name not in heads}
        advice = "merge it with PEFT, set tie_word_embeddings to false in the result's config.json, and name that"
        raise InputError.at(where, f"the adapter {message}; {advice}")

    def _check_rows(self, model: Checkpoint, changes: Mapping[str, Change], where: str) -> None:
        """Refuse to give `model` more rows where the adapter does not bring all of them."""
        left = [name for name in model.made if changes.get(name, Change()).whole is None]
        if left and not self._ties(model, left):
            rows = len(model.tensor(left[0]))
            message = f"the adapter was trained with {rows} rows of tokens, and does not hold {left[0]} with as many"
            raise InputError.at(where, f"{message}; save it with save_embedding_layers=True")

    @staticmethod
    def _ties(model: Checkpoint, left: Sequence[str]) -> bool:
        """Whether those are copies of the embeddings, which follow them."""
        return set(left) <= held_heads(model)

    def check_numbers(self, where: str) -> None:
        """Look at every number.

        Raises:
            InputError: tensors that are no floats, or hold NaN or infinity.
        """
        wrong = []
        for name in sorted(self._shard.keys()):
            tensor = self._shard.get_tensor(name)
            if tensor.dtype not in FLOATS.values():
                wrong.append(f"{name} is {tensor.dtype}, but adapters hold floats of 16 or 32 bits")
            elif not all_finite(tensor):
                wrong.append(f"{name} holds NaN or infinity")
        if wrong:
            more = f" (and {len(wrong) - 1} more of its tensors are no better)" if len(wrong) > 1 else ""
            raise InputError.at(where, f"the adapter is damaged: {wrong[0]}{more}; fetch it again, or leave it out")

    def applied(self, change: Change, weight: torch.Tensor) -> torch.Tensor:
        """`weight` after the change, computed in float64 and rounded once to its own dtype.

        In float32 the last bit would depend on how a machine adds up products.
        """
        before = weight if change.whole is None else self._shard.get_tensor(change.whole)
        if change.pair is None:
            return before.to(weight.dtype)
        a, b = (self._shard.get_tensor(name).double() for name in (change.pair.a, change.pair.b))
        left, right = (a.T, b.T) if change.pair.turned else (b, a)
        result = torch.empty_like(weight)
        for rows in range(0, len(weight), _ROWS):
            part = slice(rows, rows + _ROWS)
            result[part] = (before[part].double() + change.pair.scale * (left[part] @ right)).to(weight.dtype)
        return result

    def _change(self, name: str, names: set[str], model: Checkpoint) -> tuple[str | None, Change]:
        """The model's tensor that the adapter's tensor `name` changes, and how; of a pair, A speaks for both.

        Raises:
            ValueError: it does not fit.
        """
        module, of_a, of_b = split(name)
        if module is None:
            target = target_of(name, model)
            if self._shape(name) != _shape_in(model, target):
                its_shape, shape = list(self._shape(name)), list(_shape_in(model, target))
                raise ValueError(f"{name} has shape {its_shape}, but {target} of the model {shape}")
            return target, Change(whole=name)
        for part in (of_a, of_b):
            if f"{module}.{part}" not in names:
                raise ValueError(f"{name} has no {part} beside it")
        if name.endswith(of_b):
            return None, Change()
        target = target_of(f"{module}.weight", model)
        pair = self._pair(name, f"{module}.{of_b}", bare_name(module), target, model, embedding=of_a != "lora_A.weight")
        return target, Change(pair=pair)

    def _pair(self, a: str, b: str, module: str, target: str, model: Checkpoint, *, embedding: bool) -> Pair:
        of_a, of_b, of_weight = self._shape(a), self._shape(b), _shape_in(model, target)
        try:
            rank, scale = rank_of(self.config, module), scale_of(self.config, module)
        except re.error as error:
            raise _OwnError(f"has a pattern that is no regular expression ({error}); {MEND}") from error
        if len(of_a) != 2 or len(of_b) != 2 or len(of_weight) != 2:
            raise ValueError(f"{a} belongs to a module that is neither linear nor an embedding")
        if (of_a[0], of_b[1]) != (rank, rank):
            raise _OwnError(
                f"says rank {rank} (r, rank_pattern), but {a} and its B are of rank {of_a[0]} and {of_b[1]}; {MEND}"
            )
        straight = (of_b[0], of_a[1])
        turned = embedding or (of_weight == straight[::-1] and self._may_be_turned(target, model))
        if of_weight != (straight[::-1] if turned else straight):
            raise ValueError(f"{a} and its B make {list(straight)}, but {target} of the model is {list(of_weight)}")
        return Pair(a, b, scale, turned)

    def _may_be_turned(self, target: str, model: Checkpoint) -> bool:
        """Whether a linear weight of the model may be [in, out]."""
        if model.config.get("model_type") in _CONV1D:
            return target.startswith(model.layout.layer_prefix)
        return bool(self.config.get("fan_in_fan_out"))

    def _alike(self, of_head: Change, of_embeddings: Change) -> bool:
        """Whether both come to the same: a pair of the head is that of the embeddings, turned around."""
        if of_head.pair is None or of_embeddings.pair is None:
            same_pair = of_head.pair is of_embeddings.pair
        else:
            a, b = of_embeddings.pair.b, of_embeddings.pair.a
            same_scale = of_head.pair.scale == of_embeddings.pair.scale
            same_pair = same_scale and self._equal(of_head.pair.a, a, True) and self._equal(of_head.pair.b, b, True)
        return same_pair and self._equal(of_head.whole, of_embeddings.whole, False)

    def _equal(self, name: str | None, other: str | None, turned: bool) -> bool:
        if name is None or other is None:
            return name is other
        tensor = self._shard.get_tensor(other)
        return torch.equal(self._shard.get_tensor(name), tensor.T if turned else tensor)

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shard.get_slice(name).get_shape())


def _empty(model: Checkpoint, name: str, rows: int) -> torch.Tensor:
    return torch.zeros((rows, *model.shape(name)[1:]), dtype=model.dtype(name))


def _joined(first: Change, second: Change, target: str) -> Change:
    """Both changes of one tensor: the embeddings that an adapter trains by a pair it also saves whole, as they were.

    Raises:
        ValueError: they are of one kind.
    """
    if (first.whole and second.whole) or (first.pair and second.pair):
        raise ValueError(f"two of its tensors, or pairs of them, change {target}")
    return Change(first.whole or second.whole, first.pair or second.pair)


def _shape_in(model: Checkpoint, target: str) -> tuple[int, ...]:
    """The shape of a tensor of `model`; that of its embeddings for a head tied to them."""
    return model.shape(target if target in model else str(tied_embeddings(model)))
