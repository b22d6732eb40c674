"""Reading and writing checkpoints."""

import errno
import fcntl
import json
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge_worker.errors import InputError
from evomerge_worker.shards import Checkpoint, Entry, write_checkpoint
from tiny_models import write_tensors

INDEX = "model.safetensors.index.json"


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tensors = {f"model.layers.{i}.weight": torch.randn(4, 8, generator=generator) for i in range(3)}
    return tensors | {"embed.weight": torch.randn(6, 8, generator=generator)}


def _entries(tensors: dict[str, torch.Tensor]) -> list[Entry]:
    return [Entry(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()]


def _sharded(folder: Path) -> Path:
    """Two shards with an index."""
    tensors = _tensors()
    first = {n: t for n, t in tensors.items() if n.startswith("model")}
    folder.mkdir()
    save_file(first, folder / "model-00001-of-00002.safetensors")
    save_file({"embed.weight": tensors["embed.weight"]}, folder / "model-00002-of-00002.safetensors")
    weight_map = dict.fromkeys(first, "model-00001-of-00002.safetensors")
    weight_map["embed.weight"] = "model-00002-of-00002.safetensors"
    _write_index(folder, weight_map)
    (folder / "config.json").write_text("{}")
    return folder


def _write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _read_index(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / INDEX).read_text())["weight_map"])


def _refusals(folder: Path, name: str = "maths") -> list[tuple[str, str]]:
    with pytest.raises(InputError) as caught:
        Checkpoint.open(folder, name)
    return [(p.path, p.message) for p in caught.value.problems]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_every_number_format_is_read_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {"a": (torch.randn(5, 3) * 3).to(dtype), "scalar": torch.ones((), dtype=dtype)}
    checkpoint = Checkpoint.open(write_tensors(tmp_path / "m", tensors), "m")
    assert checkpoint.names == ["a", "scalar"]
    assert checkpoint.shape("a") == (5, 3)
    assert checkpoint.dtype("a") == dtype
    assert checkpoint.bytes == 16 * dtype.itemsize
    assert all(torch.equal(checkpoint.tensor(n), t) for n, t in tensors.items())


def test_shards_are_read_as_one_model(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(_sharded(tmp_path / "m"), "m")
    assert checkpoint.names == sorted(_tensors())
    assert all(torch.equal(checkpoint.tensor(n), t) for n, t in _tensors().items())


def test_tensors_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    folder = write_tensors(tmp_path / "m", {"a": torch.randn(1000)})
    view = Checkpoint.open(folder, "m").tensor("a")
    assert any(low <= view.data_ptr() < high for low, high in _mappings(folder / "model.safetensors"))


def _mappings(file: Path) -> Iterator[tuple[int, int]]:
    """Address ranges of this process that map `file`."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(str(file)):
            low, high = line.split()[0].split("-")
            yield int(low, 16), int(high, 16)


def test_a_shard_may_be_a_symbolic_link(tmp_path: Path) -> None:
    """The Hugging Face cache is made of links to blobs elsewhere."""
    folder = _sharded(tmp_path / "m")
    shard = folder / "model-00001-of-00002.safetensors"
    shard.rename(tmp_path / "blob")
    shard.symlink_to(tmp_path / "blob")
    assert Checkpoint.open(folder, "m").names == sorted(_tensors())


@pytest.mark.parametrize("keep", [-1, 40, 3, 0])
def test_a_truncated_shard_is_named(tmp_path: Path, keep: int) -> None:
    folder = _sharded(tmp_path / "m")
    shard = folder / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    ((path, message),) = _refusals(folder)
    assert path == "models.maths"
    assert message.startswith("model-00001-of-00002.safetensors is truncated or no safetensors file")


def test_all_problems_of_a_folder_are_told_at_once(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "m")
    (folder / "config.json").unlink()
    (folder / "model-00001-of-00002.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"junk")
    messages = [message for _, message in _refusals(folder)]
    assert len(messages) == 3
    assert "has no config.json; is the path one level too high?" in messages[0]
    assert messages[1] == "model-00001-of-00002.safetensors is missing; fetch it again"
    assert "model-00002-of-00002.safetensors is truncated" in messages[2]


@pytest.mark.parametrize("file", ["../other/model.safetensors", "/etc/model.safetensors", "a/../../x.safetensors"])
def test_an_index_that_leaves_its_folder_is_refused(tmp_path: Path, file: str) -> None:
    """Even where the file it names is there and sound."""
    folder = _sharded(tmp_path / "m")
    write_tensors(tmp_path / "other", {"embed.weight": torch.zeros(6, 8)})
    _write_index(folder, _read_index(folder) | {"embed.weight": file})
    assert any(f"names {file}, which is not a safetensors file inside the folder" in m for _, m in _refusals(folder))


def test_an_index_that_names_a_pickle_is_refused(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "m")
    _write_index(folder, _read_index(folder) | {"embed.weight": "pytorch_model.bin"})
    assert any("names pytorch_model.bin, which is not a safetensors file" in m for _, m in _refusals(folder))


def test_a_tensor_of_the_index_that_no_shard_holds_is_named(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "m")
    _write_index(folder, _read_index(folder) | {"head.weight": "model-00002-of-00002.safetensors"})
    assert _refusals(folder, "base") == [
        ("base", "the index lists tensor head.weight in model-00002-of-00002.safetensors, which does not hold it")
    ]


def test_a_tensor_that_the_index_does_not_list_is_named(tmp_path: Path) -> None:
    folder = _sharded(tmp_path / "m")
    index = _read_index(folder)
    del index["model.layers.2.weight"]
    _write_index(folder, index)
    ((_, message),) = _refusals(folder)
    assert message.startswith("model-00001-of-00002.safetensors holds tensor model.layers.2.weight")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_a_broken_index_is_refused(tmp_path: Path, text: str) -> None:
    folder = _sharded(tmp_path / "m")
    (folder / INDEX).write_text(text)
    ((_, message),) = _refusals(folder)
    assert message.startswith(INDEX)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    torch.save(_tensors(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text("{}")
    ((_, message),) = _refusals(tmp_path)
    assert message == "only pickled weights (pytorch_model.bin), which can run code; save the model as safetensors"


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    ((_, message),) = _refusals(tmp_path)
    assert message.startswith("has neither model.safetensors nor model.safetensors.index.json; save the model")


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    """transformers would apply it on top of the weights, behind the merge's back."""
    folder = _sharded(tmp_path / "m")
    (folder / "adapter_config.json").write_text("{}")
    assert "name its model, with this as the model's adapter" in _refusals(folder)[0][1]


def test_quantised_weights_are_refused_in_words(tmp_path: Path) -> None:
    tensors = {f"layers.{i}.weight": torch.zeros(4, 4, dtype=torch.int8) for i in range(3)}
    folder = write_tensors(tmp_path / "int8", tensors, config={"quantization_config": {"quant_method": "awq"}})
    assert _refusals(folder) == [
        (
            "models.maths",
            "is quantised (quant_method awq in config.json): tensor layers.0.weight in model.safetensors is of type I8 "
            "and 2 more tensors like it; use its unquantised weights",
        )
    ]


@pytest.mark.parametrize(
    ("code", "size", "words"),
    [
        ("F8_E4M3", 1, "is quantised: tensor a in model.safetensors is of type F8_E4M3; use"),
        ("F8_E8M0", 1, "is quantised: tensor a in model.safetensors is of type F8_E8M0; use"),
        ("F64", 8, "tensor a in model.safetensors is of type F64; only float32, float16 and bfloat16"),
        ("U32", 4, "tensor a in model.safetensors is of type U32; only float32, float16 and bfloat16"),
    ],
)
def test_an_unsupported_number_format_is_named(tmp_path: Path, code: str, size: int, words: str) -> None:
    header = json.dumps({"a": {"dtype": code, "shape": [2], "data_offsets": [0, 2 * size]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(2 * size))
    (tmp_path / "config.json").write_text("{}")
    ((_, message),) = _refusals(tmp_path)
    assert message.startswith(words)


def test_nan_and_infinity_are_found_by_name(tmp_path: Path) -> None:
    tensors = _tensors()
    tensors["model.layers.1.weight"][2, 3] = float("nan")
    tensors["embed.weight"][0, 0] = -float("inf")
    tensors["counter"] = torch.tensor([3])
    checkpoint = Checkpoint.open(write_tensors(tmp_path / "m", tensors), "m")
    assert list(checkpoint.not_finite()) == ["embed.weight", "model.layers.1.weight"]


def test_written_tensors_read_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).bfloat16(), "b": torch.randn(5, 2).t(), "c": torch.arange(3)}
    assert write_checkpoint(tmp_path, _entries(tensors), iter(tensors.items()), 10**9) == ["model.safetensors"]
    (tmp_path / "config.json").write_text("{}")
    checkpoint = Checkpoint.open(tmp_path, "m")
    assert all(torch.equal(checkpoint.tensor(n), t) and checkpoint.dtype(n) == t.dtype for n, t in tensors.items())


_DIRECT = getattr(os, "O_DIRECT", 0)  # macOS has none


def _refuse(flags: int) -> None:
    if flags & _DIRECT:
        raise OSError(errno.EINVAL, "Invalid argument")


def _larger_blocks(file: int, data: memoryview, place: int, write: Callable[..., int] = os.pwrite) -> int:
    """Past the page cache nothing may be written, though the file could be opened for it."""
    if _is_direct(file):
        raise OSError(errno.EINVAL, "Invalid argument")
    return write(file, data, place)


def _is_direct(file: int) -> bool:
    return bool(fcntl.fcntl(file, fcntl.F_GETFL) & _DIRECT)


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("disk", ["any", "no direct writes", "larger blocks", "short writes", "another system"])
def test_blocks_and_what_lies_between_them_are_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, disk: str, past_cache: bool
) -> None:
    """Tensors begin and end anywhere in a block, and one is larger than a piece; whatever the file system can do."""
    sizes = [3, 4096, 1, 5000, 12_288, 4095, 20_000_001, 8192, 0, 70_001]
    tensors = {f"t{i}": torch.arange(size).remainder(251).to(torch.uint8) for i, size in enumerate(sizes)}
    tensors |= {"wide": torch.arange(3000), "half": torch.randn(4097).bfloat16()}
    write = os.pwrite
    match disk:
        case "no direct writes":
            opened = os.open
            monkeypatch.setattr(os, "open", lambda path, flags, *mode: _refuse(flags) or opened(path, flags, *mode))
        case "larger blocks":
            monkeypatch.setattr(os, "pwrite", _larger_blocks)
        case "short writes":  # the first one in whole blocks, so that the rest is left in the middle
            monkeypatch.setattr(os, "pwrite", lambda file, data, place: write(file, data[: 244 * 4096], place))
        case "another system":
            monkeypatch.delattr(os, "O_DIRECT", raising=False)
    write_checkpoint(tmp_path, _entries(tensors), iter(tensors.items()), 10**9, past_cache=past_cache)
    read = load_file(tmp_path / "model.safetensors")
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_only_who_may_write_past_the_page_cache_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        os.close(os.open(tmp_path / "probe", os.O_WRONLY | os.O_CREAT | _DIRECT))
    except OSError:
        pytest.skip("this file system has no direct writes")
    direct: list[int] = []
    write = os.pwrite

    def noted(file: int, data: memoryview, place: int) -> int:
        done = write(file, data, place)
        direct.append(done if _is_direct(file) else 0)
        return done

    monkeypatch.setattr(os, "pwrite", noted)
    tensors = {"t": torch.zeros(1 << 20)}
    write_checkpoint(tmp_path, _entries(tensors), iter(tensors.items()), 10**9)
    assert sum(direct) == 0
    write_checkpoint(tmp_path, _entries(tensors), iter(tensors.items()), 10**9, past_cache=True)
    assert sum(direct) == (4096 + (4 << 20) if _DIRECT else 0)  # the header has a block


@pytest.mark.parametrize("past_cache", [False, True])
def test_a_full_disk_is_no_small_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, past_cache: bool) -> None:
    def full(file: int, data: memoryview, place: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    tensors = {"t": torch.zeros(1 << 20)}
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left"):
        write_checkpoint(tmp_path, _entries(tensors), iter(tensors.items()), 10**9, past_cache=past_cache)
    assert not (tmp_path / "model.safetensors").exists()


def test_no_written_shard_is_larger_than_asked(tmp_path: Path) -> None:
    """One tensor alone may be; then it has a shard of its own."""
    tensors = {f"t{i}": torch.randn(size) for i, size in enumerate([10, 10, 10, 100, 10, 10])}
    names = write_checkpoint(tmp_path, _entries(tensors), iter(tensors.items()), 80)
    shards = [{n: t.nbytes for n, t in load_file(tmp_path / name).items()} for name in names if name != INDEX]
    assert [sum(shard.values()) for shard in shards] == [80, 40, 400, 80]
    (tmp_path / "config.json").write_text("{}")
    assert Checkpoint.open(tmp_path, "m").names == sorted(tensors)


def test_writing_holds_one_tensor_at_a_time(tmp_path: Path) -> None:
    """One that has been written is released before the next one is made."""
    made: list[weakref.ref[torch.Tensor]] = []
    peaks: list[int] = []

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for entry in entries:
            yield entry.name, _remembered(torch.zeros(10), made)
            peaks.append(sum(tensor() is not None for tensor in made))

    entries = [Entry(f"t{i}", torch.float32, (10,)) for i in range(20)]
    write_checkpoint(tmp_path, entries, tensors(), 4 * 40)
    assert len(made) == 20
    assert max(peaks) == 0


def _remembered(tensor: torch.Tensor, made: list[weakref.ref[torch.Tensor]]) -> torch.Tensor:
    made.append(weakref.ref(tensor))
    return tensor


def test_all_tensors_of_a_file_are_aligned(tmp_path: Path) -> None:
    """Whatever their order, so that they can be mapped as they lie."""
    tensors = {
        "a": torch.arange(3, dtype=torch.uint8),
        "b": torch.randn(3).bfloat16(),
        "c": torch.tensor(2.5),
        "d": torch.tensor([7]),
        "e": torch.zeros(0, 4),
        "f": torch.tensor([True]),
    }
    write_checkpoint(tmp_path, _entries(tensors), iter(tensors.items()), 10**9)
    read = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(read[name], tensor) and read[name].shape == tensor.shape for name, tensor in tensors.items())
    data = (tmp_path / "model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    header = json.loads(data[8 : 8 + length])
    assert all(header[name]["data_offsets"][0] % tensor.itemsize == 0 for name, tensor in tensors.items())


def test_another_tensor_than_was_announced_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="b came where a was announced"):
        write_checkpoint(tmp_path, [Entry("a", torch.float32, (1,))], iter([("b", torch.zeros(1))]), 10**9)
