"""The prepare task over models of differing vocabularies, and a session that evaluates and exports their merges."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evomerge_contract.manifest import S3, Jsonl, Objective, Storage
from evomerge_contract.recipe import Recipe
from evomerge_contract.task import DataDigests, EvaluateTask, PrepareTask, Source
from evomerge_worker.errors import InputError
from evomerge_worker.merge import export_checkpoint
from evomerge_worker.pipeline import Pipeline
from evomerge_worker.prepare import prepare
from evomerge_worker.prepare.mistakes import Mistakes
from evomerge_worker.prepare.reading import reader_of
from evomerge_worker.prepare.sources import open_source
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.config_parts import with_token_rows
from evomerge_worker.standalone import merge
from evomerge_worker.store import Store
from prepare_tasks import Tiny, changed_config, mistakes_of
from s3 import S3Server, s3_server
from tiny_models import SPECIALS, VOCABULARY, tiny_checkpoint
from vocabularies import OF_A, OF_B, OF_BASE

__all__ = ["s3_server"]


@pytest.fixture
def pool(tiny: Tiny) -> dict[str, Path]:
    return {
        "a": tiny(seed=1, vocabulary=OF_A),
        "b": tiny(seed=2, vocabulary=OF_B),
        "base": tiny(seed=0, vocabulary=OF_BASE),
    }


def _recipe(**keys: Any) -> Recipe:
    models = [{"model": name, "parameters": {"weight": 0.5, "density": 0.6}} for name in ("a", "b")]
    return Recipe.model_validate(
        {"merge_method": "ties", "base_model": "base", "models": models, "dtype": "float32", **keys}
    )


@pytest.mark.parametrize("source", ["union", "base", "b"])
def test_other_vocabularies_are_accepted_with_a_tokenizer_source(
    pool: dict[str, Path], tmp_path: Path, source: str
) -> None:
    assert mistakes_of(pool, tmp_path, methods=["ties"], tokenizer_source=source) == []


def test_without_one_each_other_vocabulary_is_told_once(pool: dict[str, Path], tmp_path: Path) -> None:
    told = mistakes_of(pool, tmp_path)
    assert [path for path, _ in told] == ["models.b", "base"]
    assert all("is not that of a (98 tokens)" in message and "spec.tokenizerSource" in message for _, message in told)


def test_padding_needs_no_tokenizer_source(tiny: Tiny, tmp_path: Path) -> None:
    assert mistakes_of({"a": tiny(), "b": tiny(vocab_size=128), "c": tiny(vocab_size=160)}, tmp_path) == []


def _with_padding_token(source: Path, folder: Path) -> Path:
    """A copy of a model to whose tokenizer a padding token has been added, and not a row to its embeddings."""
    from tokenizers import Tokenizer

    shutil.copytree(source, folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["[PAD]"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_added_tokens_may_be_without_a_row_where_vocabularies_agree(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """[PAD] behind Llama's 32,000 tokens; nothing ever looks its row up."""
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    folders = {name: _with_padding_token(tiny(seed=i), tmp_path / name) for i, name in enumerate("ab")}
    folders["wide"] = _with_padding_token(tiny(seed=2, vocab_size=128), tmp_path / "wide")
    assert mistakes_of(folders, tmp_path) == []
    models = [{"model": name, "parameters": {"weight": 1}} for name in folders]
    (tmp_path / "recipe.yaml").write_text(json.dumps({"merge_method": "linear", "models": models}))
    assert merge([str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]) == 0
    assert Checkpoint.open(tmp_path / "out", "out").config["vocab_size"] == 96


def test_a_vocabulary_that_is_put_in_order_needs_a_row_for_each_token(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny(), "b": _with_padding_token(tiny(seed=1), tmp_path / "b")}
    ((path, message),) = mistakes_of(folders, tmp_path, tokenizer_source="union")
    assert path == "models.b"
    assert message == (
        'its tokenizer has token "[PAD]" with id 96, but vocab_size in config.json is 96: remove the token from the '
        "tokenizer, or give it a row (transformers' resize_token_embeddings)"
    )


@pytest.mark.parametrize("source", ["base", "a"])
def test_a_token_without_a_row_is_no_matter_where_the_result_does_not_have_it(
    tiny: Tiny, tmp_path: Path, source: str
) -> None:
    folders = {"a": tiny(), "b": _with_padding_token(tiny(seed=1), tmp_path / "b"), "base": tiny(seed=2)}
    assert mistakes_of(folders, tmp_path, tokenizer_source=source, methods=["ties"]) == []


def test_a_token_that_another_model_has_a_row_for_is_lent_one(tiny: Tiny, tmp_path: Path) -> None:
    wide = tiny(seed=2, vocabulary=[*VOCABULARY, "[PAD]"])
    folders = {"a": _with_padding_token(tiny(seed=1), tmp_path / "a"), "wide": wide}
    assert mistakes_of(folders, tmp_path, tokenizer_source="union") == []


def test_a_tokenizer_model_alone_is_read(tiny: Tiny, tmp_path: Path) -> None:
    from as_published import with_sentencepiece_alone

    folders = {}
    for seed, name in enumerate("ab"):
        folders[name] = tiny_checkpoint(tmp_path / name, seed=seed, vocab_size=300, tokenizer=False)
        assert with_sentencepiece_alone(folders[name], "0123456789+-= abcdefghijklmnopqrst") <= 300
    assert mistakes_of(folders, tmp_path) == []
    assert mistakes_of(folders, tmp_path, tokenizer_source="union") == []


def test_what_else_does_not_fit_is_told_beside_the_vocabulary(
    pool: dict[str, Path], tiny: Tiny, tmp_path: Path
) -> None:
    """A mistake more would otherwise come to light only after the first was mended."""
    for source in (None, "union"):
        folders = pool | {"b": tiny(seed=3, vocabulary=OF_B, intermediate_size=96)}
        told = [m for path, m in mistakes_of(folders, tmp_path, tokenizer_source=source) if path == "models.b"]
        assert any("intermediate_size is 96" in message for message in told)
        assert not any("tensor" in message for message in told)  # follows from that
        assert any("the vocabulary (99 tokens)" in message for message in told) == (source is None)
        assert not any("embed" in message for message in told)


def test_tokenizers_without_overlap_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny(), "b": tiny(seed=1, vocabulary=[*SPECIALS, *(chr(c) for c in range(0x3B1, 0x3C9))])}
    ((path, message),) = mistakes_of(folders, tmp_path, tokenizer_source="union")
    assert path == "models.b"
    assert message.startswith("its tokenizer shares 0 of its 24 tokens with that of a, which has 92: ")
    assert message.endswith("choose models whose tokenizers descend from one another")


@pytest.mark.parametrize("value", [3, True, "x", [1], {}])
@pytest.mark.parametrize("section", ["text_config", "llm_config", "language_config"])
def test_a_section_that_is_none_or_counts_no_rows_is_left_alone(section: str, value: Any) -> None:
    assert with_token_rows({"vocab_size": 5, section: value}, 7) == {"vocab_size": 7, section: value}


def test_a_config_of_another_size_than_the_embeddings_is_told(tiny: Tiny, tmp_path: Path) -> None:
    folders = {"a": tiny(), "b": changed_config(tiny(), tmp_path / "b", vocab_size=128)}
    ((path, message),) = mistakes_of(folders, tmp_path)
    assert path == "models.b"
    assert message.startswith("vocab_size in config.json is 128, but no tensor has as many rows")


def test_items_meet_the_results_tokenizer_and_that_of_each_source(pool: dict[str, Path], tmp_path: Path) -> None:
    store, mistakes = Store(Storage(), tmp_path / "cache"), Mistakes()
    opened = [open_source(Source(name=n, uri=f.as_uri()), store, mistakes, code=False) for n, f in pool.items()]
    names = {"models": [{"model": name} for name in pool], "merge_method": "linear", "base_model": "base"}
    recipe = Recipe.model_validate(names | {"tokenizer_source": "union"})
    reader = reader_of(opened, mistakes, recipe, code=False, batch_size=2)
    assert reader is not None
    assert [len(t.get_vocab()) for t in reader.tokenizers] == [103, len(OF_A), len(OF_B), len(OF_BASE)]
    assert [t.convert_tokens_to_ids("1") for t in reader.tokenizers] == [
        OF_BASE.index("1"), OF_A.index("1"), OF_B.index("1"), OF_BASE.index("1")
    ]  # fmt: skip


def test_vocabularies_of_models_in_s3_are_looked_at_before_their_weights(
    pool: dict[str, Path], tiny: Tiny, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Good ones pass, and one without overlap is told with nothing pulled."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    greek = tiny(seed=1, vocabulary=[*SPECIALS, *(chr(c) for c in range(0x3B1, 0x3C9))])
    for name, folder in (pool | {"greek": greek}).items():
        s3_server.upload(folder, "vocabularies", f"{name}/")

    def prepared(*names: str) -> list[str]:
        task = PrepareTask(
            sources=[Source(name=name, uri=f"s3://vocabularies/{name}") for name in names],
            report_dir=tmp_path.as_uri(),
            objectives=[],
            methods=["linear"],
            tokenizer_source="union",
        )
        store = Store(Storage(s3=S3(endpoint=s3_server.endpoint)), tmp_path / "cache")
        return [source.name for source in prepare(task, store).sources]

    with pytest.raises(InputError, match=r"models\.greek: its tokenizer shares 0 of its 24 tokens with that of a"):
        prepared("a", "greek")
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    assert prepared("a", "b", "base") == ["a", "b", "base"]


def _evaluate(folder: Path, models: dict[str, Path], recipe: Recipe) -> EvaluateTask:
    """Perplexity of a few texts, some with tokens that only one model knows."""
    for split, first in (("search", 0), ("select", 10), ("test", 20)):
        texts = [f"{n} + é = <tool> ß {n + 1} 九" for n in range(first, first + 3)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    jsonl = Jsonl(**{s: (folder / f"{s}.jsonl").as_uri() for s in ("search", "select", "test")})
    common: dict[str, Any] = {
        "sources": [Source(name=name, uri=path.as_uri()) for name, path in models.items()],
        "report_dir": (folder / "reports").as_uri(),
        "objectives": [Objective(name="texts", jsonl=jsonl, metric="perplexity")],
    }
    pinning = PrepareTask(**common, methods=[recipe.merge_method], tokenizer_source=recipe.vocabulary)
    found = Pipeline(folder / "cache").carry_out(pinning).prepare
    assert found is not None
    digests = {source.name: source.digest for source in found.sources}
    common["sources"] = [s.model_copy(update={"digest": digests[s.name]}) for s in common["sources"]]
    data = DataDigests(**{split: one.digest for split, one in found.data["texts"].items()})
    return EvaluateTask(**common, data={"texts": data}, recipe=recipe)


@pytest.mark.parametrize("source", ["union", "base", "a"])
def test_a_candidate_scores_in_memory_as_its_export_does(pool: dict[str, Path], tmp_path: Path, source: str) -> None:
    """Item by item and bit for bit: the same tokens, the same weights."""
    recipe = _recipe(tokenizer_source=source, out_dtype="bfloat16")
    scored = Pipeline(tmp_path / "cache").carry_out(_evaluate(tmp_path, pool, recipe)).evaluate
    checkpoints = {name: Checkpoint.open(folder, name) for name, folder in pool.items()}
    export_checkpoint(recipe, checkpoints, tmp_path / "out", mask_seed=0)
    alone = Recipe.model_validate(
        {"merge_method": "linear", "models": [{"model": "out", "parameters": {"weight": 1.0}}]}
    )
    exported = Pipeline(tmp_path / "cache").carry_out(_evaluate(tmp_path, {"out": tmp_path / "out"}, alone)).evaluate
    assert scored is not None
    assert scored == exported
    assert [item.count for item in scored.items["texts"]] == [20.0 if source == "base" else 15.0] * 3


def test_items_are_tokenised_anew_where_a_source_is_scored_with_its_own_tokenizer(
    pool: dict[str, Path], tmp_path: Path
) -> None:
    """In one session, in any order: the merge, a source alone, the merge again."""
    merge = _evaluate(tmp_path, pool, _recipe(tokenizer_source="union"))
    alone = Recipe.model_validate({"merge_method": "linear", "models": [{"model": "b", "parameters": {"weight": 1.0}}]})
    tasks = [merge, merge.model_copy(update={"recipe": alone})]
    fresh = [Pipeline(tmp_path / "cache").carry_out(task).evaluate for task in tasks]
    for report in (tmp_path / "reports").iterdir():
        report.unlink()
    session = Pipeline(tmp_path / "cache")
    assert [session.carry_out(task).evaluate for task in reversed(tasks)] == fresh[::-1]
