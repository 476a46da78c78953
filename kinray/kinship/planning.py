"""The short way to write a planned merge on the command line."""

import re
from collections.abc import Sequence

from kinray.core.methods import method_named
from kinray.core.parameters import ParamValue
from kinray.core.planned import PlannedMerge
from kinray.errors import RecipeError

_FORM = re.compile(r"(?:(?P<method>[a-z_]\w*):)?(?P<models>[0-9, ]+)(?::(?P<values>.+))?", re.IGNORECASE)


def parse_merge(text: str) -> PlannedMerge:
    """Read a planned merge such as ``0,2:0.5,0.5`` or ``slerp:0,1:t=0.3``.

    Raises:
        RecipeError: saying what is wrong with it.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise RecipeError(f"'{text}' is not a planned merge. Write it as METHOD:MODELS:VALUES, such as linear:0,2:0.5,0.5.")
    method = match["method"] or "linear"
    try:
        parents = tuple(int(part) for part in match["models"].split(","))
    except ValueError:
        raise RecipeError(f"Planned merge '{text}': '{match['models']}' is no list of model numbers such as 0,2.") from None
    params = _params(text, match["values"].split(",") if match["values"] else [])
    if method == "linear":
        params.setdefault("normalize", "weight" not in params)
    try:
        method_named(method).resolve(params, len(parents))
        return PlannedMerge(method, parents, params)
    except RecipeError as error:
        raise RecipeError(f"Planned merge '{text}': {error}") from error


def _params(text: str, values: Sequence[str]) -> dict[str, ParamValue]:
    params: dict[str, ParamValue] = {}
    weights: list[float] = []
    for value in values:
        name, given, raw = value.rpartition("=")
        if given and raw.strip().lower() in ("true", "false"):
            params[name.strip()] = raw.strip().lower() == "true"
            continue
        try:
            number = float(raw)
        except ValueError:
            raise RecipeError(f"Planned merge '{text}': '{value}' is neither a number nor NAME=VALUE.") from None
        if given:
            params[name.strip()] = number
        else:
            weights.append(number)
    return params | {"weight": tuple(weights)} if weights else params
