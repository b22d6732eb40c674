"""Llamas with random weights, written to folders that every tool here can read; for speed, not for skill."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge_contract.manifest import EvoMerge
from evomerge_operator.manifest import load_manifest

QUICKSTART = Path(__file__).parent.parent / "examples" / "quickstart"
SIZES = {"0.5B": (8192, 1280, 3456, 24), "0.85B": (28000, 1536, 4096, 27), "7B": (32000, 4096, 11008, 32)}
"""Vocabulary, width, feed-forward width and layers."""
_PIECE = 2 << 20
"""Bytes written at a time, as a pull writes them: so a model lies in huge pages of the page cache."""


def config(size: str) -> LlamaConfig:
    """The architecture of a size."""
    vocabulary, width, feed_forward, layers = SIZES[size]
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        dtype="bfloat16",
    )


def write_base(folder: Path, size: str, seed: int = 0) -> None:
    """A base: weights drawn from N(0, 0.02), norms of one, bf16, in one file, with the quickstart's tokenizer."""
    settings = config(size)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(settings).state_dict().items()}
    source = torch.Generator().manual_seed(seed)
    tensors = {name: _drawn(name, shape, source) for name, shape in shapes.items()}
    _write(folder, settings, tensors)


def write_expert(folder: Path, base: Path, seed: int) -> None:
    """A fine-tuned base, as far as speed goes: each weight moved by N(0, 0.002)."""
    source = torch.Generator().manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    moved = {
        name: (tensor.float() + 0.002 * torch.randn(tensor.shape, generator=source)).bfloat16()
        for name, tensor in tensors.items()
    }
    _write(folder, LlamaConfig.from_pretrained(base), moved)


def large_quickstart(folder: Path, items: int) -> EvoMerge:
    """The quickstart over a random pair of 0.5 B parameters written to `folder`, without a base, with fewer items."""
    write_base(folder / "a", "0.5B")
    write_expert(folder / "b", folder / "a", seed=1)
    wire = load_manifest(QUICKSTART / "evomerge.yaml").wire()
    spec = wire["spec"]
    del spec["base"]
    spec["models"] = [{"name": name, "uri": (folder / name).as_uri()} for name in ("a", "b")]
    splits = spec["evaluation"]["objectives"][0]["jsonl"]
    for split in splits:
        lines = (QUICKSTART / "data" / f"{split}.jsonl").read_text("utf-8").splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:items]), "utf-8")
        splits[split] = (folder / f"{split}.jsonl").as_uri()
    return EvoMerge.model_validate(wire)


def _drawn(name: str, shape: torch.Size, source: torch.Generator) -> torch.Tensor:
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    return (0.02 * torch.randn(shape, generator=source)).bfloat16()


def _write(folder: Path, settings: LlamaConfig, tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    plain = settings.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(plain, indent=2), "utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copyfile(QUICKSTART / "models" / "base" / name, folder / name)
    content = memoryview(save(tensors, metadata={"format": "pt"}))
    with (folder / "model.safetensors").open("wb", buffering=0) as file:
        for start in range(0, len(content), _PIECE):
            file.write(content[start : start + _PIECE])
