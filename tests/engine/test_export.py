"""Tensors made by several threads and written where they belong: the same bits, bounded memory, errors as they are."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from kinray.engine.export import Written, makings, verify, write_model
from kinray.engine.materialise import Materialiser
from kinray.engine.workers import Making
from kinray.errors import RunError
from tests.helpers import family, merge, random_tensors

SIZES = {"big": (30, 40), "small": (3,), "middle": (10, 20), "other": (10, 20), "none": (0, 2)}


def making(name: str, shape: tuple[int, ...], make: Callable[[], Tensor], buffers: int = 0) -> Making:
    return Making(name, "F32", shape, lambda: iter(make().reshape(-1).split(7)), dict, buffers)


def plain(tensors: dict[str, Tensor]) -> list[Making]:
    return [making(name, tuple(tensor.shape), lambda tensor=tensor: tensor) for name, tensor in tensors.items()]


def test_tensors_lie_in_the_order_in_which_they_are_named(tmp_path: Path) -> None:
    tensors = random_tensors(0, SIZES)

    written = write_model(tmp_path, plain(tensors), threads=3)

    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert list(file.offset_keys()) == list(SIZES)
    back = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert written.nbytes == sum(tensor.nbytes for tensor in tensors.values())


def test_the_largest_are_made_first(tmp_path: Path) -> None:
    order: list[str] = []
    tensors = random_tensors(0, SIZES)
    recorded = [making(n, tuple(t.shape), lambda n=n, t=t: order.append(n) or t) for n, t in tensors.items()]

    write_model(tmp_path, recorded, threads=1)

    assert order == ["big", "middle", "other", "small", "none"]


def test_any_number_of_threads_writes_the_same_bytes(tmp_path: Path) -> None:
    models = family(tmp_path / "models", [random_tensors(seed) for seed in range(3)])
    base, f1, f2 = (spec.founder for spec in models.specs)
    child = merge("dare_ties", merge("slerp", f1, f2, t=0.3), f1, base=base, density=0.5)
    files = []
    for threads in (1, 4):
        folder = tmp_path / str(threads)
        folder.mkdir()
        write_model(folder, makings(Materialiser(models), child, "bfloat16"), parents=2, threads=threads)
        files.append((folder / "model.safetensors").read_bytes())

    assert files[0] == files[1]


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt("stop"), RunError("why")])
def test_error_in_a_thread_comes_out_as_it_is_and_stops_the_others(tmp_path: Path, error: BaseException) -> None:
    made: list[int] = []

    def make(number: int) -> Tensor:
        if number == 3:
            raise error
        made.append(number)
        return torch.zeros(4)

    tensors = [making(str(number), (4,), lambda number=number: make(number)) for number in range(200)]

    with pytest.raises(type(error), match=str(error)):
        write_model(tmp_path, tensors, threads=2)

    assert len(made) < 100


def test_full_memory_of_a_gpu_is_told_with_what_to_do(tmp_path: Path) -> None:
    def make() -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunError, match=r"The GPU's memory is full. Work on fewer tensors at once \(--threads 1\)"):
        write_model(tmp_path, [making("a", (2,), make)])


def test_progress_adds_up_to_the_bytes_in_the_calling_thread(tmp_path: Path) -> None:
    told: list[int] = []
    caller = threading.get_ident()
    tensors = random_tensors(0, SIZES)

    def progress(count: int) -> None:
        assert threading.get_ident() == caller
        told.append(count)

    written = write_model(tmp_path, plain(tensors), threads=4, progress=progress)

    assert sum(told) == written.nbytes
    assert len(told) == len(SIZES)


def test_torch_has_its_threads_again_afterwards(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    seen: list[int] = []
    tensors = [making("a", (2,), lambda: seen.append(torch.get_num_threads()) or torch.zeros(2))]

    write_model(tmp_path, tensors)

    assert seen == [1]
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)


def test_weights_that_overflow_are_refused_and_counted(tmp_path: Path) -> None:
    tensor = torch.tensor([1.0, 1e6, -1e6]).half()
    tensors = [Making("w", "F16", (3,), lambda: iter(tensor.split(2)), dict)]

    with pytest.raises(RunError, match=r"Tensor 'w' of the merge holds NaN or infinity in 2 of 3 places as F16"):
        write_model(tmp_path, tensors)


# -- reading back


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, list[Making], Written]:
    tensors = plain(random_tensors(0, SIZES))
    return tmp_path, tensors, write_model(tmp_path, tensors, shard_bytes=1000, checksums=True)


def test_what_was_written_is_verified(written: tuple[Path, list[Making], Written]) -> None:
    verify(*written)


@pytest.mark.parametrize("place", [-1, -400])
def test_one_flipped_bit_is_found(written: tuple[Path, list[Making], Written], place: int) -> None:
    folder, tensors, told = written
    file = max(folder.glob("*.safetensors"), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)

    with pytest.raises(RunError, match=r"Tensor 'big' of .* does not read back as it was written"):
        verify(folder, tensors, told)


def test_tensor_that_is_missing_other_or_too_many_is_found(written: tuple[Path, list[Making], Written]) -> None:
    folder, tensors, told = written

    with pytest.raises(RunError, match=r"'more' of .* is not there; F32 \(1,\) was written"):
        verify(folder, [*tensors, making("more", (1,), torch.zeros)], told)
    with pytest.raises(RunError, match=r"'big' of .* is F32 \(30, 40\); F32 \(40, 30\) was written"):
        verify(folder, [making("big", (40, 30), torch.zeros), *tensors[1:]], told)
    with pytest.raises(RunError, match=r"holds 'big', which was not written"):
        verify(folder, tensors[1:], told)
