"""Models with adapters: made once as ordinary checkpoints, known by the digests of both, and then like any other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from adapters import PREFIX, write_adapter
from evomerge_contract.manifest import S3, Jsonl, Objective, Storage
from evomerge_contract.recipe import Recipe
from evomerge_contract.report import PrepareResult
from evomerge_contract.task import DataDigests, EvaluateTask, PrepareTask, Source
from evomerge_worker.errors import InputError, StorageError
from evomerge_worker.pipeline import Pipeline
from evomerge_worker.prepare import prepare
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.adapter import Adapter
from evomerge_worker.sources import source_folder
from evomerge_worker.standalone import merge
from evomerge_worker.store import Store
from evomerge_worker.store.pinned import content_digest
from evomerge_worker.store.stamp import sha256_of
from s3 import S3Server, s3_server
from tiny_models import Tiny, write_tensors

__all__ = ["s3_server"]
QUERY = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Storage(), tmp_path / "cache")


def _adapter(tiny: Tiny, folder: Path, **options: Any) -> Path:
    return write_adapter(folder, Checkpoint.open(tiny(), "a"), **options)


def _source(model: Path, adapter: Path, **fields: Any) -> Source:
    return Source(name="a", uri=model.as_uri(), adapter=adapter.as_uri(), **fields)


def _query(folder: Path, adapter: Path) -> torch.Tensor:
    """What the adapter makes of a weight of the model in `folder`."""
    model, opened = Checkpoint.open(folder, "a"), Adapter.open(adapter, "models.a")
    return opened.applied(opened.changes(model, "models.a")[QUERY], model.tensor(QUERY))


def _prepared(sources: list[Source], store: Store) -> PrepareResult:
    return prepare(PrepareTask(sources=sources, report_dir="file:///r", objectives=[], methods=["linear"]), store)


def test_the_model_is_made_as_an_ordinary_checkpoint(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = source_folder(_source(tiny(), _adapter(tiny, tmp_path / "x")), store, code=False)
    before, after = Checkpoint.open(tiny(), "a"), Checkpoint.open(folder, "a")
    changed = {QUERY, "model.layers.2.mlp.down_proj.weight"}
    assert {n for n in before.names if not torch.equal(before.tensor(n), after.tensor(n))} == changed
    assert torch.equal(after.tensor(QUERY), _query(tiny(), tmp_path / "x"))
    _, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] | info["unexpected_keys"]
    assert AutoTokenizer.from_pretrained(folder)("1+1=")["input_ids"]


def test_it_is_made_once(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    """Whoever asks, under whatever name; with its digest known, not even the model is needed any more."""
    model, adapter = Path(shutil.copytree(tiny(), tmp_path / "m")), _adapter(tiny, tmp_path / "x")
    folder = source_folder(_source(model, adapter), store, code=False)
    (folder / "note").write_bytes(b"")  # it would be gone from a folder that is made anew
    digest = content_digest(folder, code=False)
    assert source_folder(_source(tiny(), adapter, digest=digest), store, code=False) == folder
    shutil.rmtree(model)
    assert source_folder(_source(model, adapter, digest=digest), store, code=False) == folder
    assert (folder / "note").exists()


def test_the_digest_is_that_of_model_and_adapter(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    """Neither their places nor what else lies there counts."""
    one, other = _adapter(tiny, tmp_path / "x"), _adapter(tiny, tmp_path / "y", seed=1)
    copy = Path(shutil.copytree(one, tmp_path / "copy"))
    (copy / "README.md").write_text("words")

    def digest(model: Path, adapter: Path) -> str:
        return _prepared([_source(model, adapter)], store).sources[0].digest

    first = digest(tiny(), one)
    assert digest(Path(shutil.copytree(tiny(), tmp_path / "m")), copy) == first
    assert len({first, digest(tiny(), other), digest(tiny(seed=1), one), content_digest(tiny(), code=False)}) == 4


def test_what_has_changed_since_it_was_prepared_is_told(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    adapter = _adapter(tiny, tmp_path / "x")
    digest = _prepared([_source(tiny(), adapter)], store).sources[0].digest
    elsewhere = Store(Storage(), tmp_path / "other")
    _adapter(tiny, tmp_path / "x", seed=1)
    with pytest.raises(StorageError, match=r"models\.a: .* with its adapter .* is not what it was when the run was"):
        source_folder(_source(tiny(), adapter, digest=digest), elsewhere, code=False)
    shutil.rmtree(adapter)
    with pytest.raises(StorageError, match="is empty or does not exist; it is not what it was"):
        source_folder(_source(tiny(), adapter, digest=digest), elsewhere, code=False)


def test_what_an_interrupted_attempt_left_is_cleared(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    adapter = _adapter(tiny, tmp_path / "x")
    folder = source_folder(_source(tiny(), adapter), store, code=False)
    files = {path.name for path in folder.iterdir()}
    folder.rename(folder.with_name(f"{folder.name}.part"))
    (folder.with_name(f"{folder.name}.part") / "model-00009-of-00010.safetensors").write_bytes(b"half")
    assert {path.name for path in source_folder(_source(tiny(), adapter), store, code=False).iterdir()} == files


def test_a_copy_of_embeddings_that_change_is_left_out(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    """A tied head stays tied; one that is to change by itself cannot."""
    model = tmp_path / "tied"
    shutil.copytree(tiny("llama-tied"), model)
    tensors = load_file(model / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    write_tensors(model, tensors, config=json.loads((model / "config.json").read_text()))
    pair = {
        f"{PREFIX}model.embed_tokens.lora_embedding_{part}": torch.rand(shape)
        for part, shape in (("A", (4, 96)), ("B", (32, 4)))
    }
    whole = {f"{PREFIX}{name}.weight": torch.ones(96, 32) for name in ("lm_head", "model.embed_tokens")}
    for i, extra in enumerate((pair, whole)):
        folder = source_folder(_source(model, _adapter(tiny, tmp_path / f"x{i}", extra=extra)), store, code=False)
        assert "lm_head.weight" not in Checkpoint.open(folder, "a")
    head = _adapter(tiny, tmp_path / "y", extra={f"{PREFIX}lm_head.weight": torch.rand(96, 32)})
    with pytest.raises(
        InputError, match=r"changes lm_head\.weight, which the model ties to model\.embed_tokens\.weight"
    ):
        source_folder(_source(model, head), store, code=False)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.full((4, 32), torch.nan), "holds NaN or infinity; fetch it again, or leave it out"),
        (torch.ones(4, 32, dtype=torch.int8), "is torch.int8, but adapters hold floats of 16 or 32 bits"),
    ],
)
def test_a_damaged_adapter_is_told_before_anything_is_written(
    tiny: Tiny, store: Store, tmp_path: Path, tensor: torch.Tensor, words: str
) -> None:
    name = f"{PREFIX}{QUERY.removesuffix('.weight')}.lora_A.weight"
    adapter = _adapter(tiny, tmp_path / "x", extra={name: tensor})
    with pytest.raises(InputError) as caught:
        source_folder(_source(tiny(), adapter), store, code=False)
    assert str(caught.value).startswith(f"models.a: the adapter is damaged: {name} {words}")
    assert not (tmp_path / "cache").exists()


def test_an_adapter_that_does_not_fit_is_a_mistake_of_its_source(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    """Told together with all others, before anything is merged."""
    wide = {f"{PREFIX}model.norm.weight": torch.rand(33)}
    sources = [
        _source(tiny(), _adapter(tiny, tmp_path / "x", extra=wide)),
        Source(name="b", uri=tiny().as_uri(), adapter=_adapter(tiny, tmp_path / "y", use_dora=True).as_uri()),
        Source(name="c", uri=tiny().as_uri(), adapter=tiny().as_uri()),
        Source(name="d", uri=_adapter(tiny, tmp_path / "z").as_uri()),
    ]
    with pytest.raises(InputError) as caught:
        _prepared(sources, store)
    found = {p.path: p.message for p in caught.value.problems}
    assert list(found) == ["models.a", "models.b", "models.c", "models.d"]
    assert "model.norm.weight has shape [33], but model.norm.weight of the model [32]" in found["models.a"]
    assert "the adapter sets use_dora" in found["models.b"]
    assert "has no adapter_config.json" in found["models.c"]
    assert "is an adapter, not a whole model; name its model, with this as the model's adapter" in found["models.d"]
    assert not (tmp_path / "cache").exists()


def test_a_recipe_names_an_adapter_behind_its_model(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(tiny(), tmp_path / "a")
    shutil.copytree(tiny(seed=1), tmp_path / "with+plus")
    _adapter(tiny, tmp_path / "lora")
    models = [{"model": "a+lora", "parameters": {"weight": 1}}, {"model": "with+plus", "parameters": {"weight": 1}}]
    recipe = {"merge_method": "linear", "models": models, "dtype": "float32"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert merge([str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]) == 0
    adapted, plain = _query(tiny(), tmp_path / "lora"), Checkpoint.open(tiny(seed=1), "b").tensor(QUERY)
    merged = Checkpoint.open(tmp_path / "out", "out").tensor(QUERY)
    assert torch.equal(merged, (adapted.float() + plain.float()) / 2)


def test_a_candidate_is_scored_on_the_adapted_model(tiny: Tiny, store: Store, tmp_path: Path) -> None:
    """As if the model that it makes had been named itself."""
    adapter = _adapter(tiny, tmp_path / "x")
    whole = Source(name="a", uri=source_folder(_source(tiny(), adapter), store, code=False).as_uri())
    (tmp_path / "items.jsonl").write_text('{"text": "12+34=46"}\n{"text": "5+6=11"}\n')
    jsonl = Jsonl(**dict.fromkeys(("search", "select", "test"), (tmp_path / "items.jsonl").as_uri()))
    objective = Objective(name="sums", jsonl=jsonl, metric="perplexity")
    digest = f"sha256:{sha256_of(tmp_path / 'items.jsonl')}"

    def perplexity(source: Source) -> float:
        task = EvaluateTask(
            sources=[source, Source(name="b", uri=tiny(seed=2).as_uri())],
            report_dir=(tmp_path / "reports").as_uri(),
            recipe=Recipe.model_validate(
                {"merge_method": "linear", "models": [{"model": "a"}, {"model": "b"}], "parameters": {"weight": 1}}
            ),
            objectives=[objective],
            data={"sums": DataDigests(search=digest, select=digest, test=digest)},
        )
        report = Pipeline(tmp_path / "cache").carry_out(task)
        assert report.evaluate is not None
        return report.evaluate.scores["sums"]

    plain = Source(name="a", uri=tiny().as_uri())
    assert perplexity(_source(tiny(), adapter)) == perplexity(whole) != perplexity(plain)


def test_model_and_adapter_may_lie_in_s3(
    tiny: Tiny, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    adapter = _adapter(tiny, tmp_path / "x")
    s3_server.upload(tiny(), "adapted", f"{tmp_path.name}/model/")
    s3_server.upload(adapter, "adapted", f"{tmp_path.name}/adapter/")
    place = f"s3://adapted/{tmp_path.name}"
    store = Store(Storage(s3=S3(endpoint=s3_server.endpoint)), tmp_path / "cache")
    there = Source(name="a", uri=f"{place}/model", adapter=f"{place}/adapter")
    (found,) = _prepared([there], store).sources
    (here,) = _prepared([_source(tiny(), adapter)], Store(Storage(), tmp_path / "other")).sources
    assert found.digest == here.digest
    folder = source_folder(there.model_copy(update={"digest": found.digest}), store, code=False)
    assert torch.equal(Checkpoint.open(folder, "a").tensor(QUERY), _query(tiny(), adapter))
