"""Writing a merged checkpoint: whole or not at all, and loadable like any other."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge_contract.recipe import Recipe
from evomerge_contract.report import EXPORT_MARK
from evomerge_worker.errors import CandidateError, InputError, StorageError
from evomerge_worker.merge import Merger, export_checkpoint, plan_merge
from evomerge_worker.merge.export import appearing, replacing
from evomerge_worker.shards import Checkpoint
from tiny_models import Tiny, write_tensors


@pytest.fixture
def sources(tiny: Tiny) -> dict[str, Checkpoint]:
    return {n: Checkpoint.open(tiny(seed=s, chat_template=n == "b"), n) for n, s in (("a", 1), ("b", 2), ("base", 0))}


def _recipe(first: str = "a", second: str = "b", **keys: Any) -> Recipe:
    models = [{"model": first, "parameters": {"weight": 0.3}}, {"model": second, "parameters": {"weight": 0.7}}]
    return Recipe.model_validate({"merge_method": "linear", "models": models, **keys})


def _too_large() -> Recipe:
    """A weight of 999,999 takes float16 beyond its range."""
    recipe = _recipe(out_dtype="float16", parameters={"normalize": False}).model_dump()
    recipe["models"][0]["parameters"]["weight"] = 999_999
    return Recipe.model_validate(recipe)


def _files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_an_export_holds_the_merged_weights(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    recipe = _recipe()
    export_checkpoint(recipe, sources, tmp_path / "out", mask_seed=0, max_shard_bytes=40_000)
    out = Checkpoint.open(tmp_path / "out", "out")
    expected = dict(Merger(sources, 0).merged(plan_merge(recipe, sources)))
    assert out.names == sorted(expected)
    assert all(torch.equal(out.tensor(n), t) and out.dtype(n) == t.dtype for n, t in expected.items())
    assert len(list((tmp_path / "out").glob("model-*.safetensors"))) == 3


def test_tokenizer_and_generation_config_are_the_first_models_bit_for_bit(
    tmp_path: Path, sources: dict[str, Checkpoint]
) -> None:
    names = export_checkpoint(_recipe("b", "a"), sources, tmp_path / "out", mask_seed=0)
    assert names == sorted(_files(tmp_path / "out"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (sources["b"].folder / name).read_bytes()


def test_tokenizer_is_the_bases_where_there_is_one(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    """The base has no chat template, so neither has the result."""
    export_checkpoint(_recipe("b", "a", base_model="base", merge_method="ties"), sources, tmp_path / "out", mask_seed=0)
    assert not (tmp_path / "out" / "chat_template.jinja").exists()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_config_names_the_dtype_of_the_weights(tmp_path: Path, sources: dict[str, Checkpoint], dtype: str) -> None:
    export_checkpoint(_recipe(dtype="float32", out_dtype=dtype), sources, tmp_path / "out", mask_seed=0)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == sources["a"].config | {"dtype": dtype}
    assert Checkpoint.open(tmp_path / "out", "out").dtype("model.norm.weight") == getattr(torch, dtype)


def test_code_is_copied_only_when_it_is_trusted(tmp_path: Path, tiny: Tiny) -> None:
    folder = tiny(seed=5)
    (folder / "modeling_tiny.py").write_text("print('run')\n")
    sources = {"a": Checkpoint.open(folder, "a"), "b": Checkpoint.open(tiny(seed=6), "b")}
    export_checkpoint(_recipe(), sources, tmp_path / "plain", mask_seed=0)
    export_checkpoint(_recipe(), sources, tmp_path / "code", mask_seed=0, trust_remote_code=True)
    assert not (tmp_path / "plain" / "modeling_tiny.py").exists()
    assert (tmp_path / "code" / "modeling_tiny.py").read_text() == "print('run')\n"


def test_extra_files_are_part_of_the_whole(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    export_checkpoint(_recipe(), sources, tmp_path / "out", mask_seed=0, extra_files={"README.md": "五\n"})
    assert (tmp_path / "out" / "README.md").read_text(encoding="utf-8") == "五\n"


def test_an_earlier_export_is_replaced_as_a_whole(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    out = tmp_path / "runs" / "best"
    export_checkpoint(_recipe(), sources, out, mask_seed=0, max_shard_bytes=40_000, extra_files={"old.md": ""})
    names = export_checkpoint(_recipe("b", "a"), sources, out, mask_seed=0)
    assert sorted(_files(out)) == names
    assert not any(name.startswith("model-") or name == "old.md" for name in names)
    assert [p.name for p in out.parent.iterdir()] == ["best"]


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds other files; name a new folder, or empty this one"):
        export_checkpoint(_recipe(), sources, tmp_path, mask_seed=0)
    assert _files(tmp_path) == {"thesis.tex": b"years of work"}


def test_an_output_that_cannot_be_written_is_said(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(InputError, match=r"is not a folder|cannot be written"):
            export_checkpoint(_recipe(), sources, out, mask_seed=0)


def test_a_failed_export_leaves_the_earlier_one_and_nothing_else(
    tmp_path: Path, sources: dict[str, Checkpoint]
) -> None:
    """Here the weights sum to zero, which shows only while tensors are being written."""
    out = tmp_path / "best"
    export_checkpoint(_recipe(), sources, out, mask_seed=0)
    before = _files(tmp_path)
    filtered = [{"filter": "lm_head", "value": -0.3}, {"value": 0.7}]
    recipe = _recipe().model_dump()
    recipe["models"][1]["parameters"]["weight"] = filtered
    with pytest.raises(CandidateError, match=r"tensor lm_head\.weight: the weights sum to zero"):
        export_checkpoint(Recipe.model_validate(recipe), sources, out, mask_seed=0)
    assert _files(tmp_path) == before


def test_a_result_that_is_not_finite_is_never_written(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    with pytest.raises(CandidateError, match="of the merged model holds NaN or infinity"):
        export_checkpoint(_too_large(), sources, tmp_path / "out", mask_seed=0)
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_with_paths_for_names_gives_the_same_bits(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    """recipe.yaml names the winner's models by path; merged by hand, its random masks must be the winner's."""
    dare = {"merge_method": "dare_ties", "parameters": {"weight": 0.6, "density": 0.5}}
    for name, folder in (("a", tmp_path / "named"), ("./models/a", tmp_path / "by-path")):
        prefix = name.removesuffix("a")
        renamed = {prefix + n: Checkpoint.open(c.folder, prefix + n) for n, c in sources.items()}
        models = [{"model": prefix + "a"}, {"model": prefix + "b"}]
        recipe = Recipe.model_validate({**dare, "base_model": prefix + "base", "models": models})
        export_checkpoint(recipe, renamed, folder, mask_seed=5)
    assert _files(tmp_path / "named") == _files(tmp_path / "by-path")


def test_a_tensor_without_elements_is_merged_to_one(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    """Even where no model but the base takes part."""
    tensors = {name: sources["base"].tensor(name).clone() for name in sources["base"].names}
    folder = write_tensors(tmp_path / "base", tensors | {"model.none": torch.empty(0, 3)})
    base = {"base": Checkpoint.open(folder, "base")}
    recipe = {"merge_method": "ties", "base_model": "base", "models": [{"model": "base"}]}
    export_checkpoint(Recipe.model_validate(recipe), base, tmp_path / "out", mask_seed=0)
    assert Checkpoint.open(tmp_path / "out", "out").tensor("model.none").shape == (0, 3)


def test_others_may_read_an_export_as_far_as_the_umask_lets_them(
    tmp_path: Path, sources: dict[str, Checkpoint]
) -> None:
    before = os.umask(0o027)
    try:
        export_checkpoint(_recipe(), sources, tmp_path / "out", mask_seed=0, max_shard_bytes=40_000)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "out").iterdir()} == {0o640}


def test_a_disk_that_takes_no_more_is_a_disturbance(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    """Here no file may grow beyond 100 kB, and the float32 weights do; whatever was begun is cleared."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match=r"could not be written: .*File too large"):
            export_checkpoint(_recipe(out_dtype="float32"), sources, tmp_path / "out", mask_seed=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_survives_one_that_was_killed_between_its_renames(
    tmp_path: Path, sources: dict[str, Checkpoint]
) -> None:
    out = tmp_path / "best"
    export_checkpoint(_recipe(), sources, out, mask_seed=0)
    before = _files(out)
    out.rename(tmp_path / ".best.old")
    with pytest.raises(CandidateError):
        export_checkpoint(_too_large(), sources, out, mask_seed=0)
    assert _files(out) == before


def test_what_a_killed_export_left_behind_is_cleared(tmp_path: Path) -> None:
    out = tmp_path / "best"
    for leftover in (".best.0a1b2c3d.partial", ".best.old"):
        (tmp_path / leftover).mkdir()
        (tmp_path / leftover / "model.safetensors").write_text("half")
    with replacing(out) as folder:
        (folder / EXPORT_MARK).write_text("")
    assert _files(tmp_path) == {f"best/{EXPORT_MARK}": b""}


def test_what_another_process_is_writing_is_not_taken_for_left_behind(tmp_path: Path) -> None:
    out = tmp_path / "best"
    with replacing(out) as first:
        (first / EXPORT_MARK).write_text("first")
        with replacing(out) as second:
            (second / EXPORT_MARK).write_text("second")
        assert (first / EXPORT_MARK).read_text() == "first"
    assert _files(tmp_path) == {f"best/{EXPORT_MARK}": b"first"}


def test_a_folder_that_has_appeared_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    """Of two that write to it at once, the first wins and the other says so; a link or a file is in the way too."""
    out = tmp_path / "out"
    appearances: list[Callable[[], object]] = [
        lambda: _write(out, lambda: None),
        lambda: out.write_text("of the other"),
        lambda: out.symlink_to(tmp_path / "nowhere"),
    ]
    for appear in appearances:
        with pytest.raises(InputError, match="out has appeared meanwhile and is left as it is"):
            _write(out, appear)
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        if out.is_dir():
            assert (out / "config.json").read_text() == "None"
            shutil.rmtree(out)
        else:
            out.unlink()


def _write(out: Path, meanwhile: Callable[[], object]) -> None:
    with appearing(out) as folder:
        (folder / "config.json").write_text(str(meanwhile()))


def test_only_an_export_that_may_replace_does(tmp_path: Path, sources: dict[str, Checkpoint]) -> None:
    out = tmp_path / "out"
    export_checkpoint(_recipe(), sources, out, mask_seed=0, replace=False)
    before = _files(tmp_path)
    with pytest.raises(InputError, match="has appeared meanwhile"):
        export_checkpoint(_recipe("b", "a"), sources, out, mask_seed=0, replace=False)
    assert _files(tmp_path) == before
