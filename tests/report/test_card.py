"""The model card of what a search found."""

import math
import re
from typing import Any

import numpy as np
import yaml

from kinray.core.scores import Difference
from kinray.core.statistics import Statistics
from kinray.report.card import model_card
from kinray.report.leaderboard import Entry, Leaderboard
from tests.helpers import founder
from tests.report.results import BETTER, MIDDLE, WORSE, scored, search

NAMES = ["ann", "bob", "cid"]
MODELS = [founder(name) for name in ("base", *NAMES)]
PLACES = {
    model.digest: place
    for model, place in zip(MODELS, ("org/base", "/models/ann", "org/bob@v2+org/base+/lora", "/x|y/cid"), strict=True)
}


def card(best: str = "g1-1", *, holdout: bool = True, error: str | None = None, pareto: bool = False) -> str:
    """Write the card of a model of the made-up search."""
    drawn = np.random.default_rng(0).normal(size=(4, 20))
    statistics = Statistics(
        tuple(model.digest for model in MODELS), ("w",), np.array([20]), drawn.sum(1)[None], (drawn @ drawn.T)[None]
    )

    def entry(name: str, kind: str, values: list[float], **further: Any) -> Entry:
        result = scored(values, MIDDLE)
        return Entry(name, kind, result, result if holdout else None, **further)

    entries = [Entry("base", "base", None, None, error) if error else entry("base", "base", WORSE)]
    entries += [entry(name, "founder", WORSE) for name in NAMES]
    entries += [entry(best, "best", BETTER)] if best not in NAMES else []
    policy = search()
    gains = {"g1-1": Difference(0.1875, 0.0625), "g2-x": Difference(0.3125, math.nan)}
    front = {best: scored(BETTER, MIDDLE)} if pareto else {}
    board = Leaderboard(entries, best, gains["g1-1"], front=front)
    return model_card(board, policy, gains, statistics, NAMES, PLACES, "name: g1-1\n")


def table(text: str, heading: str) -> list[list[str]]:
    """Read the table below a heading."""
    section = text.split(f"## {heading}\n\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in section.splitlines()]


def test_its_front_matter_is_what_the_hub_reads() -> None:
    _, front, rest = card().split("---\n", 2)

    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "tags": ["merge", "kinray"],
        "base_model": ["org/base", "org/bob"],
    }
    assert rest.lstrip().startswith("# g1-1\n\nFound by kinray, a search")


def test_every_table_is_rectangular() -> None:
    text = card()

    for heading in ("Scores", "Lineage", "Kinship of the founders"):
        rows = table(text, heading)
        assert {len(row) for row in rows} == {len(rows[0])}, heading
        assert set(rows[1]) == {"---"}


def test_scores_are_those_that_count_by_task_and_the_means_of_both_splits() -> None:
    head, _, base, *_, best = table(card(), "Scores")

    assert head == ["model", "", "maths (held out)", "text (held out)", "held-out mean", "search mean"]
    assert base[:3] == ["base", "base", "0.250 ± 0.250"]
    assert best == ["g1-1", "best", "0.750 ± 0.250", "0.500 ± 0.289", "0.625 ± 0.191", "0.625 ± 0.191"]


def test_without_a_holdout_the_searchs_scores_stand_alone() -> None:
    head, _, base, *_ = table(card(holdout=False), "Scores")

    assert head == ["model", "", "maths (search)", "text (search)", "search mean"]
    assert base[2] == "0.250 ± 0.250"


def test_a_model_that_failed_has_its_reason_below_the_table() -> None:
    text = card(error="tensor 'x' holds NaN")

    assert table(text, "Scores")[2] == ["base", "base", "–", "–", "–", "–"]
    assert "\n\nbase could not be scored: tensor 'x' holds NaN\n\n" in text


def test_the_lineage_tells_how_each_ancestor_came_about() -> None:
    _, _, *rows = table(card("g2-x"), "Lineage")

    assert rows == [
        ["g1-1", "bob × cid", "task_arithmetic lambda=1.25 weight=[1, 0.5]", "0.500", "0.625", "+0.188 ± 0.062"],
        ["g2-x", "g1-1 × ann (exploration)", "task_arithmetic lambda=1.25 weight=[1, 0.5]", "0.500", "0.750", "+0.312"],
    ]


def test_a_front_has_a_table_of_its_own() -> None:
    assert "Pareto" not in card()
    assert table(card(pareto=True), "Pareto front on the search's items") == [
        ["model", "maths", "text", "mean"],
        ["---"] * 4,
        ["g1-1", "0.750 ± 0.250", "0.500 ± 0.289", "0.625 ± 0.191"],
    ]


def test_a_founder_that_is_best_has_no_lineage() -> None:
    assert "The best model is a founder: no child beat it." in card("ann")


def test_kinship_is_listed_for_each_pair() -> None:
    head, _, *rows = table(card(), "Kinship of the founders")

    assert head == ["pair", "pcc", "cs", "ed"]
    assert [row[0] for row in rows] == ["ann × bob", "ann × cid", "bob × cid"]


def test_the_conclusions_and_the_recipe_are_in_it() -> None:
    text = card()

    assert "\nOn held-out items g1-1 leads every founder" in text
    assert text.endswith("## Recipe\n\n```yaml\nname: g1-1\n```\n")


def test_it_links_to_nothing() -> None:
    assert "http" not in card()


def test_pipes_do_not_end_a_cell() -> None:
    from kinray.report.card import _table

    assert _table(["a"], [["x|y"]]).splitlines()[-1] == "| x\\|y |"
