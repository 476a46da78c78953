"""The searcher between Tune and the policy, driven by hand: no Ray session, no models."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from ray.tune.search import Searcher

from kinray.cluster.asking import UnreachableError
from kinray.cluster.searcher import PolicySearcher
from kinray.config import Config, parse_config
from kinray.core.recipe import Founder, Recipe, to_text
from kinray.core.scores import Difference, Failed, Result, Scored, TaskScore
from kinray.errors import RunError
from kinray.records.config_file import read_run_config
from kinray.records.run import RunFolder
from kinray.search.policy import TopK
from kinray.search.population import Child
from kinray.search.proposals import proposer_for
from kinray.search.space import search_space
from tests.helpers import founder

BASE = founder("base")
FOUNDERS = [founder(name) for name in ("ann", "bob", "cid")]


class FakeEvaluators:
    """Scores a recipe by its digest, or fails it."""

    def __init__(self, slots: int = 2) -> None:
        self.slots = slots
        self.asked: list[str] = []
        self.broken: set[str] = set()
        self.back: list[int] = []
        self.lost: list[int] = []

    def ready(self) -> list[int]:
        return list(range(self.slots))

    def joined(self) -> list[int]:
        back, self.back = self.back, []
        return back

    def lose(self, number: int) -> None:
        self.lost.append(number)

    def name(self, number: int) -> str:
        return f"evaluator-{number}"

    def score_now(self, number: int, recipe: Recipe) -> Result:
        self.asked.append(recipe.digest)
        if recipe.digest in self.broken:
            return Failed("weights are NaN")
        return scored(recipe)


def scored(recipe: Recipe) -> Scored:
    """Make up scores on two tasks from a digest."""
    values = {"task": int(recipe.digest[:6], 16) / 0xFFFFFF, "other": int(recipe.digest[6:12], 16) / 0xFFFFFF}
    tasks = {name: TaskScore(value, 0.0, ("0", "1"), (value, value)) for name, value in values.items()}
    return Scored(tasks, {"evaluate": 1.0})


class FakeKinship:
    """Kinship from the digests."""

    def __init__(self) -> None:
        self.asked: dict[tuple[str, str], float] = {}

    def __call__(self, a: Recipe, others: Sequence[Recipe]) -> list[float]:
        values = [(int(a.digest[:4], 16) ^ int(b.digest[:4], 16)) / 0xFFFF for b in others]
        self.asked.update(((a.digest, b.digest), value) for b, value in zip(others, values, strict=True))
        return values

    def prefetch(self, recipe: Recipe) -> None:
        pass


class Quiet:
    """A watcher that only counts."""

    def __init__(self) -> None:
        self.remembered = 0

    def generation(self, policy: TopK) -> None:
        pass

    def started(self, child: Child, evaluator: int) -> None:
        pass

    def finished(self, child: Child, result: Result, gain: Difference | None, *, remembered: bool) -> None:
        self.remembered += remembered


RANGE: Mapping[str, Any] = {"slerp": {"t": {"low": 0.1, "high": 0.9}}, "linear": {}}
LAYERED: Mapping[str, Any] = {
    "slerp": {"t": {"attention": {"low": 0.1, "high": 0.9, "layers": 3}, "mlp": [0.3, 0.5], "rest": 0.5}},
    "linear": {"weight": {"models": [1, {"low": 0.5, "high": 1, "layers": 2}]}},
}


def a_config(
    folder: Path,
    methods: Mapping[str, Any] = RANGE,
    objective: str = "mean",
    floor: float | None = None,
    max_failures: int | None = 5,
) -> Config:
    return parse_config(
        {
            "base": "b",
            "founders": ["ann", "bob", "cid"],
            "tasks": [{"name": "task", "floor": floor}, "other"],
            "search": {"k": 2, "max_children": 8, "objective": objective},
            "merge": {"methods": methods},
            "cluster": {"max_failures": max_failures},
            "output": str(folder),
        }
    )


def a_searcher(run: RunFolder, evaluators: FakeEvaluators) -> tuple[PolicySearcher, TopK, Quiet]:
    objectives = 2 if run.config.search.objective == "pareto" else 1
    proposer = proposer_for(search_space(run.config.merge.methods), 0, objectives)
    run.keep("base", scored(BASE))
    kinship = FakeKinship()
    policy = TopK(FOUNDERS, BASE, proposer, kinship, run.config.search)
    if (state := run.load_state()) is not None:
        policy.load_state_dict(state)
    watcher = Quiet()
    return PolicySearcher(policy, run, kinship, evaluators, watcher), policy, watcher  # type: ignore[arg-type]


def play(searcher: PolicySearcher, stop_after: int = 10**9, reverse: bool = False) -> int:
    """Act as Tune: keep two trials out, complete them in or against their order; return the number of trials."""
    out: list[str] = []
    trials = 0
    while trials < stop_after:
        config = searcher.suggest(f"trial-{trials}")
        if isinstance(config, dict):
            out.append(f"trial-{trials}")
            trials += 1
        elif out:
            searcher.on_trial_complete(out.pop(-1 if reverse else 0), {"score": 0.0})
        else:
            assert config == Searcher.FINISHED
            break
    return trials


def lineage(run: RunFolder) -> list[tuple[Any, ...]]:
    columns = ("name", "digest", "parents", "kinship", "score", "gain", "gain_stderr", "status", "error")
    return [tuple(row[column] for column in columns) for row in run.rows()]


def test_every_child_is_scored_once_and_recorded(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    evaluators = FakeEvaluators()
    searcher, policy, _ = a_searcher(run, evaluators)

    trials = play(searcher)

    assert trials == len(run.rows()) == 3 + policy.made()
    assert len(set(evaluators.asked)) == len(evaluators.asked) == trials
    assert policy.finished


def test_the_order_of_completion_does_not_change_the_records(tmp_path: Path) -> None:
    tables = []
    for number, reverse in enumerate((False, True)):
        run = RunFolder.create(a_config(tmp_path / f"run{number}"), {})
        play(a_searcher(run, FakeEvaluators())[0], reverse=reverse)
        tables.append(lineage(run))
    assert tables[0] == tables[1]


@pytest.mark.parametrize("trials", [1, 4, 6, 9])
@pytest.mark.parametrize("state", ["new", "old", "lost"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"methods": LAYERED}, {"objective": "pareto"}, {"floor": -30.0}, {"objective": "pareto", "floor": -30.0}],
    ids=["range", "layered", "pareto", "floor", "pareto-floor"],
)
def test_a_search_cut_off_anywhere_resumes_to_the_same_lineage(
    tmp_path: Path, settings: dict[str, Any], trials: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if state == "old":
        monkeypatch.setattr("kinray.cluster.searcher._GROWTH", 2.5)
    unbroken = RunFolder.create(a_config(tmp_path / "unbroken", **settings), {})
    play(a_searcher(unbroken, FakeEvaluators())[0])
    cut = RunFolder.create(a_config(tmp_path / "cut", **settings), {})
    play(a_searcher(cut, FakeEvaluators())[0], stop_after=trials)
    recorded = len(cut.rows())
    cut.close()
    if state == "lost":
        (tmp_path / "cut" / "state.json").unlink()

    again = RunFolder.resume(tmp_path / "cut")
    evaluators = FakeEvaluators()
    searcher, _, watcher = a_searcher(again, evaluators)
    play(searcher)

    assert lineage(again) == lineage(unbroken)
    assert len(evaluators.asked) == len(unbroken.rows()) - recorded
    if state == "lost":
        assert watcher.remembered == recorded


def test_a_child_whose_trial_broke_is_given_to_another_trial_with_the_same_evaluator(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    searcher, *_ = a_searcher(run, FakeEvaluators())
    first, _ = searcher.suggest("a"), searcher.suggest("b")

    searcher.on_trial_complete("a", None, error=True)
    assert searcher.suggest("c") == first
    searcher.on_trial_complete("c", {"score": 0.0})

    assert [(row["name"], row["status"]) for row in run.rows()] == [("ann", "scored")]
    assert searcher.suggest("d")["child"] == "cid"


def test_a_search_whose_trials_break_now_and_then_has_the_lineage_of_one_whose_trials_do_not(tmp_path: Path) -> None:
    unbroken, broken = (RunFolder.create(a_config(tmp_path / name), {}) for name in ("unbroken", "broken"))
    play(a_searcher(unbroken, FakeEvaluators())[0])
    searcher, *_ = a_searcher(broken, FakeEvaluators())
    out: list[str] = []
    for number in range(1000):
        config = searcher.suggest(f"trial-{number}")
        if isinstance(config, dict):
            out.append(f"trial-{number}")
        elif out:
            searcher.on_trial_complete(out.pop(0), {"score": 0.0}, error=number % 3 == 0)

    assert lineage(broken) == lineage(unbroken)


def test_a_child_whose_trials_break_each_time_is_given_up_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kinray.cluster.searcher._LOST", 0)  # besides the two of cluster.retries
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    searcher, policy, _ = a_searcher(run, FakeEvaluators())
    for trial in "abc":
        assert not run.rows()
        searcher.suggest(trial)
        searcher.on_trial_complete(trial, None, error=True)

    (row,) = run.rows()

    assert (row["name"], row["status"], row["score"]) == ("ann", "broken", None)
    assert "process was killed each time" in row["error"]
    assert policy.population.outcome("ann").score is None  # type: ignore[union-attr]


def test_a_child_whose_evaluator_does_not_answer_is_given_to_another_one(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    evaluators = FakeEvaluators()
    searcher, *_ = a_searcher(run, evaluators)
    first, second = searcher.suggest("a"), searcher.suggest("b")
    number = int(first["evaluator"].removeprefix("evaluator-"))

    searcher.on_trial_complete("a", {"score": float("nan"), "unreachable": True})
    assert evaluators.lost == [number] and not run.rows()
    assert searcher.suggest("c") is None
    searcher.on_trial_complete("b", {"score": 0.0})
    assert searcher.suggest("c") == {**first, "evaluator": second["evaluator"]}
    assert searcher.suggest("d") is None

    evaluators.back = [number]
    assert searcher.suggest("d") == {**first, "child": "cid", "recipe": to_text(FOUNDERS[2])}


def test_a_child_whose_evaluator_is_lost_with_its_result_is_scored_by_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    evaluators = FakeEvaluators()
    searcher, *_ = a_searcher(run, evaluators)
    first, _ = searcher.suggest("a"), searcher.suggest("b")

    def gone(number: int, recipe: Recipe) -> Result:
        raise UnreachableError

    with monkeypatch.context() as context:
        context.setattr(evaluators, "score_now", gone)
        searcher.on_trial_complete("a", {"score": 0.0})
    searcher.on_trial_complete("b", {"score": 0.0})

    assert searcher.error is None and len(evaluators.lost) == 1
    assert searcher.suggest("c")["child"] == first["child"] and [row["name"] for row in run.rows()] == ["bob"]


@pytest.mark.parametrize("slots", [1, 2])
def test_a_session_whose_hours_are_spent_ends_when_the_children_in_flight_are_done(
    slots: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = RunFolder.create(a_config(tmp_path / "unbroken"), {})
    play(a_searcher(unbroken, FakeEvaluators())[0])
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    searcher, policy, _ = a_searcher(run, FakeEvaluators(slots))
    searcher._deadline = 4.5
    hours = iter(range(1000))
    monkeypatch.setattr("kinray.cluster.searcher.time.monotonic", lambda: next(hours))

    play(searcher)

    assert policy.finished == "the budget of hours is spent"
    assert 3 <= len(run.rows()) < len(unbroken.rows())
    run.close()
    monkeypatch.undo()
    resumed = RunFolder.resume(tmp_path / "run")
    play(a_searcher(resumed, FakeEvaluators())[0])
    assert lineage(resumed) == lineage(unbroken)


BUDGETS = [("max_children", 4, 8), ("max_children", 6, None), ("max_generations", 1, 3), ("stop_kinship", 0.1, None)]


@pytest.mark.parametrize(("budget", "small", "large"), BUDGETS)
def test_a_run_that_goes_on_under_a_larger_budget_has_the_lineage_of_one_that_began_with_it(
    budget: str, small: float, large: float | None, tmp_path: Path
) -> None:
    def settings(name: str, value: float | None) -> Config:
        config = a_config(tmp_path / name)
        search = {"k": 3, "children_per_mating": 2, "max_children": 20, budget: value}
        return config.model_copy(update={"search": config.search.model_copy(update=search)})

    unbroken = RunFolder.create(settings("unbroken", large), {})
    play(a_searcher(unbroken, FakeEvaluators())[0])
    run = RunFolder.create(settings("run", small), {})
    play(a_searcher(run, FakeEvaluators())[0])
    made = len(run.rows())
    run.close()

    again = RunFolder.resume(tmp_path / "run")
    again.extend(settings("run", large).search)
    evaluators = FakeEvaluators()
    play(a_searcher(again, evaluators)[0])

    assert made < len(unbroken.rows()) and lineage(again) == lineage(unbroken)
    assert len(evaluators.asked) == len(unbroken.rows()) - made
    again.close()
    assert read_run_config(tmp_path / "run")[0].search == unbroken.config.search


def failing(error: str, *, broke: bool) -> Callable[[int, Recipe], Result]:
    """Score founders, and let all children fail."""
    return lambda number, recipe: scored(recipe) if isinstance(recipe, Founder) else Failed(error, broke=broke)


@pytest.mark.parametrize("broke", [True, False])
def test_search_stops_when_children_fail_in_a_row_with_one_error_and_goes_on_when_it_is_mended(
    broke: bool, tmp_path: Path
) -> None:
    expected = RunFolder.create(a_config(tmp_path / "unbroken"), {})
    play(a_searcher(expected, FakeEvaluators())[0])
    run = RunFolder.create(a_config(tmp_path / "run", max_failures=2), {})
    evaluators = FakeEvaluators(slots=1)
    evaluators.score_now = failing("OSError: shard 17 is gone.", broke=broke)  # type: ignore[method-assign]
    searcher = a_searcher(run, evaluators)[0]

    play(searcher)

    assert isinstance(searcher.error, RunError)
    assert "2 children in a row failed, the last one, g1-2, with: OSError: shard 17 is gone. " in str(searcher.error)
    run.close()
    resumed = RunFolder.resume(tmp_path / "run")
    play(a_searcher(resumed, FakeEvaluators())[0])
    if broke:
        assert lineage(resumed) == lineage(expected)
    else:
        assert [row["name"] for row in resumed.rows() if row["status"] == "failed"] == ["g1-1", "g1-2"]


def test_search_stops_when_a_whole_generation_breaks_each_child_in_its_own_way(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    evaluators = FakeEvaluators()
    evaluators.score_now = lambda number, recipe: (  # type: ignore[method-assign]
        scored(recipe) if isinstance(recipe, Founder) else Failed(recipe.digest, broke=True)
    )
    searcher = a_searcher(run, evaluators)[0]

    play(searcher)

    assert "All 3 models of generation 1 failed, the last one, g1-" in str(searcher.error)


def test_failures_are_counted_up_to_a_success_and_by_their_error(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run", max_failures=2), {})
    evaluators = FakeEvaluators(slots=1)
    turn = iter(range(1 << 20))
    evaluators.score_now = lambda number, recipe: (  # type: ignore[method-assign]
        scored(recipe) if isinstance(recipe, Founder) or next(turn) % 2 else Failed("boom", broke=True)
    )
    searcher = a_searcher(run, evaluators)[0]

    play(searcher)

    assert searcher.error is None
    assert {row["status"] for row in run.rows()} == {"scored", "broken"}


def test_a_failed_child_is_never_a_parent(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    evaluators = FakeEvaluators()
    evaluators.broken = {FOUNDERS[0].digest}
    play(a_searcher(run, evaluators)[0])

    assert all("ann" not in row["parents"] for row in run.rows())


def test_a_child_below_a_floor_is_recorded_as_refused_and_is_never_a_parent(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run", floor=-30.0), {})
    play(a_searcher(run, FakeEvaluators())[0])

    rows = {row["name"]: row for row in run.rows()}
    least = max(scored(model).tasks["task"].score for model in (BASE, *FOUNDERS)) - 0.3
    below = {name for name, row in rows.items() if row["generation"] and row["score/task"] < least}
    assert below and len(below) < len(rows) - len(FOUNDERS)
    assert {name for name, row in rows.items() if row["status"] == "refused"} == below
    assert all("its floor is -30" in rows[name]["error"] and rows[name]["gain"] is not None for name in below)
    assert not below & {parent for row in rows.values() for parent in row["parents"]}


def test_gains_are_recorded_with_the_error_of_the_paired_difference(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    play(a_searcher(run, FakeEvaluators())[0])

    rows = {row["name"]: row for row in run.rows()}
    for row in rows.values():
        if row["parents"]:
            parents = sum(rows[parent]["score"] for parent in row["parents"]) / 2
            assert (row["gain"], row["gain_stderr"]) == (pytest.approx(row["score"] - parents), pytest.approx(0.0, abs=1e-12))
        else:
            assert row["gain"] is row["gain_stderr"] is None


def test_an_error_while_recording_ends_the_search_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    searcher, _, _ = a_searcher(run, FakeEvaluators())
    monkeypatch.setattr(run, "record", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    searcher.suggest("a")

    searcher.on_trial_complete("a", {"score": 0.5})

    assert isinstance(searcher.error, OSError)
    assert searcher.suggest("b") == Searcher.FINISHED


def test_after_ctrl_c_nothing_new_is_started(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    searcher, _, _ = a_searcher(run, FakeEvaluators())
    searcher.suggest("a")

    searcher.interrupted = True

    assert searcher.suggest("b") == Searcher.FINISHED
    searcher.on_trial_complete("a", {"score": 0.5})
    assert [row["name"] for row in run.rows()] == ["ann"]


def test_kinship_values_of_a_mating_are_recorded_by_name(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    run = RunFolder.create(a_config(tmp_path / "run"), {})
    play(a_searcher(run, FakeEvaluators())[0])

    values = {(row["a"], row["b"]): row["value"] for row in pq.read_table(run.path / "kinship").to_pylist()}

    for row in run.rows():
        if row["parents"]:
            assert values[tuple(row["parents"])] == row["kinship"]


def test_kinship_asked_to_decide_whether_to_stop_does_not_replace_what_a_generation_was_mated_by(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    config = a_config(tmp_path / "run")
    search = config.search.model_copy(update={"stop_kinship": -0.5, "k": 3})
    run = RunFolder.create(config.model_copy(update={"search": search}), {})
    searcher, policy, _ = a_searcher(run, FakeEvaluators())
    play(searcher)

    assert "mean kinship" in str(policy.finished)
    rows = {(row["a"], row["b"]) for row in pq.read_table(run.path / "kinship" / "generation-0001.parquet").to_pylist()}
    assert rows == {tuple(row["parents"]) for row in run.rows() if row["parents"]}


def test_hours_that_are_spent_do_not_wait_for_an_evaluator_that_does_not_answer(tmp_path: Path) -> None:
    run = RunFolder.create(a_config(tmp_path / "run"), {})
    searcher, policy, _ = a_searcher(run, FakeEvaluators(1))
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"score": float("nan"), "unreachable": True})
    assert searcher.suggest("b") is None

    searcher._deadline = 0.0

    assert searcher.suggest("b") == Searcher.FINISHED and policy.finished == "the budget of hours is spent"


def test_the_last_evaluator_that_cannot_score_any_more_ends_the_search_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from kinray.cluster import evaluators as module
    from kinray.cluster.session import Session

    def fail(_: str) -> None:
        raise module.ray.exceptions.RayError("no models here")

    evaluators = object.__new__(module.Evaluators)
    evaluators._session, evaluators._say, evaluators._looked = Session("cpu", 1, 1, 1), lambda _: None, -1e9
    evaluators._ready, evaluators._joining, evaluators._silent = [], {"warm": 0}, {0}
    monkeypatch.setattr(module.ray, "wait", lambda refs, **_: (refs, []))
    monkeypatch.setattr(module.ray, "get", fail)

    with pytest.raises(RunError, match=r"No evaluator can score any more\. The last one ended with: RayError: no"):
        evaluators.joined()
