"""How results are put into words: one place, so that terminal, model card and report say the same."""

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from kinray.core.parameters import Knots, Varied
from kinray.core.recipe import Merge
from kinray.core.scores import CLEAR, FROM_CACHE, Scored, TaskScore
from kinray.report.leaderboard import Entry, Leaderboard
from kinray.search.population import Child

_PARTS = {"evaluate": "evaluating", "merge": "merging", "copy": "copying", "wait": "waiting"}
"""Parts of a child's seconds in the children table, and what they are called."""

_SHOWN = 6
"""Matings of a generation and models of a list that are named, and knots of a gradient that are written."""


def plural(count: int, one: str, many: str | None = None) -> str:
    """Write a number with its noun: ``1 child``, ``2 children``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def plus_minus(value: float, error: float | None, sign: str = "") -> str:
    """Write a value with its standard error, as far as that is known."""
    number = f"{value:{sign}.3f}"
    return number if error is None or math.isnan(error) else f"{number} ± {error:.3f}"


def score_of(scored: Scored | TaskScore | None) -> str:
    """Write a score with its standard error; a dash for none."""
    return plus_minus(scored.score, scored.stderr) if scored else "–"


def clock(seconds: float) -> str:
    """Write a length of time as minutes and seconds, with hours from one hour on."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def kinship_value(metric: str, value: float) -> str:
    """Write a kinship: correlations with three decimals, distances with four digits, a dash where it is undefined."""
    if math.isnan(value):
        return "–"
    return f"{value:.4g}" if metric == "ed" else f"{value:.3f}"


def describe(child: Child) -> str:
    """Write a child's method and parameters on one line; nothing for a founder."""
    return describe_merge(child.recipe) if isinstance(child.recipe, Merge) else ""


def describe_merge(merge: Merge) -> str:
    """Write a merge's method and parameters on one line."""
    return " ".join([merge.method, *(f"{name}={_value(value)}" for name, value in merge.params.items())])


def some(names: Sequence[str]) -> str:
    """List names, of many the first ones and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names) if more <= 1 else ", ".join(names[:_SHOWN]) + f" and {more} more"


def matings(children: Sequence[Child]) -> str:
    """Write how many children a generation has, and of whom."""
    pairs = dict.fromkeys((child.parents, child.operator) for child in children)
    names = [" × ".join(parents) + (" (exploration)" if operator == "exploration" else "") for parents, operator in pairs]
    pairs_too = " pairs" if len(names) > _SHOWN + 1 else ""
    return f"{plural(len(children), 'child', 'children')} of {some(names)}{pairs_too}"


def spent(rows: Sequence[Mapping[str, Any]], compared: Sequence[Scored] = ()) -> str | None:
    """Say what scoring cost, in time by part, tokens and GPU-seconds; None when nothing was scored.

    Args:
        rows: of the children table.
        compared: results besides those, of the final comparison.
    """
    rows = [row for row in rows if row["status"] not in ("failed", "broken")]
    parts = {
        part: math.fsum([*(row[f"seconds_{part}"] or 0.0 for row in rows), *(one.seconds.get(part, 0.0) for one in compared)])
        for part in _PARTS
    }
    total = math.fsum(parts.values())
    if not rows or not total:
        return None
    found = sum(row.get("device") == FROM_CACHE for row in rows)
    what = plural(len(rows), "model") + (f" ({found} from the {FROM_CACHE})" if found else "")
    what += f" and {plural(len(compared), 'comparison')}" if compared else ""
    each = f"{total / (len(rows) + len(compared)):.1f} s each"
    split = ", ".join(f"{_PARTS[part]} {_span(seconds)}" for part, seconds in parts.items())
    tokens = sum([*(row.get("tokens") or 0 for row in rows), *(one.tokens for one in compared)])
    held = math.fsum([*(row.get("gpu_seconds") or 0.0 for row in rows), *(one.gpu_seconds for one in compared)])
    counts = [f"{tokens:,} tokens"] * bool(tokens) + [f"{held:,.0f} GPU-seconds"] * bool(held)
    return f"Scoring {what} took {clock(total)} ({each}): {'; '.join([split, *counts])}.{_saved(rows)}"


def _saved(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say how many of the children's items were not asked since children were stopped; nothing if none was."""
    stopped = [row["items"] for row in rows if row["status"] == "stopped"]
    if not stopped:
        return ""
    children = sum(row["generation"] > 0 for row in rows)
    whole = max(row["items"] for row in rows)
    left = whole * len(stopped) - sum(stopped)
    share = f"{left / (whole * children):.0%} of the children's"
    return f" Stopping {len(stopped)} of {plural(children, 'child', 'children')} early saved {left:,} items, {share}."


def _span(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else clock(seconds)


def conclusions(board: Leaderboard) -> list[str]:
    """Say in sentences what the comparison shows."""
    lines = []
    if board[board.best].kind == "founder":
        lines.append(f"No child beats the founder {board.best} on the search's items.")
    elif verdict := _verdict(board):
        held = any(entry.holdout for entry in board.entries)
        lines.append(f"On {'held-out items' if held else 'the items of the search itself'} {verdict}.")
    if board.gain is not None:
        gain = plus_minus(board.gain.mean, board.gain.stderr, "+")
        lines.append(f"Merge gain of {board.best} (its search score minus its parents' mean): {gain}.")
    if board.alike:
        within = f"(within {CLEAR:g} standard errors, paired)"
        lines.append(f"Indistinguishable from {board.best} on the search's items {within}: {some(board.alike)}.")
    if board.refused:
        lines.append(f"Refused, since they lose more on a task than its floor allows: {some(board.refused)}.")
    if board.stopped:
        lines.append(f"Stopped early, with an estimate for a score: {some(board.stopped)}.")
    if board.optimism is not None:
        lines.append(f"Optimism of the search (its score minus the held-out score): {board.optimism:+.3f}.")
    return lines


def front_rows(front: Mapping[str, Scored]) -> list[list[str]]:
    """Write the models of a front with their scores by task and their means; the first row names the columns."""
    rows = [["model", *next(iter(front.values())).tasks, "mean"]]
    for name, scored in front.items():
        rows.append([name, *(score_of(task) for task in scored.tasks.values()), score_of(scored)])
    return rows


def failures(board: Leaderboard) -> list[tuple[Entry, str]]:
    """List the models of the comparison that could not be scored, with the reasons."""
    return [(entry, entry.error) for entry in board.entries if entry.error is not None]


def _verdict(board: Leaderboard) -> str | None:
    """Compare the best child with its nearest rival; None when there is nothing to compare."""
    rivals = [(entry, lead) for entry, lead in board.leads() if entry.kind in ("founder", "average")]
    if not rivals:
        return None
    entry, lead = min(rivals, key=lambda pair: pair[1].mean)
    if lead.mean <= 0:
        return f"{board.best} does not beat {_called(entry)}: it is behind by {plus_minus(-lead.mean, lead.stderr)}"
    entry, lead = min(rivals, key=lambda pair: pair[1].sigmas)
    by = f"by {plus_minus(lead.mean, lead.stderr)} over {_called(entry)}, its nearest rival"
    if lead.clear:
        return f"{board.best} clearly beats every founder and the average: {by}"
    return f"{board.best} leads every founder and the average, but not clearly (within {CLEAR:g} standard errors): {by}"


def _called(entry: Entry) -> str:
    return f"the {entry.name}" if entry.kind == "average" else entry.name


def _value(value: Any) -> str:
    if isinstance(value, tuple) and len(set(value)) == 1:
        return _value(value[0])  # as in a configuration, one number for all models
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_value, value)) + "]"
    if isinstance(value, Varied):
        return _varied(value)
    return str(value).lower() if isinstance(value, bool | str) else f"{value:.3g}"


def _varied(value: Varied) -> str:
    """Write a value that varies as ``{attn: 0.2→0.5, mlp|experts: 0.3, rest: 1}``; a gradient alone as ``0.2→0.5``."""
    if [word for word, _ in value.cases] == [""]:
        return _gradient(value.cases[0][1])
    groups = groupby(value.cases, key=lambda case: case[1])
    named = [("|".join(word.strip(".") or "rest" for word, _ in cases), _gradient(knots)) for knots, cases in groups]
    return "{" + ", ".join(f"{words}: {gradient}" for words, gradient in named) + "}"


def _gradient(knots: Knots) -> str:
    shown = [_value(knot) for knot in knots]
    if len(shown) > _SHOWN + 1:
        shown = [*shown[: _SHOWN - 1], "…", f"{shown[-1]} ({len(knots)} knots)"]
    return "→".join(shown)
