"""The space of hyperparameters that a search explores, read from ``merge.methods`` and checked against the methods."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from kinray.config import Filters, LayeredRange, Layers, PerModel, Range
from kinray.core.filters import FILTERS, words_in
from kinray.core.methods import Method, Parameter, method_named
from kinray.core.parameters import ParamValue, Varied
from kinray.errors import ConfigError, RecipeError
from kinray.search.dimensions import Dimension, Number, Setting, Single, Words
from kinray.search.together import check_together

PARENTS = 2
"""Parents of a mating."""

MAX_DIMENSIONS = 512
"""Open numbers of one method; a search of some hundred children learns nothing of more."""


@dataclass(frozen=True)
class MethodSpace:
    """What may be asked of one method.

    Args:
        method: the method.
        settings: what is said of its parameters, one or two for each that is named.
        words: which tensors a filter means.
    """

    method: Method
    settings: tuple[Setting, ...]
    words: Words = field(default_factory=lambda: FILTERS)

    @property
    def free(self) -> tuple[Dimension, ...]:
        """All open numbers, in the order in which ``params`` asks for them."""
        return tuple(dimension for setting in self.settings for dimension in setting.free)

    def params(self, choose: Callable[[Dimension], Single]) -> dict[str, ParamValue]:
        """Make the parameters of a child, asking ``choose`` for each open number in order."""
        params: dict[str, ParamValue] = {}
        for setting in self.settings:
            value = setting.value(choose, self.words)
            if setting.parent is None:
                params[setting.parameter] = value
            else:
                earlier = params.get(setting.parameter, ())
                assert isinstance(earlier, tuple)
                params[setting.parameter] = (*earlier, value if isinstance(value, Varied) else float(value))
        return params

    def value(self, params: Mapping[str, ParamValue], dimension: Dimension) -> Single:
        """Read one open number back from a child's parameters."""
        return dimension.read(params)

    def fitted(self, names: Iterable[str]) -> "MethodSpace":
        """Return the space for a model with tensors of these names: its filters keep the words that such a name has.

        Raises:
            ConfigError: for a filter that fits no tensor, so that its numbers would be without effect.
        """
        words = words_in(names)
        for setting in self.settings:
            for name in setting.knots:
                if not words[name or "rest"]:
                    looked_for = ", ".join(f"'{word}'" for word in FILTERS[name])
                    raise ConfigError(
                        f"merge.methods: Parameter '{setting.parameter}' of '{self.method.name}' has a value for '{name}', but "
                        f"no tensor of the base is such: none has {looked_for} in its name. Remove it, or give 'rest' a value."
                    )
        return replace(self, words=words)


def search_space(methods: Mapping[str, Mapping[str, object]]) -> list[MethodSpace]:
    """Check ``merge.methods`` against the declarations of the methods.

    Raises:
        ConfigError: for an unknown method or parameter, a value or range outside of what a parameter allows, values that
            do not go together, a number of per-model values that is not 2, layers of a switch, more than 512 open numbers,
            or a method that cannot merge two models.
    """
    return [_method_space(name, specs) for name, specs in methods.items()]


def _method_space(name: str, specs: Mapping[str, object]) -> MethodSpace:
    try:
        method = method_named(name)
        if not method.min_parents <= PARENTS <= method.max_parents:
            raise RecipeError(f"Merge method '{name}' takes {method.takes}, but a mating has {PARENTS} parents. Remove it.")
        settings = [one for param, spec in specs.items() for one in _settings(method, method.parameter(param), spec)]
        space = MethodSpace(method, tuple(settings))
        if len(space.free) > MAX_DIMENSIONS:
            raise RecipeError(
                f"Merge method '{name}' has {len(space.free)} open numbers, at most {MAX_DIMENSIONS} can be searched. "
                "Give its ranges fewer layers."
            )
        check_together(method, settings, PARENTS)
    except RecipeError as error:
        raise ConfigError(f"merge.methods: {error}") from error
    return space


def _settings(method: Method, parameter: Parameter, spec: object) -> list[Setting]:
    """Read the values that a parameter needs: one, or one for each parent."""
    own: list[object]
    if isinstance(spec, PerModel):
        if not parameter.per_model:
            raise RecipeError(f"Parameter '{parameter.name}' of '{method.name}' has one value for all models.")
        if len(spec.models) != PARENTS:
            raise RecipeError(
                f"Parameter '{parameter.name}' of '{method.name}' has {len(spec.models)} values. "
                f"A mating has {PARENTS} parents: give it {PARENTS}, the higher ranked parent's first."
            )
        own = spec.models
    else:
        own = [spec] * (PARENTS if parameter.per_model else 1)
    return [
        Setting(parameter.name, parent if parameter.per_model else None, _knots(method, parameter, one))
        for parent, one in enumerate(own)
    ]


def _knots(method: Method, parameter: Parameter, spec: object) -> dict[str, tuple[Number, ...]]:
    """Read the numbers of one value, by filter."""
    filters = spec.given if isinstance(spec, Filters) else {"": spec}
    knots = {name: _over_layers(one) for name, one in filters.items()}
    for row in knots.values():
        if len(row) > 1 and isinstance(parameter.default, bool):
            raise RecipeError(
                f"Parameter '{parameter.name}' of '{method.name}' is true or false, so it cannot change over layers. "
                "Give it one value or a list of choices."
            )
        for number in row:
            _check(method, parameter, number)
    return knots


def _over_layers(spec: object) -> tuple[Number, ...]:
    if isinstance(spec, Layers):
        return tuple(spec.layers)
    if isinstance(spec, LayeredRange):
        return (Range(low=spec.low, high=spec.high, log=spec.log),) * spec.layers
    assert isinstance(spec, bool | float | Range | list)
    return (spec,)


def _check(method: Method, parameter: Parameter, number: Number) -> None:
    if isinstance(number, Range):
        if isinstance(parameter.default, bool):
            raise RecipeError(
                f"Parameter '{parameter.name}' of '{method.name}' is true or false. Give it a list of choices, not a range."
            )
        values: list[object] = [number.low, number.high]
    else:
        values = list(number) if isinstance(number, list) else [number]
    for value in values:
        parameter.check(method.name, value)
