"""kinray searches for good merges of fine-tuned language models, guided by model kinship."""

from typing import Any


def __getattr__(name: str) -> Any:
    """Look up what kinray offers when it is asked for, since what it imports is slow to import."""
    if name == "kinship_of":
        from kinray.kinship.measure import kinship_of

        return kinship_of
    if name == "make_model":
        from kinray.merge.write import make_model

        return make_model
    if name != "__version__":
        raise AttributeError(f"module 'kinray' has no attribute '{name}'")
    from kinray.versions import installed

    return installed("kinray") or "0+unknown"
