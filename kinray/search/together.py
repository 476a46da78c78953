"""Whether parameters that a method checks together go together everywhere in a search space.

DELLA, for one, wants density ± epsilon inside 0 to 1. Trying all extremes of all open numbers would take 2^16 checks for two
parents with four knots of each. But such a check relates the numbers of one parent in one tensor, so it is made for one parent,
one filter and one depth at a time; and since knots are interpolated linearly, the depths of the knots stand for those between.

This is exact where the bounds of a check are linear in the numbers. The ends of a parameter may be exempt, as are densities of
0 and 1 in DELLA: what lies just beside an end, and at a depth just beside a knot, is tried too. Every depth counts, whether or
not a model has a layer there.
"""

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from itertools import product
from math import nextafter
from typing import Any

from kinray.config import Range
from kinray.core.filters import FILTERS
from kinray.core.methods import Method
from kinray.core.parameters import ParamValue
from kinray.search.dimensions import Number, Setting, Single

_BESIDE = Fraction(1, 1 << 30)
"""Depth between a knot and what counts as just beside it."""


class _Watched(dict[str, Any]):
    """Notes which parameters a check looks at."""

    def __init__(self, params: Mapping[str, ParamValue]) -> None:
        super().__init__(params)
        self.seen: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.seen.add(name)
        return super().__getitem__(name)


def check_together(method: Method, settings: Sequence[Setting], parents: int) -> None:
    """Raise RecipeError unless all values that the settings allow pass the method's check, at any depth of a model."""
    if method.check is None:
        return
    defaults = _Watched(method.resolve({}, parents))
    method.check(defaults)
    tried: list[dict[str, tuple[Number, ...]]] = []
    for parent, name in product(range(parents), FILTERS):
        own = [one for one in settings if one.parameter in defaults.seen and one.parent in (None, parent)]
        knots = {setting.parameter: _knots_in(setting, name, method) for setting in own}
        if knots not in tried:
            tried.append(knots)
            _check_knots(method, knots, defaults)


def _check_knots(method: Method, knots: Mapping[str, Sequence[Number]], defaults: Mapping[str, ParamValue]) -> None:
    """Make the check with all parents alike, at every depth where a parameter changes its course."""
    assert method.check is not None
    counts = [len(value) if isinstance(value := defaults[name], tuple) else None for name in knots]
    for depth in _depths(knots.values()):
        for values in product(*(sorted(_extremes(row, depth)) for row in knots.values())):
            spread = (value if count is None else (value,) * count for value, count in zip(values, counts, strict=True))
            method.check({**defaults, **dict(zip(knots, spread, strict=True))})


def _knots_in(setting: Setting, name: str, method: Method) -> tuple[Number, ...]:
    """Return the numbers that count in the tensors of a filter."""
    for case in (name, "rest", ""):
        if case in setting.knots:
            return setting.knots[case]
    return (method.parameter(setting.parameter).default,)


def _depths(rows: Iterable[Sequence[Number]]) -> list[Fraction]:
    """List the depths from 0 to 1 of all knots, and those just beside them."""
    knots = {Fraction(knot, max(len(row) - 1, 1)) for row in rows for knot in range(len(row))} | {Fraction(0)}
    beside = {depth + step for depth in knots for step in (-_BESIDE, _BESIDE)}
    return sorted(depth for depth in knots | beside if 0 <= depth <= 1)


def _extremes(knots: Sequence[Number], depth: Fraction) -> set[Single]:
    """List the values that a parameter may have at a depth, as far as they are extremes or next to one."""
    place = depth * (len(knots) - 1)
    left, share = int(place), float(place % 1)
    here = _points(knots[left])
    return {one + share * (other - one) for one in here for other in _points(knots[left + 1])} if share else here


def _points(number: Number) -> set[Single]:
    if isinstance(number, Range):
        return {number.low, number.high, nextafter(number.low, number.high), nextafter(number.high, number.low)}
    if isinstance(number, list):
        return {*sorted(number)[:2], *sorted(number)[-2:]}
    return {number}
