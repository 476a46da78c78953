"""A run whose folder is in a store: it works in a folder of this machine, and copies to the store what it records."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from kinray.errors import RunError
from kinray.files import cache_folder
from kinray.records.claim import check_vacant, claim
from kinray.records.store import Store, is_uri, within
from kinray.records.store_claim import CLAIM, StoreClaim

_RECORDS = ("config.yaml", "state.json", "children", "samples", "kinship")
"""What a resumed run needs. The best model is only ever written, and what Ray Tune wrote stays where it was."""
_PROBE = ".probe"


def check_output(output: str) -> None:
    """Raise RunError unless a run may be started at a path or URI: nothing is there, and it can be written."""
    if not is_uri(output):
        check_vacant(Path(output))
        return
    store = Store(output)
    names = set(store.names()) - {CLAIM, _PROBE}
    if "config.yaml" in names:
        raise RunError(f"{output} already holds a run. Continue it with --resume {output}, or choose another with --output.")
    if names:
        raise RunError(f"{output} is not empty: it holds {min(names)[:80]!r}. Choose another with --output.")
    store.write(_PROBE, b"")
    store.remove(_PROBE)


def working_folder(output: str) -> Path:
    """Return where a run writes on this machine: its folder, or one in the cache that stands for its URI."""
    if not is_uri(output):
        return Path(output)
    return cache_folder() / "runs" / hashlib.sha256(output.rstrip("/").encode()).hexdigest()[:16]


class Mirror:
    """This machine's folder of a run in a store, both claimed by this process.

    Args:
        uri: of the run's folder.
        note: told what is being waited for.

    Raises:
        RunError: when another process uses either, or the store cannot be reached.
    """

    def __init__(self, uri: str, note: Callable[[str], None] = lambda _: None) -> None:
        self.path = working_folder(uri)
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = claim(self.path, uri)
        try:
            self._store = Store(uri)
            self._claim = StoreClaim(self._store, note)
        except BaseException:
            self._lock.close()
            raise
        self._refill()

    def publish(self, file: Path) -> None:
        """Copy a file that was written here to the store; when it returns, the store has it."""
        self._claim.check()
        self._store.upload(file, str(file.relative_to(self.path)))

    def publish_folder(self, name: str, last: str) -> str:
        """Move a folder to the store in place of the one there, and return where it is now.

        Args:
            name: of the folder.
            last: a file in it that is copied when all others are there, so that where it is missing the folder is not whole.
        """
        self._store.remove(within(name, last))
        self._store.remove(name)
        folder = self.path / name
        files = [file for file in folder.rglob("*") if file.is_file()]
        for file in sorted(files, key=lambda file: (file == folder / last, file)):
            self.publish(file)
        shutil.rmtree(folder)
        return within(self._store.uri, name)

    def close(self) -> None:
        """Let other processes use the folder."""
        self._claim.close()
        self._lock.close()

    def _refill(self) -> None:
        """Replace what an earlier session left here by the store's records, which alone count."""
        for left in self.path.iterdir():
            if left.name not in ("tune", ".lock"):
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        for name in set(self._store.names()).intersection(_RECORDS):
            self._store.download(name, self.path / name)
