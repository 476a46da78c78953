"""The space of hyperparameters that a search explores, read from ``merge.methods`` and checked against the methods."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from kinray.config import PerModel, Range
from kinray.core.methods import Method, Parameter, method_named
from kinray.core.parameters import ParamValue
from kinray.errors import ConfigError, RecipeError

PARENTS = 2
"""Parents of a mating."""

Single = bool | float
Free = Range | list[Single]


@dataclass(frozen=True)
class Dimension:
    """One free number of a method: a parameter, or a parameter for one parent.

    Args:
        key: ``t``, or ``weight.0`` for the first parent's.
        free: the range, or the choices.
    """

    key: str
    free: Free


@dataclass(frozen=True)
class MethodSpace:
    """What may be asked of one method: fixed values and free dimensions, by key."""

    method: Method
    fixed: Mapping[str, Single]
    free: tuple[Dimension, ...]

    def params(self, choose: Callable[[Dimension], Single]) -> dict[str, ParamValue]:
        """Make the parameters of a child, asking ``choose`` for each free dimension in order."""
        values = dict(self.fixed) | {dimension.key: choose(dimension) for dimension in self.free}
        params: dict[str, ParamValue] = {}
        for parameter in self.method.parameters:
            if parameter.per_model:
                own = [values.get(f"{parameter.name}.{parent}") for parent in range(PARENTS)]
                if own[0] is not None:
                    params[parameter.name] = tuple(float(value) for value in own if value is not None)
            elif parameter.name in values:
                params[parameter.name] = values[parameter.name]
        return params

    def value(self, params: Mapping[str, ParamValue], dimension: Dimension) -> Single:
        """Read one free dimension back from a child's parameters."""
        name, _, parent = dimension.key.partition(".")
        value = params[name]
        one = value[int(parent)] if isinstance(value, tuple) else value
        assert isinstance(one, bool | float)
        return one


def search_space(methods: Mapping[str, Mapping[str, object]]) -> list[MethodSpace]:
    """Check ``merge.methods`` against the declarations of the methods.

    Raises:
        ConfigError: for an unknown method or parameter, a value or range outside of what a parameter allows, a number of
            per-model values that is not 2, or a method that cannot merge two models.
    """
    return [_method_space(name, specs) for name, specs in methods.items()]


def _method_space(name: str, specs: Mapping[str, object]) -> MethodSpace:
    try:
        method = method_named(name)
        if not method.min_parents <= PARENTS <= method.max_parents:
            raise RecipeError(f"Merge method '{name}' takes {method.takes}, but a mating has {PARENTS} parents. Remove it.")
        fixed: dict[str, Single] = {}
        free: list[Dimension] = []
        for param, spec in specs.items():
            parameter = method.parameter(param)
            for key, one in _spread(method, parameter, spec).items():
                _check(method, parameter, one)
                if isinstance(one, Range | list):
                    free.append(Dimension(key, one))
                else:
                    assert isinstance(one, bool | float)
                    fixed[key] = one
        space = MethodSpace(method, fixed, tuple(free))
        for corner in _corners(space):
            method.resolve(space.params(corner), PARENTS)
    except RecipeError as error:
        raise ConfigError(f"merge.methods: {error}") from error
    return space


def _spread(method: Method, parameter: Parameter, spec: object) -> dict[str, object]:
    """Name the values that a parameter needs: one, or one for each parent."""
    if isinstance(spec, PerModel):
        if not parameter.per_model:
            raise RecipeError(f"Parameter '{parameter.name}' of '{method.name}' has one value for all models.")
        if len(spec.models) != PARENTS:
            raise RecipeError(
                f"Parameter '{parameter.name}' of '{method.name}' has {len(spec.models)} values. "
                f"A mating has {PARENTS} parents: give it {PARENTS}, the higher ranked parent's first."
            )
        return {f"{parameter.name}.{parent}": one for parent, one in enumerate(spec.models)}
    if parameter.per_model:
        return {f"{parameter.name}.{parent}": spec for parent in range(PARENTS)}
    return {parameter.name: spec}


def _check(method: Method, parameter: Parameter, one: object) -> None:
    if isinstance(one, Range):
        if isinstance(parameter.default, bool):
            raise RecipeError(
                f"Parameter '{parameter.name}' of '{method.name}' is true or false. Give it a list of choices, not a range."
            )
        values: list[object] = [one.low, one.high]
    else:
        values = list(one) if isinstance(one, list) else [one]
    for value in values:
        parameter.check(method.name, value)


def _corners(space: MethodSpace) -> Iterator[Callable[[Dimension], Single]]:
    """Yield choices of the extremes of the space: all of them where parameters must go together, else one."""
    ends = [
        [dimension.free.low, dimension.free.high] if isinstance(dimension.free, Range) else dimension.free
        for dimension in space.free
    ]
    for values in product(*(end if space.method.check else end[:1] for end in ends)):
        yield _chooser(dict(zip((dimension.key for dimension in space.free), values, strict=True)))


def _chooser(values: Mapping[str, Single]) -> Callable[[Dimension], Single]:
    return lambda dimension: values[dimension.key]
