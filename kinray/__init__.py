"""kinray searches for good merges of fine-tuned language models, guided by model kinship."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Look up ``__version__`` when it is asked for, since importlib.metadata is slow to import."""
    if name != "__version__":
        raise AttributeError(f"module 'kinray' has no attribute '{name}'")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kinray")
    except PackageNotFoundError:
        return "0+unknown"
