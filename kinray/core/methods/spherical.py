"""Means on a sphere: nuslerp, multislerp and the Karcher mean.

Each is a weighted sum of its parents whose weights follow from their dot products, so it is computed on the P×P Gram matrix
in float64 and touches the weights once. mergekit computes on the tensors in float32; the two differ by its rounding.

Shape suffixes: P parents.
"""

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from kinray.core.masks import MaskSource
from kinray.core.methods.blocks import Operands
from kinray.core.methods.declaration import Method, Parameter, Params
from kinray.core.methods.linear import WEIGHT, number, numbers, shares
from kinray.core.statistics import Float64

_SMALLEST_SINE = 1e-6
"""Sine of an angle below which two directions are taken as one (or as opposite): float64 dot products know it to 1e-8."""

_SMALLEST_VECTOR_SINE = 1e-3
"""The same where products are rounded to float32 before they are added; what it costs is the square of it."""

_SMALLEST_MEAN = 1e-7


def _norms(gram_PP: Float64) -> Float64:
    result: Float64 = np.sqrt(np.maximum(np.diag(gram_PP), 0.0))
    return result


# -- nuslerp


def _turn(params: Params) -> float:
    first, second = numbers(params["weight"])
    return 0.5 if abs(first + second) < 1e-6 else second / (first + second)


def _nuslerp(params: Params, parents: int, gram_PP: Float64) -> tuple[float, ...]:
    t = _turn(params)
    first, second = np.maximum(_norms(gram_PP), 1e-7)
    angle = math.acos(max(-1.0, min(1.0, float(gram_PP[0, 1] / (first * second)))))
    sine = math.sin(angle)
    if sine < _SMALLEST_SINE:
        return (1.0 - t, t)
    return (math.sin((1.0 - t) * angle) / sine, math.sin(t * angle) / sine)


def _nuslerp_by_vector(operands: Operands, params: Params, masks: MaskSource) -> Iterator[torch.Tensor]:
    """Turn each vector along the last axis by itself, or with nuslerp_row_wise each along the first."""
    t, width = _turn(params), operands.width
    by_column = bool(params["nuslerp_row_wise"]) and len(operands.shape) > 1
    if by_column:
        width = max(1, operands.numel // max(1, operands.shape[0]))
        products = torch.zeros(3, 1, width, dtype=torch.float64, device=operands.device)
        for at in operands.blocks(whole=width):
            first, second = (row.view(-1, width) for row in operands.deltas(at))
            products += _products(first, second, axis=0)
    for at in operands.blocks(whole=width):
        first, second = (row.view(-1, width) for row in operands.deltas(at))
        share_of_first, share_of_second = _turned(products if by_column else _products(first, second, axis=1), t)
        turned = first.mul_(share_of_first).add_(second.mul_(share_of_second))
        yield turned.view(-1).add_(operands.base(at))


def _products(first: torch.Tensor, second: torch.Tensor, axis: int) -> torch.Tensor:
    """Return the dot products first·first, second·second and first·second along an axis, float64, stacked."""
    pairs = ((first, first), (second, second), (first, second))
    return torch.stack([(a * b).sum(axis, keepdim=True, dtype=torch.float64) for a, b in pairs])


def _turned(products: torch.Tensor, t: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the shares of two vectors in the one between them, float32, from their dot products."""
    norms = products[0].sqrt().clamp(min=1e-7) * products[1].sqrt().clamp(min=1e-7)
    angle = torch.acos((products[2] / norms).clamp(-1.0, 1.0))
    sine = torch.sin(angle)
    near = sine < _SMALLEST_VECTOR_SINE
    of_first = torch.where(near, 1.0 - t, torch.sin((1.0 - t) * angle) / sine)
    return of_first.float(), torch.where(near, t, torch.sin(t * angle) / sine).float()


# -- multislerp


def _multislerp(params: Params, parents: int, gram_PP: Float64) -> tuple[float, ...]:
    """Point to the weighted mean of the directions, with the weighted mean of the norms.

    The published algorithm goes on from there in the tangent space of that mean; but the directions' weighted sum has no
    tangent part there, by construction, so that step is the identity up to rounding and is left out. Where the
    directions cancel, the result is the plain weighted sum; mergekit stops there if it merges more than two, so on every
    tensor that no parent changed.
    """
    weights = numbers(params["weight"])
    if params["normalize_weights"]:
        weights = shares("multislerp", weights)
    eps = number(params["eps"])
    norms = _norms(gram_PP)
    unit_P = np.divide(weights, norms + eps, out=np.zeros(parents), where=norms > 0.0)
    length = math.sqrt(max(float(unit_P @ gram_PP @ unit_P), 0.0))
    if length <= max(eps, _SMALLEST_MEAN):
        return weights
    return tuple(float(weight) for weight in unit_P * (float(np.dot(weights, norms)) / length))


# -- Karcher mean


def _karcher(params: Params, parents: int, gram_PP: Float64) -> tuple[float, ...]:
    """Walk on the unit sphere to the point from which the mean of the ways to all parents is zero.

    Only tensors that are zero have no direction; mergekit leaves out all with a norm up to ``tol``.
    """
    norms, tol = _norms(gram_PP), number(params["tol"])
    if not norms.any():
        return (1.0 / parents,) * parents
    valid = norms > 0.0
    scale_P: Float64 = np.divide(1.0, norms, out=np.zeros(parents), where=valid)
    cosine_PP: Float64 = gram_PP * np.outer(scale_P, scale_P)
    share = 1.0 / float(valid.sum())

    def length(coef_P: Float64) -> float:
        return math.sqrt(max(float(coef_P @ cosine_PP @ coef_P), 0.0))

    mean_P = np.full(parents, share) * valid
    start = length(mean_P)
    at_P = mean_P / start if start >= max(tol, _SMALLEST_MEAN) else np.eye(parents)[int(np.argmax(valid))]
    for _ in range(int(number(params["max_iter"]))):
        way_P = _mean_way(at_P, cosine_PP, valid, share, tol)
        step = length(way_P)
        if step < max(tol, _SMALLEST_MEAN):
            break
        at_P = math.cos(step) * at_P + math.sin(step) * way_P / step
        at_P = at_P / length(at_P)
    return tuple(float(weight) for weight in at_P * scale_P * float(norms.mean()))


def _mean_way(at_P: Float64, cosine_PP: Float64, valid: NDArray[np.bool_], share: float, tol: float) -> Float64:
    """Return the mean of the logarithms of all parents at a point; the one opposite to it has no direction and is left out."""
    way_P = np.zeros_like(at_P)
    for parent, cosine in enumerate(np.clip(cosine_PP @ at_P, -1.0, 1.0)):
        angle = math.acos(cosine)
        if valid[parent] and angle >= max(tol, _SMALLEST_SINE) and math.pi - angle > 1e-4:
            way_P += share * angle / math.sin(angle) * (np.eye(len(at_P))[parent] - cosine * at_P)
    return way_P


NUSLERP = Method(
    "nuslerp",
    (
        WEIGHT,
        Parameter("nuslerp_flatten", True, "turn whole tensors, not their vectors one by one"),
        Parameter("nuslerp_row_wise", False, "without flatten: turn vectors along the first axis, not the last"),
    ),
    "Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985; on deltas where a base is given",
    weights=_nuslerp,
    blocks=_nuslerp_by_vector,
    optional_base=True,
    needs_gram=True,
    linear_when=lambda params: params["nuslerp_flatten"] is True,
    min_parents=2,
    max_parents=2,
)
MULTISLERP = Method(
    "multislerp",
    (
        WEIGHT,
        Parameter("normalize_weights", True, "divide the weights by their sum"),
        Parameter("eps", 1e-8, "length of the mean direction below which it is a plain weighted sum", low=0.0, high=1.0),
    ),
    "Goddard, Multi-SLERP, goddard.blog/posts/multislerp-wow-what-a-cool-idea; on deltas where a base is given",
    weights=_multislerp,
    optional_base=True,
    needs_gram=True,
)
KARCHER = Method(
    "karcher",
    (
        Parameter("max_iter", 10.0, "steps at most", low=0.0, high=10000.0),
        Parameter("tol", 1e-5, "angle below which it has arrived", low=0.0, high=1.0),
    ),
    "Karcher, Riemannian center of mass, Comm. Pure Appl. Math. 30, 1977",
    weights=_karcher,
    needs_gram=True,
)
