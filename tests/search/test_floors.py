"""What a child may lose on a task, and when a loss is more than chance."""

import math

import numpy as np
import pytest

from kinray.core.scores import Scored, TaskScore, standard_error
from kinray.search.floors import SIGNIFICANT, Floor, floors, refusal

ITEMS = 400


def answers(right: int, name: str = "text") -> Scored:
    """Make a model that has the first so many of the items right."""
    values = (1.0,) * right + (0.0,) * (ITEMS - right)
    items = tuple(str(number) for number in range(ITEMS))
    return Scored({name: TaskScore(right / ITEMS, standard_error(values), items, values)})


def floor(points: float, right: int = 300) -> Floor:
    return Floor("text", points, "ann", answers(right).tasks["text"])


def test_a_loss_that_is_clearly_greater_than_allowed_breaks_a_floor() -> None:
    # 40 of 400 items lost: 10 points, with a paired standard error of 1.5.
    assert floor(-2).broken_by(answers(260)) == "loses 10.0 ± 1.5 points on text against ann, its floor is -2"


@pytest.mark.parametrize("lost", range(40))
def test_a_loss_breaks_a_floor_when_the_excess_is_more_than_its_error_explains(lost: int) -> None:
    gaps = np.repeat([1.0, 0.0], [lost, ITEMS - lost])
    excess, error = gaps.mean() - 0.02, gaps.std(ddof=1) / math.sqrt(ITEMS)

    assert (floor(-2).broken_by(answers(300 - lost)) is not None) == (excess > SIGNIFICANT * error)


def test_a_loss_within_its_error_is_let_through_though_it_is_greater_than_allowed() -> None:
    assert floor(-2).broken_by(answers(300 - 10)) is None  # 2.5 points, ± 0.8


def test_a_gain_and_a_tie_break_no_floor() -> None:
    assert floor(0).broken_by(answers(300)) is None
    assert floor(0).broken_by(answers(301)) is None


def test_the_error_is_of_the_same_items() -> None:
    """Unpaired it would be 3 points, and a loss of 4 would pass."""
    assert floor(-1).broken_by(answers(284))


def test_a_metric_without_an_error_is_judged_by_its_loss_alone() -> None:
    known = TaskScore(0.5, math.nan, ("0", "1"), (0.5, 0.5), paired=False)
    worse = Scored({"text": TaskScore(0.47, math.nan, ("0", "1"), (0.47, 0.47), paired=False)})

    assert Floor("text", -2, "ann", known).broken_by(worse) == "loses 3.0 points on text against ann, its floor is -2"
    assert Floor("text", -4, "ann", known).broken_by(worse) is None


def test_a_floor_stands_at_the_better_of_base_and_founders_on_its_task() -> None:
    def model(text: int, code: int) -> Scored:
        return Scored({**answers(text).tasks, **answers(code, "code").tasks})

    made = floors({"text": -1, "code": -3}, {"base": model(200, 300), "ann": model(250, 100), "bob": model(250, 200)})

    assert [(one.task, one.points, one.against) for one in made] == [("text", -1, "ann"), ("code", -3, "base")]
    assert made[1].score.score == 0.75


def test_a_reference_without_a_score_is_passed_over() -> None:
    lost = Scored({"text": TaskScore(math.nan, math.nan, ("0",), (math.nan,))})

    (made,) = floors({"text": -1}, {"base": lost, "ann": answers(100)})

    assert made.against == "ann"


def test_all_floors_that_a_child_breaks_are_named() -> None:
    child = Scored({**answers(0).tasks, **answers(0, "code").tasks, **answers(0, "free").tasks})
    made = floors({"text": -1, "code": -1}, {"base": Scored({**answers(200).tasks, **answers(100, "code").tasks})})

    assert refusal(made, child) == (
        "loses 50.0 ± 2.5 points on text against base, its floor is -1; "
        "loses 25.0 ± 2.2 points on code against base, its floor is -1"
    )
    assert refusal(made, Scored({**answers(200).tasks, **answers(100, "code").tasks})) is None
    assert refusal([], child) is None
