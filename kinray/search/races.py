"""The races of a search: each generation's children against S as it stood when the generation began."""

from collections.abc import Callable

from kinray.core.scores import Scored, Stopped
from kinray.search.policy import TopK
from kinray.search.racing import Order, Race, can_race, level, rounds

_KNOWN = 16
"""Models besides S that help to guess, the newest ones: many would take long to learn from."""


class Races:
    """Judges children of the policy's present generation in rounds.

    Contract: it holds nothing but what the policy and the records say, so the same partial scores give the same verdict,
    before a restart and after it.

    Args:
        policy: the search, whose ``racing`` is on.
        order: in which all models are asked.
        pack: items that are asked together.
        error_rate: of the whole search.
        kept: gives the scores of a model that was asked everything.
    """

    def __init__(self, policy: TopK, order: Order, pack: int, error_rate: float, kept: Callable[[str], Scored | None]) -> None:
        self._ends = rounds(len(order), pack)
        self._policy, self._order, self._error_rate, self._kept = policy, order, error_rate, kept
        self._levels: dict[int, float] = {}
        self._race: tuple[int, Race | None] = (0, None)
        self._labels: dict[str, tuple[str, ...]] = {}

    def on(self) -> bool:
        """Tell whether the present generation is raced."""
        return self._present() is not None

    def verdict(self, partial: Scored) -> Stopped | None:
        """Say whether a child of the present generation stops, with the estimate of its score; None while it goes on.

        Args:
            partial: what it scored on the first items of the order.
        """
        race = self._present()
        if race is None or partial.items == len(self._order):
            return None
        value = {
            (name, item): own for name, task in partial.tasks.items() for item, own in zip(task.items, task.values, strict=True)
        }
        asked = self._order.items[: partial.items]
        verdict = race.look([value[task, self._labels[task][place]] for task, place in asked], self._level())
        return Stopped(partial, len(self._order), verdict.estimate, verdict.error) if verdict.stop else None

    def _present(self) -> Race | None:
        generation = self._policy.generation
        if self._race[0] != generation:
            self._race = generation, self._race_of(generation)
        return self._race[1]

    def _race_of(self, generation: int) -> Race | None:
        if self._policy.bar(generation) is None:
            return None
        names = [child.name for child in self._policy.rivals]
        earlier = (child for child in self._policy.entrants() if child.generation < generation)
        others = [child.name for child in earlier if child.name not in names]
        top, known = ([self._kept(name) for name in some] for some in (names, others[-_KNOWN:]))
        models = [one for one in (*top, *known) if one is not None]
        if len(models) < len(top) + len(known) or not all(map(can_race, models)):
            return None
        self._labels = {name: task.items for name, task in models[0].tasks.items()}
        return Race(models[: len(top)], self._order, models[len(top) :], self._ends)

    def _level(self) -> float:
        """Return the level of the present generation's children, from what earlier ones spent."""
        policy = self._policy
        for generation in range(len(self._levels) + 1, policy.generation + 1):
            children = policy.children_in(generation)
            spent = [self._levels[child.generation] for child in policy.entrants() if 0 < child.generation < generation]
            self._levels[generation] = (
                level(self._error_rate, spent, len(children)) if policy.bar(generation) is not None else 0
            )
        return self._levels[policy.generation]
