"""Methods that bring one model's changes into another, which has the part of the base: nearswap and Arcee Fusion."""

from collections.abc import Iterator

import torch

from kinray.core.masks import MaskSource
from kinray.core.methods.blocks import Operands, select_ranks
from kinray.core.methods.declaration import Method, Parameter, Params
from kinray.core.methods.linear import number


def _nearswap(operands: Operands, params: Params, masks: MaskSource) -> Iterator[torch.Tensor]:
    """Go to the second model by t/|difference| of the way, all of it where they differ by t or less."""
    t = number(params["t"])
    for at in operands.blocks():
        first = operands.parent(0, at)
        difference = operands.parent(1, at).sub_(first)
        share = difference.abs().clamp_(min=1e-6).reciprocal_().mul_(t).clamp_(max=1.0)
        yield first.add_(share.mul_(difference))


def _arcee_fusion(operands: Operands, params: Params, masks: MaskSource) -> Iterator[torch.Tensor]:
    """Take from the second model what changed most: importance at or above its median + 1.5 interquartile ranges.

    Importance is |difference| times the divergence KL(second ‖ first) of the rows' softmax. Two differences from mergekit are
    meant: the divergence is computed in float64, since float32 loses that of a small change, and quartiles are those of
    the whole tensor where mergekit draws a million elements at random.
    """
    width = operands.width
    importance = torch.empty(operands.numel, dtype=torch.float32, device=operands.device)
    for at in operands.blocks(whole=width):
        first, second = (operands.parent(number, at) for number in (0, 1))
        divergence = _divergence(second.view(-1, width), first.view(-1, width))
        importance[at] = (second.sub_(first).abs_().view(-1, width) * divergence).view(-1)
    count = operands.numel
    lower, median, upper = select_ranks(importance.clone(), [quarter * (count - 1) // 4 for quarter in (1, 2, 3)])
    threshold = torch.tensor(median) + 1.5 * (torch.tensor(upper) - torch.tensor(lower))
    for at in operands.blocks():
        first = operands.parent(0, at)
        difference = operands.parent(1, at).sub_(first)
        yield first.add_(difference.mul_(importance[at] >= threshold))


def _divergence(of: torch.Tensor, against: torch.Tensor) -> torch.Tensor:
    """Return KL(softmax(of) ‖ softmax(against)) of each row, (rows, 1) float32."""
    p, q = (torch.softmax(rows.double(), dim=-1).add_(1e-8) for rows in (of, against))
    return (p * torch.log(p / q)).sum(-1, keepdim=True).float()


NEARSWAP = Method(
    "nearswap",
    (Parameter("t", 1e-4, "difference up to which weights are swapped whole", low=0.0),),
    "Alchemonaut, QuartetAnemoi-70B-t0.0001, huggingface.co/alchemonaut",
    blocks=_nearswap,
    first_is_base=True,
    min_parents=2,
    max_parents=2,
)
ARCEE_FUSION = Method(
    "arcee_fusion",
    (),
    "Arcee AI, Arcee Fusion in MergeKit, arcee.ai",
    blocks=_arcee_fusion,
    buffers=2,
    first_is_base=True,
    min_parents=2,
    max_parents=2,
)
