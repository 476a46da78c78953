"""One value of a merge method: the numbers that it is put together of, and which of them are open."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from kinray.config import Range
from kinray.core.filters import FILTERS
from kinray.core.parameters import Knots, ParamValue, Varied

Single = bool | float
Free = Range | list[Single]
Number = Single | Free
"""Given, or open."""

Words = Mapping[str, tuple[str, ...]]
"""Words of tensor names for each filter, ``kinray.core.filters``."""


@dataclass(frozen=True)
class Dimension:
    """One open number of a method.

    Args:
        parameter: its name.
        parent: whose value it belongs to; None when all parents have one.
        filter: ``attention``, ``mlp`` or ``rest``; empty without filters.
        knot: its place from the first layer on; None when depth plays no part.
        free: the range, or the choices.
    """

    parameter: str
    parent: int | None
    filter: str
    knot: int | None
    free: Free

    @property
    def key(self) -> str:
        """Name it: ``t``, ``weight.0`` for the first parent's, ``t.2`` for the third knot, ``weight.0.mlp.2`` for all of it."""
        parts = (self.parameter, self.parent, self.filter or None, self.knot)
        return ".".join(str(part) for part in parts if part is not None)

    def read(self, params: Mapping[str, ParamValue]) -> Single:
        """Read it from the parameters of a child."""
        value = params[self.parameter]
        one = value[self.parent or 0] if isinstance(value, tuple) else value
        if isinstance(one, Varied):
            words = FILTERS[self.filter or "rest"]
            one = next(knots for word, knots in one.cases if word in words)[self.knot or 0]
        assert isinstance(one, bool | float)
        return one


@dataclass(frozen=True)
class Setting:
    """What a configuration says of a parameter, for one parent or for all.

    Args:
        parameter: its name.
        parent: whose value it is; None when all parents have one.
        knots: for each filter that is given the numbers from the first layer to the last, or one for all depths; the only
            filter is the empty one when all tensors are alike.
    """

    parameter: str
    parent: int | None
    knots: Mapping[str, tuple[Number, ...]]

    @property
    def free(self) -> Iterator[Dimension]:
        """What is open in it, in the order in which ``value`` asks."""
        return (number for _, number in self._numbers() if isinstance(number, Dimension))

    def value(self, choose: Callable[[Dimension], Single], words: Words) -> Single | Varied:
        """Put the value together, asking for each open number in order."""
        made: dict[str, Knots] = dict.fromkeys(self.knots, ())
        for name, number in self._numbers():
            made[name] += (choose(number) if isinstance(number, Dimension) else number,)
        if "" in made and len(made[""]) == 1:
            return made[""][0]
        return Varied(tuple((word, knots) for name, knots in made.items() for word in words[name or "rest"]))

    def _numbers(self) -> Iterator[tuple[str, Single | Dimension]]:
        for name, numbers in self.knots.items():
            for knot, number in enumerate(numbers):
                if isinstance(number, Range | list):
                    yield name, Dimension(self.parameter, self.parent, name, knot if len(numbers) > 1 else None, number)
                else:
                    yield name, number
