"""Temporary folders go with their process, and what was left of dead ones goes with the next."""

import os
import subprocess
import sys
from pathlib import Path

from kinray.temporary import sweep_folders, temporary_folder

HOUR = 3600


def aged(folder: Path) -> Path:
    """Let a folder look as if nobody had changed it for an hour."""
    changed = folder.stat().st_mtime - HOUR
    os.utime(folder, (changed, changed))
    return folder


def in_another_process(code: str, place: Path) -> None:
    program = f"import os\nfrom pathlib import Path\nfrom kinray.temporary import *\nplace = Path({str(place)!r})\n{code}"
    subprocess.run([sys.executable, "-c", program], check=False, timeout=60)


def test_a_folder_is_private_and_goes_with_its_block(tmp_path: Path) -> None:
    with temporary_folder(tmp_path, "own-") as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()

    assert list(tmp_path.iterdir()) == []


def test_those_of_living_processes_are_kept_however_old_and_those_of_killed_ones_removed(tmp_path: Path) -> None:
    with temporary_folder(tmp_path, "own-") as folder:
        aged(folder)
        in_another_process("held = temporary_folder(place, 'own-'); held.__enter__(); os.kill(os.getpid(), 9)", tmp_path)
        assert len(list(tmp_path.iterdir())) == 2

        in_another_process("sweep_folders(place, 'own-')", tmp_path)

        assert list(tmp_path.iterdir()) == [folder]


def test_what_was_written_into_a_removed_folder_goes_too_but_no_new_folder_without_its_lock(tmp_path: Path) -> None:
    remains, new, foreign = (tmp_path / name for name in ("own-remains", "own-new", "foreign"))
    for folder in (remains, new, foreign):
        (folder / "logs").mkdir(parents=True)
    aged(remains)
    aged(foreign)

    sweep_folders(tmp_path, "own-")

    assert sorted(tmp_path.iterdir()) == [foreign, new]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "lock").touch()
    (tmp_path / "own-link").symlink_to(target)

    sweep_folders(tmp_path, "own-")

    assert (target / "lock").exists()
