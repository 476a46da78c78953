"""Open the models that a recipe names, each once."""

from dataclasses import dataclass, field
from pathlib import Path

from kinray.checkpoints.adapters import open_model
from kinray.checkpoints.folder import WeightSource
from kinray.checkpoints.locate import locate
from kinray.merge.document import Reference


@dataclass
class Shelf:
    """Models that are open, by reference."""

    _opened: dict[Reference, tuple[Path, WeightSource]] = field(default_factory=dict)

    def open(self, reference: Reference) -> WeightSource:
        """Open a model from its config and headers, fetching it if it is on the hub.

        Raises:
            CheckpointError: when it cannot be found or read.
        """
        return self._look_up(reference)[1]

    def folder(self, reference: Reference) -> Path:
        """Return where a model lies, without its adapter."""
        return self._look_up(reference)[0]

    def _look_up(self, reference: Reference) -> tuple[Path, WeightSource]:
        if reference not in self._opened:
            name = str(reference)
            folder = locate(reference.model, name, reference.revision)
            adapter = locate(reference.adapter, name, reference.adapter_revision) if reference.adapter else None
            self._opened[reference] = (folder, open_model(folder, adapter, name))
        return self._opened[reference]
