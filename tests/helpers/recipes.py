"""Short ways to write recipes."""

import hashlib

from kinray.core.recipe import Founder, Merge, ParamValue, Recipe


def founder(name: str) -> Founder:
    """Make up a founder; another name is another model."""
    return Founder(hashlib.sha256(name.encode()).hexdigest(), name)


def merge(method: str, *parents: Recipe, base: Founder | None = None, **params: ParamValue) -> Merge:
    """Write a merge on one line; ``lambda_`` is the parameter ``lambda``."""
    return Merge(method, parents, {name.rstrip("_"): value for name, value in params.items()}, base)
