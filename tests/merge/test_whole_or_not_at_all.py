"""What is left when a merge fails, is stopped or runs out of room: nothing, and what was there before."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kinray.checkpoints import writer
from tests.helpers import random_tensors
from tests.merge.kitchen import Kitchen, read, same, shapes

MEAN = "merge_method: linear\nmodels: [{model: a}, {model: b}]\n"


def after(calls: int, do: Callable[..., Any]) -> Callable[..., Any]:
    """Let os.pwrite work for some calls, then do something else."""
    write, count = os.pwrite, iter(range(1 << 30))
    return lambda *arguments: write(*arguments) if next(count) < calls else do(*arguments)


def fail(error: BaseException) -> Callable[..., Any]:
    def do(*_: Any) -> Any:
        raise error

    return do


def flip(descriptor: int, data: memoryview, at: int) -> int:
    """Write with one bit turned."""
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 4
    os.lseek(descriptor, at, os.SEEK_SET)
    return os.write(descriptor, changed)


@pytest.fixture(params=["nothing before", "a model before"])
def before(kitchen: Kitchen, request: pytest.FixtureRequest) -> dict[str, torch.Tensor]:
    """Let a model stand in the output folder, or nothing."""
    kitchen.family("a", "b")
    if request.param == "nothing before":
        return {}
    return kitchen.merge("merge_method: passthrough\nmodels: [{model: a}]")


def assert_as_before(kitchen: Kitchen, before: dict[str, torch.Tensor]) -> None:
    assert kitchen.left() == (["out"] if before else [])
    assert not before or same(read(kitchen.out), before)


def assert_refused(kitchen: Kitchen, before: dict[str, torch.Tensor], capsys: pytest.CaptureFixture[str], message: str) -> None:
    assert kitchen.run(MEAN, "--overwrite") == 2
    assert message in capsys.readouterr().err
    assert_as_before(kitchen, before)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_full_disk_leaves_nothing_and_says_what_is_needed(
    kitchen: Kitchen,
    before: dict[str, torch.Tensor],
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(writer.os, "pwrite", after(4, fail(OSError(code, "full"))))

    assert_refused(kitchen, before, capsys, "is full: 0.00 GB are needed. Nothing was kept; make room, or choose another")


def test_disk_that_gets_full_behind_the_weights_leaves_nothing(
    kitchen: Kitchen, before: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("kinray.merge.write.copy_tokenizer", fail(OSError(errno.ENOSPC, "full")))

    assert_refused(kitchen, before, capsys, "make room")


def test_too_little_room_is_said_before_anything_is_merged(
    kitchen: Kitchen, before: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = writer.shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)

    assert_refused(kitchen, before, capsys, "Too little room under")


def test_other_error_of_the_disk_is_told_as_it_is(
    kitchen: Kitchen, before: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writer.os, "pwrite", after(2, fail(OSError(errno.EIO, "Input/output error"))))

    assert_refused(kitchen, before, capsys, "Input/output error")


def test_error_of_the_disk_that_the_system_tells_only_once_counts(
    kitchen: Kitchen, before: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors = [OSError(errno.EIO, "Input/output error")]
    monkeypatch.setattr(writer.os, "fsync", lambda _: fail(errors.pop())() if errors else None)

    assert_refused(kitchen, before, capsys, "Input/output error")


def test_interrupt_leaves_nothing(
    kitchen: Kitchen, before: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def press(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(writer.os, "fsync", press)

    assert kitchen.run(MEAN, "--overwrite") == 130

    assert capsys.readouterr().err.endswith("Stopped. Nothing was written.\n")
    assert_as_before(kitchen, before)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_interrupt_between_the_two_renames_brings_the_old_model_back(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.family("a", "b")
    old = kitchen.merge("merge_method: passthrough\nmodels: [{model: a}]")
    rename = Path.rename

    def stop_at_the_new(path: Path, target: Path) -> Path:
        if path.suffix == ".tmp":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", stop_at_the_new)

    assert kitchen.run(MEAN, "--overwrite") == 130

    assert_as_before(kitchen, old)


def test_flipped_bit_is_found_by_verify_alone(
    kitchen: Kitchen, before: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(writer.os, "pwrite", after(5, flip))

    assert kitchen.run(MEAN, "--overwrite", "--verify") == 2

    assert "does not read back as it was written. Check the disk and merge again" in capsys.readouterr().err
    assert_as_before(kitchen, before)
    assert kitchen.run(MEAN, "--overwrite") == 0


def test_folder_that_holds_something_is_not_replaced_unasked(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    kitchen.family("a", "b")
    old = kitchen.merge("merge_method: passthrough\nmodels: [{model: a}]")

    assert kitchen.run(MEAN) == 2

    assert "exists and is not empty. Name another folder, or add --overwrite" in capsys.readouterr().err
    assert_as_before(kitchen, old)


def test_model_may_take_the_place_of_its_own_parent(kitchen: Kitchen) -> None:
    kitchen.family("a", "b")
    expected = kitchen.merge(MEAN)
    kitchen.out.rename(kitchen.folder / "kept")
    (kitchen.folder / "a").rename(kitchen.out)

    assert same(kitchen.merge(MEAN.replace("model: a", "model: out"), "--overwrite"), expected)


def test_parents_of_the_folder_that_were_made_for_it_are_removed(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.family("a", "b")
    kitchen.out = kitchen.folder / "out" / "of" / "here"
    monkeypatch.setattr(writer.os, "pwrite", after(2, fail(OSError(errno.EIO, "error"))))

    assert kitchen.run(MEAN) == 2

    assert kitchen.left() == []


def test_weights_too_large_for_the_dtype_are_refused(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = random_tensors(0, shapes())
    tensors["model.norm.weight"][2] = 70000.0
    kitchen.model("a", tensors)

    assert kitchen.run("merge_method: passthrough\nmodels: [{model: a}]", "--dtype", "float16") == 2

    errors = capsys.readouterr().err
    assert "Tensor 'model.norm.weight' of the merge holds NaN or infinity in 1 of 6 places as" in errors
    assert "choose a dtype with a larger range" in errors
    assert kitchen.left() == []


SLOW = """
import os, sys, time
from kinray.checkpoints import writer
from kinray.merge.cli import main
write = os.pwrite
def slow(*arguments):
    print("writing", flush=True)
    time.sleep(0.3)
    return write(*arguments)
writer.os.pwrite = slow
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_process_that_is_told_to_stop_leaves_nothing(kitchen: Kitchen, number: signal.Signals) -> None:
    kitchen.family("a", "b")
    recipe = str(kitchen.write(MEAN))
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, recipe, "out", "--threads", "2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    assert any(name.endswith(".tmp") for name in kitchen.left())

    process.send_signal(number)
    process.send_signal(number)  # a second one does not disturb the cleaning up
    _, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    assert errors.endswith("Stopped. Nothing was written.\n")
    assert "Traceback" not in errors
    assert kitchen.left() == []
