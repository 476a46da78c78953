"""The final comparison: founders, plain average and best, on the search's items and on items it never saw."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from kinray.core.scores import Difference, Scored, difference


@dataclass(frozen=True)
class Entry:
    """One model of the comparison.

    Args:
        name: of the model.
        kind: base, founder, average or best.
        search: scores on the items that the search chose by.
        holdout: scores on the items that it never saw; None without a holdout.
        error: why it has no scores, if it failed.
    """

    name: str
    kind: str
    search: Scored | None
    holdout: Scored | None
    error: str | None = None


def indistinguishable(best: Scored, others: Iterable[tuple[str, Scored]]) -> list[str]:
    """Name the models that the best one is not clearly better than, item by item."""
    return [name for name, other in others if not difference(best, other).clear]


@dataclass(frozen=True)
class Leaderboard:
    """All models of the comparison.

    Args:
        entries: base, founders, average, best.
        best: name of the best one, which may be a founder.
        gain: its merge gain on the search's items; None for a founder.
        alike: models of the search that are indistinguishable from it on the search's items.
        front: scores of the models that no other one dominates, on the search's items; none unless the objective is ``pareto``.
        refused: children that broke a floor.
        stopped: children that were not asked all items.
    """

    entries: list[Entry]
    best: str
    gain: Difference | None
    alike: Sequence[str] = ()
    front: Mapping[str, Scored] = field(default_factory=dict)
    refused: Sequence[str] = ()
    stopped: Sequence[str] = ()

    def __getitem__(self, name: str) -> Entry:
        return next(entry for entry in self.entries if entry.name == name)

    def judged(self, entry: Entry) -> Scored | None:
        """Return the scores that count: held out where there are any."""
        return entry.holdout or (entry.search if not any(other.holdout for other in self.entries) else None)

    def lead(self, entry: Entry) -> Difference | None:
        """Return by how much the best beats a model, paired on the items that count; None for itself."""
        ours, theirs = self.judged(self[self.best]), self.judged(entry)
        if entry.name == self.best or ours is None or theirs is None:
            return None
        return difference(ours, theirs)

    def leads(self) -> Iterator[tuple[Entry, Difference]]:
        """List the best's lead over each other model that was scored."""
        for entry in self.entries:
            if (lead := self.lead(entry)) is not None:
                yield entry, lead

    @property
    def optimism(self) -> float | None:
        """The best's search score minus its held-out score: what choosing by the search's items added.

        None without a holdout, and where it is of other tasks.
        """
        entry = self[self.best]
        if not entry.search or not entry.holdout or entry.search.tasks.keys() != entry.holdout.tasks.keys():
            return None
        return entry.search.score - entry.holdout.score
