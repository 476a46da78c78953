"""Which models are parents, and which value each hyperparameter has: mergekit's levels, gradients and filters."""

from collections.abc import Mapping, Sequence
from typing import Any

from kinray.core.methods import Method, Parameter
from kinray.core.parameters import Knots, ParamValue, Varied
from kinray.core.recipe import is_finite_number
from kinray.errors import ConfigError, RecipeError
from kinray.merge.document import Parameters

EVERYWHERE = "*"
_WITHOUT_EFFECT = "int8_mask"
"""mergekit stores masks in fewer bytes with it; the result is the same. Recipes have it with methods without masks, too."""


def parents_of(method: Method, base: str | None, models: dict[str, Parameters]) -> dict[str, Parameters]:
    """Return the parents of a merge in their order, with their own parameters, as mergekit chooses them.

    Raises:
        ConfigError: when a base is needed and missing, or given and without a part.
    """
    if method.uses_base and base is None:
        raise ConfigError(f"Merge method '{method.name}' merges changes of a base. Add base_model.")
    if method.first_is_base:
        if base is None:
            raise ConfigError(f"Merge method '{method.name}' starts from one of its models. Name it as base_model.")
        return {base: models.get(base, {})} | models
    if base is None or not method.against_base(True):
        if base is not None and base not in models:
            raise ConfigError(
                f"base_model '{base}' is not among the models, and '{method.name}' has no other part for it. "
                "Add it to the models, or remove base_model."
            )
        return models
    return {name: parameters for name, parameters in models.items() if name != base}


def params_of(method: Method, shared: Sequence[Parameters], own: Sequence[Parameters]) -> dict[str, ParamValue]:
    """Collect the parameters of a merge.

    A value is looked for in the innermost level first. Where its filters fit no tensor's name, the next level counts, then the
    default.

    Args:
        method: of the merge.
        shared: parameters of all models, the innermost level first: the slice's, then the merge's.
        own: parameters of each parent.

    Returns:
        values by name, only of those that are given; of per-model ones a tuple with a value for each parent where they differ.

    Raises:
        RecipeError: for an unknown parameter, one at a wrong level, or a value of no known form.
    """
    for level in shared:
        for name in _given(level):
            method.parameter(name)
    for level in own:
        for name in _given(level):
            if not method.parameter(name).per_model:
                raise RecipeError(
                    f"Parameter '{name}' of '{method.name}' has one value for all models. Move it from the model to the "
                    "'parameters' of the merge."
                )
    params: dict[str, ParamValue] = {}
    for parameter in method.parameters:
        if parameter.per_model:
            values = [_value(parameter, [level, *shared]) for level in own]
            if any(value is not None for value in values):
                params[parameter.name] = tuple(parameter.default if value is None else value for value in values)
        elif (value := _value(parameter, shared)) is not None:
            params[parameter.name] = value
    return params


def _given(level: Parameters) -> list[str]:
    return [name for name in level if name != _WITHOUT_EFFECT]


def _value(parameter: Parameter, levels: Sequence[Parameters]) -> Any:
    """Return a plain value, a varied one, or None where no level has one."""
    cases: list[tuple[str, Knots]] = []
    for level in levels:
        if parameter.name in level:
            cases += _cases(parameter.name, level[parameter.name])
            if cases[-1][0] == "":
                break
    if not cases:
        return None
    if len(cases) == 1 and cases[0][0] == "" and len(cases[0][1]) == 1:
        return cases[0][1][0]
    try:
        return Varied(tuple(cases))
    except RecipeError as error:
        raise RecipeError(f"Parameter '{parameter.name}': {error}") from error


def _cases(name: str, value: Any) -> list[tuple[str, Knots]]:
    """Read a value as pairs of a filter (empty where it fits all) and knots; what comes after one that fits all is left out."""
    entries = value if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value) else [value]
    cases: list[tuple[str, Knots]] = []
    for entry in entries:
        word, knots = "", entry
        if isinstance(entry, Mapping):
            if "value" not in entry or set(entry) - {"value", "filter"}:
                raise RecipeError(
                    f"Parameter '{name}' holds {dict(entry)!r:.80}. A case is written {{filter: WORD, value: VALUE}}."
                )
            word, knots = "" if entry.get("filter") is None else entry["filter"], entry["value"]
            if not isinstance(word, str):
                raise RecipeError(f"Parameter '{name}' has the filter {word!r:.80}. A filter is a part of tensors' names.")
        cases.append(("" if word == EVERYWHERE else word, _knots(name, knots)))
        if cases[-1][0] == "":
            break
    return cases


def _knots(name: str, value: Any) -> Knots:
    if isinstance(value, bool):
        return (value,)
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(is_finite_number(number) for number in numbers):
        raise RecipeError(
            f"Parameter '{name}' is {value!r:.80}. Give it a number, true or false, a list of numbers (a gradient over "
            "layers), or a list of {filter: WORD, value: VALUE}."
        )
    return tuple(float(number) for number in numbers)
