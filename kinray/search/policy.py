"""Top-k Greedy Merging with model kinship (Hu et al., arXiv 2410.12613, Algorithm 1), its greedy and its random variant.

    policy = TopK(founders, base, proposer, kinship, config, seed)
    while (child := policy.ask()) is not None:      # None: wait for scores that are out, or finished
        policy.tell(child.name, Outcome(score_of(child)))

G0 are the founders, G1 a merge of every pair of them, S the k best of all. Each later generation merges every pair in S that
was not merged before and, with kinship, the best of all with the model least akin to it.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from kinray.config import SearchConfig
from kinray.core.methods import method_named
from kinray.core.recipe import MAX_DEPTH, Founder, Merge, Recipe
from kinray.errors import RunError
from kinray.search.population import Child, Operator, Outcome, Population
from kinray.search.proposals import Proposer
from kinray.search.state import child_state, read_child

ATTEMPTS = 16
"""Proposals asked for before a mating is given up because all of its children exist already."""

Kinship = Callable[[Recipe, Sequence[Recipe]], Sequence[float]]
"""Kinship of a model with each of several in the search's metric; NaN where it is undefined."""


@dataclass(frozen=True)
class Mating:
    """A pair to merge, the higher ranked first."""

    first: Child
    second: Child
    operator: Operator
    kinship: float


class TopK:
    """The search policy. It knows no weights, files, processes or clocks.

    Contract: one thread; ``tell`` may come in any order and repeat itself. What is asked depends only on the arguments
    and on the outcomes, never on the order in which they arrive: a generation is made when the one before it is complete,
    and its hyperparameters are learnt from earlier generations in the order of child numbers. ``load_state_dict`` on a
    fresh policy with the same arguments gives back one that goes on as the first would have; children that were out
    are asked again.

    Args:
        founders: at least two.
        base: what deltas are taken against.
        proposer: gives each child its method and hyperparameters.
        kinship: of any two models of the search.
        config: ``search`` of the configuration.
        seed: for the random policy.
        racing: whether children that will not enter S may be stopped early. Then what does not enter S, stopped or not, has no
            part in what is bred; what ``kinray.search.racing`` proves needs that.
    """

    def __init__(
        self,
        founders: Sequence[Founder],
        base: Founder,
        proposer: Proposer,
        kinship: Kinship,
        config: SearchConfig,
        seed: int = 0,
        *,
        racing: bool = False,
    ) -> None:
        self._racing = racing
        self._bars: dict[int, float] = {}
        self._base, self._proposer, self._kinship, self._config, self._seed = base, proposer, kinship, config, seed
        self.population = Population(config.objective)
        self.generation = 0
        self.finished: str | None = None
        self._stopped = False
        self._top: list[str] = []
        self._mated: set[frozenset[str]] = set()
        for number, founder in enumerate(founders):
            self.population.add(Child(number, founder.name, 0, "founder", founder))
        self._founders = len(founders)
        self._queue = list(self.population.children)

    def ask(self) -> Child | None:
        """Return the next child to score; None when scores must be awaited, or when ``finished`` says why it ended."""
        while not self._queue and self.finished is None and not self.population.out:
            self._next_generation()
        return self._queue.pop(0) if self._queue else None

    def tell(self, name: str, outcome: Outcome) -> None:
        """Take in the outcome of a child that was asked."""
        self.population.tell(name, outcome)

    def stop(self, reason: str) -> None:
        """Ask for nothing more in this session, for a budget that the policy cannot see; the saved state goes on."""
        self._queue.clear()
        self._stopped = self.finished is None
        self.finished = self.finished or reason

    def top(self) -> list[Child]:
        """Return S, the k highest ranked models so far."""
        return self.population.ranked()[: self._config.k]

    @property
    def rivals(self) -> list[Child]:
        """S as it stood when the present generation began, best first."""
        return [self.population[name] for name in self._top]

    def bar(self, generation: int) -> float | None:
        """Return the score that children of a generation must exceed to enter S; None if it is not raced."""
        return self._bars.get(generation)

    def entrants(self) -> list[Child]:
        """Return the founders and all children that entered S, in the order of numbers.

        Of a generation that is not raced, all that were scored count.
        """
        return [child for child in self.population.children if self._entered(child)]

    def children_in(self, generation: int) -> list[Child]:
        """Return the children of a generation."""
        return [child for child in self.population.children if child.generation == generation]

    def made(self) -> int:
        """Count the children made so far, founders apart."""
        return len(self.population.children) - self._founders

    # -- one generation to the next

    def _next_generation(self) -> None:
        self._learn()
        before, self._top = self._top, [child.name for child in self.top()]
        if self.generation == 0 and len(self._top) < 2:
            failures = [self.population.outcome(child.name) for child in self.population.children]
            causes = sorted({outcome.error for outcome in failures if outcome and outcome.error})
            raise RunError(f"Fewer than two founders could be scored, so there is nothing to merge: {'; '.join(causes)}.")
        self.finished = self._reason_to_stop(before)
        if self.finished is None:
            self.generation += 1
            if self._racing and len(self._top) == self._config.k:
                self._bars[self.generation] = self.population.score(self._top[-1])
            self._queue = self._children_of(self._matings())
            if not self._queue:
                self.finished = "no new pair is left to merge"

    def _learn(self) -> None:
        bar = self.bar(self.generation)
        for child in self.children_in(self.generation):
            if not isinstance(child.recipe, Merge):
                continue
            if bar is None or self._entered(child):
                refused = self.population.refused(child.name) is not None
                self._proposer.learn(child.recipe, self.population.gains(child), refused=refused)
            else:  # whether it was stopped or not, as if it had reached the bar, and against its better parent
                better = max(self.population.score(parent) for parent in child.parents)
                self._proposer.learn(child.recipe, (min(0.0, bar - better),))

    def _entered(self, child: Child) -> bool:
        bar = self.bar(child.generation)
        return self.population.contends(child.name) and (bar is None or self.population.score(child.name) > bar)

    def _reason_to_stop(self, before: list[str]) -> str | None:
        config = self._config
        if self.generation >= 2 and set(before) == set(self._top):
            return f"the top {len(self._top)} did not change in generation {self.generation}"
        generations = MAX_DEPTH if config.max_generations is None else config.max_generations
        if self.generation >= generations:
            return f"the budget of {generations} generations is spent"
        if config.max_children is not None and self.made() >= config.max_children:
            return f"the budget of {config.max_children} children is spent"
        if config.stop_kinship is not None and self.generation >= 1:
            pairs = [self._between(a, b) for a, b in combinations(self.top(), 2)]
            mean = sum(pairs) / len(pairs) if pairs else float("nan")
            if mean > config.stop_kinship:
                return f"the mean kinship within the top {len(self._top)} is {mean:.3f}, above {config.stop_kinship:g}"
        return None

    # -- matings

    def _matings(self) -> list[Mating]:
        pool = self.population.ranked(self.children_in(0)) if self.generation == 1 else self.top()
        pairs = list(combinations(pool, 2))
        if self._config.policy == "random" and self.generation > 1:
            pairs = self._random_pairs(len(pairs))
        matings = [self._mate(a, b, "merge") for a, b in pairs if _pair(a, b) not in self._mated]
        if self._config.policy == "kinship" and self.generation > 1:
            matings += self._exploration(taken={_pair(mating.first, mating.second) for mating in matings})
        return matings

    def _random_pairs(self, count: int) -> list[tuple[Child, Child]]:
        fresh = [pair for pair in combinations(self.population.ranked(self.entrants()), 2) if _pair(*pair) not in self._mated]
        return random.Random(f"{self._seed}/{self.generation}").sample(fresh, min(count, len(fresh)))

    def _exploration(self, taken: set[frozenset[str]]) -> list[Mating]:
        """Mate the best with the model of lowest kinship to it that it was not mated with yet."""
        best = self.population.best()
        assert best is not None
        mated = self._mated | taken
        mates = [mate for mate in self._mate_pool() if mate is not best and _pair(best, mate) not in mated]
        kinships = self._kinship(best.recipe, [mate.recipe for mate in mates]) if mates else []
        defined = [(kinship, mate) for kinship, mate in zip(kinships, mates, strict=True) if not math.isnan(kinship)]
        if not defined:
            return []
        sign = -1 if self._config.kinship == "ed" else 1
        _, mate = min(defined, key=lambda pair: (sign * pair[0], pair[1].number))
        return [self._mate(best, mate, "exploration")]

    def _mate_pool(self) -> list[Child]:
        match self._config.mate_pool:
            case "population":
                return self.entrants()
            case "top-k":
                return self.top()
            case "generation":
                return [child for child in self.children_in(self.generation - 1) if self._entered(child)]

    def _mate(self, first: Child, second: Child, operator: Operator) -> Mating:
        return Mating(first, second, operator, self._between(first, second))

    def _between(self, a: Child, b: Child) -> float:
        return self._kinship(a.recipe, [b.recipe])[0]

    # -- children

    def _children_of(self, matings: Sequence[Mating]) -> list[Child]:
        """Make the children of a generation in rounds, one of each mating, so that a budget that ends cuts all alike."""
        made: list[Child] = []
        counts: dict[Operator, int] = {"merge": 0, "exploration": 0}
        fertile = list(matings)
        for _ in range(self._config.children_per_mating):
            for mating in tuple(fertile):
                if self._config.max_children is not None and self.made() >= self._config.max_children:
                    return made
                if (recipe := self._new_recipe(mating)) is None:
                    fertile.remove(mating)
                    continue
                counts[mating.operator] += 1
                made.append(self._add(mating, recipe, self._name(mating.operator, counts[mating.operator])))
        return made

    def _add(self, mating: Mating, recipe: Recipe, name: str) -> Child:
        child = Child(
            number=len(self.population.children),
            name=name,
            generation=self.generation,
            operator=mating.operator,
            recipe=recipe,
            parents=(mating.first.name, mating.second.name),
            kinship=mating.kinship,
        )
        self._mated.add(_pair(mating.first, mating.second))
        self.population.add(child)
        return child

    def _name(self, operator: Operator, count: int) -> str:
        if operator == "merge":
            return f"g{self.generation}-{count}"
        return f"g{self.generation}-x" + (str(count) if self._config.children_per_mating > 1 else "")

    def _new_recipe(self, mating: Mating) -> Recipe | None:
        """Ask for hyperparameters until they give a model that does not exist yet."""
        for attempt in range(ATTEMPTS):
            method, params = self._proposer.propose(len(self.population.children), attempt)
            base = self._base if method_named(method).uses_base else None
            recipe = Merge(method, (mating.first.recipe, mating.second.recipe), params, base)
            if not self.population.has(recipe):
                return recipe
        return None

    # -- state

    def state_dict(self) -> dict[str, Any]:
        """Return everything that ``load_state_dict`` needs, as JSON."""
        return {
            "generation": self.generation,
            "finished": None if self._stopped else self.finished,
            "top": self._top,
            "bars": {str(generation): bar for generation, bar in self._bars.items()},
            "children": [child_state(child) for child in self.population.children if child.generation > 0],
            "outcomes": {
                child.name: [outcome.score, outcome.error, dict(outcome.tasks), outcome.refused, outcome.stopped]
                for child in self.population.children
                if (outcome := self.population.outcome(child.name))
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the place of the policy that wrote ``state``; only on a fresh policy with the same arguments.

        Raises:
            RunError: when no policy wrote it.
        """
        try:
            self._load(state)
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, AssertionError, RunError) as error:
            raise RunError(
                f"The state of the search is damaged ({type(error).__name__}: {str(error)[:200]}). Remove state.json from the "
                "run folder: the search is then made again from its records."
            ) from error

    def _load(self, state: dict[str, Any]) -> None:
        assert self.generation == 0 and not self._top
        recipes: dict[str, Recipe] = {child.recipe.digest: child.recipe for child in self.population.children}
        for entry in state["children"]:
            child = read_child(entry, recipes, self._base)
            recipes[child.recipe.digest] = child.recipe
            self.population.add(child)
            self._mated.add(frozenset(child.parents))
        self._bars = {int(generation): bar for generation, bar in state["bars"].items()}
        for name, outcome in state["outcomes"].items():
            self.population.tell(name, Outcome(*outcome))
        generations, top = state["generation"], list(state["top"])
        if generations not in range(MAX_DEPTH + 1) or not {child.name for child in self.population.children}.issuperset(top):
            raise ValueError(f"generation {generations!r:.40}, top {top!r:.80}")
        for generation in range(generations):
            self.generation = generation
            self._learn()
        self.generation, self.finished, self._top = generations, state["finished"], top
        self._queue = [child for child in self.population.children if not self.population.outcome(child.name)]


def _pair(a: Child, b: Child) -> frozenset[str]:
    return frozenset((a.name, b.name))
