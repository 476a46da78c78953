"""A child as JSON, for the state of a policy: its own merge only, parents by digest, so that size grows with the population."""

import math
from collections.abc import Mapping
from typing import Any

from kinray.config.schema import NAME
from kinray.core.methods import method_named
from kinray.core.parameters import as_json
from kinray.core.recipe import Founder, Merge, Recipe
from kinray.errors import RunError
from kinray.search.population import Child


def child_state(child: Child) -> dict[str, Any]:
    """Describe a child that is no founder."""
    assert isinstance(child.recipe, Merge)
    return {
        "number": child.number,
        "name": child.name,
        "generation": child.generation,
        "operator": child.operator,
        "parents": list(child.parents),
        "kinship": None if child.kinship is None or math.isnan(child.kinship) else child.kinship,
        "method": child.recipe.method,
        "params": as_json(child.recipe.params),
        "from": [parent.digest for parent in child.recipe.parents],
        "digest": child.recipe.digest,
    }


def read_child(entry: Mapping[str, Any], recipes: Mapping[str, Recipe], base: Founder) -> Child:
    """Read back what ``child_state`` wrote, given the recipes of earlier children and founders by digest.

    Raises:
        RunError: when the description does not have the digest that it says.
    """
    if not NAME.fullmatch(entry["name"]):
        raise RunError(f"The saved state names a child {entry['name'][:80]!r}.")
    uses_base = method_named(entry["method"]).uses_base
    parents = tuple(recipes[digest] for digest in entry["from"])
    recipe = Merge(entry["method"], parents, entry["params"], base if uses_base else None)
    if recipe.digest != entry["digest"]:
        raise RunError(f"The saved state of child {entry['name']} is damaged: its recipe does not have its digest.")
    kinship = math.nan if entry["kinship"] is None else entry["kinship"]
    return Child(
        entry["number"], entry["name"], entry["generation"], entry["operator"], recipe, tuple(entry["parents"]), kinship
    )
