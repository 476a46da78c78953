"""Check everything that a search needs before any long work starts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from os.path import isdir
from pathlib import Path

from kinray.checkpoints.header import DTYPE_BYTES
from kinray.checkpoints.identity import model_digest
from kinray.checkpoints.locate import locate
from kinray.checkpoints.models import Models, ModelSpec, open_models
from kinray.checkpoints.writer import CODES, check_room
from kinray.config import Config
from kinray.core.recipe import Founder
from kinray.errors import CheckpointError, ConfigError
from kinray.evaluation.backend import check_backend
from kinray.evaluation.resident import check_buildable
from kinray.evaluation.score_cache import check_score_cache
from kinray.evaluation.task_loading import load_tasks
from kinray.evaluation.tasks import TaskSet
from kinray.records.mirror import check_output, working_folder
from kinray.search.space import MethodSpace, search_space

Note = Callable[[str], None]
"""Told what is being done, for a person."""


@dataclass(frozen=True)
class Prepared:
    """A search that can start.

    Args:
        config: with paths resolved.
        models: base and founders.
        spaces: merge methods and their hyperparameters.
        tasks: with their items split.
        notices: what a person might not expect of it.
    """

    config: Config
    models: Models
    spaces: list[MethodSpace]
    tasks: TaskSet
    notices: Sequence[str] = ()

    @property
    def racing(self) -> bool | str:
        """How children are stopped early: races, or the name of a rule of Tune's; False if they are not."""
        racing = self.config.evaluation.racing
        return False if self.against(racing) else racing

    def against(self, racing: bool | str) -> str:
        """Say why children cannot be stopped early in some way, if so."""
        unbounded = [task.spec.name for task in self.tasks.tasks if task.count("search") and not task.bounded]
        if racing and self.config.search.objective == "pareto":
            return "a model may be on the Pareto front whatever its mean"
        if racing is True and unbounded:
            return f"the score of {', '.join(unbounded)} is not a mean over items that lie between 0 and 1"
        return ""

    @property
    def base(self) -> Founder:
        """The base as a recipe."""
        return self.models.specs[0].founder

    @property
    def founders(self) -> list[Founder]:
        """The founders as recipes, in the order of the configuration."""
        return [spec.founder for spec in self.models.specs[1:]]

    @property
    def generations(self) -> tuple[int, int]:
        """How many children the first generation and each later one have at most."""
        search, count = self.config.search, len(self.founders)
        matings = (count * (count - 1) // 2, search.k * (search.k - 1) // 2 + (search.policy == "kinship"))
        budget = math.inf if search.max_children is None else search.max_children
        first, later = (int(min(number * search.children_per_mating, budget)) for number in matings)
        return first, later

    @property
    def export_bytes(self) -> int:
        """Bytes of one child on the disk."""
        return self.models.parameters * DTYPE_BYTES[CODES[self.config.merge.dtype]]


def prepare(config: Config, note: Note, *, fresh: bool = True) -> Prepared:
    """Validate configuration, models, tasks and the place for the output, the quick checks first.

    Args:
        config: of the run.
        note: told of what takes a while.
        fresh: whether the output folder must be free.

    Raises:
        KinrayError: for the first thing that is wrong.
    """
    spaces = search_space(config.merge.methods)
    if config.search.children_per_mating > 1 and len(spaces) == 1 and not spaces[0].free:
        raise ConfigError(
            f"search.children_per_mating is {config.search.children_per_mating}, but merge.methods leaves nothing open, so "
            "the children of a mating would be equal. Give a parameter a range, or name a second method."
        )
    for logger in config.loggers:
        if find_spec(logger) is None:
            install = f"pip install -c constraints.txt -e '.[{logger}]'"
            raise ConfigError(f"loggers: {logger} is not installed. Install it: {install}")
    if config.evaluation.score_cache is not None:
        check_score_cache(config.evaluation.score_cache)
    if fresh:
        check_output(config.output)
    config = _absolute(config)
    models = _open(config, note)
    spaces = [space.fitted(models.names) for space in spaces]
    prepared = Prepared(config, models, spaces, TaskSet([]))
    check_room(working_folder(config.output), prepared.export_bytes)
    check_backend(config.evaluation, prepared.export_bytes)
    note("checking that transformers can build the model")
    gpus = 1 if config.evaluation.device == "cpu" else config.cluster.gpus_per_evaluator
    notices = check_buildable(models, config.evaluation, [*config.tasks, *config.evaluation.held_tasks], gpus)
    note("loading tasks")
    tasks = load_tasks(config.tasks, config.task_paths, config.evaluation, config.seed)
    prepared = Prepared(config, models, spaces, tasks, [*models.notices, *notices])
    if not (reason := prepared.against(config.evaluation.racing)):
        return prepared
    racing = f"Every child is asked all items, since {reason}. Say evaluation.racing: false to be told no more."
    return replace(prepared, notices=[*prepared.notices, racing])


def _absolute(config: Config) -> Config:
    """Make paths absolute (those that exist, where they could be hub ids), so that a run can be resumed from anywhere."""

    def place(path: str) -> str:
        return str(Path(path).absolute()) if isdir(path) else path

    founders = [
        spec.model_copy(update={"model": place(spec.model), "adapter": spec.adapter and place(spec.adapter)})
        for spec in config.founders
    ]
    paths = [place(path) for path in config.task_paths]
    scores = config.evaluation.score_cache
    evaluation = config.evaluation.model_copy(update={"score_cache": scores and str(Path(scores).absolute())})
    return config.model_copy(
        update={"base": place(config.base), "founders": founders, "task_paths": paths, "evaluation": evaluation}
    )


def _open(config: Config, note: Note) -> Models:
    """Find all models, check that they fit from their headers, then identify them by their contents."""
    places: list[tuple[str, Path, Path | None]] = [("base", locate(config.base, "base", config.base_revision), None)]
    for spec in config.founders:
        folder = locate(spec.model, spec.name, spec.revision) if spec.model else places[0][1]
        adapter = locate(spec.adapter, spec.name, None if spec.model else spec.revision) if spec.adapter else None
        places.append((spec.name, folder, adapter))
    unidentified = [
        ModelSpec(Founder(f"{number:064x}", name), folder, adapter) for number, (name, folder, adapter) in enumerate(places)
    ]
    open_models(unidentified)
    specs = []
    for name, folder, adapter in places:
        note(f"identifying {name}")
        specs.append(ModelSpec(Founder(model_digest(folder, adapter, name), name), folder, adapter))
    _all_different(specs)
    return open_models(specs)


def _all_different(specs: Sequence[ModelSpec]) -> None:
    seen: dict[str, str] = {}
    for spec in specs:
        other = seen.setdefault(spec.founder.digest, spec.founder.name)
        if other != spec.founder.name:
            remedy = "Its delta is zero, so there is nothing to merge" if other == "base" else "A model may be a founder once"
            raise CheckpointError(
                f"Founder '{spec.founder.name}' has exactly the weights of {'the base' if other == 'base' else repr(other)}. "
                f"{remedy}: remove it."
            )
