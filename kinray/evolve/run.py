"""One session of a search: start the workers, run the population, compare on held-out items, export the best."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kinray.core.kinship import METRICS, kinship_matrix
from kinray.core.recipe import Merge, Recipe
from kinray.core.scores import Failed, Scored
from kinray.core.statistics import Statistics
from kinray.errors import RunError
from kinray.evaluation.tasks import Split
from kinray.evolve.prepare import Prepared
from kinray.records.run import RunFolder
from kinray.report.leaderboard import Entry, Leaderboard, indistinguishable
from kinray.report.terminal import Terminal
from kinray.search.policy import TopK
from kinray.search.proposals import proposer_for
from kinray.search.races import Races
from kinray.search.racing import rounds

if TYPE_CHECKING:
    from kinray.cluster.session import Session

ScoreAll = Callable[[list[tuple[Recipe, Split]]], list[Scored | Failed]]
"""Scores recipes outside of the search."""


@dataclass(frozen=True)
class Finished:
    """What a search came to; None for ``leaderboard`` when it was interrupted."""

    policy: TopK
    statistics: Statistics
    leaderboard: Leaderboard | None


def run_search(prepared: Prepared, run: RunFolder, terminal: Terminal) -> Finished:
    """Run or continue a search in its folder.

    Raises:
        KinrayError: when it cannot go on; what was recorded stays, and ``--resume`` continues.
    """
    from kinray.cluster.evaluator import cache_of
    from kinray.cluster.evaluators import Evaluators
    from kinray.cluster.kinship import SearchKinship
    from kinray.cluster.population import run_population
    from kinray.cluster.searcher import PolicySearcher
    from kinray.cluster.shards import Shards, planned

    config, specs, racing = prepared.config, prepared.models.specs, prepared.racing
    terminal.note("starting Ray")
    with _on_ray(prepared, terminal) as session:
        terminal.session(session)
        plan = planned(prepared.models, session)
        evaluators = Evaluators(specs, config, session, plan.evaluators, terminal.line)
        shards = Shards(prepared.models, session.shards, cache=cache_of(config), nodes=plan.shards)
        with terminal.bytes("kinship of the founders", prepared.models.nbytes()) as progress:
            statistics = shards.statistics(progress)
        evaluators.share(statistics)
        _record_founders(run, prepared, statistics)
        terminal.kinship(config.search.kinship, prepared, statistics)
        kinship = SearchKinship(statistics, shards, config.search.kinship)
        policy = TopK(
            prepared.founders,
            prepared.base,
            proposer_for(prepared.spaces, config.seed, len(config.tasks) if config.search.objective == "pareto" else 1),
            kinship,
            config.search,
            config.seed,
            racing=racing is True,
        )
        if (state := run.load_state()) is not None:
            policy.load_state_dict(state)
        order, pack = prepared.tasks.order("search", config.seed), config.evaluation.pack_items(session.device)
        races = Races(policy, order, pack, config.evaluation.racing_error, run.kept) if racing is True else None
        ends = rounds(len(order), pack) if racing else []
        terminal.note("loading the model and the tasks into the evaluators")
        if any(task.floor is not None for task in config.tasks):
            _score_references(prepared, run, policy, evaluators.score_all)
        searcher = PolicySearcher(policy, run, kinship, evaluators, terminal, config.search.max_hours, ends, races)
        run_population(searcher, statistics, run.next_session(), session.slots, config, terminal.interrupted)
        if searcher.interrupted and not policy.finished:
            evaluators.close()
            return Finished(policy, statistics, None)
        terminal.note("comparing founders, average and best on all items that are left")
        board = _compare(prepared, run, policy, evaluators.score_all)
        evaluators.close()
        return Finished(policy, statistics, board)


def placement(prepared: Prepared, terminal: Terminal) -> list[tuple[str, str]]:
    """Say for each node of the cluster what a search would give it, and why, without starting anything on it."""
    from kinray.cluster.shards import planned

    terminal.note("looking at the cluster")
    with _on_ray(prepared, terminal) as session:
        return planned(prepared.models, session).lines(session.device, session.gpus)


def _on_ray(prepared: Prepared, terminal: Terminal) -> "AbstractContextManager[Session]":
    """Connect to Ray as a search needs it. A generation waits for the one before it, so the largest is scored at once."""
    from kinray.cluster.session import ray_session

    config, most = prepared.config, max(len(prepared.founders), *prepared.generations)
    return ray_session(
        config.cluster,
        config.evaluation,
        prepared.models.specs,
        config.task_paths,
        most=most,
        say=terminal.line,
        verbose=terminal.verbose,
    )


def _record_founders(run: RunFolder, prepared: Prepared, statistics: Statistics) -> None:
    names = [founder.name for founder in prepared.founders]
    values = []
    for metric in METRICS:
        matrix = kinship_matrix(metric, statistics)
        values += [(a, b, str(metric), float(matrix[i, j])) for i, a in enumerate(names) for j, b in enumerate(names) if i < j]
    run.record_kinship(0, values)


def average_of(prepared: Prepared) -> Recipe:
    """Return the plain average of all founders, what a search must at least beat."""
    return Merge("linear", tuple(prepared.founders))


def _score_references(prepared: Prepared, run: RunFolder, policy: TopK, score_all: ScoreAll) -> None:
    """Score what floors are held against as far as the records lack it: the base, whose turn would come at the end only."""
    founders = [(child.name, child.recipe) for child in policy.population.contenders() if not child.generation]
    failed = _keep_scores(run, [("base", prepared.base), *founders], ["search"], score_all)
    for (name, _), error in failed.items():
        raise RunError(f"'{name}' could not be scored: {error}. Floors are held against it: remove 'floor' from the tasks.")


def _compare(prepared: Prepared, run: RunFolder, policy: TopK, score_all: ScoreAll) -> Leaderboard:
    """Score base, founders, average and best on what they were not scored on yet, and line them up."""
    population = policy.population
    best = population.best()
    if best is None:
        raise RunError("No model could be scored, so there is no best one. See the error column of the children table.")
    models: list[tuple[str, str, Recipe]] = [("base", "base", prepared.base)]
    models += [(child.name, "founder", child.recipe) for child in population.children if child.generation == 0]
    models.append(("average", "average", average_of(prepared)))
    if best.generation > 0:
        models.append((best.name, "best", best.recipe))
    splits: list[Split] = ["search", "holdout"] if prepared.config.evaluation.holdout else ["search"]
    failed = _keep_scores(run, [(name, recipe) for name, _, recipe in models], splits, score_all)
    entries = [
        Entry(name, kind, run.kept(name, "search"), run.kept(name, "holdout"), _first_error(failed, name))
        for name, kind, _ in models
    ]
    others = ((child.name, kept) for child in population.contenders() if child is not best and (kept := run.kept(child.name)))
    ours = run.kept(best.name)
    return Leaderboard(
        entries,
        best.name,
        run.gain(best, ours),
        indistinguishable(ours, others) if ours else [],
        {child.name: kept for child in population.front() if (kept := run.kept(child.name))},
        [child.name for child in population.children if population.refused(child.name)],
        [child.name for child in population.children if (outcome := population.outcome(child.name)) and outcome.stopped],
    )


def _keep_scores(
    run: RunFolder, models: Sequence[tuple[str, Recipe]], splits: Sequence[Split], score_all: ScoreAll
) -> dict[tuple[str, str], str]:
    """Score models where the run has no scores of them yet; return the errors of those that failed, by name and split."""
    jobs = [(name, recipe, split) for name, recipe in models for split in splits if run.kept(name, split) is None]
    failed: dict[tuple[str, str], str] = {}
    for (name, _, split), result in zip(jobs, score_all([(recipe, split) for _, recipe, split in jobs]), strict=True):
        if isinstance(result, Failed):
            failed[name, split] = result.error
        else:
            run.keep(name, result, split)
    return failed


def _first_error(failed: dict[tuple[str, str], str], name: str) -> str | None:
    return next((error for (model, _), error in failed.items() if model == name), None)
