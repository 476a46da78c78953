"""Who may use a run's folder in a store: a claim that its process renews, since stores have no locks.

It is one small object. Whoever finds another's watches it: one that is renewed belongs to a process that lives, one that is
not is taken over. No clocks are compared. Stores have no way to say "unless it is there", so of two that claim a folder within
the same moment both may begin; the later claim stands, and the earlier process stops before it records anything more, at the
latest when it renews its own.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from kinray.errors import RunError
from kinray.records.claim import holder
from kinray.records.store import Store

CLAIM = ".claim"
PERIOD = 10.0
"""Seconds between two renewals."""
PATIENCE = 4 * PERIOD
"""Seconds without a renewal after which a claim counts as left behind."""
_BYTES = 1000


class StoreClaim:
    """The claim of this process on a store's folder, from now until it is closed or the process ends.

    Args:
        store: the folder.
        note: told when another's claim has to be watched.

    Raises:
        RunError: when another process uses the folder.
    """

    def __init__(self, store: Store, note: Callable[[str], None] = lambda _: None) -> None:
        self._store, self._token, self._taken_by = store, uuid4().hex, ""
        self._holder = holder()
        found = self._read()
        if found is not None and not _ended(found):
            note(f"waiting up to {PATIENCE:.0f} s to see whether {_who(found)} still uses {store.uri}")
            self._watch(found)
        self._renewals = 0
        self._write()
        self._look()
        self.check()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="kinray claim", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise RunError if another process has taken the folder over."""
        if not self._taken_by and _now() - self._renewed > 2 * PERIOD:  # it may have been asleep
            self._renew()
        if self._taken_by:
            raise RunError(
                f"{self._store.uri} is in use by {self._taken_by}, which has taken it over and goes on with what was recorded."
            )

    def close(self) -> None:
        """Give the folder back, as far as the store can be reached."""
        self._closed.set()
        self._thread.join()
        with suppress(RunError):
            self._look()
            if not self._taken_by:
                self._store.remove(CLAIM)

    def _watch(self, found: bytes) -> None:
        """Wait until a claim is gone or was not renewed for a while, or raise RunError."""
        until = _now() + PATIENCE
        while _now() < until:
            time.sleep(PERIOD / 4)
            seen = self._read()
            if seen is None:
                return
            if seen != found:
                raise RunError(f"{self._store.uri} is in use by {_who(seen)}. Wait for it, or choose another folder.")

    def _keep(self) -> None:
        while not self._closed.wait(PERIOD):
            with suppress(RunError):  # a store that is out of reach stops what is recorded next
                self._renew()

    def _renew(self) -> None:
        self._look()
        if not self._taken_by:
            self._write()

    def _look(self) -> None:
        """See whose claim there is."""
        found = self._read()
        if found is not None and self._token.encode() not in found:
            self._taken_by = _who(found)

    def _read(self) -> bytes | None:
        return self._store.read(CLAIM, _BYTES)

    def _write(self) -> None:
        self._renewals += 1
        claim = {"token": self._token, "holder": self._holder, "renewed": self._renewals, "process": [_here(), os.getpid()]}
        self._store.write(CLAIM, json.dumps(claim).encode())
        self._renewed = _now()


def _parsed(claim: bytes) -> dict[str, Any]:
    try:
        data = json.loads(claim)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}


def _who(claim: bytes) -> str:
    return str(_parsed(claim).get("holder", "another process"))[:200]


def _ended(claim: bytes) -> bool:
    """Tell whether a claim was made by a process of this machine that does not run any more."""
    match _parsed(claim).get("process"):
        case [place, int(number)] if place == _here() and 0 < number < 2**31:
            try:
                os.kill(number, 0)
            except ProcessLookupError:
                return True
            except PermissionError:
                return False
    return False


def _here() -> str:
    """Tell this machine, since it was started, and on it the processes that have numbers of their own, as in a container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')}" if boot.exists() else uuid4().hex


def _now() -> float:
    """Return seconds on a clock that also goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
