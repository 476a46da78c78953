"""The cache of parents' weights: right bits or none, whatever other processes, the disk and time do to it."""

import errno
import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from kinray.engine import parent_cache
from kinray.engine.parent_cache import ParentCache

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {"embed.weight": (1000, 6), "scale": (), "none": (0, 3), "norm.weight": (6,)}
ONE_FILE = 25_000
"""A little more than the bytes of a file of these shapes."""


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def weights(number: int) -> dict[str, Tensor]:
    """Make up a child's weights, which follow from its number."""
    generator = torch.Generator().manual_seed(number)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def keep(cache: ParentCache, number: int) -> bool:
    """Write a child in another order than its file's; tell whether it was asked for."""
    with cache.writing(digest(number), SHAPES) as put:
        if put is not None:
            for name, tensor in reversed(weights(number).items()):
                put(name, tensor)
    return put is not None


def kept(cache: ParentCache, number: int) -> bool:
    """Tell whether a child is kept; if so, all of its bits must be right."""
    loaded = {name: cache.load(digest(number), name) for name in SHAPES}
    if all(tensor is None for tensor in loaded.values()):
        return False
    for name, expected in weights(number).items():
        tensor = loaded[name]
        assert tensor is not None and tensor.dtype == torch.float32 and torch.equal(tensor, expected), (number, name)
    return True


def numbers_in(folder: Path) -> set[int]:
    """List the children whose files are there."""
    files = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    found = {number for number in range(100) if f"{digest(number)}.safetensors" in files}
    assert len(found) == len(files), files
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(folder: Path) -> ParentCache:
    return ParentCache(folder, 1 << 20)


def test_what_was_written_is_loaded_bit_for_bit_here_and_elsewhere(cache: ParentCache, folder: Path) -> None:
    assert not cache.has(digest(1)) and not kept(cache, 1)

    assert keep(cache, 1)

    for reader in (cache, ParentCache(folder, 1 << 20)):
        assert reader.has(digest(1)) and kept(reader, 1)
        assert reader.load(digest(1), "no such tensor") is None


def test_the_file_is_read_by_safetensors_itself(cache: ParentCache, folder: Path) -> None:
    from safetensors.torch import load_file

    keep(cache, 1)

    loaded = load_file(folder / f"{digest(1)}.safetensors")
    assert loaded.keys() == SHAPES.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights(1).items())


def test_tensors_of_any_layout_are_written(cache: ParentCache) -> None:
    turned = torch.arange(12.0).reshape(3, 4).T

    with cache.writing(digest(1), {"w": (4, 3)}) as put:
        assert put is not None
        put("w", turned.requires_grad_())

    loaded = cache.load(digest(1), "w")
    assert loaded is not None and torch.equal(loaded, turned)


def test_a_child_is_written_once(cache: ParentCache) -> None:
    assert keep(cache, 1)
    assert not keep(cache, 1)
    with cache.writing(digest(2), SHAPES) as put, ParentCache(cache.folder, 1 << 20).writing(digest(2), SHAPES) as other:
        assert put is not None and other is None


def test_a_child_that_was_not_written_to_the_end_is_not_kept(cache: ParentCache, folder: Path) -> None:
    with cache.writing(digest(1), SHAPES) as put:
        assert put is not None
        put("scale", weights(1)["scale"])
        assert not cache.has(digest(1))
    with pytest.raises(RuntimeError, match="merge broke"), cache.writing(digest(2), SHAPES):
        raise RuntimeError("merge broke")

    assert not kept(cache, 1) and not kept(cache, 2)
    assert {path.name for path in folder.iterdir()} <= {".lock"}


# -- the budget


def test_the_least_recently_used_make_room(folder: Path) -> None:
    cache = ParentCache(folder, 3 * ONE_FILE)
    for number in (1, 2, 3):
        keep(cache, number)
    assert numbers_in(folder) == {1, 2, 3}

    assert ParentCache(folder, 1).load(digest(1), "scale") is not None
    keep(cache, 4)
    assert numbers_in(folder) == {1, 3, 4}
    assert cache.has(digest(3))
    keep(cache, 5)
    assert numbers_in(folder) == {3, 4, 5}


def test_a_child_larger_than_the_budget_evicts_nothing(folder: Path) -> None:
    cache = ParentCache(folder, ONE_FILE)
    keep(cache, 1)

    with cache.writing(digest(2), {"w": (ONE_FILE,)}) as put:
        assert put is None

    assert kept(cache, 1)


def test_what_is_being_written_counts_and_is_not_evicted(folder: Path) -> None:
    cache = ParentCache(folder, 2 * ONE_FILE)
    keep(cache, 1)
    with cache.writing(digest(2), SHAPES) as put, cache.writing(digest(3), SHAPES) as other:
        assert put is not None and other is not None
        assert numbers_in(folder) == set()
        assert not keep(cache, 4)


def test_an_evicted_child_stays_readable_where_it_is_mapped(folder: Path) -> None:
    reader, writer = ParentCache(folder, ONE_FILE), ParentCache(folder, ONE_FILE)
    keep(writer, 1)
    assert reader.has(digest(1))
    tensor = reader.load(digest(1), "embed.weight")

    keep(writer, 2)

    assert numbers_in(folder) == {2}
    assert kept(reader, 1)
    assert tensor is not None and torch.equal(tensor, weights(1)["embed.weight"])
    assert not kept(ParentCache(folder, ONE_FILE), 1)


def test_a_child_that_is_evicted_and_spoilt_stays_readable_where_it_is_mapped(folder: Path) -> None:
    reader = ParentCache(folder, ONE_FILE)
    keep(reader, 1)
    assert reader.has(digest(1))
    path = folder / f"{digest(1)}.safetensors"
    path.unlink()
    path.write_bytes(b"torn")

    assert kept(reader, 1)
    assert not kept(ParentCache(folder, ONE_FILE), 1)


def test_an_evicted_child_is_let_go_a_minute_after_its_last_use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ParentCache(folder, ONE_FILE)
    keep(cache, 1)
    assert cache.has(digest(1))
    keep(cache, 2)
    now = time.monotonic()

    monkeypatch.setattr(time, "monotonic", lambda: now + 59)
    assert cache.has(digest(1))
    monkeypatch.setattr(time, "monotonic", lambda: now + 59 + 61)
    assert not cache.has(digest(1))


def test_without_a_budget_nothing_is_kept_nor_made(folder: Path) -> None:
    cache = ParentCache(folder, 0)

    assert not keep(cache, 1) and not cache.has(digest(1))
    assert not folder.exists()


# -- what goes wrong


def test_a_full_disk_only_means_that_nothing_is_kept(cache: ParentCache, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(cache, 1)
    write, written = os.pwrite, 0

    def full(*args: object) -> int:
        nonlocal written
        written += 1
        if written > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "pwrite", full)
    keep(cache, 2)
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    keep(cache, 3)
    monkeypatch.undo()

    assert written == 3
    assert numbers_in(folder) == {1} and kept(cache, 1)
    assert not list(folder.glob(".*.tmp"))
    assert keep(cache, 2) and kept(cache, 2)


def test_a_write_may_be_done_in_parts(cache: ParentCache, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:999], at))

    keep(cache, 1)

    assert kept(cache, 1)


@pytest.mark.parametrize("place", ["gone/cache", "file/cache"])
def test_a_folder_that_cannot_be_made_only_means_that_nothing_is_kept(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    cache = ParentCache(tmp_path / place, 1 << 20)

    assert not keep(cache, 1) and not cache.has(digest(1)) and not kept(cache, 1)
    cache.clear()


def test_a_folder_that_vanishes_only_means_that_nothing_is_kept(cache: ParentCache, folder: Path) -> None:
    other = ParentCache(folder, 1 << 20)
    keep(other, 1)
    assert other.has(digest(1))
    with other.writing(digest(2), SHAPES) as put:
        assert put is not None
        cache.clear()
        for name, tensor in weights(2).items():
            put(name, tensor)

    assert not folder.exists()
    assert kept(other, 1) and not kept(other, 2)
    assert not keep(other, 3)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def no_header(path: Path) -> None:
    path.write_bytes(b"x" * 5000)


def another_child(path: Path) -> None:
    cache = ParentCache(path.parent, 1 << 20)
    keep(cache, 77)
    (path.parent / f"{digest(77)}.safetensors").rename(path)


def another_program(path: Path) -> None:
    save_file({"embed.weight": torch.zeros(1000, 6)}, path)


@pytest.mark.parametrize("spoil", [torn, empty, no_header, another_child, another_program])
def test_a_file_that_is_not_a_whole_child_is_ignored_and_removed(folder: Path, spoil: object) -> None:
    keep(ParentCache(folder, 1 << 20), 1)
    path = folder / f"{digest(1)}.safetensors"
    spoil(path)  # type: ignore[operator]
    cache = ParentCache(folder, 1 << 20)

    assert not cache.has(digest(1)) and cache.load(digest(1), "scale") is None
    assert not path.exists()
    assert keep(cache, 1) and kept(cache, 1)


def test_a_spoilt_file_is_written_anew(folder: Path) -> None:
    keep(ParentCache(folder, 1 << 20), 1)
    torn(folder / f"{digest(1)}.safetensors")
    cache = ParentCache(folder, 1 << 20)

    assert keep(cache, 1) and kept(cache, 1)


# -- other users and other runs


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o750, 0o701])
def test_a_folder_that_others_may_enter_is_not_used(folder: Path, mode: int) -> None:
    folder.mkdir()
    folder.chmod(mode)

    assert not keep(ParentCache(folder, 1 << 20), 1)
    assert not list(folder.iterdir())


def test_a_folder_of_another_user_is_not_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)

    assert not keep(ParentCache(folder, 1 << 20), 1)


def test_a_link_is_not_used(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "elsewhere")

    assert not keep(ParentCache(folder, 1 << 20), 1)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_the_folder_is_private(cache: ParentCache, folder: Path) -> None:
    assert folder.stat().st_mode & 0o777 == 0o700


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"kinray-{os.geteuid()}"


def test_processes_of_a_run_share_a_folder_and_the_last_removes_it(temporary: Path) -> None:
    one, two = ParentCache.of_run("run-1"), ParentCache.of_run("run-1")
    keep(one, 1)

    assert one.folder == temporary / "run-1"
    assert kept(two, 1)
    assert temporary.stat().st_mode & 0o777 == 0o700

    one.clear()
    assert not one.folder.exists() and not keep(one, 2)


def test_the_budget_is_a_quarter_of_what_is_free_unless_it_is_given(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parent_cache.shutil, "disk_usage", lambda place: Usage(10**12, 0, 8 * 10**9))

    assert ParentCache.of_run("auto").budget == 2 * 10**9
    assert ParentCache.of_run("given", 0.5).budget == 5 * 10**8
    none = ParentCache.of_run("none", 0.0)
    assert none.budget == 0 and not none.folder.exists()


def test_a_root_that_another_user_prepared_is_not_used(temporary: Path) -> None:
    temporary.mkdir()
    temporary.chmod(0o777)

    cache = ParentCache.of_run("run-1")

    assert not keep(cache, 1)
    assert not list(temporary.iterdir())


def test_what_sessions_that_ended_left_is_removed_and_what_is_in_use_is_not(temporary: Path) -> None:
    ended = ParentCache.of_run("ended")
    keep(ended, 1)
    assert ended._claim is not None
    ended._claim.close()  # as when its process dies
    living = ParentCache.of_run("living")
    keep(living, 2)

    again = ParentCache.of_run("ended-later")

    assert {path.name for path in temporary.iterdir() if path.is_dir()} == {"living", "ended-later"}
    assert kept(living, 2) and not kept(again, 1)


def test_a_session_does_not_trust_what_an_earlier_one_left_under_its_name(temporary: Path) -> None:
    ended = ParentCache.of_run("run-1")
    keep(ended, 1)
    assert ended._claim is not None
    ended._claim.close()

    assert not kept(ParentCache.of_run("run-1"), 1)


# -- several processes


def hammer(folder: str, seed: int, rounds: int) -> None:
    """Load children if they are there and write them if not, in a drawn order and in a budget for a few of them."""
    torch.set_num_threads(1)
    order = random.Random(seed)
    cache = ParentCache(Path(folder), 4 * ONE_FILE)
    for _ in range(rounds):
        number = order.randrange(8)
        if cache.has(digest(number)):
            assert kept(cache, number)
        else:
            keep(cache, number)
        if order.random() < 0.05:
            cache._mapped.clear()


def test_several_processes_always_load_right_bits(folder: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=hammer, args=(str(folder), seed, 400)) for seed in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)

    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not list(folder.glob(".*.tmp"))
    assert len(numbers_in(folder)) == 4


WRITER = """
import sys, time
from pathlib import Path
from kinray.engine.parent_cache import ParentCache
from tests.engine.test_parent_cache import SHAPES, ONE_FILE, digest, weights
with ParentCache(Path(sys.argv[1]), 2 * ONE_FILE).writing(digest(1), SHAPES) as put:
    put("scale", weights(1)["scale"])
    print("writing", flush=True)
    time.sleep(600)
"""


def test_a_writer_that_is_killed_leaves_no_trouble(folder: Path) -> None:
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    assert writer.stdout is not None and writer.stdout.readline() == "writing\n"
    cache = ParentCache(folder, 2 * ONE_FILE)
    assert not keep(cache, 1), "another process is writing it"
    assert keep(cache, 2)

    writer.send_signal(signal.SIGKILL)
    writer.wait(60)

    assert not kept(cache, 1)
    assert keep(cache, 3)
    assert not list(folder.glob(".*.tmp"))
    assert numbers_in(folder) == {2, 3}
    assert keep(cache, 1) and kept(cache, 1)
