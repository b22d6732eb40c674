"""Names of models in recipes: what each means, and what to write instead where it means nothing."""

from pathlib import Path

import pytest

from evomerge_contract.task import Source
from evomerge_worker.errors import InputError
from evomerge_worker.recipe_models import named_in_recipe, source_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That of a recipe, and of the models a, b and b+x; the home folder, too."""
    for name in ("a", "b", "b+x", "adapters/maths"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "uri", "adapter"),
    [
        ("a", "{}/a", None),
        ("./a", "{}/a", None),
        ("~/a", "{}/a", None),
        ("a+adapters/maths", "{}/a", "{}/adapters/maths"),
        ("~/a+~/adapters/maths", "{}/a", "{}/adapters/maths"),
        ("b+x", "{}/b%2Bx", None),  # a folder of that name
        ("b+x+a", "{}/b%2Bx", "{}/a"),
        ("s3://models/a", "s3://models/a", None),
        ("s3://models/a+s3://models/x", "s3://models/a", "s3://models/x"),
        ("org/name", "hf://org/name", None),
        ("org/name@main+org/x", "hf://org/name@main", "hf://org/x"),
        (f"org/name@{COMMIT}", f"hf://org/name@{COMMIT}", None),
        (f"org/name@{COMMIT}+a", f"hf://org/name@{COMMIT}", "{}/a"),
    ],
)
def test_a_name_is_a_folder_or_a_place(name: str, uri: str, adapter: str | None, folder: Path) -> None:
    found = source_of(name, folder)
    assert found.name == name
    assert found.uri == uri.format(folder.as_uri())
    assert found.adapter == (adapter and adapter.format(folder.as_uri()))


FORMS = "a model is a folder, s3://…, or org/name@commit"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("https://huggingface.co/org/name", f"https:// is no place that models are read from; {FORMS}"),
        ("nowhere", f"there is no folder {{}}/nowhere; {FORMS}"),
        ("a b/c d", f"there is no folder {{}}/a b/c d; {FORMS}"),
        ("~/nowhere", f"there is no folder {{}}/nowhere; {FORMS}"),
        ("//[x", f"there is no folder //[x; {FORMS}"),
        ("a\0b", f"there is no folder {{}}/a\\0b; {FORMS}"),
        ("a+nowhere", f"there is no folder {{}}/nowhere; {FORMS}"),
        (
            "a+x+y",
            "names more than one adapter; a model can have one: merge the first with PEFT, and name the result",
        ),
        ("a+", "a model and its adapter are written as model+adapter, and here one is missing"),
        ("+a", "a model and its adapter are written as model+adapter, and here one is missing"),
    ],
)
def test_a_name_that_means_nothing_is_told_with_what_to_write(name: str, message: str, folder: Path) -> None:
    with pytest.raises(InputError) as caught:
        source_of(name, folder)
    (problem,) = caught.value.problems
    assert problem.path == name
    assert problem.message == message.format(folder)


@pytest.mark.parametrize("name", ["", " ", "x" * 300])
def test_so_is_an_empty_or_endless_one(name: str, folder: Path) -> None:
    with pytest.raises(InputError, match="a model is a folder"):
        source_of(name, folder)


@pytest.mark.parametrize(
    ("source", "name"),
    [
        (Source(name="x", uri=f"hf://org/name@{COMMIT}"), f"org/name@{COMMIT}"),
        (Source(name="x", uri="file:///a%20b", adapter=f"hf://org/x@{COMMIT}"), f"/a b+org/x@{COMMIT}"),
        (Source(name="x", uri="s3://b/a"), "s3://b/a"),
    ],
)
def test_a_source_is_named_as_recipes_name_it(source: Source, name: str) -> None:
    assert named_in_recipe(source) == name
