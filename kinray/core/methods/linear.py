"""The linear family: children that are weighted sums of their parents, tensor by tensor."""

import math

from kinray.core.methods.declaration import Method, Parameter, Params
from kinray.core.parameters import ParamValue
from kinray.core.statistics import Float64
from kinray.errors import RecipeError

LERP_ABOVE = 0.9995
"""|cos| of the angle above which slerp interpolates linearly, as mergekit does."""

_SMALLEST_NORM = 1e-8

WEIGHT = Parameter("weight", 1.0, "how much of this model goes in", per_model=True)
LAMBDA = Parameter("lambda", 1.0, "factor on the merged delta")


def numbers(value: ParamValue) -> tuple[float, ...]:
    """Return a resolved per-model parameter, typed."""
    assert isinstance(value, tuple)
    return tuple(number(entry) for entry in value)


def number(value: ParamValue) -> float:
    """Return a resolved global number, typed."""
    assert isinstance(value, float)
    return value


def shares(method: str, weights: tuple[float, ...]) -> tuple[float, ...]:
    """Divide weights by their sum, or raise RecipeError where that is zero."""
    total = math.fsum(weights)
    if abs(total) < _SMALLEST_NORM:
        raise RecipeError(f"The weights of '{method}' add up to {total:g}. Change them or set normalize to false.")
    return tuple(weight / total for weight in weights)


def _linear(params: Params, parents: int, gram_PP: Float64) -> tuple[float, ...]:
    weights = numbers(params["weight"])
    return shares("linear", weights) if params["normalize"] else weights


def _task_arithmetic(params: Params, parents: int, gram_PP: Float64) -> tuple[float, ...]:
    weights = numbers(params["weight"])
    if params["normalize"]:
        weights = shares("task_arithmetic", weights)
    return tuple(number(params["lambda"]) * weight for weight in weights)


def _passthrough(params: Params, parents: int, gram_PP: Float64) -> tuple[float, ...]:
    return numbers(params["scale"])


def _slerp(params: Params, parents: int, gram_PP: Float64) -> tuple[float, ...]:
    t = number(params["t"])
    norms = [math.sqrt(max(float(gram_PP[i, i]), 0.0)) for i in (0, 1)]
    cosine = float(gram_PP[0, 1]) / (norms[0] * norms[1]) if min(norms) > _SMALLEST_NORM else 0.0
    if abs(cosine) > LERP_ABOVE:
        return (1.0 - t, t)
    angle = math.acos(max(-1.0, min(1.0, cosine)))
    return (math.sin((1.0 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle))


LINEAR = Method(
    "linear",
    (WEIGHT, Parameter("normalize", True, "divide the weights by their sum")),
    "Wortsman et al., Model soups, arXiv 2203.05482",
    weights=_linear,
)
TASK_ARITHMETIC = Method(
    "task_arithmetic",
    (WEIGHT, LAMBDA, Parameter("normalize", False, "divide the weights by their sum")),
    "Ilharco et al., Editing models with task arithmetic, arXiv 2212.04089",
    weights=_task_arithmetic,
    uses_base=True,
)
SLERP = Method(
    "slerp",
    (Parameter("t", 0.5, "how far from the first model to the second", low=0.0, high=1.0),),
    "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985",
    weights=_slerp,
    first_is_base=True,
    needs_gram=True,
    min_parents=2,
    max_parents=2,
)
PASSTHROUGH = Method(
    "passthrough",
    (Parameter("scale", 1.0, "factor on the model's weights", per_model=True),),
    "Goddard et al., Arcee's MergeKit, arXiv 2403.13257: one model as it is, to stack layers",
    weights=_passthrough,
    max_parents=1,
)
