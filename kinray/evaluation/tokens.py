"""Count the tokens that go through a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Passed:
    """Tokens that went through a model so far, padding included; what several requests share counts once."""

    tokens: int = 0


@contextmanager
def counting(model: Any) -> Iterator[Passed]:
    """Count the tokens of all forward passes of a transformers model while the block runs."""
    passed = Passed()

    def note(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        ids = named.get("input_ids", positional[0] if positional else None)
        if isinstance(ids, torch.Tensor):
            passed.tokens += ids.numel()

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passed
    finally:
        hook.remove()
