"""Hyperparameters for children: fixed ones, or asked of Optuna where the configuration leaves them open."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from kinray.config import Range
from kinray.core.recipe import Merge, ParamValue
from kinray.search.dimensions import Dimension, Single
from kinray.search.space import MethodSpace

if TYPE_CHECKING:
    import optuna

Proposal = tuple[str, Mapping[str, ParamValue]]
"""Method and parameters of a child."""


class Proposer(Protocol):
    """Where a policy takes hyperparameters from; the seam between the search and Optuna.

    Contract: what ``propose`` returns depends only on its arguments, on the gains learnt so far in their order, and on the
    proposals made since. So a proposer that is built anew and taught the same gains goes on as the first would have.
    """

    def propose(self, number: int, attempt: int) -> Proposal:
        """Choose for the child of this number; ``attempt`` counts from 0 when a proposal was turned down."""

    def learn(self, recipe: Merge, gain: float | None) -> None:
        """Take in a child's merge gain, None when it failed. Called in the order of child numbers, once each."""


class FixedProposer:
    """One method with nothing left open."""

    def __init__(self, space: MethodSpace) -> None:
        self._proposal = (space.method.name, space.params(_nothing_free))

    def propose(self, number: int, attempt: int) -> Proposal:
        """Return the one proposal that there is."""
        return self._proposal

    def learn(self, recipe: Merge, gain: float | None) -> None:
        """Learn nothing."""


class OptunaProposer:
    """Asks a study for the method and its parameters (tree-structured Parzen estimator, conditional on the method).

    The study maximises merge gain rather than score: parents differ from child to child, and a good child of good parents
    says little about its hyperparameters. The sampler is seeded anew for each child from (seed, number, attempt), so the
    random state of a run is its seed and the gains learnt, both of which its records hold; nothing else has to be saved.

    Args:
        spaces: the methods to choose from.
        seed: of the run.
    """

    def __init__(self, spaces: Sequence[MethodSpace], seed: int) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spaces = {space.method.name: space for space in spaces}
        self._seed = seed
        self._study = optuna.create_study(direction="maximize", sampler=self._sampler(0, 0))
        self._out: list[optuna.Trial] = []

    def propose(self, number: int, attempt: int) -> Proposal:
        """Ask the study, which knows of the children that are out (constant liar) and of those told."""
        self._study.sampler = self._sampler(number, attempt)
        trial = self._study.ask()
        names = list(self._spaces)
        name = names[trial.suggest_categorical("method", range(len(names)))] if len(names) > 1 else names[0]
        params = self._spaces[name].params(lambda dimension: _suggest(trial, name, dimension))
        self._out.append(trial)
        return name, params

    def learn(self, recipe: Merge, gain: float | None) -> None:
        """Add the child to the study as a trial of its own.

        What was asked of the study only stood in until now (constant liar) and is given up, proposals that were turned
        down included: so it makes no difference whether this study made the proposal or one before a restart.
        """
        import optuna

        while self._out:
            self._study.tell(self._out.pop(), state=optuna.trial.TrialState.FAIL)
        self._study.add_trial(self._frozen(recipe, gain))

    def _sampler(self, number: int, attempt: int) -> "optuna.samplers.TPESampler":
        import optuna

        place = hashlib.sha256(f"{self._seed}/{number}/{attempt}".encode()).digest()
        return optuna.samplers.TPESampler(seed=int.from_bytes(place[:4], "little"), constant_liar=True)

    def _frozen(self, recipe: Merge, gain: float | None) -> "optuna.trial.FrozenTrial":
        import optuna

        space = self._spaces[recipe.method]
        names = list(self._spaces)
        params: dict[str, float] = {}
        distributions: dict[str, optuna.distributions.BaseDistribution] = {}
        if len(names) > 1:
            params["method"] = names.index(recipe.method)
            distributions["method"] = optuna.distributions.CategoricalDistribution(range(len(names)))
        for dimension in space.free:
            key = f"{recipe.method}.{dimension.key}"
            value = space.value(recipe.params, dimension)
            if isinstance(dimension.free, Range):
                free = dimension.free
                params[key], distributions[key] = (
                    value,
                    optuna.distributions.FloatDistribution(free.low, free.high, log=free.log),
                )
            else:
                choices = range(len(dimension.free))
                params[key] = dimension.free.index(value)
                distributions[key] = optuna.distributions.CategoricalDistribution(choices)
        state = optuna.trial.TrialState.FAIL if gain is None else optuna.trial.TrialState.COMPLETE
        return optuna.trial.create_trial(params=params, distributions=distributions, value=gain, state=state)


def proposer_for(spaces: Sequence[MethodSpace], seed: int) -> Proposer:
    """Make the proposer that a space needs."""
    if len(spaces) == 1 and not spaces[0].free:
        return FixedProposer(spaces[0])
    return OptunaProposer(spaces, seed)


def _suggest(trial: "optuna.Trial", method: str, dimension: Dimension) -> Single:
    key, free = f"{method}.{dimension.key}", dimension.free
    if isinstance(free, Range):
        value: float = trial.suggest_float(key, free.low, free.high, log=free.log)
        return value
    # Indices, since a categorical's choices are compared by value and 1 equals true.
    index: int = trial.suggest_categorical(key, range(len(free)))
    return free[index]


def _nothing_free(dimension: Dimension) -> Single:
    raise AssertionError(dimension)
