"""Recipes: how a model comes from founders, as an immutable DAG of merges.

A child *is* its recipe; its weights are a cache of it. Two recipes are equal when their digests are, wherever their files
lie and whatever they are called.
"""

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from kinray.core.parameters import ParamValue as ParamValue
from kinray.core.parameters import Varied as Varied
from kinray.core.parameters import as_json, freeze
from kinray.core.parameters import is_finite_number as is_finite_number
from kinray.errors import RecipeError

MAX_DEPTH = 256
MAX_NODES = 4096
MAX_PARENTS = 64


def canonical_json(value: Any) -> str:
    """Write ``value`` as JSON in the one form that digests are taken of: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


@dataclass(frozen=True, slots=True)
class Founder:
    """A given model: the base or a fine-tune of it.

    Args:
        digest: identity of its weights (``kinray.checkpoints.identity``), 64 hex digits.
        name: what people call it; not part of its identity.
    """

    digest: str
    name: str = field(default="", compare=False)
    depth: int = field(default=0, init=False, compare=False)


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """A model made by one merge of ``parents``.

    Args:
        method: name of a merge method (``kinray.core.methods``).
        parents: 1 to 64 recipes; their order matters to the method.
        params: hyperparameters of the method; numbers become floats, lists become tuples, mappings ``Varied``.
        base: the model that deltas are taken against, for methods that work on deltas; else None.
        seed: what random masks follow from, if that is not the digest; part of the digest.

    Raises:
        RecipeError: for too many or no parents, a depth over 256, or a parameter that is no ``ParamValue``.
    """

    method: str
    parents: tuple["Recipe", ...]
    params: Mapping[str, ParamValue] = field(default_factory=dict)
    base: Founder | None = None
    seed: str | None = None
    digest: str = field(init=False)
    depth: int = field(init=False)
    said: str = field(init=False)
    """Method and params as they stand in canonical JSON, so that a long line of ancestors is written fast."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.parents) <= MAX_PARENTS:
            raise RecipeError(
                f"A merge by '{self.method}' has {len(self.parents)} parents. Give it between 1 and {MAX_PARENTS}."
            )
        depth = 1 + max(parent.depth for parent in self.parents)
        if depth > MAX_DEPTH:
            raise RecipeError(f"A merge by '{self.method}' has depth {depth}. The limit is {MAX_DEPTH} generations.")
        params = {name: freeze(f"Parameter '{name}' of '{self.method}'", value) for name, value in sorted(self.params.items())}
        object.__setattr__(self, "params", MappingProxyType(params))
        object.__setattr__(self, "depth", depth)
        method, written = json.dumps(self.method), canonical_json(as_json(params))
        object.__setattr__(self, "said", f'"method":{method},"params":{written}')
        object.__setattr__(self, "digest", hashlib.sha256(self.alone.encode()).hexdigest())

    @property
    def alone(self) -> str:
        """What the digest is taken of: this merge as canonical JSON, with its parents and base by digest."""
        return self.written(lambda recipe: f'"{recipe.digest}"')

    def written(self, refer: "Callable[[Recipe], str]") -> str:
        """Write this merge alone as canonical JSON, its parents and base as ``refer`` says."""
        base = "" if self.base is None else f'"base":{refer(self.base)},'
        seed = "" if self.seed is None else f',"seed":{json.dumps(self.seed)}'
        return f'{{{base}{self.said},"parents":[{",".join(map(refer, self.parents))}]{seed}}}'

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Merge) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Merge({self.method}, {len(self.parents)} parents, {self.digest[:12]})"


Recipe = Founder | Merge


def topological(recipes: Iterable[Recipe], known: Container[str] = ()) -> list[Recipe]:
    """List ``recipes`` and all their ancestors once each, parents (and bases) before children.

    Those whose digest is ``known`` are left out, and so is what only they come from.

    Iterative, so that depth is limited by ``MAX_DEPTH`` alone and not by Python's stack.
    """
    order: dict[str, Recipe] = {}
    for root in recipes:
        stack = [] if root.digest in order or root.digest in known else [(root, iter(_needs(root)))]
        while stack:
            recipe, needs = stack[-1]
            missing = next((need for need in needs if need.digest not in order and need.digest not in known), None)
            if missing is None:
                order[recipe.digest] = recipe
                stack.pop()
            else:
                stack.append((missing, iter(_needs(missing))))
    return list(order.values())


def _needs(recipe: Recipe) -> tuple[Recipe, ...]:
    if isinstance(recipe, Founder):
        return ()
    return recipe.parents if recipe.base is None else (recipe.base, *recipe.parents)


def to_text(recipe: Recipe) -> str:
    """Write a recipe as JSON: a topologically ordered list of nodes, of which the last one is the recipe itself.

    Founders become ``{"founder": digest, "name": name}``, merges ``{"method", "parents", "params"[, "base"][, "seed"]}`` where
    parents and base are indices of earlier nodes.

    Raises:
        RecipeError: for more than 4096 nodes.
    """
    order = topological([recipe])
    if len(order) > MAX_NODES:
        raise RecipeError(f"The recipe {recipe.digest[:12]} has {len(order)} nodes. The limit is {MAX_NODES}.")
    index = {node.digest: str(number) for number, node in enumerate(order)}
    nodes = (
        json.dumps({"founder": node.digest, "name": node.name})
        if isinstance(node, Founder)
        else node.written(lambda earlier: index[earlier.digest])
        for node in order
    )
    return f"[{','.join(nodes)}]"


def from_text(text: str) -> Recipe:
    """Read back what ``to_text`` wrote; raise RecipeError as ``from_nodes`` does, and for what is no JSON."""
    try:
        nodes = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"A recipe is not readable as JSON: {error!s:.200}.") from error
    return from_nodes(nodes)


def from_nodes(nodes: Any) -> Recipe:
    """Read the nodes that ``to_text`` writes.

    Raises:
        RecipeError: when ``nodes`` is no such list: not a list, empty, too long, a node of unknown form, or an index that
            does not point to an earlier node (so a cycle cannot be written).
    """
    if not isinstance(nodes, list) or not 1 <= len(nodes) <= MAX_NODES:
        raise RecipeError(f"A recipe must be a list of 1 to {MAX_NODES} nodes, not {type(nodes).__name__}.")
    made: list[Recipe] = []
    for number, node in enumerate(nodes):
        try:
            made.append(_read_node(node, made))
        except (KeyError, TypeError, IndexError) as error:
            raise RecipeError(f"Node {number} of the recipe is not readable: {node!r:.200}.") from error
    return made[-1]


def _read_node(node: Mapping[str, Any], made: Sequence[Recipe]) -> Recipe:
    if "founder" in node:
        digest = node["founder"]
        if not isinstance(digest, str) or len(digest) != 64 or set(digest) - set("0123456789abcdef"):
            raise RecipeError(f"A founder's digest must be 64 hex digits, not {digest!r:.80}.")
        return Founder(digest, str(node.get("name", "")))
    if unknown := set(node) - {"method", "parents", "params", "base", "seed"}:
        raise RecipeError(f"A node of the recipe has unknown keys: {', '.join(sorted(map(str, unknown)))}.")
    if not all(isinstance(word, str) for word in (node["method"], node.get("seed", ""))) or not isinstance(
        node["params"], dict
    ):
        raise RecipeError("A merge in a recipe needs a method (a word) and params (a mapping); a seed must be a word.")
    base = _earlier(node["base"], made) if "base" in node else None
    if base is not None and not isinstance(base, Founder):
        raise RecipeError("The base of a merge must be a founder.")
    return Merge(node["method"], tuple(_earlier(i, made) for i in node["parents"]), node["params"], base, node.get("seed"))


def _earlier(index: Any, made: Sequence[Recipe]) -> Recipe:
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < len(made):
        raise RecipeError(f"A node of the recipe names parent {index!r}, which is not an earlier node.")
    return made[index]
