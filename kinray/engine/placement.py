"""Where the weights of a shard live: mapped from their files, or on a GPU that has room for them."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from kinray.checkpoints.folder import ModelView, WeightSource
from kinray.checkpoints.header import TensorInfo
from kinray.checkpoints.models import FittedModel, Models

_SHARE = 0.6
"""Of a GPU's free memory that weights may take; the rest is for buffers and children."""


@dataclass
class PlacedModel(ModelView):
    """A model whose tensors stay on a device once they were read.

    Args:
        model: where they are read from.
        device: where they stay.
    """

    device: torch.device
    _kept: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Its tensors."""
        return self.model.tensors

    def load(self, name: str) -> torch.Tensor:
        """Return a tensor on the device; never written into."""
        if name not in self._kept:
            self._kept[name] = self.model.load(name).to(self.device)
        return self._kept[name]


def placed(models: Models, names: Sequence[str], device: torch.device, free: int | None = None) -> Models:
    """Let the named tensors of all models live on a device where they fit, else leave them mapped.

    Args:
        models: the base and the founders.
        names: tensors that will be used.
        device: a CPU's memory is where files are mapped already, so there is nothing to place.
        free: bytes of the device's memory; by default what is free now.
    """
    if free is None:
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0
    needed = sum(source.tensors[name].nbytes for source in models.sources.values() for name in names)
    if needed > _SHARE * free:
        return models
    return replace(models, sources={digest: _resident(source, device) for digest, source in models.sources.items()})


def _resident(source: WeightSource, device: torch.device) -> WeightSource:
    if isinstance(source, FittedModel):
        return replace(source, model=PlacedModel(source.model, device), base=PlacedModel(source.base, device))
    return PlacedModel(source, device)
