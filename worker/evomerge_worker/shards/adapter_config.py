"""The config of a LoRA adapter: why one cannot be merged here, and what it says of a module."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from evomerge_worker.store.wanted import ADAPTER_CONFIG

_HARMLESS = (
    "alpha_pattern auto_mapping base_model_name_or_path bias corda_config enable_lora ensure_weight_tying eva_config "
    "exclude_modules fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config "
    "lora_alpha lora_dropout lora_ga_config megatron_config megatron_core merge_weights modules_to_save peft_type "
    "peft_version qalora_group_size r rank_pattern revision runtime_config target_modules task_type use_rslora"
)
"""What may be set in a config: it is done here, or makes no difference once the adapter is merged."""
_PLAIN_STARTS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights under which PEFT leaves the model's own weights alone."""
_MERGE = "merge it into its model with PEFT, and name the result"
MEND = f"mend its {ADAPTER_CONFIG}, or fetch it again"


def refusals(config: Mapping[str, Any]) -> Iterator[str]:
    """Why an adapter of this config cannot be merged here, and what to do."""
    kind = str(config.get("peft_type"))
    if kind.upper() != "LORA":
        yield f"the adapter is of the kind {kind}; only LoRA is merged here; {_MERGE}"
        return
    if config.get("init_lora_weights", True) not in _PLAIN_STARTS:
        start = config["init_lora_weights"]
        yield f"the adapter was begun with init_lora_weights {start}, which changes the model's own weights; {_MERGE}"
    for key, wrong in _wrong_values(config):
        yield f"the adapter has {key} {wrong}; {MEND}"
    for key, value in config.items():
        if value and key not in _HARMLESS.split():
            yield f"the adapter sets {key}, which is not done here; {_MERGE}"


def rank_of(config: Mapping[str, Any], module: str) -> int:
    """The rank of the pair of a module."""
    return int(_by_pattern(config.get("rank_pattern"), module, config.get("r", 8)))


def scale_of(config: Mapping[str, Any], module: str) -> float:
    """What the product of the pair of a module is multiplied with."""
    rank = rank_of(config, module)
    alpha = float(_by_pattern(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _wrong_values(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Ranks that are no whole numbers above 0 and alphas that are no finite numbers: the keys, and what they hold."""
    for key, pattern, fine, wanted in (
        ("r", "rank_pattern", _is_rank, "which is no whole number above 0"),
        ("lora_alpha", "alpha_pattern", _is_number, "which is no finite number"),
    ):
        if not fine(config.get(key, 8)):
            yield key, f"{config[key]!r}, {wanted}"
        patterns = config.get(pattern) or {}
        if not isinstance(patterns, dict):
            yield pattern, f"{patterns!r}, which is no mapping"
            continue
        for module, value in patterns.items():
            if not fine(value):
                yield f"{pattern}[{module}]", f"{value!r}, {wanted}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_rank(value: object) -> bool:
    return isinstance(value, int | float) and float(value).is_integer() and value > 0


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """The value of the first pattern that the module's name ends with, whole parts only."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default
