"""Builds the founders of the built-in demo, once, into a cache folder.

Nothing heavy is imported at the top: a second call finds the folder and must return at once.
"""

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from kinray.demo.settings import DemoSettings

Progress = Callable[[str, float], None]

_PACKAGES_THAT_MATTER = ("torch", "transformers", "tokenizers")


@dataclass(frozen=True)
class DemoFiles:
    """Where the demo's models and tasks lie."""

    base: Path
    founders: dict[str, Path]
    tasks: Path  # a folder for lm-eval's include_path


def _silent(message: str, fraction: float) -> None:
    pass


def build_demo(cache: Path, progress: Progress = _silent, settings: DemoSettings | None = None) -> DemoFiles:
    """Trains the demo's base and founders, or finds them in `cache` from an earlier call.

    The folder appears under its final name only when it is whole. Processes that build at once each build their own;
    the first to finish wins and all return the winner's.

    Args:
        cache: folder for the result, made if missing.
        progress: called with what is going on and the fraction done, 0 to 1.
        settings: sizes and schedule; other settings give another folder.
    """
    settings = settings or DemoSettings()
    cache = cache.expanduser().resolve()
    final = cache / f"demo-{_fingerprint(cache, settings)}"
    if not final.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        _build_beside(final, progress, settings)
    progress("the demo's models are ready", 1.0)
    return _files(final, settings)


def _files(folder: Path, settings: DemoSettings) -> DemoFiles:
    founders = {lesson.skill: folder / lesson.skill for lesson in settings.lessons}
    return DemoFiles(base=folder / "base", founders=founders, tasks=folder / "tasks")


def _fingerprint(cache: Path, settings: DemoSettings) -> str:
    """Hashes all that determines the files; the cache's path is part of it because the task files name it."""
    sources = [path.read_text(encoding="utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    versions = [version(package) for package in _PACKAGES_THAT_MATTER]
    parts = repr((sources, versions, settings, str(cache)))
    return hashlib.sha256(parts.encode()).hexdigest()[:12]


def _build_beside(final: Path, progress: Progress, settings: DemoSettings) -> None:
    """Builds in a temporary sibling of `final` and renames it; a process that came first is left the winner."""
    temporary = final.with_name(f".{final.name}.{uuid.uuid4().hex}")
    temporary.mkdir()
    try:
        _write(temporary, final, progress, settings)
        _sync(temporary)
        try:
            temporary.rename(final)
        except OSError:
            if not final.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(folder: Path, final: Path, progress: Progress, settings: DemoSettings) -> None:
    from kinray.demo import training
    from kinray.demo.saving import save_model
    from kinray.demo.tasks import write_tasks
    from kinray.demo.tokenizer import build_tokenizer

    progress("writing the demo's tasks", 0.0)
    write_tasks(_files(folder, settings).tasks, _files(final, settings).tasks, settings)
    tokenizer = build_tokenizer(settings.max_length)
    steps = _Steps(settings.base_steps + sum(lesson.steps for lesson in settings.lessons), progress)

    steps.message = "training the demo's base"
    text = training.base_text(settings, tokenizer)
    model = training.new_model(settings, tokenizer)
    base = training.train_base(model, text, settings, steps.advance)
    places = _files(folder, settings)
    save_model(places.base, model, tokenizer)

    for lesson in settings.lessons:
        steps.message = f"fine-tuning the demo's founder '{lesson.skill}'"
        model.load_state_dict(base)
        own = training.founder_text(lesson, settings, tokenizer)
        training.train_founder(model, own, text, lesson, settings, steps.advance)
        save_model(places.founders[lesson.skill], model, tokenizer)


@dataclass
class _Steps:
    """Counts training steps over all models and reports the fraction done."""

    total: int
    progress: Progress
    message: str = ""
    done: int = 0

    def advance(self) -> None:
        self.done += 1
        # Writing the files is the last hundredth.
        self.progress(self.message, 0.99 * self.done / self.total)


def _sync(folder: Path) -> None:
    """Forces the files to disk, so that after a power cut the final name never stands for half-written files."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
