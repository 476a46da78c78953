"""Work on tensors in threads and in forked processes: bounded memory, errors as they are, nothing left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from kinray.engine.workers import Making, memory_for, work_on
from kinray.errors import RunError


def making(name: str, shape: tuple[int, ...], buffers: int = 0) -> Making:
    return Making(name, "F32", shape, lambda: iter([torch.zeros(shape)]), dict, buffers)


@pytest.mark.parametrize(("buffers", "together"), [(0, 8), (1, 4), (2, 2), (3, 1), (9, 1)])
def test_as_much_is_in_flight_as_the_memory_allows_and_no_more(buffers: int, together: int) -> None:
    lock, all_there = threading.Lock(), threading.Barrier(together)
    now, most = 0, 0

    def work(_: Making) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        all_there.wait(timeout=30)
        time.sleep(0.01)  # so that one too many would be seen
        with lock:
            now -= 1

    tensors = [making(str(number), (8,), buffers) for number in range(8)]

    work_on(tensors, work, memory=4 * 32, workers=8)

    assert most == together  # each takes 32 bytes for each buffer


def test_small_ones_are_made_beside_a_large_one() -> None:
    small_done, beside = threading.Event(), set[str]()

    def work(one: Making) -> None:
        if one.name == "large":
            assert small_done.wait(timeout=30)
        elif not small_done.is_set():
            beside.add(one.name)
            small_done.set()

    tensors = [making("large", (90,), 1), making("large too", (80,), 1), making("small", (5,), 1)]

    work_on(tensors, work, memory=4 * 100, workers=3)

    assert beside == {"small"}


def test_small_ones_are_handed_out_together_and_all_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    submit, handed_out = ThreadPoolExecutor.submit, list[int]()
    monkeypatch.setattr(ThreadPoolExecutor, "submit", lambda pool, do, part: handed_out.append(part) or submit(pool, do, part))
    tensors = [making(str(number), (1 + number % 3,)) for number in range(3000)] + [making("large", (10**6,))]
    made: list[str] = []

    work_on(tensors, lambda one: one.name, 10**9, 2, made.append)

    assert sorted(made) == sorted(one.name for one in tensors)
    assert len(handed_out) == 2


def test_memory_is_counted_in_copies_of_the_largest_tensor() -> None:
    tensors = [making("a", (10, 10)), making("b", (3,))]

    assert memory_for(tensors, parents=2) == 5 * 400
    assert memory_for([], parents=2) == 0


# -- in processes


def test_forks_give_the_results_and_share_the_work() -> None:
    tensors = [making(str(number), (number,)) for number in range(1, 30)]
    results: list[tuple[str, int, int]] = []

    def work(one: Making) -> tuple[str, int, int]:
        time.sleep(0.01)  # so that one worker does not take all
        return one.name, torch.get_num_threads(), os.getpid()

    work_on(tensors, work, 10**9, 3, results.append, processes=True)

    assert sorted(int(name) for name, _, _ in results) == list(range(1, 30))
    assert {threads for _, threads, _ in results} == {1}
    assert len({pid for _, _, pid in results}) == 3
    assert os.getpid() not in {pid for _, _, pid in results}


@pytest.mark.parametrize("error", [ValueError("mine"), RunError("why"), OSError(28, "No space left on device")])
def test_error_in_a_fork_comes_out_as_it_is(error: Exception) -> None:
    def work(one: Making) -> None:
        if one.name == "3":
            raise error

    with pytest.raises(type(error)) as caught:
        work_on([making(str(number), (2,)) for number in range(9)], work, 10**9, 2, processes=True)

    assert str(caught.value) == str(error)


def test_a_fork_that_is_killed_is_told_with_what_to_do() -> None:
    def work(_: Making) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(RunError, match=r"A worker process was killed, most likely because memory ran out. Work on fewer"):
        work_on([making(str(number), (2,)) for number in range(9)], work, 10**9, 2, processes=True)


PROGRAM = """
import os, time
from tests.engine.test_workers import making, work_on

def work(one):
    os.write(1, f"{os.getpid()}\\n".encode())  # in one piece
    time.sleep(600)

work_on([making(str(number), (2,)) for number in range(9)], work, 10**9, 2, processes=True)
"""


def test_forks_end_when_their_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    forks = [int(parent.stdout.readline()) for _ in range(2)]

    parent.kill()
    parent.wait()

    end = time.monotonic() + 30
    while any(Path(f"/proc/{pid}").exists() for pid in forks):
        assert time.monotonic() < end, "a worker outlives its parent"
        time.sleep(0.01)
