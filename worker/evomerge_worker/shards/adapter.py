"""LoRA adapters (arXiv 2106.09685) as PEFT writes them: what each makes of the tensors of its model.

A pair A [rank, in], B [out, rank] of a linear module changes its weight W [out, in] into W + s B A, with s = alpha /
rank, or alpha / sqrt(rank) where the adapter says use_rslora (arXiv 2312.03732). Tensors that are saved as a whole
(modules_to_save, biases) take the place of the model's.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from evomerge_contract.report import Problem
from evomerge_worker.errors import InputError
from evomerge_worker.shards.checkpoint import Checkpoint
from evomerge_worker.store.wanted import ADAPTER_CONFIG, ADAPTER_WEIGHTS

_PREFIX = "base_model.model."
_PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_embedding_A", "lora_embedding_B"))
"""How the names of A and B end: in a linear module, in an embedding."""
_WRAPPED = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")  # how PEFT names a module that it has wrapped
_TOWERS = ((re.compile(r"^(model\.language_model|language_model\.model)\."), "model."),
           (re.compile(r"^language_model\.lm_head\."), "lm_head."))  # fmt: skip
"""A language model inside another, by its names on disk and in memory."""
_ROWS = 1 << 10  # of a weight that are worked on at once: they are 64 bits wide
_SHOWN = 5

_CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Families whose linear layers have their weights as [in, out]."""
_HARMLESS = (
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config enable_lora ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config "
    "lora_alpha lora_dropout lora_ga_config megatron_config megatron_core merge_weights modules_to_save peft_type "
    "peft_version qalora_group_size r rank_pattern revision runtime_config target_modules task_type use_rslora"
)
"""What may be set in a config: it is done here, or makes no difference once the adapter is merged."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights under which PEFT leaves the model's own weights alone."""


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
        try:
            config = json.loads((folder / ADAPTER_CONFIG).read_bytes())
            shard: _Shard = safe_open(folder / ADAPTER_WEIGHTS, framework="pt")
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError.at(where, f"the adapter cannot be read ({error}); fetch it again") from error
        if not isinstance(config, dict):
            raise InputError.at(where, f"the adapter's {ADAPTER_CONFIG} is not a JSON object")
        if reasons := list(_refusals(config)):
            advice = "merge it into its model with PEFT, and name the result"
            raise InputError(*(Problem(path=where, message=f"the adapter {reason}; {advice}") for reason in reasons))
        return cls(folder, config, shard)

    def changes(self, model: Checkpoint, where: str) -> dict[str, Change]:
        """What becomes of the tensors of `model`, by their names.

        Raises:
            InputError: all that does not fit: tensors without a counterpart, shapes, ranks.
        """
        found: dict[str, Change] = {}
        names = set(self._shard.keys())
        wrong: list[str] = [] if names else ["it holds no tensors"]
        for name in sorted(names):
            try:
                target, change = self._change(name, names, model)
                if target is not None:
                    found[target] = _joined(found.get(target, Change()), change, target)
            except ValueError as mistake:
                wrong.append(str(mistake))
            except re.error as error:
                wrong.append(f"{ADAPTER_CONFIG} has a pattern that is no regular expression ({error})")
        if wrong:
            more = [f"and {len(wrong) - _SHOWN} more of its tensors do not fit"] if len(wrong) > _SHOWN else []
            trained_on = self.config.get("base_model_name_or_path")
            advice = "name the model that it was trained on" + (f" ({trained_on})" if trained_on else "")
            told = [f"the adapter does not fit: {message}; {advice}" for message in wrong[:_SHOWN]] + more
            raise InputError(*(Problem(path=where, message=message) for message in told))
        return found

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
        module, of_a, of_b = _split(name)
        if module is None:
            target = _target(name, model)
            if self._shape(name) != model.shape(target):
                its_shape, shape = list(self._shape(name)), list(model.shape(target))
                raise ValueError(f"{name} has shape {its_shape}, but {target} of the model {shape}")
            return target, Change(whole=name)
        for part in (of_a, of_b):
            if f"{module}.{part}" not in names:
                raise ValueError(f"{name} has no {part} beside it")
        if name.endswith(of_b):
            return None, Change()
        target = _target(f"{module}.weight", model)
        pair = self._pair(name, f"{module}.{of_b}", _bare(module), target, model, embedding=of_a != "lora_A.weight")
        return target, Change(pair=pair)

    def _pair(self, a: str, b: str, module: str, target: str, model: Checkpoint, *, embedding: bool) -> Pair:
        of_a, of_b, of_weight = self._shape(a), self._shape(b), model.shape(target)
        rank = int(_by_pattern(self.config.get("rank_pattern"), module, self.config.get("r", 8)))
        if len(of_a) != 2 or len(of_b) != 2 or len(of_weight) != 2:
            raise ValueError(f"{a} belongs to a module that is neither linear nor an embedding")
        if (of_a[0], of_b[1]) != (rank, rank):
            raise ValueError(
                f"{a} and its B are of rank {of_a[0]} and {of_b[1]}, but {ADAPTER_CONFIG} says {rank} (r, rank_pattern)"
            )
        straight = (of_b[0], of_a[1])
        turned = embedding or (of_weight != straight or (straight[0] == straight[1] and self._conv1d(target, model)))
        if of_weight != (straight[::-1] if turned else straight):
            raise ValueError(f"{a} and its B make {list(straight)}, but {target} of the model is {list(of_weight)}")
        alpha = float(_by_pattern(self.config.get("alpha_pattern"), module, self.config.get("lora_alpha", 8)))
        return Pair(a, b, alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank), turned)

    def _conv1d(self, target: str, model: Checkpoint) -> bool:
        """Whether a square weight is [in, out], which its shape does not tell."""
        if model.config.get("model_type") in _CONV1D:
            return target not in (*model.layout.before, *model.layout.after)
        return bool(self.config.get("fan_in_fan_out"))

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._shard.get_slice(name).get_shape())


def _refusals(config: Mapping[str, Any]) -> Iterator[str]:
    """Why an adapter of this config cannot be merged here."""
    kind = str(config.get("peft_type"))
    if kind.upper() != "LORA":
        yield f"is of the kind {kind}; only LoRA is merged here"
        return
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        yield f"was begun with init_lora_weights {config['init_lora_weights']}, which changes the model's own weights"
    for key in ("r", "lora_alpha"):
        if not isinstance(config.get(key, 8), int | float):
            yield f"has {key} {config[key]!r}, which is no number"
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            yield f"has {key} {config[key]!r}, which is no mapping"
    for key, value in config.items():
        if value and key not in _HARMLESS.split():
            yield f"sets {key}, which is not done here"


def _split(name: str) -> tuple[str | None, str, str]:
    """The module of a pair's tensor and how the names of its A and B end; None for a tensor that is saved whole.

    Raises:
        ValueError: it is a part of another kind of adapter.
    """
    for of_a, of_b in _PAIRS:
        for end in (of_a, of_b):
            if name.endswith(f".{end}"):
                return name.removesuffix(f".{end}"), of_a, of_b
    if ".lora_" in name:
        raise ValueError(f"{name} is none of the tensors of a LoRA adapter that are known here")
    return None, "", ""


def _joined(first: Change, second: Change, target: str) -> Change:
    """Both changes of one tensor: the embeddings that an adapter trains by a pair it also saves whole, as they were.

    Raises:
        ValueError: they are of one kind.
    """
    if (first.whole and second.whole) or (first.pair and second.pair):
        raise ValueError(f"two of its tensors, or pairs of them, change {target}")
    return Change(first.whole or second.whole, first.pair or second.pair)


def _target(name: str, model: Checkpoint) -> str:
    """The tensor of `model` that an adapter calls `name`.

    Raises:
        ValueError: there is none, or several may be meant.
    """
    bare = _bare(name)
    if bare in model:
        return bare
    of_tower = [known for known in model.names if _untowered(known) == _untowered(bare)]
    found = of_tower or [n for n in model.names if n.endswith(f".{bare}") or bare.endswith(f".{n}")]
    if len(found) != 1:
        tied = model.config.get("tie_word_embeddings") is not False and "head" in bare
        why = " (its head is tied to its embeddings)" if tied else ""
        raise ValueError(f"the model has no tensor {bare}{why}, which {name} changes")
    return found[0]


def _bare(name: str) -> str:
    return _WRAPPED.sub("", name.removeprefix(_PREFIX))


def _untowered(name: str) -> str:
    for pattern, plain in _TOWERS:
        name = pattern.sub(plain, name)
    return name


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that the module's name ends with, whole parts only."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
