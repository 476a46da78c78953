"""The values of a merge's hyperparameters: plain ones, one for each parent, and ones that vary over the tensors of a model."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kinray.errors import RecipeError

MAX_CASES = 64
MAX_KNOTS = 256
MAX_MODELS = 64
FLOAT32_MAX = (2 - 2**-23) * 2.0**127
"""Largest number of the arithmetic that merges are computed in."""

Knots = tuple[float | bool, ...]


@dataclass(frozen=True, slots=True)
class Varied:
    """A hyperparameter that differs from tensor to tensor.

    In each tensor the first case counts whose word is part of the tensor's name; its knots are spread evenly over the
    depth of the model (``kinray.core.layers``) and interpolated linearly.

    Args:
        cases: 1 to 64 pairs of a word, empty for all tensors, and 1 to 256 knots: finite numbers, or one truth value.

    Raises:
        RecipeError: for anything else.
    """

    cases: tuple[tuple[str, Knots], ...]

    def __post_init__(self) -> None:
        if not 1 <= len(self.cases) <= MAX_CASES:
            raise RecipeError(f"it has {len(self.cases)} cases. Give it between 1 and {MAX_CASES}.")
        object.__setattr__(self, "cases", tuple((word, _knots(knots)) for word, knots in self.cases))

    @property
    def values(self) -> Iterator[float | bool]:
        """All knots of all cases."""
        return (knot for _, knots in self.cases for knot in knots)

    def at(self, name: str, depth: float) -> float | bool | None:
        """Return the value in a tensor at a depth from 0 to 1; None where no case fits, so the parameter's default."""
        for word, knots in self.cases:
            if word in name:
                place = depth * (len(knots) - 1)
                left = int(place)
                here, following = knots[left], knots[min(left + 1, len(knots) - 1)]
                if here == following:
                    return here
                between = here + (place - left) * (following - here)
                return sorted((here, between, following))[1]  # rounding must not lead out of a parameter's range
        return None

    def as_json(self) -> dict[str, Any]:
        """Describe it in plain values: ``{"cases": [{"filter": "attn", "value": [0.0, 0.5]}, {"value": [1.0]}]}``."""
        return {"cases": [({"filter": word} if word else {}) | {"value": list(knots)} for word, knots in self.cases]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Varied":
        """Read back what ``as_json`` wrote, or raise RecipeError."""
        cases = value.get("cases")
        if set(value) != {"cases"} or not isinstance(cases, list):
            raise RecipeError(f"it holds {dict(value)!r:.80}. A value that varies is written {{'cases': [...]}}.")
        for case in cases:
            if (
                not isinstance(case, Mapping)
                or set(case) - {"filter"} != {"value"}
                or not isinstance(case.get("filter", ""), str)
                or not isinstance(case["value"], list)
            ):
                raise RecipeError(f"a case is {case!r:.80}. It must be written {{'filter': WORD, 'value': [KNOTS]}}.")
        return cls(tuple((case.get("filter", ""), tuple(case["value"])) for case in cases))


ParamValue = bool | float | str | Varied | tuple[float | Varied, ...]
"""A hyperparameter of a merge: one value for all tensors or a varied one, or such a number for each parent."""


def is_finite_number(value: Any) -> bool:
    """Tell whether ``value`` is a number that a float can hold: no truth value, no NaN, no infinity, no huge integer."""
    limit = sys.float_info.max
    return isinstance(value, int | float) and not isinstance(value, bool) and -limit <= value <= limit


def freeze(where: str, value: Any) -> ParamValue:
    """Make an immutable value of what was given or read: numbers become floats, lists tuples, mappings varied values.

    Raises:
        RecipeError: which begins with ``where``, for what is none of them.
    """
    if isinstance(value, bool | str):
        return value
    if isinstance(value, Sequence):
        if len(value) > MAX_MODELS:
            raise RecipeError(f"{where} holds {len(value)} values. Give it at most {MAX_MODELS}, one for each parent.")
        return tuple(_number(where, entry) for entry in value)
    return _number(where, value)


def as_json(params: Mapping[str, ParamValue]) -> dict[str, Any]:
    """Describe hyperparameters in plain values that ``freeze`` turns back."""
    return {name: _plain(value) for name, value in params.items()}


def _plain(value: ParamValue) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value.as_json() if isinstance(value, Varied) else value


def _number(where: str, value: Any) -> float | Varied:
    if isinstance(value, Varied):
        return value
    if isinstance(value, Mapping):
        try:
            return Varied.from_json(value)
        except RecipeError as error:
            raise RecipeError(f"{where} is not readable: {error}") from error
    if not is_finite_number(value):
        raise RecipeError(f"{where} holds {value!r:.80}. It must be a finite number.")
    return float(value)


def _knots(knots: Sequence[Any]) -> Knots:
    if not 1 <= len(knots) <= MAX_KNOTS:
        raise RecipeError(f"a case has {len(knots)} knots. Give it between 1 and {MAX_KNOTS}.")
    if len(knots) == 1 and isinstance(knots[0], bool):
        return (knots[0],)
    for knot in knots:
        if not is_finite_number(knot):
            raise RecipeError(f"a knot is {knot!r:.80}. Knots must be finite numbers, or one truth value.")
    return tuple(float(knot) for knot in knots)
