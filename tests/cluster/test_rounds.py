"""Children asked in rounds between Tune and the policy, driven by hand: no Ray session, no models."""

from pathlib import Path
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule
from ray.tune.search import Searcher

from kinray.cluster.searcher import PolicySearcher
from kinray.cluster.stopping import RaceScheduler, scheduler_for
from kinray.config import EvaluationConfig, parse_config
from kinray.core.recipe import Recipe
from kinray.core.scores import Scored, difference, on_items_of
from kinray.records.run import RunFolder
from kinray.records.tables import TIMES
from kinray.search.policy import TopK
from kinray.search.proposals import proposer_for
from kinray.search.races import Races
from kinray.search.racing import item_order, rounds
from kinray.search.space import search_space
from tests.cluster.test_searcher import FakeKinship, Quiet
from tests.helpers.answers import COUNTS, WEIGHTS, World, first_items
from tests.helpers.recipes import founder

FOUNDERS = [founder(name) for name in ("ann", "bob", "cid")]
ORDER = item_order(COUNTS, WEIGHTS, "a run")
ENDS = rounds(len(ORDER), 32)
WORLD = World(0)


class FakeEvaluators:
    """Two evaluators that know what they have asked so far."""

    def __init__(self) -> None:
        self.asked = [0, 0]
        self.items = 0

    def ready(self) -> list[int]:
        return [0, 1]

    def joined(self) -> list[int]:
        return []

    def name(self, number: int) -> str:
        return f"evaluator-{number}"

    def so_far(self, number: int, recipe: Recipe) -> Scored | None:
        return first_items(WORLD.score(recipe), ORDER, self.asked[number]) if self.asked[number] else None

    def score_now(self, number: int, recipe: Recipe) -> Scored:
        return WORLD.score(recipe)


def begin(folder: Path, **search: Any) -> RunFolder:
    tasks = [{"name": name, "weight": weight} for name, weight in WEIGHTS.items()]
    settings = {"k": 3, "max_children": 20, "children_per_mating": 2, **search}
    methods = {"slerp": {"t": {"low": 0.1, "high": 0.9}}, "linear": {}}
    config = {"base": "b", "founders": [one.name for one in FOUNDERS], "tasks": tasks, "search": settings}
    return RunFolder.create(parse_config(config | {"merge": {"methods": methods}, "output": str(folder)}), {})


class Played:
    """A session of a search that Tune would run, until it ends or so many rounds were reported."""

    def __init__(self, run: RunFolder, rounds_left: int = 10**9, own_rule: bool = False) -> None:
        config = run.config
        proposer = proposer_for(search_space(config.merge.methods), 0)
        kinship, self.evaluators = FakeKinship(), FakeEvaluators()
        self.policy = TopK(FOUNDERS, founder("base"), proposer, kinship, config.search, racing=not own_rule)
        if (state := run.load_state()) is not None:
            self.policy.load_state_dict(state)
        races = None if own_rule else Races(self.policy, ORDER, 32, 0.05, run.kept)
        self.searcher = PolicySearcher(
            self.policy,
            run,
            kinship,
            self.evaluators,
            Quiet(),
            None,
            ENDS,
            races,  # type: ignore[arg-type]
        )
        self.reported = 0
        self._own_rule, self._left = own_rule, rounds_left
        self._play()

    def _play(self) -> None:
        """Keep two trials out and let them take turns."""
        out: list[tuple[str, int, list[int]]] = []
        for number in range(10**6):
            config = self.searcher.suggest(f"trial-{number}")
            if isinstance(config, dict):
                slot = int(config["evaluator"][-1])
                self.evaluators.asked[slot] = 0
                out.append((f"trial-{number}", slot, list(config["ends"]) or [len(ORDER)]))
            elif config == Searcher.FINISHED and not out:
                return
            if out and not self._round(out):
                return

    def _round(self, out: list[tuple[str, int, list[int]]]) -> bool:
        if self.reported == self._left:
            return False
        self.reported += 1
        trial, slot, ends = out.pop(0)
        asked = self.evaluators.asked[slot] = ends.pop(0)
        stops = asked == 96 if self._own_rule else self.searcher.loses(trial)
        if stops or not ends:
            self.evaluators.items += asked
            self.searcher.on_trial_complete(trial, {"score": 0.5, "items": asked})
        else:
            out.append((trial, slot, ends))
        return True


def table(run: RunFolder) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in TIMES} for row in run.rows()]


def samples(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((run.path / "samples").iterdir())}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Played]:
    run = begin(tmp_path_factory.mktemp("finished") / "run")
    return run, Played(run)


def test_a_stopped_child_is_recorded_with_its_estimate_and_the_items_it_was_asked(finished: tuple[RunFolder, Played]) -> None:
    run, played = finished
    rows = {row["name"]: row for row in run.rows()}
    stopped = [row for row in rows.values() if row["status"] == "stopped"]

    assert 2 < len(stopped) < len(rows) - 3
    for row in stopped:
        assert row["items"] in ENDS[:-1] and row["error"] == f"stopped after {row['items']} of 400 items"
        assert row["score"] == played.policy.population.score(row["name"]) and row["score_stderr"] > 0
        partial = first_items(WORLD.score(played.policy.population[row["name"]].recipe), ORDER, row["items"])
        assert {name: row[f"score/{name}"] for name in COUNTS} == {name: task.score for name, task in partial.tasks.items()}
    assert {row["items"] for row in rows.values() if row["status"] == "scored"} == {400}
    assert sum(row["items"] for row in rows.values()) == played.evaluators.items


def test_a_stopped_childs_gain_is_over_its_parents_on_the_items_it_was_asked(finished: tuple[RunFolder, Played]) -> None:
    run, played = finished
    population = played.policy.population
    for row in run.rows():
        if row["status"] == "stopped":
            partial = first_items(WORLD.score(population[row["name"]].recipe), ORDER, row["items"])
            parents = [on_items_of(partial, WORLD.score(population[parent].recipe)) for parent in row["parents"]]
            expected = difference(partial, *parents)
            assert (row["gain"], row["gain_stderr"]) == (expected.mean, expected.stderr)
            assert all(task.items == partial.tasks[name].items for parent in parents for name, task in parent.tasks.items())


@pytest.mark.parametrize("cut", [1, 7, 20, 45, 80])
@pytest.mark.parametrize("state_lost", [False, True])
def test_a_run_cut_off_between_any_two_rounds_resumes_to_the_same_table(
    tmp_path: Path, finished: tuple[RunFolder, Played], cut: int, state_lost: bool
) -> None:
    cut_off = begin(tmp_path / "run")
    Played(cut_off, cut)
    cut_off.close()
    if state_lost:
        (tmp_path / "run" / "state.json").unlink()

    again = RunFolder.resume(tmp_path / "run")
    Played(again)

    assert cut < finished[1].reported
    assert table(again) == table(finished[0])
    assert list(samples(again)) == list(samples(finished[0]))


def test_a_child_that_a_rule_of_tunes_stopped_is_recorded_alike(tmp_path: Path) -> None:
    run = begin(tmp_path / "run", max_children=4)
    played = Played(run, own_rule=True)

    founders, children = run.rows()[:3], run.rows()[3:]
    assert [row["status"] for row in founders] == ["scored"] * 3
    assert [(row["status"], row["items"]) for row in children] == [("stopped", 96)] * 4
    for row in children:
        partial = first_items(WORLD.score(played.policy.population[row["name"]].recipe), ORDER, 96)
        assert (row["score"], row["score_stderr"]) == (partial.score, partial.stderr)
    assert [child.name for child in played.policy.top()] == sorted(
        (row["name"] for row in founders), key=lambda name: -WORLD.score(played.policy.population[name].recipe).score
    )


def test_an_error_while_judging_ends_the_search_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Races, "verdict", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))

    played = Played(begin(tmp_path / "run"))

    assert isinstance(played.searcher.error, OSError)


@pytest.mark.parametrize(
    ("racing", "kind"),
    [(True, RaceScheduler), (False, FIFOScheduler), ("asha", AsyncHyperBandScheduler), ("median", MedianStoppingRule)],
)
def test_the_scheduler_is_the_one_that_the_configuration_names(tmp_path: Path, racing: Any, kind: type) -> None:
    searcher = Played(begin(tmp_path / "run"), 0).searcher

    assert type(scheduler_for(EvaluationConfig(racing=racing), searcher)) is kind


def test_without_rounds_tune_stops_nothing(tmp_path: Path) -> None:
    searcher = Played(begin(tmp_path / "run"), 0).searcher
    searcher.ends = []

    assert type(scheduler_for(EvaluationConfig(racing="asha"), searcher)) is FIFOScheduler
