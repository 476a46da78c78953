"""Hyperparameters for children: fixed ones, or asked of Optuna where the configuration leaves them open."""

import hashlib
import warnings
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

Known = dict[str, "tuple[float, optuna.distributions.BaseDistribution]"]
"""What a child has: by key its value, and what it was drawn from."""

RECENT = 120
"""Children that a study learns from, at most: when it has so many, it forgets the older half. What helped early children, of
raw founders, says little of late ones, and what a proposal costs grows with what it is drawn from."""

POPULATION = 10
"""Children that NSGA-II draws at random before it crosses any, as many as the Parzen estimator does, and size of its elite."""


class Proposer(Protocol):
    """Where a policy takes hyperparameters from; the seam between the search and Optuna.

    Contract: what ``propose`` returns depends only on its arguments, on the gains learnt so far in their order, and on the
    proposals made since. So a proposer that is built anew and taught the same gains goes on as the first would have.
    """

    def propose(self, number: int, attempt: int) -> Proposal:
        """Choose for the child of this number; ``attempt`` counts from 0 when a proposal was turned down."""

    def learn(self, recipe: Merge, gains: Sequence[float] | None, *, refused: bool = False) -> None:
        """Take in a child's merge gain, called in the order of child numbers, once each.

        Args:
            recipe: the child.
            gains: one for each objective; None when it failed.
            refused: whether it is out of bounds, whatever its gains.
        """


class FixedProposer:
    """One method with nothing left open."""

    def __init__(self, space: MethodSpace) -> None:
        self._proposal = (space.method.name, space.params(_nothing_free))

    def propose(self, number: int, attempt: int) -> Proposal:
        """Return the one proposal that there is."""
        return self._proposal

    def learn(self, recipe: Merge, gains: Sequence[float] | None, *, refused: bool = False) -> None:
        """Learn nothing."""


class OptunaProposer:
    """Asks Optuna for the method and its parameters.

    Studies maximise merge gain rather than score: parents differ from child to child, and a good child of good parents says
    little about its hyperparameters. With one objective one study is asked with a tree-structured Parzen estimator, conditional
    on the method. With several it is NSGA-II on the gain in each; since that crosses only what all trials of a study have, the
    choice of the method and the parameters of each method then have studies of their own.

    The sampler is seeded anew for each child from (seed, number, attempt), so the random state of a run is its seed and the
    gains learnt, both of which its records hold; nothing else has to be saved.

    Args:
        spaces: the methods to choose from.
        seed: of the run.
        objectives: how many gains a child has.
    """

    def __init__(self, spaces: Sequence[MethodSpace], seed: int, objectives: int = 1) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._spaces = {space.method.name: space for space in spaces}
        self._seed, self._objectives = seed, objectives
        self._choice = _Study(objectives)
        together = objectives == 1 or len(spaces) == 1
        self._studies = {name: self._choice if together else _Study(objectives) for name in self._spaces}
        self._out: list[tuple[optuna.Study, optuna.Trial]] = []

    def propose(self, number: int, attempt: int) -> Proposal:
        """Ask the studies, which know of the children that are out (constant liar of TPE) and of those told."""
        names, place = list(self._spaces), f"{self._seed}/{number}/{attempt}"
        trial = self._ask(self._choice, place, len(self._spaces[names[0]].free) if len(names) == 1 else 1)
        name = names[trial.suggest_categorical("method", range(len(names)))] if len(names) > 1 else names[0]
        space = self._spaces[name]
        if self._studies[name] is not self._choice:
            trial = self._ask(self._studies[name], f"{place}/{name}", len(space.free))
        return name, space.params(lambda dimension: _suggest(trial, name, dimension))

    def learn(self, recipe: Merge, gains: Sequence[float] | None, *, refused: bool = False) -> None:
        """Add the child to the studies as a trial of its own.

        What was asked of a study only stood in until now (constant liar) and is given up, proposals that were turned down
        included: so it makes no difference whether this study made the proposal or one before a restart.
        """
        import optuna

        while self._out:
            study, trial = self._out.pop()
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
        if gains is None:
            return
        choice, own = self._known(recipe)
        study = self._studies[recipe.method]
        if study is self._choice:
            study.add(choice | own, gains, refused)
        else:
            self._choice.add(choice, gains, refused)
            study.add(own, gains, refused)

    def _ask(self, study: "_Study", place: str, numbers: int) -> "optuna.Trial":
        study.optuna.sampler = self._sampler(place, numbers)
        trial = study.optuna.ask()
        self._out.append((study.optuna, trial))
        return trial

    def _sampler(self, place: str, numbers: int) -> "optuna.samplers.BaseSampler":
        """Make a sampler for the child at ``place``, of which so many numbers are open."""
        import optuna

        seed = int.from_bytes(hashlib.sha256(place.encode()).digest()[:4], "little")
        if self._objectives == 1:
            # Children of several methods have only the choice in common, so there is nothing to estimate jointly.
            return optuna.samplers.TPESampler(seed=seed, constant_liar=True, multivariate=len(self._spaces) == 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # The paper's operators. By default Optuna copies a number or draws a new one, and if there is one only, always.
            return optuna.samplers.NSGAIISampler(
                population_size=POPULATION,
                crossover=optuna.samplers.nsgaii.SBXCrossover(),
                mutation=optuna.samplers.nsgaii.PolynomialMutation(),
                mutation_prob=1 / max(numbers, 2),
                seed=seed,
            )

    def _known(self, recipe: Merge) -> tuple[Known, Known]:
        """Describe a child as its method, where there is a choice, and its open numbers."""
        import optuna

        names = list(self._spaces)
        every = optuna.distributions.CategoricalDistribution(range(len(names)))
        choice: Known = {"method": (names.index(recipe.method), every)} if len(names) > 1 else {}
        own: Known = {}
        space = self._spaces[recipe.method]
        for dimension in space.free:
            key, free, value = f"{recipe.method}.{dimension.key}", dimension.free, space.value(recipe.params, dimension)
            if isinstance(free, Range):
                own[key] = value, optuna.distributions.FloatDistribution(free.low, free.high, log=free.log)
            else:
                own[key] = free.index(value), optuna.distributions.CategoricalDistribution(range(len(free)))
        return choice, own


def proposer_for(spaces: Sequence[MethodSpace], seed: int, objectives: int = 1) -> Proposer:
    """Make the proposer that a space needs."""
    if len(spaces) == 1 and not spaces[0].free:
        return FixedProposer(spaces[0])
    return OptunaProposer(spaces, seed, objectives)


class _Study:
    """One of Optuna's studies, of the last children only."""

    def __init__(self, objectives: int) -> None:
        self._objectives = objectives
        self._children: list[tuple[Known, Sequence[float], bool]] = []
        self.optuna = self._begin()

    def add(self, known: Known, gains: Sequence[float], refused: bool) -> None:
        """Add a child as a trial that was made elsewhere."""
        if len(self._children) == RECENT:
            kept, self._children = self._children[RECENT // 2 :], []
            self.optuna = self._begin()
            for child in kept:
                self._add(*child)
        self._add(known, gains, refused)

    def _begin(self) -> "optuna.Study":
        import optuna

        # Each question brings a sampler of its own. With none, Optuna would choose one that several objectives may not have.
        sampler = optuna.samplers.NSGAIISampler(population_size=POPULATION, seed=0)
        return optuna.create_study(directions=["maximize"] * self._objectives, sampler=sampler)

    def _add(self, known: Known, gains: Sequence[float], refused: bool) -> None:
        import optuna

        distributions = {key: distribution for key, (_, distribution) in known.items()}
        generation, place = divmod(len(self._children), POPULATION)
        self._children.append((known, gains, refused))
        self.optuna.add_trial(
            optuna.trial.create_trial(
                values=gains,
                params={key: value for key, (value, _) in known.items()},
                distributions=distributions,
                system_attrs={"NSGAIISampler:generation": generation},  # it takes a trial without for none of its own
                constraints={"floor": 1.0} if refused else None,
            )
        )
        if known and self._objectives > 1 and place == POPULATION - 1:
            # NSGA-II selects an elite when it is first asked after a generation, and only then sees it in another order than
            # later. An idle question now makes the order the same before and after a restart.
            self.optuna.tell(self.optuna.ask(distributions), state=optuna.trial.TrialState.FAIL)


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
