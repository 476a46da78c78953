"""Where tensors lie in a model, found from their names alone: no list of architectures."""

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"(?:^|\.)([0-9]{1,9})(?=\.|$)")


def layer_of(name: str) -> tuple[str, int] | None:
    """Return the stack of layers that a tensor belongs to and the number of its layer; None outside of all layers.

    The number is the first component of the name that is one, and what stands before it names the stack. So the towers of
    a vision-language model are stacks of their own, and the experts of a layer all belong to it.
    """
    match = _NUMBER.search(name)
    return None if match is None else (name[: match.start()], int(match[1]))


def renumbered(name: str, number: int) -> str:
    """Return the name of the same tensor in another layer of its stack; ``layer_of`` it is not None."""
    match = _NUMBER.search(name)
    assert match is not None, name
    return f"{name[: match.start(1)]}{number}{name[match.end(1) :]}"


def depths(names: Iterable[str]) -> dict[str, float]:
    """Say how deep each tensor lies: 0 in the first layer of its stack, 1 in the last, 0 outside of all layers.

    Embeddings, final norms and output heads are outside, so gradients give them their first knot; mergekit 0.1.4 does the
    same. The only layer of a stack counts as its last, as there.

    Args:
        names: of all tensors of a model; the last layers are found from them.

    Returns:
        name -> depth from 0 to 1, in the order of the names.
    """
    layers = {name: layer_of(name) for name in names}
    last: dict[str, int] = {}
    for layer in layers.values():
        if layer is not None:
            last[layer[0]] = max(layer[1], last.get(layer[0], 0))

    def depth(layer: tuple[str, int] | None) -> float:
        if layer is None:
            return 0.0
        stack, number = layer
        return number / last[stack] if last[stack] else 1.0

    return {name: depth(layer) for name, layer in layers.items()}
