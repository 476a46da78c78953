"""Methods that bring one model's changes into another, which has the part of the base: nearswap and Arcee Fusion."""

from collections.abc import Sequence

import torch

from kinray.core.masks import MaskSource
from kinray.core.methods.declaration import Method, Parameter, Params
from kinray.core.methods.linear import number

_ROWS = 1 << 18
"""Elements whose divergence is computed at a time, so that float64 copies stay small."""


def _nearswap(base: torch.Tensor, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource) -> torch.Tensor:
    """Go to the second model by t/|difference| of the way, all of it where they differ by t or less."""
    first, second = parents
    difference = second - first
    share = (number(params["t"]) / difference.abs().clamp_(min=1e-6)).clamp_(max=1.0)
    return first + share * difference


def _arcee_fusion(base: torch.Tensor, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource) -> torch.Tensor:
    """Take from the second model what changed most: importance at or above its median + 1.5 interquartile ranges.

    Importance is |difference| times the divergence KL(second ‖ first) of the rows' softmax. Two differences from mergekit are
    meant: the divergence is computed in float64, since float32 loses that of a small change, and quartiles are those of
    the whole tensor where mergekit draws a million elements at random.
    """
    first, second = (parent.reshape(parent.shape or (1,)) for parent in parents)
    difference = second - first
    importance = difference.abs() * _divergence(second, first)
    lower, median, upper = (_quantile(importance.reshape(-1), quarter) for quarter in (1, 2, 3))
    keep = importance >= median + 1.5 * (upper - lower)
    return (first + torch.where(keep, difference, 0.0)).reshape(parents[0].shape)


def _divergence(of: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
    """Return KL(softmax(of) ‖ softmax(against)) along the last axis, which is kept with length 1, float32."""
    width = of.shape[-1]
    rows = [tensor.reshape(-1, width) for tensor in (of, against)]
    out = torch.empty(rows[0].shape[0], dtype=torch.float32, device=of.device)
    step = max(1, _ROWS // width)
    for start in range(0, out.numel(), step):
        p, q = (torch.softmax(row[start : start + step].double(), dim=-1) + 1e-8 for row in rows)
        out[start : start + step] = (p * torch.log(p / q)).sum(-1)
    return out.reshape(*of.shape[:-1], 1)


def _quantile(values: torch.Tensor, quarter: int) -> torch.Tensor:
    value: torch.Tensor = torch.kthvalue(values, quarter * (values.numel() - 1) // 4 + 1).values
    return value


NEARSWAP = Method(
    "nearswap",
    (Parameter("t", 1e-4, "difference up to which weights are swapped whole", low=0.0),),
    "Alchemonaut, QuartetAnemoi-70B-t0.0001, huggingface.co/alchemonaut",
    tensors=_nearswap,
    first_is_base=True,
    min_parents=2,
    max_parents=2,
)
ARCEE_FUSION = Method(
    "arcee_fusion",
    (),
    "Arcee AI, Arcee Fusion in MergeKit, arcee.ai",
    tensors=_arcee_fusion,
    first_is_base=True,
    min_parents=2,
    max_parents=2,
)
