"""Each fault of a checkpoint is told by the prepare task in words that name model, tensor and what to change; many
faults in many models are all told by one task."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from evomerge_contract.manifest import S3, Groups, Storage
from evomerge_contract.report import Problem
from evomerge_contract.task import PrepareTask, Source
from evomerge_worker.errors import InputError
from evomerge_worker.prepare import prepare
from evomerge_worker.store import Store
from faults import (
    FIRST,
    QUANTISED,
    Change,
    add_biases,
    changed,
    cut_head,
    damage,
    drop_up,
    quantised,
    whole_head,
    whole_norm,
    widen,
)
from prepare_tasks import Tiny, changed_config, changed_weights, mistakes_of
from s3 import S3Server, s3_server

__all__ = ["s3_server"]

PARTS = {
    "fp8": (f"{FIRST}.weight in model.safetensors is of type F8_E4M3", 55),
    "gptq": (f"{FIRST}.g_idx in model.safetensors is of type I32", 83),
    "awq": (f"{FIRST}.qweight in model.safetensors is of type I32", 55),
    "bitsandbytes": (f"{FIRST}.weight in model.safetensors is of type U8", 111),
    "bitsandbytes-int8": (f"{FIRST}.SCB in model.safetensors is of type F32", 55),
    "compressed-tensors": (f"{FIRST}.weight_packed in model.safetensors is of type I32", 55),
    "mxfp4": (f"{FIRST}_blocks in model.safetensors is of type U8", 55),
    "hqq": (f"{FIRST}.W_q in model.safetensors is of type U8", 27),
    "torchao": (f"{FIRST}._weight_qdata in model.safetensors is of type I8", 55),
}
"""The first tensor that gives a quantised model away, and how many more do."""


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("method", QUANTISED)
def test_a_quantised_model_is_one_mistake_whether_its_config_says_so_or_not(
    method: str, told: bool, tiny: Tiny, tmp_path: Path
) -> None:
    first, more = PARTS[method]
    says = f" (quant_method {method.removesuffix('-int8')} in config.json)" if told else ""
    folders = {"a": tiny(), "b": quantised(tiny(), tmp_path / "b", method, told=told)}
    assert mistakes_of(folders, tmp_path) == [
        ("models.b", f"is quantised{says}: tensor {first} and {more} more tensors like it; use its unquantised weights")
    ]


def test_a_config_alone_that_speaks_of_quantisation_is_told_with_the_way_out(tiny: Tiny, tmp_path: Path) -> None:
    model = changed_config(tiny(), tmp_path / "b", quantization_config={"quant_method": "bitsandbytes"})
    assert mistakes_of({"a": tiny(), "b": model}, tmp_path) == [
        (
            "models.b",
            "config.json has quantization_config (quant_method bitsandbytes), so the model is quantised: use its "
            "unquantised weights; if these are they, remove that key",
        )
    ]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        (["model-Q4_K_M.gguf"], "only as GGUF (model-Q4_K_M.gguf), which is not read; use the safetensors that it was"),
        (["pytorch_model.bin"], "only as pickles (pytorch_model.bin)"),
        (["consolidated.00.pth"], "only as pickles (consolidated.00.pth)"),
        (["model.pt"], "only as pickles (model.pt)"),
        (["consolidated.safetensors"], "only in Mistral's own format (consolidated.safetensors); use the transformers"),
        (["weights.safetensors"], "has neither model.safetensors nor model.safetensors.index.json; save the model"),
        ([], "has no *.safetensors files"),
    ],
)
def test_weights_in_another_format_are_told_with_the_file(
    files: list[str], words: str, tiny: Tiny, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny(), tmp_path / "b"))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    for name in files:
        (folder / name).write_bytes(weights)
    ((path, message),) = mistakes_of({"a": tiny(), "b": folder}, tmp_path)
    assert path == "models.b"
    assert words in message


def test_a_folder_of_gguf_files_alone_is_told_as_that(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    ((_, message),) = mistakes_of({"b": tmp_path / "b"}, tmp_path)
    assert "has its weights only as GGUF (model-Q4_K_M.gguf)" in message


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_file_that_git_has_not_fetched_is_told(name: str, tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny(), tmp_path / "b"))
    (folder / name).write_bytes(POINTER)
    words = f"{name} is a Git LFS pointer, not the file: run git lfs pull in its folder"
    assert mistakes_of({"a": tiny(), "b": folder}, tmp_path) == [("models.b", words)]


def test_a_folder_of_the_hubs_cache_is_told_with_the_commit(tiny: Tiny, tmp_path: Path) -> None:
    hub = tmp_path / "models--org--name"
    shutil.copytree(tiny(), hub / "snapshots" / "0123abcd")
    words = f"{hub.as_uri()} is a folder of the Hugging Face cache; name the model inside it: snapshots/0123abcd"
    assert mistakes_of({"b": hub}, tmp_path) == [("models.b", words)]


OUT = "; leave b or a out"
FETCH = "; if its files are incomplete, fetch them again; else leave b or a out"
DELETE = "; if it can do without, delete it from its files; else leave b or a out"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            widen,
            "tensor lm_head.weight in model.safetensors is of type F64; only float32, float16 and bfloat16 weights can "
            "be merged: convert the model first (and 38 more tensors like it)",
        ),
        (
            whole_head,
            "is quantised: tensor lm_head.weight in model.safetensors is of type I64; use its unquantised weights",
        ),
        (whole_norm, f"tensor model.norm.weight is torch.int64, but torch.bfloat16 in a{OUT}"),
        (cut_head, f"tensor lm_head.weight has shape [50, 32], but [96, 32] in a{OUT}"),
        (
            drop_up,
            "lacks tensor model.layers.0.mlp.up_proj.weight, which a has in layer 0 (and 3 more tensors like it)"
            + FETCH,
        ),
        (damage, "model.layers.1.mlp.up_proj.weight holds NaN or infinity: the model is damaged"),
    ],
)
def test_a_fault_in_tensors_is_one_sentence(change: Change, message: str, tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny(), "b": changed_weights(tiny(), tmp_path / "b", change)}
    assert mistakes_of(folders, tmp_path) == [("models.b", message)]


def test_tensors_of_each_kind_are_told_once(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny(), "b": changed_weights(tiny(), tmp_path / "b", add_biases)}
    assert [message for _, message in mistakes_of(folders, tmp_path)] == [
        f"has tensor model.layers.0.self_attn.{name}.bias, which a lacks in layer 0 (and 3 more tensors like it)"
        + DELETE
        for name in ("k_proj", "q_proj")
    ]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_float_types_may_differ(dtype: str, tiny: Tiny, tmp_path: Path) -> None:
    assert mistakes_of({"a": tiny(), "b": tiny(dtype=dtype)}, tmp_path) == []


def faulty_pool(tiny: Tiny, folder: Path) -> dict[str, Path]:
    """Nine models and a base, all but the first with a fault or several."""

    def several(tensors: dict[str, torch.Tensor]) -> None:
        cut_head(tensors)
        drop_up(tensors)
        add_biases(tensors)

    def wide_and_cut(tensors: dict[str, torch.Tensor]) -> None:
        cut_head(tensors)
        widen(tensors)

    gguf = folder / "gguf"
    gguf.mkdir()
    (gguf / "model.gguf").write_bytes(b"GGUF")
    return {
        "a": tiny(),
        "fp8": quantised(tiny(), folder / "fp8", "fp8"),
        "awq": quantised(tiny(), folder / "awq", "awq", told=False),
        "gptq": quantised(changed_config(tiny(), folder / "x", rms_norm_eps=0.1), folder / "gptq", "gptq"),
        "gguf": gguf,
        "mistral": tiny("mistral"),
        "shallow": changed_weights(tiny(num_hidden_layers=3), folder / "shallow", cut_head),
        "theta": changed(
            tiny(), folder / "theta", several, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}
        ),
        "wide": changed_weights(tiny(), folder / "wide", wide_and_cut),
        "base": changed_config(tiny(), folder / "base", hidden_act="gelu"),
    }


EXPECTED = [
    ("models.fp8", r"is quantised \(quant_method fp8 .* F8_E4M3 .*; use its unquantised weights"),
    ("models.awq", r"is quantised: tensor .*qweight .*; use its unquantised weights"),
    ("models.gptq", r"is quantised \(quant_method gptq .*; use its unquantised weights"),
    ("models.gptq", r"rms_norm_eps is 0\.1, but 1e-06 in a; say whose config .*, or leave gptq or a out"),
    ("models.gguf", r".* only as GGUF \(model\.gguf\)"),
    ("models.mistral", r"architecture \(model_type\) is mistral, but llama in a; leave mistral or a out"),
    (
        "models.shallow",
        r"has 3 layers, but a has 4; take as many of each by slices in a recipe, or leave shallow or a out",
    ),
    ("models.shallow", r"tensor lm_head\.weight has shape \[50, 32\], but \[96, 32\] in a; leave shallow or a out"),
    (
        "models.theta",
        r"rope_parameters is .*500000.*, but .*10000.* in a; say whose .*, or leave theta or a out",
    ),
    (
        "models.theta",
        r"has tensor .*0\.self_attn\.k_proj\.bias.* 3 more tensors like it\); if it can .* theta or a out",
    ),
    (
        "models.theta",
        r"has tensor .*0\.self_attn\.q_proj\.bias.* 3 more tensors like it\); if it can .* theta or a out",
    ),
    (
        "models.theta",
        r"lacks tensor .*0\.mlp\.up_proj\.weight.* 3 more tensors like it\); if its files .* theta or a out",
    ),
    ("models.theta", r"tensor lm_head\.weight has shape \[50, 32\], but \[96, 32\] in a; leave theta or a out"),
    ("models.wide", r"tensor lm_head\.weight in model\.safetensors is of type F64; .*convert the model first"),
    ("models.wide", r"tensor lm_head\.weight has shape \[50, 32\], but \[96, 32\] in a; leave wide or a out"),
    ("base", r'hidden_act is "gelu", but "silu" in a; say whose config .*, or leave base or a out'),
    ("spec.stages[0].parameterSpace.groups.patterns[1].regex", r'pattern heads: .*"self_atn" matches'),
    ("spec.stages[1].parameterSpace.groups.layers", r"5 is more blocks than the models have layers \(4\)"),
]

GROUPS = [
    Groups.model_validate({"patterns": [{"name": "mlp", "regex": "mlp"}, {"name": "heads", "regex": "self_atn"}]}),
    Groups(layers=5),
]


def problems(uris: dict[str, str], store: Store, folder: Path) -> list[Problem]:
    """What one prepare task over these sources, and `GROUPS`, finds wrong."""
    task = PrepareTask(
        sources=[Source(name=name, uri=uri) for name, uri in uris.items()],
        report_dir=folder.as_uri(),
        objectives=[],
        methods=["linear", "linear"],
        groups=GROUPS,
    )
    with pytest.raises(InputError) as caught:
        prepare(task, store)
    return list(caught.value.problems)


def check(found: list[Problem]) -> None:
    """Each that is expected is there once, and nothing else."""
    left = list(EXPECTED)
    for problem in found:
        match = next((e for e in left if e[0] == problem.path and re.match(e[1], problem.message)), None)
        assert match is not None, f"{problem.path}: {problem.message}"
        left.remove(match)
    assert left == []


def test_many_faults_in_many_models_are_told_by_one_task(tiny: Tiny, tmp_path: Path) -> None:
    pool = faulty_pool(tiny, tmp_path)
    uris = {name: path.as_uri() for name, path in pool.items()}
    check(problems(uris, Store(Storage(), tmp_path / "cache"), tmp_path))


def test_so_they_are_on_a_server_before_any_weight_is_pulled(
    tiny: Tiny, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    pool = faulty_pool(tiny, tmp_path)
    for name, path in pool.items():
        s3_server.upload(path, "faults", f"{name}/")
    store = Store(Storage(s3=S3(endpoint=s3_server.endpoint)), tmp_path / "cache")
    check(problems({name: f"s3://faults/{name}" for name in pool}, store, tmp_path))
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_a_config_of_its_own_and_a_null_are_no_quantisation(tiny: Tiny, tmp_path: Path) -> None:
    """Some tools write the key with nothing in it."""
    model = Path(shutil.copytree(tiny(), tmp_path / "b"))
    text = (model / "config.json").read_text().rstrip().removesuffix("}")
    (model / "config.json").write_text(f'{text}, "quantization_config": null}}')
    assert mistakes_of({"a": tiny(), "b": model}, tmp_path) == []
