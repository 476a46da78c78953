"""Plan log-likelihood requests: which share a row, which rows share a prefix, which rows go through the model together.

The requests of a question make a tree of tokens: they share the tokens in which they begin alike, and part where they differ.
A row is one tree or several short ones. Tokens stand in the order of a walk down the trees, so the tokens that continue a
token are those between its own place and its ``end``: token k is seen by token q exactly when k <= q < end[k]. Nothing here
knows weights, a model or torch, and the same requests always give the same plan.
"""

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

PREFIX = 32
"""Tokens that trees of one family must at least share for their prefix to be computed apart, once for all of them; it must
also save four times as many, since it takes a pass of its own."""

WIDTH = 128
"""Tokens up to which short trees are put into one row: less padding, at little more attention."""


@dataclass(frozen=True)
class Request:
    """A continuation whose log-likelihood is asked for.

    Args:
        tokens: what the model reads: context and continuation, without the last token.
        targets: the continuation; predicted at the last ``len(targets)`` tokens.
        question: requests of one question may share a row.
        family: rows of one family (a task) may share a prefix.
        pack: only requests of one pack go through the model together; those of a question are in one.
    """

    tokens: tuple[int, ...]
    targets: tuple[int, ...]
    question: Hashable
    family: Hashable
    pack: int = 0


@dataclass
class Row:
    """Trees of tokens behind a prefix.

    Args:
        tokens: of the trees, without the prefix.
        positions: of each token in its request; the prefix has the positions before them.
        ends: for each token the place after the last one that continues it.
        scored: ``(place, target, request)``: where to read the probability of which token, and for which request.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    scored: list[tuple[int, int, int]] = field(default_factory=list)

    def stem(self) -> list[int]:
        """Return the tokens of a tree that all of its requests read, before the first that is scored."""
        first = min(place for place, _, _ in self.scored)
        alone = takewhile(lambda place: self.ends[place] == len(self.tokens), range(first))
        return [self.tokens[place] for place in alone]

    def without(self, length: int) -> "Row":
        """Leave out the first tokens of the stem."""
        return Row(
            self.tokens[length:],
            self.positions[length:],
            [end - length for end in self.ends[length:]],
            [(place - length, target, request) for place, target, request in self.scored],
        )

    def append(self, tree: "Row") -> None:
        """Put another tree behind those of this row."""
        start = len(self.tokens)
        self.tokens += tree.tokens
        self.positions += tree.positions
        self.ends += [start + end for end in tree.ends]
        self.scored += [(start + place, target, request) for place, target, request in tree.scored]


@dataclass(frozen=True)
class Batch:
    """Rows that go through the model together.

    Args:
        prefix: tokens before each of the rows, whose computation they share.
        rows: longest first.
        pack: of their requests.
    """

    prefix: tuple[int, ...]
    rows: tuple[Row, ...]
    pack: int = 0


@dataclass(frozen=True)
class Plan:
    """How requests are computed.

    Args:
        batches: those of one pack follow each other, in the order of packs; in a pack, those of one prefix.
        plain: numbers of the requests that are too long to share anything.
    """

    batches: tuple[Batch, ...]
    plain: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Count the tokens that go through the model, with what rows are padded by and each prefix once."""
        prefixes = {batch.prefix for batch in self.batches}
        return sum(map(len, prefixes)) + sum(len(batch.rows) * len(batch.rows[0].tokens) for batch in self.batches)


def request_of(
    context: Sequence[int], continuation: Sequence[int], longest: int, question: Hashable, family: Hashable, pack: int = 0
) -> Request:
    """Cut a context and its continuation from the left to the longest input, as lm-eval does."""
    whole = tuple(context) + tuple(continuation)
    return Request(whole[-(longest + 1) : -1], tuple(continuation), question, family, pack)


def plan(requests: Sequence[Request], budget: int, reach: int | None = None, prefix: int | None = PREFIX) -> Plan:
    """Plan requests; each is computed exactly once.

    Args:
        requests: in any order; the plan names them by number.
        budget: tokens in one forward pass, padding included. A single row may be longer.
        reach: longest request in tokens that may share; None for any.
        prefix: shortest prefix that is computed apart; None for never.
    """
    near = [number for number, request in enumerate(requests) if reach is None or len(request.tokens) <= reach]
    plain = tuple(sorted(set(range(len(requests))) - set(near)))
    questions: dict[Hashable, list[int]] = defaultdict(list)
    for number in near:
        questions[requests[number].question].append(number)
    families: dict[Hashable, list[Row]] = defaultdict(list)
    for members in questions.values():
        for tree in _trees(requests, members, budget):
            families[requests[tree.scored[0][2]].family].append(tree)
    together: dict[tuple[int, tuple[int, ...]], list[Row]] = defaultdict(list)
    for trees in families.values():
        for shared, group in [((), trees)] if prefix is None else _by_prefix(trees, prefix):
            for tree in group:  # those without a prefix, of whatever family, fill rows and batches together
                together[requests[tree.scored[0][2]].pack, shared].append(tree)
    # In a pack those without a prefix come last.
    groups = sorted(together.items(), key=lambda group: (group[0][0], not group[0][1]))
    return Plan(tuple(batch for (pack, shared), trees in groups for batch in _batches(pack, shared, trees, budget)), plain)


def _trees(requests: Sequence[Request], members: Iterable[int], budget: int) -> Iterator[Row]:
    """Make trees of the requests of one question: one for all that begin alike and fit into the budget."""
    tree, path, before = Row(), list[int](), tuple[int, ...]()
    # In sorted order each request parts from its predecessor where it parts from all before.
    for number in sorted(members, key=lambda number: (requests[number].tokens, number)):
        request = requests[number]
        shared = _agreement(before, request.tokens)
        if tree.tokens and (not shared or len(tree.tokens) + len(request.tokens) - shared > budget):
            yield _closed(tree, path)
            tree, path, shared = Row(), [], 0
        for place in path[shared:]:
            tree.ends[place] = len(tree.tokens)
        del path[shared:]
        for position in range(shared, len(request.tokens)):
            path.append(len(tree.tokens))
            tree.tokens.append(request.tokens[position])
            tree.positions.append(position)
            tree.ends.append(-1)
        places = path[len(path) - len(request.targets) :]
        tree.scored.extend((place, target, number) for place, target in zip(places, request.targets, strict=True))
        before = request.tokens
    yield _closed(tree, path)


def _closed(tree: Row, path: Sequence[int]) -> Row:
    for place in path:
        tree.ends[place] = len(tree.tokens)
    return tree


def _agreement(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the tokens in which two sequences begin alike."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _by_prefix(trees: Sequence[Row], least: int) -> Iterator[tuple[tuple[int, ...], list[Row]]]:
    """Group the trees of a family by a prefix that several of them share; the others come with an empty one."""
    stems: dict[tuple[int, ...], list[Row]] = defaultdict(list)
    alone = []
    for tree in trees:
        stem = tree.stem()
        if len(stem) < least:
            alone.append(tree)
        else:
            stems[tuple(stem[:least])].append(tree)
    for group in stems.values():
        # What the first and the last of them in sorted order share, all share.
        ordered = sorted(tree.stem() for tree in group)
        length = _agreement(ordered[0], ordered[-1])
        if (len(group) - 1) * length < 4 * least:
            alone += group
            continue
        yield tuple(ordered[0][:length]), [tree.without(length) for tree in group]
    if alone:
        yield (), alone


def _batches(pack: int, prefix: tuple[int, ...], trees: Sequence[Row], budget: int) -> Iterator[Batch]:
    """Fill rows with trees, and batches with rows of about one length."""
    rows = sorted(_filled(trees), key=lambda row: (-len(row.tokens), row.scored[0][2]))
    start = 0
    while start < len(rows):
        count = max(1, budget // len(rows[start].tokens))
        yield Batch(prefix, tuple(rows[start : start + count]), pack)
        start += count


def _filled(trees: Sequence[Row]) -> Iterator[Row]:
    """Put short trees together: behind the longest that is left the shortest ones that fit."""
    left = deque(sorted(trees, key=lambda tree: (-len(tree.tokens), tree.scored[0][2])))
    while left:
        row = left.popleft()
        while left and len(row.tokens) + len(left[-1].tokens) <= WIDTH:
            row.append(left.pop())
        yield row
