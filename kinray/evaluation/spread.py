"""Spread a model that is too large for one GPU: whole blocks on each, one GPU after the other."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from kinray.errors import CheckpointError


def spread(model: Any, devices: Sequence[str]) -> None:
    """Put a model's blocks on several devices, about as many bytes on each, and let what is computed follow them.

    What is in no block (embeddings, the last norm, the output layer) lies on the first device, where inputs are given and
    logits come out.

    Args:
        model: of transformers.
        devices: in the order in which blocks fill them.

    Raises:
        CheckpointError: when the model does not say what its blocks are.
    """
    blocks = blocks_of(model)
    whole = _nbytes(model)
    filled = whole - sum(map(_nbytes, blocks))
    homes: dict[int, str] = {}
    for block in blocks:
        middle = filled + _nbytes(block) / 2
        filled += _nbytes(block)
        device = devices[min(int(middle * len(devices) / whole), len(devices) - 1)]
        homes |= {id(module): device for module in block.modules()}
        block.register_forward_pre_hook(_inputs_to(device), with_kwargs=True)
    blocks[-1].register_forward_hook(lambda _module, _inputs, output: _moved(output, devices[0]))
    moved: dict[int, torch.Tensor] = {}  # one for tensors that several modules have
    for module in model.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if id(tensor) not in moved:
                there = tensor.detach().to(homes.get(id(module), devices[0]))
                kept = torch.nn.Parameter(there, requires_grad=False) if isinstance(tensor, torch.nn.Parameter) else there
                moved[id(tensor)] = kept
            setattr(module, name, moved[id(tensor)])


def blocks_of(model: Any) -> list[torch.nn.Module]:
    """List the modules that a transformers model wants whole on one device, in the order in which they are computed.

    Raises:
        CheckpointError: when it names none.
    """
    blocks: list[torch.nn.Module] = []
    inside: set[int] = set()
    for module in model.modules():
        if type(module).__name__ in (model._no_split_modules or ()) and id(module) not in inside:
            blocks.append(module)
            inside |= {id(part) for part in module.modules()}
    if not blocks:
        raise CheckpointError(
            f"{type(model).__name__} does not say which of its parts may lie on different GPUs, so it cannot be spread over "
            "several. Set cluster.gpus_per_evaluator: 1."
        )
    return blocks


def _nbytes(module: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _inputs_to(device: str) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def hook(_: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return _moved(positional, device), {name: _moved(value, device) for name, value in named.items()}

    return hook


def _moved(value: Any, device: str) -> Any:
    """Move a tensor, or those of a tuple. A cache stays as it is: it holds each layer's keys and values where the layer is."""
    if isinstance(value, tuple):
        return tuple(_moved(one, device) for one in value)
    return value.to(device) if isinstance(value, torch.Tensor) else value
