"""The prepare task: what it pins, and every mistake in a single model, in data and in methods, in words."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from evomerge_contract.manifest import S3, Storage
from evomerge_contract.task import PrepareTask, Source
from evomerge_worker.errors import StorageError
from evomerge_worker.prepare import prepare
from evomerge_worker.store import Store
from evomerge_worker.store.companions import settings
from evomerge_worker.store.pinned import content_digest
from prepare_tasks import GOOD, Lines, Tiny, changed_config, changed_weights, mistakes_of, prepare_folders
from s3 import S3Server, s3_server
from tiny_models import VOCABULARY

__all__ = ["s3_server"]


@pytest.fixture
def pool(tiny: Tiny) -> dict[str, Path]:
    """Two models and their base."""
    return {"a": tiny(seed=1), "b": tiny(seed=2), "base": tiny(seed=0)}


# what is pinned


def test_sources_come_out_in_order_with_their_facts(pool: dict[str, Path], tmp_path: Path) -> None:
    result = prepare_folders(dict(reversed(pool.items())), tmp_path)
    assert [s.name for s in result.sources] == ["base", "b", "a"]
    assert len({s.digest for s in result.sources}) == 3
    for source in result.sources:
        assert (source.dtype, source.parameters, source.bytes) == ("bfloat16", 43_296, 2 * 43_296)
    assert (result.layout.layer_prefix, result.layout.layers) == ("model.layers.", 4)
    assert result.layout.after == ["lm_head.weight", "model.norm.weight"]


def test_the_dtype_is_that_of_most_elements(tiny: Tiny, tmp_path: Path) -> None:
    def widen(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"] = tensors["model.norm.weight"].float()

    (source,) = prepare_folders({"a": changed_weights(tiny(), tmp_path / "a", widen)}, tmp_path).sources
    assert source.dtype == "bfloat16"
    assert source.bytes == 2 * 43_296 + 2 * 32


def test_splits_come_out_with_digest_items_and_skills(pool: dict[str, Path], tmp_path: Path) -> None:
    lines = GOOD | {"select": [{"prompt": "x", "answer": "1", "skill": s} for s in ("b",)] + [*GOOD["select"]]}
    data = prepare_folders(pool, tmp_path, lines=lines).data["sums"]
    assert list(data) == ["search", "select", "test"]
    assert (data["select"].items, data["select"].skills) == (4, {"b": 1, "sums": 3})
    content = hashlib.sha256((tmp_path / "select.jsonl").read_bytes()).hexdigest()
    assert data["select"].digest == f"sha256:{content}"


def test_the_digest_is_of_what_the_model_does_and_of_nothing_else(tiny: Tiny, tmp_path: Path) -> None:
    one = content_digest(tiny(), code=False)
    copy = Path(shutil.copytree(tiny(), tmp_path / "copy"))
    (copy / "README.md").write_text("words")
    (copy / "pytorch_model.bin").write_bytes(b"the same weights again")
    (copy / "modeling.py").write_text("print()")
    assert content_digest(copy, code=False) == one
    assert content_digest(copy, code=True) != one
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert content_digest(copy, code=False) != one


@pytest.mark.parametrize("name", ["tekken.json", "tokenizer.model", "vocab.txt", "generation_config.json", "own.py"])
def test_what_changes_a_models_answers_travels_and_counts_for_its_digest(name: str, tiny: Tiny, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny(), tmp_path / "copy"))
    before = content_digest(copy, code=True)
    (copy / name).write_text("other")
    assert copy / name in settings(copy, code=True)
    assert content_digest(copy, code=True) != before


def test_a_model_has_one_digest_wherever_it_lies(
    tiny: Tiny, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3_server.upload(tiny(), "prepare", "mine/")
    task = PrepareTask(
        sources=[Source(name="here", uri=tiny().as_uri()), Source(name="there", uri="s3://prepare/mine")],
        report_dir=tmp_path.as_uri(),
        objectives=[],
        methods=["linear"],
    )
    here, there = prepare(task, Store(Storage(s3=S3(endpoint=s3_server.endpoint)), tmp_path / "cache")).sources
    assert there.digest == here.digest


# a model by itself


def alone(model: Path, tmp_path: Path, **options: bool) -> list[tuple[str, str]]:
    return mistakes_of({"mine": model}, tmp_path, **options)


def test_a_path_one_level_too_high_is_told(tiny: Tiny, tmp_path: Path) -> None:
    ((path, message),) = alone(tiny().parent, tmp_path)
    assert path == "models.mine"
    assert message.startswith(str(tiny().parent))
    assert message.endswith("is the path one level too high?")


def test_pickles_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny(), tmp_path / "a")
    (tmp_path / "a" / "model.safetensors").rename(tmp_path / "a" / "pytorch_model.bin")
    ((path, message),) = alone(tmp_path / "a", tmp_path)
    assert path == "models.mine"
    assert "only as pickles (pytorch_model.bin)" in message


def test_missing_and_truncated_shards_are_named_together(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny(max_shard_size="30KB"), tmp_path / "a"))
    first, second, *_ = sorted(folder.glob("*.safetensors"))
    first.unlink()
    second.write_bytes(second.read_bytes()[:-10])
    problems = dict(enumerate(message for _, message in alone(folder, tmp_path)))
    assert first.name in problems[0]
    assert "missing" in problems[0]
    assert second.name in problems[1]
    assert "truncated" in problems[1]


def test_an_index_that_names_files_outside_its_folder_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny(max_shard_size="30KB"), tmp_path / "a"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"]["lm_head.weight"] = "../b/model.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert any("names ../b/model.safetensors" in message for _, message in alone(folder, tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named(value: float, tiny: Tiny, tmp_path: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.norm.weight"][-1] = value

    model = changed_weights(tiny(), tmp_path / "a", damage)
    assert alone(model, tmp_path) == [("models.mine", "model.norm.weight holds NaN or infinity: the model is damaged")]


def test_quantised_models_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    model = changed_config(tiny(), tmp_path / "a", quantization_config={"quant_method": "gptq", "bits": 4})
    assert any("quantised" in message for _, message in alone(model, tmp_path))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": None}, "config.json has no model_type"),
        ({"model_type": "mystery"}, "model_type mystery, which this transformers does not know"),
        ({"num_hidden_layers": "many"}, "transformers does not accept config.json: "),
    ],
)
def test_a_config_that_transformers_cannot_use_is_refused(
    changes: dict[str, str], words: str, tiny: Tiny, tmp_path: Path
) -> None:
    ((_, message),) = alone(changed_config(tiny(), tmp_path / "a", **changes), tmp_path)
    assert words in message


def test_code_that_comes_with_a_model_needs_trust(tiny: Tiny, tmp_path: Path) -> None:
    auto_map = {"AutoConfig": "mine.MineConfig", "AutoModelForCausalLM": "mine.Mine"}
    model = changed_config(tiny(), tmp_path / "a", model_type="mine", auto_map=auto_map)
    (model / "mine.py").write_text(
        "from transformers import LlamaConfig\nclass MineConfig(LlamaConfig):\n    model_type = 'mine'\n"
    )
    ((path, message),) = alone(model, tmp_path)
    assert path == "models.mine"
    assert "runs on Python code that comes with the model" in message
    assert "set spec.trustRemoteCode: true in the manifest" in message
    assert "evomerge merge, which has no manifest, runs no such code" in message
    assert alone(model, tmp_path, trust_remote_code=True) == []


def test_code_that_transformers_has_itself_needs_no_trust(tiny: Tiny, tmp_path: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "mine.Mine"}
    assert alone(changed_config(tiny(), tmp_path / "a", auto_map=auto_map), tmp_path) == []


def test_a_model_without_tokenizer_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    ((_, message),) = alone(tiny(tokenizer=False), tmp_path)
    assert "has no tokenizer (tokenizer.json)" in message


def test_settings_without_the_tokens_that_they_are_about_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny(), tmp_path / "a"))
    (folder / "tokenizer.json").unlink()
    words = "tokenizer.json is missing; add the tokenizer that the model was trained with"
    assert alone(folder, tmp_path) == [("models.mine", words)]


def test_a_tokenizer_that_is_damaged_or_needs_code_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(tiny(), tmp_path / "damaged"))
    (damaged / "tokenizer.json").write_text('{"version"')
    ((_, message),) = alone(damaged, tmp_path)
    assert "tokenizer.json is not a tokenizer" in message
    coded = Path(shutil.copytree(tiny(tokenizer=False), tmp_path / "coded"))
    (coded / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["mine.Mine", None]}}))
    ((_, message),) = alone(coded, tmp_path)
    assert "its tokenizer runs on Python code" in message


def test_a_tokenizer_larger_than_the_model_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    ((_, message),) = alone(tiny(vocab_size=80), tmp_path)
    assert f'has token "九" with id {len(VOCABULARY) - 1}, but vocab_size in config.json is 80' in message


# data and methods


def test_mistakes_in_data_are_told_by_split_and_line(tiny: Tiny, tmp_path: Path) -> None:
    lines = {"search": [], "select": [*GOOD["select"], "{no json"], "test": [{"prompt": "x"}, *GOOD["test"]]}
    problems = dict(mistakes_of({"a": tiny()}, tmp_path, lines=lines))
    assert "no items" in problems["objectives.sums.search"]
    assert problems["objectives.sums.select"].startswith("line 4: not JSON")
    assert problems["objectives.sums.test"].startswith('line 1: has no "answer"')


def test_overlapping_splits_are_refused(tiny: Tiny, tmp_path: Path) -> None:
    lines = GOOD | {"test": [*GOOD["test"], GOOD["search"][1]]}
    ((path, message),) = mistakes_of({"a": tiny()}, tmp_path, lines=lines)
    assert path == "objectives.sums.test"
    assert "also in the search split: line 4 (line 2 there)" in message


def test_good_items_beside_malformed_lines_are_compared_too(tiny: Tiny, tmp_path: Path) -> None:
    lines = GOOD | {"test": ["{no json", GOOD["search"][1]]}
    messages = [message for _, message in mistakes_of({"a": tiny()}, tmp_path, lines=lines)]
    assert [message.partition(":")[0] for message in messages] == ["line 1", "also in the search split"]
    assert "line 2 (line 2 there)" in messages[1]


LONG = {"prompt": "9" * 60, "answer": "1"}


def test_items_too_long_for_the_model_are_told_in_every_split(tiny: Tiny, tmp_path: Path) -> None:
    """The begin token, 60 characters and an answer of 8 are more than the 64 tokens the model reads."""
    lines = {split: [*GOOD[split], LONG | {"prompt": str(i) * 60}] for i, split in enumerate(GOOD)}
    problems = mistakes_of({"a": tiny()}, tmp_path, lines=lines)
    assert [path for path, _ in problems] == [f"objectives.sums.{split}" for split in GOOD]
    for _, message in problems:
        assert message.startswith("line 4: 69 tokens with the 8 of the answer (maxNewTokens), and the model reads 64")
    assert mistakes_of({"a": tiny()}, tmp_path, lines=lines, max_new_tokens=3) == []


def test_the_shortest_context_of_all_sources_counts(tiny: Tiny, tmp_path: Path) -> None:
    """Every source is scored by itself in the end."""
    short = changed_config(tiny(), tmp_path / "short", max_position_embeddings=32)
    lines = GOOD | {"select": [{"prompt": "9" * 30, "answer": "1"}]}
    ((path, message),) = mistakes_of({"a": tiny(), "base": short}, tmp_path, lines=lines)
    assert path == "objectives.sums.select"
    assert "the model reads 32" in message


def test_choices_without_tokens_are_told_by_line(tiny: Tiny, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny(), tmp_path / "a"))
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "~"}, "content": ""}
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    lines: dict[str, Lines] = {
        split: [{"prompt": split, "choices": ["a", choice], "answer": 0}]
        for split, choice in zip(GOOD, ("b", "~", "b"), strict=True)
    }
    assert mistakes_of({"a": model}, tmp_path, lines=lines, metric="acc") == [
        ("objectives.sums.select", "line 1: choice 1 has no tokens in this tokenizer")
    ]


def test_a_chat_template_that_refuses_a_lone_user_message_is_told(tiny: Tiny, tmp_path: Path) -> None:
    model = Path(shutil.copytree(tiny(), tmp_path / "a"))
    (model / "chat_template.jinja").write_text("{{ raise_exception('where is the system message?') }}")
    problems = mistakes_of({"a": model}, tmp_path, chat_template=True)
    assert [path for path, _ in problems] == [f"objectives.sums.{split}" for split in GOOD]
    assert "where is the system message?" in problems[0][1]
    assert "set chatTemplate: false" in problems[0][1]


def test_a_chat_template_that_there_is_not_is_told(pool: dict[str, Path], tmp_path: Path) -> None:
    ((path, message),) = mistakes_of(pool, tmp_path, template="chatlm")
    assert path == "spec.chatTemplate"
    assert message.endswith("did you mean chatml?")
    assert mistakes_of(pool, tmp_path, template="{{ messages[0].content }}") == []


def test_a_wrong_regular_expression_is_told_once(tiny: Tiny, tmp_path: Path) -> None:
    ((path, message),) = mistakes_of({"a": tiny()}, tmp_path, extract="([0-9]+")
    assert path == "objectives.sums.extract"
    assert "not a regular expression" in message


def test_items_are_not_held_against_a_model_that_has_problems_itself(tiny: Tiny, tmp_path: Path) -> None:
    lines = GOOD | {"test": [LONG]}
    model = changed_config(tiny(), tmp_path / "a", model_type="mystery")
    assert [path for path, _ in mistakes_of({"a": model}, tmp_path, lines=lines)] == ["models.a"]


def test_methods_that_need_a_base_say_so(tiny: Tiny, pool: dict[str, Path], tmp_path: Path) -> None:
    assert mistakes_of({"a": tiny()}, tmp_path, methods=["linear", "ties", "dare_ties"]) == [
        ("base", f"{method} needs a base; add spec.base or choose linear, slerp, nuslerp, multislerp or nearswap")
        for method in ("ties", "dare_ties")
    ]
    assert mistakes_of(pool, tmp_path, methods=["ties"]) == []


def test_all_mistakes_come_at_once_in_the_order_of_the_sources(tiny: Tiny, tmp_path: Path) -> None:
    def damage(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][0, 0] = float("nan")

    folders = {
        "a": tiny(),
        "b": changed_weights(changed_config(tiny(), tmp_path / "x", rms_norm_eps=0.1), tmp_path / "b", damage),
        "c": tmp_path / "nowhere",
    }
    lines = GOOD | {"test": []}
    paths = [path for path, _ in mistakes_of(folders, tmp_path, methods=["ties"], lines=lines)]
    assert paths == ["models.b", "models.b", "models.c", "base", "objectives.sums.test"]


def test_what_may_pass_is_told_only_when_nothing_is_wrong(
    tiny: Tiny, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between the client's own attempts
    gone = Store(Storage(s3=S3(endpoint="http://127.0.0.1:9")), tmp_path / "cache")
    sources = [Source(name="a", uri=tiny().as_uri()), Source(name="b", uri="s3://models/b")]
    task = PrepareTask(sources=sources, report_dir=tmp_path.as_uri(), objectives=[], methods=["linear"])
    with pytest.raises(StorageError, match="cannot be reached"):
        prepare(task, gone)
    with pytest.raises(Exception, match="ties needs a base"):
        prepare(task.model_copy(update={"methods": ["ties"]}), gone)
