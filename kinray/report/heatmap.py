"""Heat maps of kinship: as a picture (png, svg) or as a page by itself (html)."""

import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kinray.core.kinship import Metric
from kinray.core.statistics import Float64
from kinray.errors import printable
from kinray.files import replacing, write_atomically

_NUMBERS_UP_TO = 14
"""Models up to which each cell has its number; above, there is no room for them."""
_COLD, _NEUTRAL, _WARM, _UNDEFINED = (33, 102, 172), (247, 247, 247), (178, 24, 43), (200, 200, 200)


def write_heatmap(path: Path, models: Sequence[str], matrices: Mapping[Metric, Float64]) -> None:
    """Draw one panel for each metric, models in the order of their clusters.

    Args:
        path: ends in .png, .svg or .html.
        models: N names.
        matrices: (N, N) float64 for each metric; NaN is drawn grey.
    """
    order = cluster_order(*next(iter(matrices.items())))
    names = [printable(models[at]) for at in order]
    ordered = {metric: matrix[np.ix_(order, order)] for metric, matrix in matrices.items()}
    if path.suffix.lower() == ".html":
        write_atomically(path, _page(names, ordered).encode())
    else:
        _draw(path, names, ordered)


def cluster_order(metric: Metric, matrix: Float64) -> list[int]:
    """Order models so that clusters lie together, by average linkage; each merged pair is turned so that kin touch."""
    distance = matrix.copy() if metric == "ed" else 1.0 - matrix
    highest = np.nanmax(distance, initial=0.0)
    distance = np.where(np.isfinite(distance), distance, 2 * highest + 1)
    clusters = [[at] for at in range(len(matrix))]
    while len(clusters) > 1:
        pairs = [(i, j) for i in range(len(clusters)) for j in range(i)]
        i, j = min(pairs, key=lambda pair: float(distance[np.ix_(clusters[pair[0]], clusters[pair[1]])].mean()))
        left, right = clusters[j], clusters[i]
        turns = [(a, b) for a in (left, left[::-1]) for b in (right, right[::-1])]
        joined = min(turns, key=lambda turn: float(distance[turn[0][-1], turn[1][0]]))
        clusters = [cluster for at, cluster in enumerate(clusters) if at not in (i, j)] + [[*joined[0], *joined[1]]]
    return clusters[0]


def _span(metric: Metric, matrix: Float64) -> tuple[float, float]:
    """Return the values of the coldest and the warmest colour."""
    return (0.0, float(np.nanmax(matrix, initial=1e-30))) if metric == "ed" else (-1.0, 1.0)


def _short(name: str, length: int = 28) -> str:
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-(length // 2) :]}"


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.3g}"


# -- pictures


def _draw(path: Path, names: Sequence[str], matrices: Mapping[Metric, Float64]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    side = max(3.2, 0.34 * len(names) + 2.2)
    figure = Figure(figsize=(side * len(matrices) + 0.6, side + 0.8), layout=ConstrainedLayoutEngine(wspace=0.06))
    FigureCanvasAgg(figure)
    for place, (metric, matrix) in enumerate(matrices.items(), 1):
        _panel(figure, figure.add_subplot(1, len(matrices), place), names, metric, matrix)
    form = path.suffix.lower().lstrip(".")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=form, dpi=150, bbox_inches="tight", metadata={"Date": None} if form == "svg" else None)


def _panel(figure: Any, axes: Any, names: Sequence[str], metric: Metric, matrix: Float64) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    ends = (_NEUTRAL, _COLD) if metric == "ed" else (_COLD, _NEUTRAL, _WARM)
    colours = LinearSegmentedColormap.from_list(metric, [_hex(colour) for colour in ends], bad=_hex(_UNDEFINED))
    low, high = _span(metric, matrix)
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap=colours, vmin=low, vmax=high)
    size = 9 if len(names) <= _NUMBERS_UP_TO else 7
    labels = [_short(name).replace("$", r"\$") for name in names]
    axes.set_xticks(range(len(names)), labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=size)
    axes.set_yticks(range(len(names)), labels, fontsize=size)
    axes.set_title(metric)
    if len(names) <= _NUMBERS_UP_TO:
        for (row, column), value in np.ndenumerate(matrix):
            dark = sum(_colour(metric, value, low, high)) < 380
            axes.text(column, row, _number(value), ha="center", va="center", fontsize=7, color="white" if dark else "black")
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03)


# -- page


def _page(names: Sequence[str], matrices: Mapping[Metric, Float64]) -> str:
    panels = "".join(_table(names, metric, matrix) for metric, matrix in matrices.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Model kinship</title><style>'
        "body{font:14px sans-serif;margin:2em}table{border-collapse:collapse;margin:0 0 2em}"
        "td{width:3.4em;height:2em;text-align:center;font-size:11px}th{font-weight:normal;text-align:right;padding:0 .6em}"
        "thead th{writing-mode:vertical-rl;transform:rotate(180deg);padding:.6em 0;text-align:left}"
        f"</style></head><body><h1>Model kinship</h1>{panels}</body></html>\n"
    )


def _table(names: Sequence[str], metric: Metric, matrix: Float64) -> str:
    low, high = _span(metric, matrix)
    safe = [html.escape(name) for name in names]
    head = "".join(f"<th>{name}</th>" for name in safe)
    rows = []
    for row, name in enumerate(safe):
        cells = []
        for column, other in enumerate(safe):
            value = float(matrix[row, column])
            colour = _colour(metric, value, low, high)
            text = _number(value) if len(names) <= _NUMBERS_UP_TO else ""
            ink = "#fff" if sum(colour) < 380 else "#000"
            style = f"background:rgb{colour};color:{ink}"
            cells.append(f'<td style="{style}" title="{name} – {other}: {_number(value)}">{text}</td>')
        rows.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    return f"<h2>{metric}</h2><table><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _colour(metric: Metric, value: float, low: float, high: float) -> tuple[int, int, int]:
    if not math.isfinite(value):
        return _UNDEFINED
    share = min(1.0, max(0.0, (value - low) / (high - low)))
    if metric == "ed":
        return _between(_NEUTRAL, _COLD, share)
    return _between(_NEUTRAL, _WARM, 2 * share - 1) if share >= 0.5 else _between(_COLD, _NEUTRAL, 2 * share)


def _between(a: tuple[int, int, int], b: tuple[int, int, int], share: float) -> tuple[int, int, int]:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _hex(colour: tuple[int, int, int]) -> str:
    red, green, blue = colour
    return f"#{red:02x}{green:02x}{blue:02x}"
