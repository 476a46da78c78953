"""Find a model: a folder on this machine, or a repository on the Hugging Face hub."""

import re
from os.path import expanduser, isdir
from pathlib import Path

from kinray.checkpoints.folder import CONVERT, GGUF, PICKLES
from kinray.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w.+/-]*", re.ASCII)
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.py", "LICENSE*"]
_NOT = ["consolidated*", "*/*"]
"""Second copies of the weights, in other formats."""


def locate(model: str, name: str, revision: str | None = None) -> Path:
    """Return the folder of a model, fetching it from the hub when it is a hub id and no such folder exists.

    Only safetensors and text files are fetched, never pickles.

    Raises:
        CheckpointError: when there is no such folder, or the hub cannot give it.
    """
    folder = Path(expanduser(model))
    if isdir(folder):  # pathlib raises for a name that is too long
        if revision is not None:
            raise CheckpointError(f"Model '{name}': {model} is a folder; a revision belongs to a hub id.")
        return folder.resolve()
    if folder.suffix == ".gguf":
        raise CheckpointError(f"Model '{name}': {model} cannot be merged. {GGUF}")
    if folder.suffix in PICKLES:
        raise CheckpointError(
            f"Model '{name}': {model} is a pickle, which can run code when it is read. Convert the model that it belongs to "
            f"where you trust it: {CONVERT}"
        )
    if not _HUB_ID.fullmatch(model):
        raise CheckpointError(f"Model '{name}': there is no folder {model}. Check the path, or name a hub id (owner/model).")
    if revision is not None and (".." in revision or not _REVISION.fullmatch(revision)):
        raise CheckpointError(f"Model '{name}': '{revision}' is no revision. Name a commit, tag or branch of {model}.")
    return _fetch(model, name, revision)


def _fetch(model: str, name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_PATTERNS, ignore_patterns=_NOT))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise CheckpointError(f"Model '{name}': there is no folder {model}, and the hub did not give it: {reason}") from error


def hub_snapshot(folder: Path) -> tuple[str, str] | None:
    """Tell which hub id and commit a folder of the hub's cache holds (``models--OWNER--NAME/snapshots/COMMIT``), or None."""
    repository = folder.parent.parent.name
    if folder.parent.name != "snapshots" or not repository.startswith("models--"):
        return None
    return repository.removeprefix("models--").replace("--", "/"), folder.name
