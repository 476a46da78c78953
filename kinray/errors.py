"""Every error that kinray raises for a reason that a person can act on.

A message says what is wrong, where, what was found and what to do. ``KinrayError`` is the one root: entry points print it
as one line and exit with code 2. Each class also inherits the built-in exception that a library user would catch.
"""

import re
import unicodedata
from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST, _LONGEST_WORD = 2000, 512
"""Characters of a message, and of a word or path in it."""
_ENDLESS = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}")
_PASSWORD = re.compile(r"(?<=://)[^\s/@]{0,300}:\S{0,300}@")
_KEY = re.compile(r"([?&][\w-]{0,40}(?:key|secret|token|password|signature)[\w-]{0,40}=)[^\s&'\"]+", re.IGNORECASE)


class KinrayError(Exception):
    """The root of all errors that are not bugs of kinray. Whatever names a message quotes, it is one printable line."""

    def __str__(self) -> str:
        """Return the message."""
        return one_line(super().__str__())


def one_line(text: str) -> str:
    """Make one printable line of a message; passwords in URIs and the middle of what is endless are left out."""
    text = _ENDLESS.sub(lambda word: _cut(word[0], _LONGEST_WORD // 4), printable(without_secrets(text)))
    return text if len(text) <= _LONGEST else _cut(text, _LONGEST // 2)


def without_secrets(text: str) -> str:
    """Leave out of the URIs in a text user and password, and what is named as a key, secret, token, password or signature."""
    return _KEY.sub(r"\1…", _PASSWORD.sub("…@", text))


def _cut(text: str, end: int) -> str:
    return f"{text[:end]} … ({len(text) - 2 * end} characters left out) … {text[-end:]}"


def printable(text: str) -> str:
    """Escape what moves a terminal's cursor, breaks a line or cannot be seen: control and format characters, surrogates."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


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
    close = get_close_matches(name[:200], names, n=1)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    if close and (foreign := [sign for sign in name if not sign.isascii()]):
        hint += f" '{foreign[0]}' ({unicodedata.name(foreign[0], 'without a name')}) is none of the letters a to z."
    shown = ", ".join(names[:20]) + (f", … ({len(names)} in all)" if len(names) > 20 else "")
    return f"{hint} Known: {shown or 'none'}."
