"""Items in packs and rounds: what a child answers does not depend on them, and what is remembered comes in the same rounds."""

from pathlib import Path
from typing import Any

import pytest

from kinray.checkpoints.models import ModelSpec
from kinray.config import Config
from kinray.core.scores import FROM_CACHE, Scored
from kinray.demo import DemoFiles
from kinray.evaluation.scorer import Scorer
from kinray.search.racing import rounds
from tests.evaluation.tiny import configure, model_specs
from tests.helpers import merge

KINDS: list[Any] = [
    {"name": "demo_numbers", "weight": 2.0},
    "shots",
    {"name": "likelihood", "scale": [0, 1]},
    {"name": "generated", "gen_kwargs": {"do_sample": True, "temperature": 1.0}},
]
MEANS: list[Any] = ["demo_numbers", "demo_words"]


@pytest.fixture(scope="module")
def specs(demo: DemoFiles) -> list[ModelSpec]:
    """The demo's base and founders."""
    return model_specs(demo)


def scorer(specs: list[ModelSpec], config: Config) -> Scorer:
    return Scorer(specs, None, config, "cpu")


def test_answers_do_not_depend_on_where_rounds_end(specs: list[ModelSpec], tasks: list[Path]) -> None:
    config = configure(KINDS, tasks, dtype="bfloat16", pack=16)
    child = merge("slerp", specs[1].founder, specs[2].founder, t=0.3)
    ends = rounds(160, 16)

    whole = scorer(specs, config).score(child)
    *partial, last = scorer(specs, config).rounds(child, "search", ends)

    assert isinstance(whole, Scored) and isinstance(last, Scored)
    assert last.tasks == whole.tasks and last.tokens == whole.tokens
    assert [one.items for one in partial if isinstance(one, Scored)] == ends[:-1]


def test_a_partial_score_is_that_of_the_first_items_in_the_order(specs: list[ModelSpec], tasks: list[Path]) -> None:
    used = scorer(specs, configure(MEANS, tasks, pack=16))
    *partial, whole = used.rounds(specs[1].founder, "search", rounds(80, 16))
    items = used._tasks.items("search", 0)

    assert isinstance(whole, Scored) and len(items) == 80
    for one in partial:
        assert isinstance(one, Scored)
        asked = items[: one.items]
        assert {(name, label) for name, task in one.tasks.items() for label in task.items} == {
            (item.task, item.label) for item in asked
        }
        labels = {name: task.items for name, task in one.tasks.items()}
        assert whole.on(labels).tasks == one.tasks


def test_a_child_that_was_given_up_leaves_nothing_to_the_next(specs: list[ModelSpec], tasks: list[Path]) -> None:
    used = scorer(specs, configure(MEANS, tasks, pack=16))
    expected = used.score(specs[2].founder)
    next(used.rounds(specs[1].founder, "search", [16, 80]))

    again = used.score(specs[2].founder)

    assert isinstance(expected, Scored) and isinstance(again, Scored)
    assert again.tasks == expected.tasks


def test_each_childs_packs_are_the_same_and_few_shot_examples_are_computed_once(
    specs: list[ModelSpec], tasks: list[Path]
) -> None:
    used = scorer(specs, configure([{"name": "shots", "num_fewshot": 5}], tasks, pack=8))
    once = scorer(specs, configure([{"name": "shots", "num_fewshot": 5}], tasks, pack=1000))

    many, few = used.score(specs[1].founder), once.score(specs[1].founder)

    assert isinstance(many, Scored) and isinstance(few, Scored)
    assert many.tokens < 1.5 * few.tokens


def test_what_is_remembered_comes_in_the_same_rounds_and_parts_are_never_remembered(
    specs: list[ModelSpec], tasks: list[Path], tmp_path: Path
) -> None:
    config = configure(MEANS, tasks, pack=16, score_cache=str(tmp_path / "scores"))
    child, ends = specs[3].founder, rounds(80, 16)
    asking = scorer(specs, config).rounds(child, "search", ends)
    next(asking), next(asking)
    asking.close()  # type: ignore[attr-defined]
    assert not list(tmp_path.rglob("*.json"))

    first = list(scorer(specs, config).rounds(child, "search", ends))
    again = list(scorer(specs, config).rounds(child, "search", ends))

    assert [one.tasks for one in again if isinstance(one, Scored)] == [one.tasks for one in first if isinstance(one, Scored)]
    assert len(again) == len(ends)
    assert all(isinstance(one, Scored) and one.where["device"] == FROM_CACHE and not one.tokens for one in again)
    assert scorer(specs, config).score(child).tasks == first[-1].tasks  # type: ignore[union-attr]
    assert len(list(tmp_path.rglob("*.json"))) == 1


def test_held_out_tasks_are_scored_apart_from_those_of_the_search(specs: list[ModelSpec], tasks: list[Path]) -> None:
    used = scorer(specs, configure(["demo_numbers"], tasks, holdout=["demo_words"]))
    alone = scorer(specs, configure(["demo_words"], tasks))

    search, held = used.score(specs[1].founder), used.score(specs[1].founder, "holdout")
    expected = alone.score(specs[1].founder)

    assert isinstance(search, Scored) and isinstance(held, Scored) and isinstance(expected, Scored)
    assert list(search.tasks) == ["demo_numbers"] and list(held.tasks) == ["demo_words"]
    assert dict(zip(held.tasks["demo_words"].items, held.tasks["demo_words"].values, strict=True)) == dict(
        zip(expected.tasks["demo_words"].items, expected.tasks["demo_words"].values, strict=True)
    )
