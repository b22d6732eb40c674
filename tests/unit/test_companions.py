"""Broken files beside the weights: told with file and model, by the prepare task and by a merge by hand alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from evomerge_worker.standalone import merge
from prepare_tasks import Tiny, mistakes_of
from vocabularies import OF_A, OF_B

NO_OBJECT = "{file} is not a JSON object; fetch it again"
CANNOT_LOAD = "transformers cannot load its tokenizer (tokenizer.json, tokenizer_config.json): "
BROKEN = [
    ("tokenizer_config.json", "[]", NO_OBJECT),
    ("tokenizer_config.json", "{", NO_OBJECT),
    ("tokenizer_config.json", {"tokenizer_class": 5}, CANNOT_LOAD),
    ("tokenizer_config.json", {"pad_token": 5}, CANNOT_LOAD),
    ("tokenizer_config.json", {"added_tokens_decoder": []}, CANNOT_LOAD),
    (
        "tokenizer_config.json",
        {"model_max_length": "x"},
        "model_max_length in tokenizer_config.json is 'x', which is no",
    ),
    ("added_tokens.json", "[]", NO_OBJECT),
    ("special_tokens_map.json", "{", NO_OBJECT),
    ("tokenizer.json", "[]", "tokenizer.json is not a tokenizer (invalid type: sequence"),
    ("generation_config.json", "{", NO_OBJECT),
    ("generation_config.json", "[1]", NO_OBJECT),
    ("generation_config.json", "null", NO_OBJECT),
]


@pytest.mark.parametrize(("file", "content", "words"), BROKEN)
def test_a_broken_file_is_one_mistake_of_its_model(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], file: str, content: str | dict[str, Any], words: str
) -> None:
    shutil.copytree(tiny(seed=1, vocabulary=OF_A), tmp_path / "a")
    shutil.copytree(tiny(seed=2, vocabulary=OF_B), tmp_path / "b")
    path = tmp_path / "b" / file
    path.write_text(content if isinstance(content, str) else json.dumps(json.loads(path.read_text()) | content))
    for order in ("ab", "ba"):
        folders = {name: tmp_path / name for name in order}
        ((place, message),) = mistakes_of(folders, tmp_path, tokenizer_source="union")
        assert place == "models.b"
        assert message.startswith(words.format(file=file))
    models = [{"model": name, "parameters": {"weight": 1}} for name in "ba"]
    recipe = {"merge_method": "linear", "models": models, "tokenizer_source": "union"}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    capsys.readouterr()
    assert merge([str(tmp_path / "recipe.yaml"), str(tmp_path / "out")]) == 65
    (told,) = capsys.readouterr().err.splitlines()[1:]
    assert told.startswith(f"  b   {words.format(file=file)}")
