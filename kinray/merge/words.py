"""Words for a person: short names of models, and tables that line up."""

from collections.abc import Sequence
from pathlib import PurePath


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Shorten paths and hub ids to as many of their last parts as tell them apart: name -> short name.

    Of a model with an adapter, ``MODEL+ADAPTER``, both are shortened.
    """
    known = list(dict.fromkeys(names))

    def short(name: str, parts: int) -> str:
        return "+".join(str(PurePath(*PurePath(place).parts[-parts:])) for place in name.split("+"))

    result = {}
    for name in known:
        longest = max(len(PurePath(place).parts) for place in name.split("+"))
        tries = (short(name, parts) for parts in range(1, longest + 1))
        result[name] = next((one for one in tries if not _taken(one, name, known, short)), name)
    return result


def _taken(one: str, name: str, known: Sequence[str], short: object) -> bool:
    assert callable(short)
    parts = max(len(PurePath(place).parts) for place in one.split("+"))
    return any(short(other, parts) == one for other in known if other != name)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Line up the cells of a table: the first column to the left, others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)
