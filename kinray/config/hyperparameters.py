"""What may be written for one hyperparameter of a merge method.

From the inside out: a value, a range or a list of choices; one of these for each of several layers; one of all these for each
filter; one of all these for each parent.

    t: 0.5
    t: {low: 0.2, high: 0.8}                                        # {low, high, log}
    t: [0.3, 0.5]                                                   # choices
    t: {low: 0.2, high: 0.8, layers: 4}                             # four knots, each a number of its own
    t: {layers: [0.2, {low: 0.4, high: 0.6}, 0.8]}                  # knots given one by one
    t: {attention: {low: 0, high: 1, layers: 4}, mlp: 0.3, rest: 0.5}
    weight: {models: [1, {attention: {low: 0, high: 1}}]}
"""

import sys
from typing import Annotated, Any, Self

from pydantic import Field, PlainValidator, model_serializer, model_validator

from kinray.config.section import Section
from kinray.errors import did_you_mean

MAX_LAYERS = 256
_EXPECTED = (
    "expected a number, true or false, a range {low, high, log, layers}, a list of choices, {attention, mlp, rest}, "
    "{layers: [one for each knot]} or {models: [one for each parent]}"
)


class Range(Section):
    """A range of numbers that the search explores."""

    low: float
    """Smallest value."""
    high: float
    """Largest value."""
    log: bool = False
    """Whether to explore it on a logarithmic scale."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError(f"range from {self.low:g} to {self.high:g}: low must be below high")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must start above 0, not at {self.low:g}")
        return self


class LayeredRange(Range):
    """A range that the search explores at each of several knots, spread evenly from the first layer to the last."""

    layers: int = Field(ge=2, le=MAX_LAYERS)
    """Number of knots; layers between two knots have interpolated values."""


class Layers(Section):
    """A value, range or choices of its own for each knot, from the first layer to the last."""

    layers: "list[Knot]" = Field(min_length=2, max_length=MAX_LAYERS)


class Filters(Section):
    """A value, range or choices for some of the tensors; with layers if need be. The default counts where none fits."""

    attention: "ForTensors" = None
    """For the weights of attention blocks (``kinray.core.filters``)."""
    mlp: "ForTensors" = None
    """For those of feed-forward blocks and experts."""
    rest: "ForTensors" = None
    """For all other tensors."""

    @property
    def given(self) -> dict[str, Any]:
        """Those that are given, by name."""
        return {name: value for name in Filters.model_fields if (value := getattr(self, name)) is not None}

    @model_serializer
    def _only_given(self) -> dict[str, Any]:
        return self.given


class PerModel(Section):
    """Anything of the above for each parent, the higher ranked parent first."""

    models: "list[ForModel]" = Field(min_length=1)


_FORMS: tuple[type[Section], ...] = (Range, LayeredRange, Layers, Filters, PerModel)
FORM_KEYS = sorted({key for form in _FORMS for key in form.model_fields})
"""All keys that may stand below a hyperparameter."""


def _one_of(*allowed: type[Section]) -> PlainValidator:
    """Read a number, a truth value, choices, or one of the forms allowed here.

    One branch is chosen by the keys, so that errors are about it alone.
    """

    def read(value: Any) -> Any:
        if type(value) in (bool, *allowed):
            return value
        if isinstance(value, int | float):
            if not abs(value) <= sys.float_info.max:  # also for integers that no float can hold
                raise ValueError("a number must be finite")
            return float(value)
        if isinstance(value, dict):
            form = _form_of(value)
            if form not in allowed:
                raise ValueError("models stand outermost, then filters (attention, mlp, rest), then layers")
            return form.model_validate(value)
        if isinstance(value, list) and value and all(isinstance(entry, bool | int | float) for entry in value):
            return [read(entry) for entry in value]
        raise ValueError(_EXPECTED)

    return PlainValidator(read)


def _form_of(value: dict[Any, Any]) -> type[Section]:
    known = [key for key in FORM_KEYS if key in value]
    if value and not known:
        first = str(next(iter(value)))
        raise ValueError(f"there is no '{first[:80]}'.{did_you_mean(first, FORM_KEYS)}".rstrip("."))
    if "models" in value:
        form: type[Section] = PerModel
    elif any(key in value for key in Filters.model_fields):
        form = Filters
    elif "layers" in value:
        form = Layers if set(known) == {"layers"} and isinstance(value["layers"], list) else LayeredRange
    else:
        form = Range
    own = [key for key in known if key in form.model_fields]
    if foreign := [key for key in known if key not in own]:
        raise ValueError(f"'{foreign[0]}' does not stand beside '{own[0]}', but within it")
    return form


# Any, since pydantic would serialise a union by trying all of its branches.
Knot = Annotated[Any, _one_of(Range)]
ForTensors = Annotated[Any, _one_of(Range, LayeredRange, Layers)]
ForModel = Annotated[Any, _one_of(Range, LayeredRange, Layers, Filters)]
ParamSpec = Annotated[Any, _one_of(*_FORMS)]
"""A hyperparameter in any of its forms."""
