"""Methods that drop most of each delta before they add them: TIES, DARE, DELLA and Model Breadcrumbs.

Deltas are formed in float32, whatever the models are stored in: mergekit forms them in the base's dtype, which in bfloat16
loses most of a small delta.
"""

from collections.abc import Callable, Iterator

import torch

from kinray.core.masks import MaskSource
from kinray.core.methods.blocks import Operands
from kinray.core.methods.consensus import add_all, elect_and_add
from kinray.core.methods.declaration import MergeBlocks, Method, Parameter, Params
from kinray.core.methods.linear import LAMBDA, WEIGHT, number, numbers
from kinray.core.methods.selection import Rule, drop_at_random, drop_by_rank, drop_extremes, keep_largest
from kinray.errors import RecipeError

DENSITY = Parameter("density", 1.0, "share of this model's delta that is kept", low=0.0, high=1.0, per_model=True)
GAMMA = Parameter("gamma", 0.01, "share of this model's largest changes that is left out", low=0.0, high=1.0, per_model=True)
EPSILON = Parameter(
    "epsilon", 0.15, "how far the keep probability goes from density to each side", low=0.0, high=0.5, per_model=True
)
RESCALE = Parameter("rescale", True, "divide what is kept by its keep probability")

DARE_PAPER = "Yu et al., Language models are super mario, arXiv 2311.03099"
DELLA_PAPER = "Deep et al., DELLA-Merging, arXiv 2406.11617"
BREADCRUMBS_PAPER = "Davari & Belilovsky, Model Breadcrumbs, arXiv 2312.06795"

Sparsify = Callable[[Operands, int, Params, MaskSource], Rule]
"""(operands, number of a parent, params, masks) -> the rule that zeroes most of its delta."""

Add = Callable[..., torch.Tensor]


def _sparsify_and_add(sparsify: Sparsify, add: Add) -> MergeBlocks:
    def merge(operands: Operands, params: Params, masks: MaskSource) -> Iterator[torch.Tensor]:
        rules = [sparsify(operands, parent, params, masks) for parent in range(len(operands))]
        weights, scale = numbers(params["weight"]), number(params["lambda"])
        for at in operands.blocks(whole=operands.width if sparsify is _ranked else 1):
            rows = [rule(row, at) for rule, row in zip(rules, operands.deltas(at), strict=True)]
            merged = add(rows, weights, normalize=bool(params["normalize"]))
            yield merged.mul_(scale).add_(operands.base(at))

    return merge


def _largest(operands: Operands, parent: int, params: Params, masks: MaskSource) -> Rule:
    return keep_largest(operands, parent, numbers(params["density"])[parent])


def _middle(operands: Operands, parent: int, params: Params, masks: MaskSource) -> Rule:
    return drop_extremes(operands, parent, numbers(params["density"])[parent], numbers(params["gamma"])[parent])


def _random(operands: Operands, parent: int, params: Params, masks: MaskSource) -> Rule:
    return drop_at_random(operands, numbers(params["density"])[parent], parent, masks, rescale=bool(params["rescale"]))


def _ranked(operands: Operands, parent: int, params: Params, masks: MaskSource) -> Rule:
    density, epsilon = numbers(params["density"])[parent], numbers(params["epsilon"])[parent]
    return drop_by_rank(operands, density, epsilon, parent, masks, rescale=bool(params["rescale"]))


def _probabilities(params: Params) -> None:
    for density, epsilon in zip(numbers(params["density"]), numbers(params["epsilon"]), strict=True):
        if 0.0 < density < 1.0 and not (density - epsilon > 0.0 and density + epsilon < 1.0):
            raise RecipeError(
                f"DELLA keeps weights with probabilities from density − epsilon = {density - epsilon:g} to "
                f"density + epsilon = {density + epsilon:g}. Both must lie between 0 and 1: lower epsilon."
            )


def _normalize(default: bool, *, elected: bool) -> Parameter:
    divisor = "each element by the weights that agreed on it" if elected else "by the sum of the weights"
    return Parameter("normalize", default, f"divide {divisor}")


def _declare(
    name: str,
    source: str,
    sparsify: Sparsify,
    own: tuple[Parameter, ...] = (),
    *,
    elected: bool,
    normalize: bool,
    check: Callable[[Params], None] | None = None,
) -> Method:
    """Declare a method; those with an election add deltas where they agree with the elected sign, as TIES does."""
    shared = (WEIGHT, DENSITY, LAMBDA, _normalize(normalize, elected=elected))
    source = f"{source}, with the sign election of TIES" if elected and sparsify is not _largest else source
    blocks = _sparsify_and_add(sparsify, elect_and_add if elected else add_all)
    random = sparsify in (_random, _ranked)
    return Method(
        name, (*shared, *own), source, blocks=blocks, uses_base=True, check=check, buffers=int(not random), random=random
    )


TIES = _declare("ties", "Yadav et al., TIES-Merging, arXiv 2306.01708", _largest, elected=True, normalize=True)
DARE_LINEAR = _declare("dare_linear", DARE_PAPER, _random, (RESCALE,), elected=False, normalize=False)
DARE_TIES = _declare("dare_ties", DARE_PAPER, _random, (RESCALE,), elected=True, normalize=False)
DELLA = _declare("della", DELLA_PAPER, _ranked, (EPSILON, RESCALE), elected=True, normalize=True, check=_probabilities)
DELLA_LINEAR = _declare(
    "della_linear", DELLA_PAPER, _ranked, (EPSILON, RESCALE), elected=False, normalize=False, check=_probabilities
)
BREADCRUMBS = _declare("breadcrumbs", BREADCRUMBS_PAPER, _middle, (GAMMA,), elected=False, normalize=False)
BREADCRUMBS_TIES = _declare("breadcrumbs_ties", BREADCRUMBS_PAPER, _middle, (GAMMA,), elected=True, normalize=False)
