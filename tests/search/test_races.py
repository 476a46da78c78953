"""Races in a search, without models: children answer items by what their parents answer, and some are made worse."""

import json
import random
from collections.abc import Mapping
from itertools import count
from typing import Any

import numpy as np
import pytest

from kinray.config import SearchConfig
from kinray.core.scores import Failed, Scored, Stopped
from kinray.search.policy import TopK
from kinray.search.population import Outcome
from kinray.search.races import Races
from kinray.search.racing import item_order, level, rounds
from tests.helpers.answers import COUNTS, WEIGHTS, World, first_items
from tests.helpers.recipes import founder
from tests.helpers.search import chance_kinship, lineage, proposer, with_each

FOUNDERS = [founder(name) for name in "abcd"]
OPEN: Mapping[str, Any] = {"slerp": {"t": {"low": 0.1, "high": 0.9}}, "ties": {"density": {"low": 0.2, "high": 0.8}}}


class Search:
    """A policy with its races; ``blind`` ones say what they think, but stop nobody."""

    def __init__(
        self, world: World, racing: bool = True, blind: bool = False, error_rate: float = 0.05, **settings: Any
    ) -> None:
        config = SearchConfig(**{"k": 3, "max_children": 24, "children_per_mating": 2, **settings})
        self.world, self.blind = world, blind
        self.policy = TopK(FOUNDERS, founder("base"), proposer(OPEN), with_each(chance_kinship(1)), config, racing=racing)
        self.order = item_order(COUNTS, WEIGHTS, "a run")
        self.ends = rounds(len(self.order), 16)
        self.races = Races(
            self.policy, self.order, 16, error_rate, lambda name: world.score(self.policy.population[name].recipe)
        )
        self.results: dict[str, Scored | Stopped | Failed] = {}

    def result(self, name: str) -> Scored | Stopped:
        """Ask a child of the present generation in rounds."""
        child = self.policy.population[name]
        whole = self.world.score(child.recipe)
        if child.generation and self.races.on() and not self.blind:
            for end in self.ends[:-1]:
                if (stopped := self.races.verdict(first_items(whole, self.order, end))) is not None:
                    return stopped
        return whole

    def tell(self, name: str) -> None:
        self.results[name] = result = self.result(name)
        self.policy.tell(name, Outcome.of(result))

    def run(self) -> "Search":
        while (child := self.policy.ask()) is not None:
            self.tell(child.name)
        return self

    @property
    def stopped(self) -> dict[str, Stopped]:
        return {name: result for name, result in self.results.items() if isinstance(result, Stopped)}


@pytest.fixture(scope="module", params=range(4))
def world(request: pytest.FixtureRequest) -> World:
    return World(request.param)


def test_a_search_that_stops_children_makes_those_of_the_one_that_stops_none(world: World) -> None:
    raced, blind = Search(world).run(), Search(world, blind=True).run()

    assert 3 < len(raced.stopped) < raced.policy.made()
    assert lineage(raced.policy) == lineage(blind.policy)
    assert [child.name for child in raced.policy.top()] == [child.name for child in blind.policy.top()]
    assert raced.policy.finished == blind.policy.finished


def test_what_enters_s_was_asked_everything_and_what_was_stopped_has_no_child(world: World) -> None:
    search = Search(world).run()

    parents = {parent for child in search.policy.population.children for parent in child.parents}
    assert not parents & set(search.stopped)
    assert not {child.name for child in search.policy.top()} & set(search.stopped)
    assert all(result.partial.items in search.ends[:-1] and result.of == 400 for result in search.stopped.values())


def test_a_stopped_childs_estimate_is_near_its_score(world: World) -> None:
    search = Search(world).run()

    errors = [
        (result.score - world.score(search.policy.population[name].recipe).score) / result.stderr
        for name, result in search.stopped.items()
    ]
    assert np.sqrt(np.mean(np.square(errors))) < 2.5


def test_stopped_children_count_for_the_budget(world: World) -> None:
    search = Search(world, max_children=9).run()

    assert search.policy.made() == 9
    assert search.stopped


def test_the_order_of_arrival_changes_nothing(world: World) -> None:
    expected = Search(world).run()
    search, out, draw = Search(world), list[str](), random.Random(3)

    while not search.policy.finished:
        child = search.policy.ask() if draw.random() < 0.6 or not out else None
        if child is not None:
            out.append(child.name)
        elif out:
            search.tell(out.pop(draw.randrange(len(out))))

    assert search.results == expected.results
    assert search.policy.state_dict() | {"outcomes": None} == expected.policy.state_dict() | {"outcomes": None}


def test_a_restart_at_any_moment_gives_the_same_verdicts(world: World) -> None:
    expected = Search(world).run()
    for told in range(1, len(expected.results), 5):
        search = Search(world)
        for _ in range(told):
            child = search.policy.ask()
            assert child is not None
            search.tell(child.name)
        again = Search(world)
        again.policy.load_state_dict(json.loads(json.dumps(search.policy.state_dict())))
        again.run()

        assert search.results | again.results == expected.results


def test_levels_are_spent_by_those_that_entered_s(world: World) -> None:
    search = Search(world)
    spent: list[float] = []
    for generation in count(1):
        while search.policy.generation < generation and (child := search.policy.ask()) is not None:
            if child.generation < generation:
                search.tell(child.name)
        if search.policy.finished:
            break
        made = search.policy.children_in(generation)
        assert search.races._level() == pytest.approx(level(0.05, spent, len(made)))
        for child in made:
            search.tell(child.name)
        bar = search.policy.bar(generation)
        assert bar == search.policy.population.score(search.policy.rivals[-1].name)
        own = search.races._level()
        good = [
            child
            for child in made
            if (result := search.results[child.name]) and isinstance(result, Scored) and result.score > bar
        ]
        spent += [own] * len(good)
    assert spent and sum(spent) <= 0.05


@pytest.mark.parametrize("policy", ["kinship", "random"])
@pytest.mark.parametrize("pool", ["population", "generation"])
def test_mates_are_founders_and_children_that_entered_s(world: World, policy: str, pool: str) -> None:
    search = Search(world, policy=policy, mate_pool=pool).run()

    able = {child.name for child in search.policy.entrants()}
    assert {parent for child in search.policy.population.children for parent in child.parents} <= able
    assert able <= set(search.results) - set(search.stopped)


def test_without_racing_nothing_is_raced_and_all_may_mate(world: World) -> None:
    search = Search(world, racing=False).run()

    assert not search.stopped
    assert len(search.policy.entrants()) == len(search.results)


def test_a_generation_is_not_raced_before_s_is_full(world: World) -> None:
    search = Search(world, k=5).run()

    assert search.policy.bar(1) is None and search.policy.bar(2) is not None
    assert not any(name.startswith("g1-") for name in search.stopped)


def test_scores_beyond_0_and_1_are_not_raced() -> None:
    search = Search(World(0, out_of_bounds="a"))
    for _ in FOUNDERS:
        child = search.policy.ask()
        assert child is not None
        search.tell(child.name)
    search.policy.ask()

    assert search.policy.generation == 1 and not search.races.on()
