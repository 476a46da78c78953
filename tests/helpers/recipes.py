"""Short ways to write recipes."""

import hashlib
import json
from typing import Any

from kinray.core.recipe import Founder, Merge, ParamValue, Recipe, to_text


def founder(name: str) -> Founder:
    """Make up a founder; another name is another model."""
    return Founder(hashlib.sha256(name.encode()).hexdigest(), name)


def merge(method: str, *parents: Recipe, base: Founder | None = None, **params: ParamValue) -> Merge:
    """Write a merge on one line; ``lambda_`` is the parameter ``lambda``."""
    return Merge(method, parents, {name.rstrip("_"): value for name, value in params.items()}, base)


def nodes_of(recipe: Recipe) -> list[dict[str, Any]]:
    """Return the nodes that a recipe is written as."""
    nodes: list[dict[str, Any]] = json.loads(to_text(recipe))
    return nodes
