"""Every error that kinray raises for a reason that a person can act on.

A message says what is wrong, where, what was found and what to do. ``KinrayError`` is the one root: entry points print it
as one line and exit with code 2. Each class also inherits the built-in exception that a library user would catch.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class KinrayError(Exception):
    """The root of all errors that are not bugs of kinray."""


class ConfigError(KinrayError, ValueError):
    """A configuration that cannot be run."""


class RecipeError(KinrayError, ValueError):
    """A recipe that describes no model."""


class CheckpointError(KinrayError, ValueError):
    """A model folder that cannot be read, or that does not fit the others."""


class TaskError(KinrayError, ValueError):
    """An evaluation task that cannot be used as asked."""


class RunError(KinrayError, RuntimeError):
    """A run folder, or a run, that cannot go on."""


class RoomError(RunError):
    """Too little room for what is to be written, which says nothing of what it is."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant, and list what there is (at most 20 names)."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    shown = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
    return f"{hint} Known: {shown or 'none'}."
