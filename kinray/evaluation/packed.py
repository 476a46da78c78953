"""Log-likelihoods of planned requests: rows of a batch in one forward pass, the output layer only where it is scored.

Shapes: B rows, L tokens of a row, P tokens of the prefix, N scored places of a batch, S scored tokens of a batch, V vocabulary,
R requests.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from kinray.evaluation.packing import Batch, Plan, Request

_HELD = 8
"""Prefixes whose keys and values are held at once; most searches have one for each task."""


@dataclass(frozen=True)
class _Tensors:
    """A batch on the device: all of it that does not depend on weights but the mask, which its ``ends`` give at once.

    Args:
        prefix: (1, P) int64, one tensor for all batches that have it.
        tokens, positions, ends: (B, L) int64.
        branched: whether a row is more than a chain, so that it needs a mask of its own.
        places: (N,) int64, of the flattened tokens.
        scored: (S,) int64, into ``places``.
        targets: (S,) int64.
    """

    prefix: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    ends: torch.Tensor
    branched: bool
    places: torch.Tensor
    scored: torch.Tensor
    targets: torch.Tensor


class Packed:
    """A plan in tensors, to be answered by one set of weights after another.

    Args:
        requests: all that were planned.
        made: their plan.
        device: where the model lives.
    """

    def __init__(self, requests: Sequence[Request], made: Plan, device: Any) -> None:
        self.count = len(requests)
        self.batches: dict[int, list[_Tensors]] = defaultdict(list)
        self._owners: dict[int, list[int]] = defaultdict(list)
        prefixes: dict[tuple[int, ...], torch.Tensor] = {}
        for batch in made.batches:
            if batch.prefix not in prefixes:
                prefixes[batch.prefix] = torch.tensor([batch.prefix], dtype=torch.int64, device=device)
            self.batches[batch.pack].append(_tensors(batch, prefixes[batch.prefix], device))
            self._owners[batch.pack] += [request for row in batch.rows for _, _, request in row.scored]

    @torch.inference_mode()
    def answer(self, model: Any, pack: int = 0, prefixes: "Prefixes | None" = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Ask the model the requests of a pack.

        The arithmetic from the logits on is lm-eval's: log-softmax in the model's dtype, a sum rounded to it, greedy if every
        target is the first of the most probable tokens.

        Args:
            model: in its present weights.
            pack: its number.
            prefixes: what these weights computed of prefixes in earlier packs.

        Returns:
            log-likelihoods (R,) float32 and whether they are greedy (R,) bool; requests outside of the pack and of the plan
            have 0 and True.
        """
        values, missed = [torch.empty(0, dtype=model.dtype)], [torch.empty(0, dtype=torch.bool)]
        prefixes = Prefixes() if prefixes is None else prefixes
        with _output_layer_at(model) as at:
            for batch in self.batches[pack]:
                cache = prefixes.cache(model, batch.prefix, at) if batch.prefix.shape[1] else None
                likely = torch.log_softmax(_logits(model, batch, cache, at), dim=-1)
                values.append(likely[batch.scored, batch.targets].cpu())
                missed.append((likely.argmax(-1)[batch.scored] != batch.targets).cpu())
        each, owners = torch.cat(values), torch.tensor(self._owners[pack], dtype=torch.int64)
        # Summed on the CPU, where the order of additions is always the same.
        sums = torch.zeros(self.count, dtype=torch.float64).index_add_(0, owners, each.double())
        misses = torch.zeros(self.count).index_add_(0, owners, torch.cat(missed).float())
        return sums.to(each.dtype).float(), misses == 0


class Prefixes:
    """Keys and values of the prefixes that one set of weights was asked last, so that each is computed once for many packs."""

    def __init__(self) -> None:
        self._caches: dict[int, Any] = {}

    def cache(self, model: Any, prefix: torch.Tensor, at: "_Places") -> Any:
        """Return those of a prefix, (1, P) int64, which outlives this object."""
        cache = self._caches.pop(id(prefix), None) or _prefix_cache(model, prefix, at)
        self._caches[id(prefix)] = cache  # the newest, the last to go
        while len(self._caches) > _HELD:
            self._caches.pop(next(iter(self._caches)))
        return cache


def _tensors(batch: Batch, prefix: torch.Tensor, device: Any) -> _Tensors:
    longest = len(batch.rows[0].tokens)

    def padded(values: Sequence[int], fill: Sequence[int]) -> list[int]:
        return [*values, *fill[len(values) :]]

    branched = bool(batch.prefix) or any(end != len(row.tokens) for row in batch.rows for end in row.ends)
    # Padding sees itself alone and nothing sees it. Its positions go on behind plain chains, so that transformers sees these as
    # such; behind branched rows, which are longer than their requests, that would lead beyond the positions that a model has.
    itself = range(1, longest + 1)
    onward = [0] * longest if branched else range(longest)
    scored = [(at * longest + place, target) for at, row in enumerate(batch.rows) for place, target, _ in row.scored]
    places = sorted({place for place, _ in scored})
    where = {place: number for number, place in enumerate(places)}

    def tensor(values: Any) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int64, device=device)

    return _Tensors(
        prefix,
        tensor([padded(row.tokens, [0] * longest) for row in batch.rows]),
        tensor([padded(row.positions, onward) for row in batch.rows]),
        tensor([padded(row.ends, itself) for row in batch.rows]),
        branched,
        tensor(places),
        tensor([where[place] for place, _ in scored]),
        tensor([target for _, target in scored]),
    )


# -- the forward pass


class _Places:
    """Where the output layer is applied in the next forward pass: places of the flattened tokens."""

    flat: torch.Tensor


@contextmanager
def _output_layer_at(model: Any) -> Iterator[_Places]:
    """Hand the output layer the hidden states of some places only.

    The hidden states are cut right before it, so that whatever a model does before and after it (norms, scales, soft caps)
    stays the model's own.
    """
    at = _Places()

    def cut(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return (inputs[0].flatten(0, 1)[at.flat].unsqueeze(0), *inputs[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(cut)
    try:
        yield at
    finally:
        hook.remove()


def _logits(model: Any, batch: _Tensors, cache: Any, at: _Places) -> torch.Tensor:
    """Return the logits of a batch's scored places, (N, V)."""
    at.flat = batch.places
    output = model(
        input_ids=batch.tokens,
        attention_mask=_mask(batch, model.dtype) if batch.branched else None,
        position_ids=batch.positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    logits: torch.Tensor = output.logits
    assert logits.shape[:2] == (1, len(batch.places)), logits.shape
    return logits[0]


def _mask(batch: _Tensors, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to attention, (B, 1, L, P + L): zero where a token sees another, else the least number."""
    rows, length = batch.ends.shape
    place = torch.arange(length, device=batch.ends.device)
    seen = (place[:, None] >= place) & (place[:, None] < batch.ends[:, None, :])
    mask = torch.zeros(rows, 1, length, batch.prefix.shape[1] + length, dtype=dtype, device=batch.ends.device)
    mask[:, 0, :, batch.prefix.shape[1] :].masked_fill_(~seen, torch.finfo(dtype).min)
    return mask


def _prefix_cache(model: Any, prefix: torch.Tensor, at: _Places) -> Any:
    """Run a prefix through the model and keep its keys and values for all rows that follow it."""
    from transformers.cache_utils import DynamicCache, DynamicLayer

    class Shared(DynamicLayer):
        """Keys and values of the prefix, before those of any number of rows, which it does not keep."""

        def update(self, keys: torch.Tensor, values: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor, torch.Tensor]:
            rows = keys.shape[0]
            return (
                torch.cat([self.keys.expand(rows, -1, -1, -1), keys], dim=-2),
                torch.cat([self.values.expand(rows, -1, -1, -1), values], dim=-2),
            )

    cache = DynamicCache()
    at.flat = prefix.new_empty(0)
    model(input_ids=prefix, past_key_values=cache, use_cache=True)
    for number, layer in enumerate(cache.layers):
        cache.layers[number] = shared = Shared()
        shared.keys, shared.values, shared.is_initialized = layer.keys, layer.values, True
    return cache
