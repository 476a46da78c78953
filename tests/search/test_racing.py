"""Racing against brute force: every order of small populations, every way a child may go on, and many draws of large ones."""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinray.core.scores import Scored, TaskScore, difference
from kinray.search.racing import Order, Race, can_race, item_order, level, rounds

TASKS = {"long": (4, 1.0), "short": (2, 2.0)}
"""Items and weight of the tasks of small populations."""


def scored(values: dict[str, Sequence[float]], weights: dict[str, float], *, paired: bool = True) -> Scored:
    """Score a model as the evaluation does: each task by the mean of its items."""
    return Scored(
        {
            name: TaskScore(
                float(np.mean(own)), 0.1, tuple(str(i) for i in range(len(own))), tuple(own), weights[name], paired=paired
            )
            for name, own in values.items()
        }
    )


def small(bits: Sequence[float]) -> Scored:
    """Score a model of the small population: four items of ``long``, then two of ``short``."""
    return scored({"long": bits[:4], "short": bits[4:]}, {name: weight for name, (_, weight) in TASKS.items()})


def every_order() -> Iterator[tuple[Order, float]]:
    """List all orders of the small population with their probabilities, multiplied out draw by draw."""
    share = {"long": 1 / 3 / 4, "short": 2 / 3 / 2}
    items = [(task, place) for task, (count, _) in TASKS.items() for place in range(count)]
    for chosen in permutations(items):
        weights = np.array([share[task] for task, _ in chosen])
        yield Order(chosen, weights), float(np.prod(weights / np.cumsum(weights[::-1])[::-1]))


ORDERS = list(every_order())
EACH = range(1, 7)
"""Rounds of one item, so that guesses learn after each."""
KNOWN = small([1, 0, 0, 1, 1, 0])
BITS = st.lists(st.sampled_from((0.0, 1.0)), min_size=6, max_size=6)
PARTS = st.lists(st.floats(0, 1), min_size=6, max_size=6)


def wealth(race: Race, order: Order, child: Scored) -> np.ndarray:
    return np.exp(race.log_wealth(order.gather({name: task.values for name, task in child.tasks.items()})))


# -- what is proved, on all orders of small populations


def test_probabilities_of_all_orders_add_up_to_one() -> None:
    assert math.fsum(probability for _, probability in ORDERS) == pytest.approx(1)


@settings(max_examples=8, deadline=None)
@given(rival=PARTS, other=PARTS, child=PARTS)
def test_bets_against_a_child_that_reaches_the_rival_earn_nothing_on_average(
    rival: list[float], other: list[float], child: list[float]
) -> None:
    top, own = [small(other), small(rival)], small(child)
    if own.score < top[-1].score:
        top[-1], own = own, top[-1]

    expected = sum(probability * wealth(Race(top, order, [KNOWN], EACH), order, own) for order, probability in ORDERS)

    assert np.all(expected <= 1 + 1e-9), f"expected wealth after each item {expected}"


@settings(max_examples=8, deadline=None)
@given(rival=BITS, other=BITS, data=st.data())
def test_bets_are_fair_against_a_child_that_ties(rival: list[float], other: list[float], data: st.DataObject) -> None:
    child = data.draw(st.permutations(rival[:4])) + data.draw(st.permutations(rival[4:]))
    top, own = [small(other), small(rival)], small(child)

    expected = sum(probability * wealth(Race(top, order, [KNOWN], EACH), order, own) for order, probability in ORDERS)

    np.testing.assert_allclose(expected, 1, atol=1e-6)


@settings(max_examples=8, deadline=None)
@given(rival=BITS, other=BITS, child=BITS, allowed=st.sampled_from((0.05, 0.2, 0.5, 0.9)))
def test_a_child_that_enters_s_is_stopped_with_at_most_its_level_over_all_orders(
    rival: list[float], other: list[float], child: list[float], allowed: float
) -> None:
    top, own = [small(other), small(rival)], small(child)
    if own.score <= top[-1].score + 1e-9:
        return

    stopped = 0.0
    for order, probability in ORDERS:
        race = Race(top, order, [KNOWN], EACH)
        values = order.gather({name: task.values for name, task in own.tasks.items()})
        stopped += probability * any(race.look(values[:n], allowed).stop for n in range(1, 7))

    assert stopped <= allowed


@settings(max_examples=40, deadline=None)
@given(rival=BITS, child=BITS, seed=st.integers(0, len(ORDERS) - 1))
def test_certain_bound_stops_exactly_when_no_end_reaches_the_rival(rival: list[float], child: list[float], seed: int) -> None:
    order, _ = ORDERS[seed]
    race = Race([small(rival)], order)
    values = order.gather({"long": child[:4], "short": child[4:]})

    for n in range(1, 6):
        best = max(float(order.weights @ [*values[:n], *end]) for end in product((0.0, 1.0), repeat=6 - n))

        assert race.look(values[:n], 0.0).stop == (best < small(rival).score - 1e-9)


# -- what is proved, on populations like those of a search


def population(rng: np.random.Generator, alike: float, score: float, common: np.ndarray) -> np.ndarray:
    """Draw right and wrong answers that agree with the common ones in a share of the items."""
    return np.where(rng.random(len(common)) < alike, common, rng.random(len(common)) < score).astype(float)


@pytest.mark.parametrize(("alike", "score"), [(0.0, 0.5), (0.8, 0.5), (0.98, 0.5), (0.8, 0.97), (0.8, 0.03)])
def test_stopping_a_tying_child_at_any_item_is_as_rare_as_its_level(alike: float, score: float) -> None:
    rng = np.random.default_rng(1)
    counts, weights, allowed, draws = {"a": 90, "b": 30}, {"a": 1.0, "b": 1.0}, 0.1, 1500
    common = {task: (rng.random(count) < score).astype(float) for task, count in counts.items()}
    rival, other, child = ({t: population(rng, alike, score, own) for t, own in common.items()} for _ in range(3))
    for task in counts:  # as many right answers as the rival, elsewhere
        child[task] = rng.permutation(rival[task]) if alike < 0.5 else _with_sum(rng, child[task], rival[task].sum())
    top = [scored({t: tuple(v) for t, v in model.items()}, weights) for model in (other, rival)]

    stopped = 0
    for draw in range(draws):
        order = item_order(counts, weights, f"draw {draw}")
        stopped += Race(top, order).log_wealth(order.gather(child)).max() >= -math.log(allowed)

    assert stopped / draws <= allowed + 3 * math.sqrt(allowed * (1 - allowed) / draws)


def _with_sum(rng: np.random.Generator, values: np.ndarray, total: float) -> np.ndarray:
    """Change as few answers as give the total."""
    values = values.copy()
    surplus = int(values.sum() - total)
    places = rng.permutation(np.flatnonzero(values == (surplus > 0)))[: abs(surplus)]
    values[places] = 1 - values[places]
    return values


def test_a_search_that_breeds_from_what_entered_s_errs_as_rarely_as_it_says() -> None:
    rng = np.random.default_rng(2)
    counts, weights, error_rate, searches = {"a": 60}, {"a": 1.0}, 0.3, 300
    wrong = 0
    for search in range(searches):
        common = (rng.random(60) < 0.5).astype(float)
        top = sorted((population(rng, 0.7, 0.5, common) for _ in range(3)), key=np.sum)[::-1]
        spent: list[float] = []
        order = item_order(counts, weights, str(search))
        for _ in range(4):
            race = Race([scored({"a": tuple(values)}, weights) for values in top], order)
            allowed, kept = level(error_rate, spent, 3), []
            for _ in range(3):
                child = _with_sum(rng, population(rng, 0.7, 0.5, common), top[-1].sum() + rng.integers(-3, 2))
                enters = child.sum() > top[-1].sum()
                if race.log_wealth(order.gather({"a": child})).max() >= -math.log(allowed):
                    wrong += enters
                    if enters:
                        break
                elif enters:
                    kept.append(child)
                    spent.append(allowed)
            top = sorted([*top, *kept], key=np.sum)[::-1][:3]

    assert wrong / searches <= error_rate


def test_a_hopeless_child_stops_long_before_the_end() -> None:
    rng = np.random.default_rng(3)
    counts, weights = {"a": 400, "b": 100}, {"a": 1.0, "b": 1.0}
    rival = {task: (rng.random(count) < 0.6).astype(float) for task, count in counts.items()}
    child = {task: own * (rng.random(len(own)) < 0.7) for task, own in rival.items()}
    order = item_order(counts, weights, "one")
    race = Race([scored({t: tuple(v) for t, v in rival.items()}, weights)], order)
    values = order.gather(child)

    needed = next(n for n in rounds(500) if race.look(values[:n], 0.01).stop)

    assert needed <= 125
    assert race.look(values[:needed], 0.01).reason == "evidence"


def test_a_known_model_that_answers_like_the_child_stops_it_sooner() -> None:
    rng = np.random.default_rng(5)
    counts, weights = {"a": 600}, {"a": 1.0}
    rival = (rng.random(600) < 0.6).astype(float)
    parent = (rng.random(600) < 0.55).astype(float)
    child = np.where(rng.random(600) < 0.03, 1 - parent, parent)
    order, ends = item_order(counts, weights, "one"), rounds(600, 16)
    top, known = scored({"a": tuple(rival)}, weights), scored({"a": tuple(parent)}, weights)
    values = order.gather({"a": child})

    def needed(race: Race) -> int:
        return next(n for n in ends if n == 600 or race.look(values[:n], 0.01).stop)

    assert needed(Race([top], order, [known], ends)) < 0.6 * needed(Race([top], order, [], ends))


# -- orders, rounds, levels


def test_order_has_each_item_once_and_the_tasks_weights() -> None:
    order = item_order({"a": 3, "b": 5}, {"a": 3.0, "b": 1.0}, "one")

    assert sorted(order.items) == [("a", 0), ("a", 1), ("a", 2), *(("b", place) for place in range(5))]
    assert order.weights.sum() == pytest.approx(1)
    assert [w for (task, _), w in zip(order.items, order.weights, strict=True) if task == "a"] == pytest.approx([0.25] * 3)


def test_orders_come_as_often_as_their_probabilities() -> None:
    draws = 40_000
    seen: dict[tuple[tuple[str, int], ...], int] = {}
    for draw in range(draws):
        items = item_order({"a": 1, "b": 2}, {"a": 2.0, "b": 1.0}, str(draw)).items
        seen[items] = seen.get(items, 0) + 1
    share = {"a": 2 / 3, "b": 1 / 6}

    assert len(seen) == 6
    for items, count in seen.items():
        weights = [share[task] for task, _ in items]
        expected = weights[0] * weights[1] / (1 - weights[0])
        assert count / draws == pytest.approx(expected, abs=4 * math.sqrt(expected / draws))


def test_order_depends_on_its_purpose_only() -> None:
    counts, weights = {"a": 20, "b": 20}, {"a": 1.0, "b": 1.0}

    assert item_order(counts, weights, "one").items == item_order(counts, weights, "one").items
    assert item_order(counts, weights, "one").items != item_order(counts, weights, "two").items


@pytest.mark.parametrize("pack", [1, 16, 32])
@pytest.mark.parametrize("items", [1, 15, 16, 17, 60, 3026])
def test_rounds_are_whole_packs_that_grow_and_end_with_the_last_item(items: int, pack: int) -> None:
    ends = rounds(items, pack)

    assert ends[-1] == items
    assert all(end % pack == 0 for end in ends[:-1])
    assert all(after > before and after - before <= before / 4 + pack for before, after in pairwise(ends))


@given(children=st.lists(st.tuples(st.integers(1, 9), st.floats(0, 1)), max_size=20))
def test_levels_of_children_that_enter_s_never_add_up_to_more_than_the_error_rate(
    children: list[tuple[int, float]],
) -> None:
    spent: list[float] = []
    for count, kept in children:
        allowed = level(0.05, spent, count)
        assert math.fsum(spent) + count * allowed <= 0.05 + 1e-12
        spent += [allowed] * round(kept * count)


def test_a_generation_of_which_none_enters_s_leaves_the_next_one_its_level() -> None:
    assert level(0.05, [], 5) == pytest.approx(0.005)
    assert level(0.05, [0.005] * 5, 5) == pytest.approx(0.0025)


# -- verdicts


@settings(max_examples=25, deadline=None)
@given(rival=PARTS, child=PARTS, seed=st.integers(0, len(ORDERS) - 1), allowed=st.floats(0.01, 0.99))
def test_a_child_that_is_stopped_once_would_be_stopped_at_every_later_look(
    rival: list[float], child: list[float], seed: int, allowed: float
) -> None:
    order, _ = ORDERS[seed]
    race, values = Race([small(rival)], order), order.gather({"long": child[:4], "short": child[4:]})

    stops = [race.look(values[:n], allowed).stop for n in range(1, 6)]

    assert stops == sorted(stops)


def test_after_all_items_a_child_is_never_stopped_and_its_estimate_is_its_score() -> None:
    order, _ = ORDERS[7]
    child = small([0, 1, 0, 0, 0, 0])

    verdict = Race([small([1] * 6)], order).look(order.gather({n: t.values for n, t in child.tasks.items()}), 0.5)

    assert not verdict.stop
    assert (verdict.estimate, verdict.error) == (pytest.approx(child.score), 0.0)


def test_estimate_is_right_on_average_over_all_orders_of_equal_weights() -> None:
    top, child = [(0.6, 0.4, 0.6, 0.6, 0.4), (0.4, 0.6, 0.6, 0.4, 0.6)], (0.6, 0.4, 0.3, 0.7, 0.5)
    models = [scored({"a": values}, {"a": 1.0}) for values in top]
    estimates = []
    for chosen in permutations(range(5)):
        order = Order(tuple(("a", place) for place in chosen), np.full(5, 0.2))
        estimates.append(Race(models, order).look(order.gather({"a": child})[:3], 0.0).estimate)

    assert np.mean(estimates) == pytest.approx(0.5)


def test_error_is_that_of_the_paired_difference_with_the_finite_population_correction() -> None:
    rng = np.random.default_rng(4)
    rival, child = ((rng.random(100) < 0.5).astype(float) for _ in range(2))
    order = item_order({"a": 100}, {"a": 1.0}, "one")
    seen = [place for _, place in order.items[:40]]
    alone = [scored({"a": tuple(values[seen])}, {"a": 1.0}) for values in (child, rival)]

    verdict = Race([scored({"a": tuple(rival)}, {"a": 1.0})], order).look(order.gather({"a": child})[:40], 0.0)

    assert verdict.error == pytest.approx(difference(*alone).stderr * math.sqrt(60 / 100))


def test_one_item_has_an_estimate_without_error() -> None:
    order, _ = ORDERS[0]

    verdict = Race([small([1, 0, 1, 0, 1, 0])], order).look([1.0], 0.0)

    assert 0 <= verdict.estimate <= 1 and math.isnan(verdict.error)


@pytest.mark.parametrize("value", [1.5, -0.1, math.nan, math.inf])
def test_a_child_with_a_value_out_of_bounds_is_never_stopped(value: float) -> None:
    order, _ = ORDERS[0]

    assert not Race([small([1] * 6)], order).look([0.0, 0.0, 0.0, value, 0.0], 0.9).stop


def test_scores_that_are_no_means_of_bounded_items_are_not_raced() -> None:
    assert can_race(small([1, 0, 1, 0, 0.5, 0]))
    assert not can_race(small([1, 0, 1, 0, 2.0, 0]))
    assert not can_race(small([1, 0, 1, 0, math.nan, 0]))
    assert not can_race(scored({"a": (0.0, 1.0)}, {"a": 1.0}, paired=False))
