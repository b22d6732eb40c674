"""The chat template of a result: the one that most models have, one by its name, or a text."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from evomerge_contract.recipe import Recipe
from evomerge_worker.errors import InputError
from evomerge_worker.merge import export_checkpoint, plan_merge
from evomerge_worker.merge.chat_template import TEMPLATES
from evomerge_worker.merge.vocabulary import Vocabularies
from evomerge_worker.shards import Checkpoint
from evomerge_worker.shards.tokenizer import load_tokenizer
from tiny_models import Tiny
from vocabularies import OF_A, OF_B

CHAT = [{"role": "user", "content": "hi"}]


def _with(folder: Path, template: str | None, to: Path) -> Checkpoint:
    """A copy of a model with this chat template in its tokenizer_config.json, as older ones have it."""
    shutil.copytree(folder, to)
    path = to / "tokenizer_config.json"
    settings = {k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}
    path.write_text(json.dumps(settings | ({} if template is None else {"chat_template": template})))
    return Checkpoint.open(to, to.name)


@pytest.fixture
def sources(tiny: Tiny, tmp_path: Path) -> dict[str, Checkpoint]:
    templates = {"a": "{{ 'of a' }}", "b": "{{ 'of both' }} ", "c": "{{ 'of both' }}", "d": None}
    return {name: _with(tiny(seed=i), text, tmp_path / name) for i, (name, text) in enumerate(templates.items())}


def _recipe(*models: str, **keys: Any) -> Recipe:
    named = [{"model": model, "parameters": {"weight": 1.0}} for model in models]
    return Recipe.model_validate({"merge_method": "linear", "models": named, **keys})


def _said(recipe: Recipe, sources: dict[str, Checkpoint], folder: Path) -> str | None:
    """What the tokenizer of the result makes of a question, if it has a template."""
    export_checkpoint(recipe, sources, folder, mask_seed=0)
    tokenizer = load_tokenizer(Checkpoint.open(folder, "out"), trust_remote_code=False)
    return None if tokenizer.chat_template is None else tokenizer.apply_chat_template(CHAT, tokenize=False)


@pytest.mark.parametrize(
    ("models", "template", "said"),
    [
        ("abc", None, "of a"),
        ("abc", "auto", "of both"),
        ("ab", "auto", "of a"),  # as many: the first model's
        ("da", "auto", "of a"),
        ("d", "auto", None),
        ("abc", "", "of a"),
        ("d", "{{ 'mine' }}", "mine"),
        ("d", "chatml", "<|im_start|>user\nhi<|im_end|>\n"),
    ],
)
def test_the_result_has_the_template_that_the_recipe_asks_for(
    models: str, template: str | None, said: str | None, sources: dict[str, Checkpoint], tmp_path: Path
) -> None:
    assert _said(_recipe(*models, chat_template=template), sources, tmp_path / "out") == said


def test_an_old_template_stays_nowhere_in_the_result(sources: dict[str, Checkpoint], tmp_path: Path) -> None:
    """Older versions of transformers read it from tokenizer_config.json."""
    (sources["a"].folder / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    _said(_recipe("a", chat_template="llama3"), sources, tmp_path / "out")
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert not (tmp_path / "out" / "chat_template.json").exists()
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == TEMPLATES["llama3"]


def test_a_template_goes_with_another_vocabulary(tiny: Tiny, tmp_path: Path) -> None:
    sources = {n: Checkpoint.open(tiny(vocabulary=v), n) for n, v in (("a", OF_A), ("b", OF_B))}
    recipe = _recipe("a", "b", tokenizer_source="union", chat_template="{{ 'mine' }}")
    assert _said(recipe, sources, tmp_path / "out") == "mine"


def test_candidates_are_scored_with_the_template_and_share_it(sources: dict[str, Checkpoint]) -> None:
    vocabularies, recipe = Vocabularies(), _recipe("a", "b", chat_template="{{ 'mine' }}")
    aligned = vocabularies.aligned(recipe, sources)
    assert load_tokenizer(aligned["a"], trust_remote_code=False).chat_template == "{{ 'mine' }}"
    assert vocabularies.aligned(recipe, sources) is aligned
    other = vocabularies.aligned(_recipe("a", "b"), sources)
    assert load_tokenizer(other["a"], trust_remote_code=False).chat_template == "{{ 'of a' }}"


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("chatlm", '"chatlm" is neither a template (it has no {) nor the name of one; did you mean chatml?'),
        ("vicuna-v1", '"vicuna-v1" is neither a template (it has no {) nor the name of one; names are auto, alpaca,'),
        ("{% for m in messages %}", "is no Jinja template: Unexpected end of template."),
        ("{{ messages", "is no Jinja template: unexpected end of template"),
    ],
)
def test_what_is_no_template_is_refused(template: str, words: str, sources: dict[str, Checkpoint]) -> None:
    with pytest.raises(InputError) as caught:
        plan_merge(_recipe("a", "b", chat_template=template), sources)
    ((path, message),) = [(p.path, p.message) for p in caught.value.problems]
    assert path == "recipe.chat_template"
    assert message.startswith(words)


def test_a_tag_that_transformers_adds_to_jinja_is_taken(sources: dict[str, Checkpoint]) -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}"
    assert plan_merge(_recipe("a", chat_template=template), sources)
