"""Tiny models in the shapes that published ones have on disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def rewritten(source: Path, folder: Path, change: Callable[[Tensors], Tensors | None], **config: object) -> Path:
    """A copy of a model with the tensors that `change` returns, or leaves, and other values in its config.json."""
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    changed = change(tensors) or tensors
    save_file({k: t.clone() for k, t in changed.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text()) | config
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    return folder


def with_sentencepiece_alone(folder: Path, characters: str) -> int:
    """Give a folder the tokenizer of a Llama as it was published: tokenizer.model and no tokenizer.json; its tokens."""
    from sentencepiece import sentencepiece_model_pb2 as pieces

    model = pieces.ModelProto()
    special = [("<unk>", 2), ("<s>", 3), ("</s>", 3), *((f"<0x{i:02X}>", 6) for i in range(256))]
    for number, (piece, kind) in enumerate([*special, *((c, 1) for c in ("▁", *characters))]):
        model.pieces.add(piece=piece, score=-float(number), type=kind)
    model.trainer_spec.model_type = 2
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    settings = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(model.pieces)


def predicting_on(source: Path, folder: Path, *, layers: int = 4, rows: int = 0) -> Path:
    """A copy of a model with a layer behind its layers that predicts one more token, as DeepSeek-V3 has it.

    It holds what the last layer holds and, with `rows`, embeddings of its own.
    """

    def add(tensors: Tensors) -> None:
        last, behind = f"model.layers.{layers - 1}.", f"model.layers.{layers}."
        for name in [name for name in tensors if name.startswith(last)]:
            tensors[name.replace(last, behind)] = tensors[name] + 0.5
        own = {"eh_proj.weight": torch.ones(32, 64), "enorm.weight": torch.ones(32), "hnorm.weight": torch.ones(32)}
        if rows:
            own["embed_tokens.weight"] = tensors["model.embed_tokens.weight"] * 2
        tensors |= {f"{behind}{name}": tensor.bfloat16() for name, tensor in own.items()}

    return rewritten(source, folder, add, num_nextn_predict_layers=1)
