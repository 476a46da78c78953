"""Run the population of a search under Ray Tune."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from kinray.cluster.searcher import PolicySearcher
from kinray.cluster.stopping import scheduler_for
from kinray.cluster.trial import ChildTrial
from kinray.config import Config
from kinray.core.statistics import Statistics
from kinray.errors import RunError
from kinray.records.store import name_of
from kinray.signals import when_told_to_stop

_TRIAL_CPU = 0.01
"""A trial only waits for its evaluator, but Tune refuses one that asks for nothing."""


def run_population(
    searcher: PolicySearcher,
    statistics: Statistics,
    folder: Path,
    slots: int,
    config: Config,
    on_interrupt: Callable[[], None],
) -> None:
    """Let Tune score children until the policy has finished, or the user interrupts.

    Args:
        searcher: gives children and takes results.
        statistics: of the founders.
        folder: for what Tune writes; it is never read back.
        slots: children scored at once, at most.
        config: how often a trial is tried again, and where children are logged.
        on_interrupt: called when the process is told to stop for the first time, which lets children in flight finish; the
            second time it stops at once.

    Raises:
        KinrayError: what ended the search.
        RunError: when Tune failed.
    """
    for name in ("ray.tune", "ray.train"):  # they would print a traceback each time that a child is tried again
        logging.getLogger(name).setLevel(logging.CRITICAL)
    trainable = tune.with_resources(
        tune.with_parameters(ChildTrial, statistics=statistics, retries=config.cluster.retries),
        tune.PlacementGroupFactory([{"CPU": _TRIAL_CPU}]),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler_for(config.evaluation, searcher),
            num_samples=-1,
            max_concurrent_trials=slots,
            reuse_actors=True,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent.absolute()),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),  # the searcher gives a child to another trial
            callbacks=[_logger(name, name_of(config.output)) for name in config.loggers],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
        ),
    )

    def stop() -> None:
        if searcher.interrupted:
            raise KeyboardInterrupt
        searcher.interrupted = True
        on_interrupt()

    with when_told_to_stop(stop):
        try:
            tuner.fit()
        except Exception as error:
            if searcher.error is None:
                raise RunError(f"Ray Tune stopped: {str(error).strip().splitlines()[-1][:300]}") from error
    if searcher.error is not None:
        raise searcher.error


def _logger(name: str, project: str) -> Any:
    """Make one of Tune's callbacks; the run folder's name becomes the experiment's."""
    if name == "mlflow":
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        return MLflowLoggerCallback(experiment_name=project)
    from ray.air.integrations.wandb import WandbLoggerCallback

    return WandbLoggerCallback(project=project, excludes=["recipe"])


def _name(trial: Any) -> str:
    name: str = trial.config["child"]
    return name
