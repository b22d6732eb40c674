"""Statistics beside the weights: found by whoever asks first, for every session and process after."""

import multiprocessing
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from evomerge_worker.merge import statistics_cache
from evomerge_worker.merge.draws import Drawing
from evomerge_worker.merge.method import Find, InputTensor, Statistic
from evomerge_worker.merge.statistics_cache import Statistics
from evomerge_worker.shards import Checkpoint
from evomerge_worker.store.locks import alone_if_free
from tiny_models import tiny_checkpoint

BASE, SOURCE, OTHER = (f"sha256:{digit * 64}" for digit in "123")
HEAD = "lm_head.weight"


@pytest.fixture(autouse=True)
def _tiny_models_are_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_cache, "_WORTH_KEEPING", 1)


@pytest.fixture
def models(tmp_path: Path) -> tuple[Checkpoint, Checkpoint]:
    """A source and its base."""
    folders = [tiny_checkpoint(tmp_path / f"model-{seed}", seed=seed, tokenizer=False) for seed in (1, 0)]
    return Checkpoint.open(folders[0], "source", SOURCE), Checkpoint.open(folders[1], "base", BASE)


def told(
    root: Path, models: tuple[Checkpoint, Checkpoint], find: Find, *, kind: str = "mean", name: str = HEAD
) -> Statistic:
    """What a new session is told about one tensor."""
    source, base = models
    recall = Statistics(root).of(source, base, name, threads=2)
    return recall(kind, find, tensor_of(source, name))


def tensor_of(checkpoint: Checkpoint, name: str) -> InputTensor:
    return InputTensor(checkpoint.tensor(name), name, {}, Drawing(0, lambda: checkpoint.fingerprint))


def mean(source: InputTensor, base: Tensor) -> Statistic:
    return np.array([float((source.tensor.float() - base.float()).mean()), float(source.draws.key[0])])


def never(source: InputTensor, base: Tensor) -> Statistic:
    raise AssertionError("this was to be known")


def right(models: tuple[Checkpoint, Checkpoint], name: str = HEAD) -> Statistic:
    source, base = models
    return mean(tensor_of(source, name), base.tensor(name))


def kept(root: Path) -> list[Path]:
    return sorted(root.glob("*/*.safetensors"))


def test_what_one_session_finds_every_later_one_knows(tmp_path: Path, models: tuple[Checkpoint, Checkpoint]) -> None:
    """Of all tensors, though only one was asked about."""
    root = tmp_path / "cache"
    assert np.array_equal(told(root, models, mean), right(models))
    for name in models[0].names:
        assert np.array_equal(told(root, models, never, name=name), right(models, name))


def test_they_are_those_of_the_files_wherever_the_tensors_are_merged(
    tmp_path: Path, models: tuple[Checkpoint, Checkpoint]
) -> None:
    source, base = models
    elsewhere = tensor_of(source, HEAD)._replace(tensor=source.tensor(HEAD).to("meta"))
    recall = Statistics(tmp_path / "cache").of(source, base, HEAD, threads=1)
    assert np.array_equal(recall("mean", mean, elsewhere), right(models))


def test_what_has_other_rows_is_found_anew_and_all_else_is_known(
    tmp_path: Path, models: tuple[Checkpoint, Checkpoint]
) -> None:
    root = tmp_path / "cache"
    told(root, models, mean)
    source, base = models
    longer = source.with_rows(source.shape(HEAD)[0], {HEAD: lambda: source.tensor(HEAD).float() + 1})
    for name in set(source.names) - {HEAD}:
        assert np.array_equal(told(root, (longer, base), never, name=name), right(models, name))
    assert told(root, (longer, base), mean)[0] == pytest.approx(right(models)[0] + 1, rel=1e-5)


def test_every_kind_and_every_content_has_its_own(tmp_path: Path, models: tuple[Checkpoint, Checkpoint]) -> None:
    root = tmp_path / "cache"
    told(root, models, mean)
    source, base = models
    for others in ((Checkpoint.open(source.folder, "source", OTHER), base),
                   (source, Checkpoint.open(base.folder, "base", OTHER))):  # fmt: skip
        with pytest.raises(AssertionError, match="was to be known"):
            told(root, others, never)
    with pytest.raises(AssertionError, match="was to be known"):
        told(root, models, never, kind="median")
    assert len(kept(root)) == 1


def test_norms_of_one_seed_take_the_place_of_those_of_another(
    tmp_path: Path, models: tuple[Checkpoint, Checkpoint]
) -> None:
    """In memory and in use, not in the cache: there anybody may need them again, or make room."""
    root, statistics = tmp_path / "cache", Statistics(tmp_path / "cache")
    source, base = models
    tensor = tensor_of(source, HEAD)
    seen = []
    for kind in ("cosine", "norms, seed 0", "norms, seed 1"):
        statistic = statistics.of(source, base, HEAD, threads=1)(kind, mean, tensor)
        seen.append(weakref.ref(statistic))
        del statistic
    assert [reference() is None for reference in seen] == [False, True, False]
    assert len(kept(root)) == 3
    free = []
    for use in root.glob("*.use"):
        with alone_if_free(use) as unused:
            free.append(unused)
    assert sorted(free) == [False, False, True]


def test_what_is_not_smaller_than_its_tensor_is_kept_nowhere(
    tmp_path: Path, models: tuple[Checkpoint, Checkpoint]
) -> None:
    """Neither in the cache nor in memory: many tensors are small, and norms are 32 KB."""
    root, norm = tmp_path / "cache", "model.norm.weight"  # 64 bytes
    source, base = models

    def large(source: InputTensor, base: Tensor) -> Statistic:
        return np.arange(8.0)

    told(root, models, large)
    with pytest.raises(AssertionError, match="was to be known"):
        told(root, models, never, name=norm)
    recall = Statistics(root).of(source, base, norm, threads=1)
    tensor = tensor_of(source, norm)
    assert np.array_equal(recall("mean", large, tensor), np.arange(8.0))
    with pytest.raises(AssertionError, match="was to be known"):
        recall("mean", never, tensor)


def test_a_small_model_keeps_all_in_memory(
    tmp_path: Path, models: tuple[Checkpoint, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics_cache, "_WORTH_KEEPING", 1 << 22)
    source, base = models
    tensor = tensor_of(source, HEAD)
    recall = Statistics(tmp_path / "cache").of(source, base, HEAD, threads=1)
    first = recall("mean", lambda *_: np.zeros(1 << 20), tensor)
    assert recall("mean", never, tensor) is first
    assert not (tmp_path / "cache").exists()


def test_room_is_made_for_every_name_in_the_header(
    tmp_path: Path, models: tuple[Checkpoint, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit that the file would not keep to is none."""
    monkeypatch.setenv("EVOMERGE_CACHE_BYTES", "2000")
    told(tmp_path / "cache", models, mean)
    assert kept(tmp_path / "cache") == []
    monkeypatch.setenv("EVOMERGE_CACHE_BYTES", "20000")
    told(tmp_path / "cache", models, mean)
    (file,) = kept(tmp_path / "cache")
    assert file.stat().st_size <= int(next((tmp_path / "cache").glob("*.lock")).read_text())


def test_a_flipped_bit_is_found_and_mended(tmp_path: Path, models: tuple[Checkpoint, Checkpoint]) -> None:
    """One that neither size nor time of the file tells."""
    root = tmp_path / "cache"
    told(root, models, mean)
    (file,) = kept(root)
    content, times = bytearray(file.read_bytes()), file.stat()
    content[-3] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    with pytest.raises(AssertionError, match="was to be known"):
        told(root, models, never)
    assert np.array_equal(told(root, models, mean), right(models))
    told(root, models, never)


def ask_at_once(root: Path, models: tuple[Checkpoint, Checkpoint], start: Any, log: Path) -> None:
    def noted(source: InputTensor, base: Tensor) -> Statistic:
        with log.open("a") as lines:
            lines.write("found\n")
        return mean(source, base)

    start.wait()
    assert np.array_equal(told(root, models, noted), right(models))


def test_of_processes_that_ask_at_once_one_finds_out(tmp_path: Path, models: tuple[Checkpoint, Checkpoint]) -> None:
    context = multiprocessing.get_context("fork")
    start, log = context.Barrier(3), tmp_path / "log"
    arguments = (tmp_path / "cache", models, start, log)
    children = [context.Process(target=ask_at_once, args=arguments) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert log.read_text().count("found") == len(models[0].names)


def test_a_cache_without_room_keeps_nothing_and_hinders_nobody(
    tmp_path: Path, models: tuple[Checkpoint, Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_CACHE_BYTES", "100")
    assert np.array_equal(told(tmp_path / "cache", models, mean), right(models))
    assert kept(tmp_path / "cache") == []
    unwritable = tmp_path / "file"
    unwritable.write_text("in the way")
    assert np.array_equal(told(unwritable, models, mean), right(models))


def test_nothing_is_kept_of_what_no_digest_names(tmp_path: Path, models: tuple[Checkpoint, Checkpoint]) -> None:
    root = tmp_path / "cache"
    source, base = models
    told(root, (Checkpoint.open(source.folder, "source"), base), mean, name="model.norm.weight")
    assert not root.exists()


def test_tensors_that_only_one_has_or_in_another_shape_are_left_to_memory(
    tmp_path: Path, models: tuple[Checkpoint, Checkpoint]
) -> None:
    smaller = tiny_checkpoint(tmp_path / "smaller", tokenizer=False, vocab_size=64)
    pair = models[0], Checkpoint.open(smaller, "base", BASE)
    told(tmp_path / "cache", pair, mean, name="model.norm.weight")
    told(tmp_path / "cache", pair, never, name="model.norm.weight")
