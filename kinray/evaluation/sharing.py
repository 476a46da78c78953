"""Decide what a model's requests may share: found out once, on the base's weights, so that all evaluators decide alike."""

import inspect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from kinray.evaluation.packed import Packed
from kinray.evaluation.packing import PREFIX, plan, request_of

_TOLERANCE = {torch.float32: (1e-3, 1e-5)}
_HALF = (0.5, 0.03)
"""Absolute and relative difference of log-likelihoods that passes as rounding, in float32 and in half precision."""

_EXAMPLES = 32
"""Tokens that the made-up questions begin with."""


@dataclass(frozen=True)
class Sharing:
    """What requests may share.

    Args:
        reach: longest request in tokens that may share a row; None for any, 0 for none.
        prefix: shortest prefix that is computed apart; None for never.
        reason: why requests share nothing.
    """

    reach: int | None = None
    prefix: int | None = PREFIX
    reason: str = ""


def sharing_of(lm: Any, budget: int) -> Sharing:
    """Find out what the requests of lm-eval's model may share, by its kind and by trying.

    A model that ignores a mask of one's own, or takes a token's place in the row for its position, answers otherwise there than
    one request at a time: answers to the first question would leak into those to the second.

    Args:
        lm: lm-eval's ``HFLM`` with the weights of the base.
        budget: tokens in one forward pass.
    """
    reason = unfit(lm.model)
    if reason:
        return Sharing(0, None, reason)
    for prefix in (PREFIX, None):
        reason = _disagreement(lm, budget, prefix)
        if not reason:
            return Sharing(_reach(lm.model.config), prefix)
    return Sharing(0, None, reason)


def unfit(model: Any) -> str:
    """Say why a kind of model cannot be given masks and positions, if so; its weights may be on the meta device."""
    takes = inspect.signature(model.forward).parameters
    missing = [name for name in ("attention_mask", "position_ids", "past_key_values") if name not in takes]
    kind = type(model).__name__
    if missing:
        return f"{kind} takes no {missing[0]}"
    if getattr(model.config, "alibi", False):
        return f"{kind} uses ALiBi, which knows no position ids"
    for layer in getattr(model.config, "layer_types", None) or ():
        if not layer.endswith("attention") or layer.startswith("linear"):
            return f"{kind} has layers of type {layer}"
    attention = getattr(model.config, "_attn_implementation", None)
    if attention not in ("sdpa", "eager"):
        return f"its attention '{attention}' takes no masks"
    return "" if model.get_output_embeddings() is not None else f"{kind} has no output layer of its own"


def _reach(config: Any) -> int | None:
    """Return the length up to which every layer sees all tokens, and positions mean the same in every batch."""
    settings = config.to_dict()
    limits = [settings[name] for name in settings if name.endswith(("window", "window_size", "chunk_size"))]
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        limits.append(rope.get("original_max_position_embeddings") or getattr(config, "max_position_embeddings", None))
    return min((limit for limit in limits if isinstance(limit, int) and limit > 0), default=None)


@torch.inference_mode()
def _disagreement(lm: Any, budget: int, prefix: int | None) -> str:
    """Say how shared answers to some made-up questions differ from answers one by one, if they do."""
    questions = list(_questions(lm))
    requests = [request_of(context, answer, lm.max_length, name, "") for name, context, answer in questions]
    try:
        made = plan(requests, budget, prefix=prefix and _EXAMPLES // 4)
        shared, _ = Packed(requests, made, lm.device).answer(lm.model)
    except Exception as error:  # whatever a model raises that was not made for this
        reason = str(error).strip().splitlines() or ["no message"]
        return f"{type(lm.model).__name__} cannot be asked so: {type(error).__name__}: {reason[0][:200]}"
    single = lm._loglikelihood_tokens([((name, ""), context, answer) for name, context, answer in questions], disable_tqdm=True)
    alone = torch.tensor([likelihood for likelihood, _ in single])
    absolute, relative = _TOLERANCE.get(lm.model.dtype, _HALF)
    worst = ((shared - alone).abs() - relative * alone.abs()).max()
    return "" if worst <= absolute else f"{type(lm.model).__name__} does not keep answers in one row apart"


def _questions(lm: Any) -> Iterator[tuple[str, list[int], list[int]]]:
    """Make up questions whose answers nearly repeat each other, so that a model that sees a neighbour's copies it."""
    words = min(lm.model.get_input_embeddings().num_embeddings, len(lm.tokenizer))
    draw = torch.Generator().manual_seed(0)

    def some(count: int) -> list[int]:
        drawn: list[int] = torch.randint(words, (count,), generator=draw).tolist()
        return drawn

    examples = some(_EXAMPLES)
    for name in ("first", "second"):
        context, answer = examples + some(9), some(8)
        for own in _nearly(answer, some(3)):
            yield name, context, own
    yield "third", some(5), some(20)


def _nearly(answer: list[int], other: list[int]) -> Iterable[list[int]]:
    return answer, [other[0], *answer[1:]], [*answer[:3], *other[1:], *answer[3:]], answer[:1]
