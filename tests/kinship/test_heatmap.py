"""Heat maps: clustered, readable for few and many models, safe for any name."""

from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from kinray.core.statistics import Float64
from kinray.report.heatmap import cluster_order, write_heatmap


def clusters(count: int, groups: int) -> Float64:
    """Make correlations of models that belong to groups in turn."""
    group = np.arange(count) % groups
    return np.where(group[:, None] == group[None], 0.8, 0.05) + 0.2 * np.eye(count)


@pytest.mark.parametrize("metric", ["pcc", "ed"])
def test_models_of_a_cluster_lie_together(metric: str) -> None:
    matrix = clusters(12, 3)

    order = cluster_order(metric, 1 - matrix if metric == "ed" else matrix)  # type: ignore[arg-type]

    groups = [at % 3 for at in order]
    assert sorted(order) == list(range(12))
    assert sum(a != b for a, b in pairwise(groups)) == 2


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("suffix", [".png", ".svg", ".html"])
def test_few_and_many_models_are_drawn(tmp_path: Path, count: int, suffix: str) -> None:
    path = tmp_path / f"plot{suffix}"

    write_heatmap(path, [f"model-{at}" for at in range(count)], {"cs": clusters(count, 3)})

    data = path.read_bytes()
    starts = {".png": b"\x89PNG", ".svg": b"<?xml", ".html": b"<!doctype html>"}
    assert data.startswith(starts[suffix])
    assert len(data) > 500
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_picture_grows_with_the_models_so_that_names_do_not_overlap(tmp_path: Path) -> None:
    from matplotlib.image import imread

    sides = []
    for count in (3, 40):
        write_heatmap(tmp_path / "plot.png", [f"model-{at}" for at in range(count)], {"cs": clusters(count, 3)})
        sides.append(imread(tmp_path / "plot.png").shape[0])

    assert sides[1] / 40 > 30  # pixels a name
    assert sides[0] < 1200


HOSTILE = ["<script>alert(1)</script>", 'a" onmouseover="x', "$\\frac{$", "--><b>"]


def test_names_cannot_inject_markup_into_a_page(tmp_path: Path) -> None:
    write_heatmap(tmp_path / "plot.html", HOSTILE, {"pcc": clusters(4, 4)})

    text = (tmp_path / "plot.html").read_text()
    assert "<script" not in text
    assert "<b>" not in text
    assert 'a" onmouseover' not in text


def test_names_cannot_inject_markup_into_a_drawing(tmp_path: Path) -> None:
    write_heatmap(tmp_path / "plot.svg", HOSTILE, {"pcc": clusters(4, 4)})

    elements = list(ElementTree.parse(tmp_path / "plot.svg").iter())
    assert not [element for element in elements if element.tag.split("}")[-1] in ("script", "b")]
    assert not [element for element in elements if "onmouseover" in element.attrib]


def test_undefined_kinship_is_grey_and_a_dash(tmp_path: Path) -> None:
    matrix = clusters(3, 3)
    matrix[0] = matrix[:, 0] = np.nan

    write_heatmap(tmp_path / "plot.html", ["zero", "a", "b"], {"pcc": matrix})

    text = (tmp_path / "plot.html").read_text()
    assert text.count("rgb(200, 200, 200)") == 5
    assert "zero – a: –" in text
