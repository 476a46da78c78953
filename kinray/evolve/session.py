"""The three ways to begin: start a search, resume one, or only look at what it would do."""

from collections.abc import Sequence
from contextlib import closing
from itertools import combinations
from pathlib import Path

from rich.console import Console

from kinray import __version__
from kinray.config import Config, FounderSpec
from kinray.errors import KinrayError, RunError
from kinray.evaluation.tasks import Split
from kinray.evolve.continued import continued
from kinray.evolve.export import export_model
from kinray.evolve.prepare import Prepared, prepare
from kinray.evolve.run import Finished, placement, run_search
from kinray.records.config_file import read_run_config
from kinray.records.mirror import check_output
from kinray.records.run import RunFolder
from kinray.records.store import within
from kinray.report.card import model_card
from kinray.report.recipe_yaml import recipe_yaml
from kinray.report.terminal import Terminal

_MANY_ITEMS = 1000
"""From so many for each child on, stopping some early saves a tenth and more."""


def start(config: Config, console: Console, *, verbose: bool) -> int:
    """Begin a search in a new run folder and see it through."""
    check_output(config.output)
    terminal = Terminal(console, verbose=verbose)
    prepared = _prepare(config, terminal, fresh=True)
    if config.cluster.address is not None:  # what other machines lack is said before anything is written
        terminal.facts("Placement", placement(prepared, terminal))
    with closing(RunFolder.create(prepared.config, _digests(prepared), terminal.line)) as run:
        return _see_through(prepared, run, terminal)


def resume(folder: str, overrides: Sequence[str], console: Console, *, verbose: bool) -> int:
    """Continue the search of a run folder to where it would have come unbroken, under the budgets that it has now."""
    before, digests = read_run_config(folder)
    config = continued(before, overrides)
    terminal = Terminal(console, verbose=verbose)
    with closing(RunFolder.resume(folder, terminal.line)) as run:
        prepared = _prepare(config, terminal, fresh=False, notices=run.notices)
        for name, digest in _digests(prepared).items():
            if digests.get(name) != digest:
                raise RunError(f"'{name}' does not have the weights that {folder} was begun with. Put them back to resume it.")
        run.config = run.config.model_copy(update={"cluster": config.cluster})
        if config.search != before.search:
            run.extend(config.search)
        return _see_through(prepared, run, terminal)


def dry_run(config: Config, console: Console, *, verbose: bool) -> int:
    """Check everything and print the first generation and the cost, without scoring anything."""
    terminal = Terminal(console, verbose=verbose)
    prepared = _prepare(config, terminal, fresh=True)
    pairs = list(combinations([founder.name for founder in prepared.founders], 2))
    first, later = prepared.generations
    items = prepared.tasks.count("search")
    lines = []
    for number, (a, b) in enumerate(pairs, 1):
        numbers = range(number, first + 1, len(pairs))
        lines.append((f"{a} × {b}", ", ".join(f"g1-{n}" for n in numbers) or "beyond the budget"))
    facts = [
        ("Founders to score", str(len(prepared.founders))),
        ("Children in generation 1", str(first)),
        ("Children in each later one", f"at most {later}"),
        ("Items for each child", f"{items:,} ({_per_task(prepared, 'search')})"),
        ("Held-out items at the end", f"{prepared.tasks.count('holdout'):,} ({_per_task(prepared, 'holdout')})"),
        ("In all", _total(prepared, items)),
        ("Bytes read for kinship", _bytes(prepared.models.nbytes())),
        ("Bytes of the export", f"{_bytes(prepared.export_bytes)} in {within(prepared.config.output, 'best')}"),
    ]
    terminal.facts("Placement", placement(prepared, terminal))
    terminal.facts("First generation", lines)
    terminal.facts("Cost", facts)
    return 0


def _total(prepared: Prepared, items: int) -> str:
    """Say what a search costs at most, if it has a budget."""
    budget = prepared.config.search.max_children
    if budget is None:
        return "no budget of children is set (search.max_children): it ends when the top k does not change"
    models = len(prepared.founders) + budget
    return f"at most {budget} children; {models} models × {items:,} items = {models * items:,} answers"


def _prepare(config: Config, terminal: Terminal, *, fresh: bool, notices: Sequence[str] = ()) -> Prepared:
    prepared = prepare(_with_demo(config, terminal) if config.demo else config, terminal.note, fresh=fresh)
    search, models = prepared.config.search, prepared.models
    methods = ", ".join(prepared.config.merge.methods)
    policy = f"{search.policy} search" + (" for the Pareto front" if search.objective == "pareto" else "")
    terminal.ready(
        f"[bold]kinray {__version__}[/]  {policy}, k = {search.k}, {methods}, seed {prepared.config.seed}",
        [
            ("Base", f"{models.specs[0].folder}  ({models.parameters / 1e6:,.1f} M parameters)"),
            ("Founders", ", ".join(founder.name for founder in prepared.founders)),
            ("Tasks", _per_task(prepared, "search")),
            ("Run folder", prepared.config.output),
        ],
        [*notices, *prepared.notices, *_advice(prepared)],
    )
    return prepared


def _advice(prepared: Prepared) -> list[str]:
    """Say what about a configuration is allowed but seldom meant."""
    config = prepared.config
    k, tasks = config.search.k, len(config.tasks)
    advice = []
    ends = 2 if tasks == 2 else 2 * tasks  # on a front the best of one of two tasks is the worst of the other
    if config.search.objective == "pareto" and k <= ends:
        advice.append(
            f"search.k is {k}: the ends of the Pareto front, up to {ends} models for {tasks} tasks, come first and may fill "
            f"the top {k}. A k above {ends} lets the models between them mate too."
        )
    items = prepared.tasks.count("search")
    if items >= _MANY_ITEMS and config.evaluation.racing is False and not prepared.against(True):
        advice.append(
            f"Each child is asked {items:,} items. evaluation.racing: true stops hopeless children early, and breeds only from "
            "those that entered the top k."
        )
    return advice


def _with_demo(config: Config, terminal: Terminal) -> Config:
    """Make the demo's models and put them in their places."""
    from kinray.demo.founders import build_demo
    from kinray.files import cache_folder

    demo = build_demo(cache_folder(), terminal.progress("making the demo's models (first time only)"))
    founders = [FounderSpec(model=str(folder), name=name) for name, folder in demo.founders.items()]
    return config.model_copy(
        update={"base": str(demo.base), "founders": founders, "task_paths": [str(demo.tasks), *config.task_paths]}
    )


def _see_through(prepared: Prepared, run: RunFolder, terminal: Terminal) -> int:
    """Run a search to its end; however it ends, say how it can be continued."""
    try:
        return _search_and_export(prepared, run, terminal)
    except OSError as error:
        raise RunError(f"The search stopped: {error}. {_continue(run)}") from error
    except (KinrayError, KeyboardInterrupt):
        terminal.line(_continue(run))
        raise


def _continue(run: RunFolder) -> str:
    return f"What was recorded is kept. Continue with: kinray evolve --resume {run.place}"


def _search_and_export(prepared: Prepared, run: RunFolder, terminal: Terminal) -> int:
    finished = run_search(prepared, run, terminal)
    terminal.ended(finished.policy)
    if finished.leaderboard is None:
        terminal.line(_continue(run))
        return 130
    terminal.leaderboard(finished.leaderboard)
    terminal.spent(run.rows(), run.compared())
    terminal.note("exporting the best model")
    _export(prepared, run, finished)
    terminal.note("keeping the best model")
    terminal.line(f"Best model: {run.publish_best()}")
    return 0


def _export(prepared: Prepared, run: RunFolder, finished: Finished) -> None:
    board, policy = finished.leaderboard, finished.policy
    assert board is not None
    best = policy.population[board.best]
    places = _places(prepared)
    names = {child.recipe.digest: child.name for child in policy.population.children if child.generation}
    recipe = recipe_yaml(best.recipe, places, names, prepared.config.merge.dtype)
    founders = [founder.name for founder in prepared.founders]
    kept = {child.name: run.gain(child, run.kept(child.name)) for child in policy.population.children}
    gains = {name: gain for name, gain in kept.items() if gain is not None}
    card = model_card(board, policy, gains, finished.statistics, founders, places, recipe)
    export_model(prepared, best.recipe, finished.statistics, {"README.md": card, "recipe.yaml": recipe}, run.path / "best")


def _places(prepared: Prepared) -> dict[str, str]:
    """Name base and founders as a recipe does, by digest: hub ids with their revision, folders by path, adapters after a +."""
    config = prepared.config
    base = (config.base, config.base_revision)
    models = [base, *((spec.model, spec.revision) if spec.model else base for spec in config.founders)]
    adapters = [None, *(spec.adapter and (spec.adapter, None if spec.model else spec.revision) for spec in config.founders)]
    places = {}
    for spec, model, adapter in zip(prepared.models.specs, models, adapters, strict=True):
        parts = [_place(spec.folder, *model)]
        if adapter and spec.adapter:
            parts.append(_place(spec.adapter, *adapter))
        places[spec.founder.digest] = "+".join(parts)
    return places


def _place(folder: Path, given: str, revision: str | None) -> str:
    return str(folder) if Path(given).is_dir() else f"{given}@{revision}" if revision else given


def _digests(prepared: Prepared) -> dict[str, str]:
    return {spec.founder.name: spec.founder.digest for spec in prepared.models.specs}


def _per_task(prepared: Prepared, split: Split) -> str:
    return ", ".join(f"{task.count(split)} of {task.spec.name}" for task in prepared.tasks.tasks if task.count(split))


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
