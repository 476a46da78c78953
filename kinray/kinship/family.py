"""The models of one kinship table: opened, checked and identified from their files' headers and states alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kinray.checkpoints.adapters import AdaptedModel, open_model
from kinray.checkpoints.folder import Checkpoint, WeightSource
from kinray.checkpoints.locate import locate
from kinray.checkpoints.models import FittedModel, Models, ModelSpec, open_models
from kinray.core.recipe import Founder, canonical_json
from kinray.errors import CheckpointError


@dataclass(frozen=True)
class Family:
    """A base and models that can be compared.

    Args:
        models: opened, the base first; their digests are identities of files, not of contents.
        names: the models' names, in the order given.
        rows: tensors of which only the rows of the common vocabulary count, and how many these are.
        notices: what a person should know.
    """

    models: Models
    names: tuple[str, ...]
    rows: dict[str, int]
    notices: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that a pass over all models reads."""
        models, total = self.models, 0
        for digest in models.digests:
            for name in models.names:
                info = models.sources[digest].tensors[name]
                total += info.nbytes if name not in self.rows else _row_bytes(models.sources[digest], name) * self.rows[name]
        return total

    @property
    def unchanged(self) -> bool:
        """Whether all files are still as they were when the models were opened."""
        try:
            now = [identity(open_model(spec.folder, spec.adapter, spec.founder.name)) for spec in self.models.specs]
        except CheckpointError:
            return False
        return now == list(self.models.digests)


def open_family(base: str | Path, models: Sequence[str | Path]) -> Family:
    """Open a base and models: folders, hub ids, or folders of LoRA adapters on the base.

    Raises:
        CheckpointError: when one cannot be opened or does not fit, from the headers alone.
    """
    if not models:
        raise CheckpointError("Kinship is between models: name at least one besides the base.")
    base_folder = locate(str(base), "base")
    names = _names([str(model) for model in models])
    specs = [_spec(base_folder, None, "base")]
    for name, model in zip(names, models, strict=True):
        folder = locate(str(model), name)
        adapter = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
        specs.append(_spec(base_folder, folder, name) if adapter else _spec(folder, None, name))
    opened = open_models(specs)
    rows = _common_rows(opened)
    return Family(opened, tuple(names), rows, tuple(_notices(opened, rows)))


def identity(source: WeightSource) -> str:
    """Name the state of a model's files, 64 hex digits: a change of any changes it.

    Files of a hub cache are named by their contents; for others it is path, size, times of change and inode.
    """
    if isinstance(source, FittedModel):
        return identity(source.model)
    if isinstance(source, AdaptedModel):
        scales = {tensor: factor[3] for tensor, factor in source.factors.items()}
        return _sha256([identity(source.model), identity(source.adapter), scales])
    assert isinstance(source, Checkpoint)
    return _sha256([_file_state(file) for file in sorted({info.file for info in source.tensors.values()})])


def _sha256(value: object) -> str:
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def _file_state(file: Path) -> list[str | int]:
    real, stat = file.resolve(), file.stat()
    if real.parent.name == "blobs" and len(real.name) == 64:
        return ["hub", real.name, stat.st_size]
    return [str(real), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _spec(folder: Path, adapter: Path | None, name: str) -> ModelSpec:
    return ModelSpec(Founder(identity(open_model(folder, adapter, name)), name), folder, adapter)


def _names(given: Sequence[str]) -> list[str]:
    """Call models by the last part of their path, or by all of it where that is not enough; copies are numbered."""
    short = [Path(model).name or model for model in given]
    names = [whole if short.count(name) > 1 else name for name, whole in zip(short, given, strict=True)]
    return [f"{name}#{names[:at].count(name) + 1}" if names.count(name) > 1 else name for at, name in enumerate(names)]


def _common_rows(models: Models) -> dict[str, int]:
    rows: dict[str, int] = {}
    for source in models.sources.values():
        if isinstance(source, FittedModel):
            for name, count in source.rows.items():
                rows[name] = min(rows.get(name, models.base.tensors[name].shape[0]), count)
    return rows


def _notices(models: Models, rows: dict[str, int]) -> list[str]:
    if not rows:
        return []
    common = min(rows.values())
    tensor = next(name for name in rows if rows[name] == common)
    notices = []
    for spec in models.specs:
        source = models.sources[spec.founder.digest]
        own = source.rows.get(tensor) if isinstance(source, FittedModel) else models.base.tensors[tensor].shape[0]
        if own is not None and own > common:
            notices.append(
                f"'{spec.founder.name}' has {own} vocabulary rows, {common} are common to all: its last {own - common} are "
                "left out."
            )
    return notices


def _row_bytes(source: WeightSource, name: str) -> int:
    model = source.model if isinstance(source, FittedModel) else source
    info = model.tensors[name]
    return info.nbytes // max(1, info.shape[0])
