"""Being told to stop: Ctrl-C, the SIGTERM of a scheduler, the SIGHUP of a terminal that closes."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

_STOP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_IN_A_JOB = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")
"""What batch schedulers set in a job's environment. They send SIGTERM to every process of a job, not only to the first."""


@contextmanager
def when_told_to_stop(do: Callable[[], None]) -> Iterator[None]:
    """Call a function in the main thread each time that this process is told to stop while the block runs.

    What was ignored before, as SIGHUP is under ``nohup``, stays ignored.
    """

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _let_go_of_terminal()
        do()

    with _restored():
        for number in _STOP:
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, handle)
        yield


@contextmanager
def shielded() -> Iterator[None]:
    """Keep what signals do here while a library starts processes, and these from ending with the terminal or the job.

    They end with this process, which is told too. In a job they no longer hear SIGTERM, which they inherit as they do SIGHUP's
    being ignored; elsewhere they do, since a library that asks its processes to end has to wait in vain then and kill them.
    """
    with _restored():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        deaf = {signal.SIGTERM} if any(name in os.environ for name in _IN_A_JOB) else set()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, deaf)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def interrupt() -> None:
    """Raise KeyboardInterrupt."""
    raise KeyboardInterrupt


def interrupt_once() -> None:
    """Raise KeyboardInterrupt, and let no further signal disturb the cleaning up."""
    for number in _STOP:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextmanager
def _restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _STOP}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _let_go_of_terminal() -> None:
    """Write nowhere from now on if the terminal is gone; else the first line to it would end the work."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
