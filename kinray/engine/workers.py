"""Work on many tensors at once within a bound of memory, in threads or in processes, each of which computes alone."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any, TypeVar

import torch

from kinray.checkpoints.header import DTYPE_BYTES
from kinray.core.methods import write_blocks
from kinray.errors import RunError

T = TypeVar("T")

_FLOAT32 = 4

_TOGETHER = 1 << 17
"""Elements of small tensors that one worker takes at once, since handing out a tensor takes longer than making a small one."""


@dataclass(frozen=True)
class Making:
    """One tensor of the output and how it is made.

    Args:
        name: in the output.
        dtype: as safetensors writes it, such as ``BF16``.
        shape: sizes.
        blocks: yields its elements in flat order and its dtype; a block holds until the next. Called in a thread or process of
            its own.
        taken: returns the models' tensors that it is made of by the models' names, to find out which is to blame for a NaN.
        buffers: float32 copies of it that making takes at most.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[torch.Tensor]]
    taken: Callable[[], dict[str, torch.Tensor]]
    buffers: int = 0

    def whole(self) -> torch.Tensor:
        """Make all of it at once, on the device that its blocks are on."""
        blocks = self.blocks()
        first = next(blocks, torch.empty(0))  # a merge of empty tensors has no block
        return write_blocks(torch.empty(self.shape, dtype=first.dtype, device=first.device), chain([first], blocks))

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return prod(self.shape) * DTYPE_BYTES[self.dtype]

    @property
    def memory(self) -> int:
        """Bytes that it takes while it is made, a block apart."""
        return prod(self.shape) * _FLOAT32 * self.buffers


def memory_for(tensors: Sequence[Making], parents: int) -> int:
    """Return the bytes that work on several tensors may take: (parents + 3) times the largest one in float32."""
    return (parents + 3) * _FLOAT32 * max((prod(tensor.shape) for tensor in tensors), default=0)


def work_on(
    tensors: Sequence[Making],
    work: Callable[[Making], T],
    memory: int,
    workers: int | None = None,
    done: Callable[[T], None] = lambda _: None,
    *,
    processes: bool = False,
) -> None:
    """Work on tensors, the largest first.

    Threads wait for Python's lock between the calls on a block: two are hardly faster than one. Processes are not held up, but
    only a process that has no other threads and holds no GPU may fork.

    Args:
        tensors: what to work on.
        work: called in a worker; what it raises is raised here, and in a process only what it returns is seen here.
        memory: bytes that those at work may take together, unless a single one needs more.
        workers: how many; by default as many as torch is set to have threads.
        done: told of each result, in the order in which they come.
        processes: whether workers are forks of this process, not threads.

    Raises:
        RunError: when the GPU's memory is full, or a process is killed.
    """
    before = torch.get_num_threads()
    most = min(workers or before, max(1, len(tensors)))
    parts = _parts(tensors, most)
    takes = [max(tensor.memory for tensor in part) for part in parts]
    waiting = list(range(len(parts)))
    busy: dict[Future[list[T]], int] = {}

    def work_on_part(number: int) -> list[T]:
        return [work(tensor) for tensor in parts[number]]

    pool, call = _forks(most, work_on_part) if processes and most > 1 else _threads(most, work_on_part)
    try:
        while waiting or busy:
            free = memory - sum(takes[number] for number in busy.values())
            fitting = next((number for number in waiting if takes[number] <= free or not busy), None)
            if fitting is not None and len(busy) < most:
                waiting.remove(fitting)
                busy[pool.submit(call, fitting)] = fitting
                continue
            finished, _ = wait(busy, return_when=FIRST_COMPLETED)
            for future in finished:
                del busy[future]
                for result in future.result():
                    done(result)
    except torch.OutOfMemoryError as error:
        raise RunError("The GPU's memory is full. Work on fewer tensors at once (--threads 1), or on the CPU.") from error
    except BrokenProcessPool as error:
        raise RunError(
            "A worker process was killed, most likely because memory ran out. Work on fewer tensors at once (--threads 1)."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(before)


def _parts(tensors: Sequence[Making], workers: int) -> list[list[Making]]:
    """Put small tensors together, the largest first, but leave each worker several parts."""
    sizes = [prod(tensor.shape) for tensor in tensors]
    limit = min(_TOGETHER, sum(sizes) // (8 * workers))
    parts: list[list[Making]] = []
    filled = 0
    for number in sorted(range(len(tensors)), key=lambda number: -sizes[number]):
        if not parts or filled + sizes[number] > limit:
            parts.append([])
            filled = 0
        parts[-1].append(tensors[number])
        filled += sizes[number]
    return parts


def _threads(count: int, work: Callable[[int], T]) -> tuple[Executor, Callable[[int], T]]:
    return ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,)), work


def _forks(count: int, work: Callable[[int], T]) -> tuple[Executor, Callable[[int], T]]:
    """Make workers that inherit what they work on, so that only numbers and results travel."""
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("fork"), initializer=_begin, initargs=(work,))
    return pool, _in_fork


_inherited: list[Callable[[int], Any]] = []
"""In a fork: what it was made for."""


def _begin(work: Callable[[int], Any]) -> None:
    _inherited[:] = [work]
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the parent hears them too, and ends its workers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _in_fork(number: int) -> Any:
    return _inherited[0](number)
