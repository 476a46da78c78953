"""Recipes: identity, limits, and the list of nodes that they are written as."""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinray.core.recipe import Founder, Merge, Recipe, from_nodes, from_text, to_text, topological
from kinray.errors import RecipeError
from tests.helpers.recipes import founder, merge, nodes_of

A, B, BASE = founder("a"), founder("b"), founder("base")
NODES = nodes_of(merge("slerp", A, B, t=0.5))

plain_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Draw a DAG of merges: each parent is any model that exists by then."""
    made: list[Recipe] = [A, B, BASE]
    for _ in range(draw(st.integers(1, 8))):
        parents = tuple(made[draw(st.integers(0, len(made) - 1))] for _ in range(draw(st.integers(1, 3))))
        params = draw(st.dictionaries(st.sampled_from(["t", "weight"]), st.floats(-2, 2), max_size=2))
        made.append(Merge(draw(st.sampled_from(["linear", "slerp"])), parents, params, draw(st.sampled_from([None, BASE]))))
    return made[-1]


def test_digest_is_the_sha256_of_canonical_json() -> None:
    params = '{"density":[0.5,1.0],"normalize":true}'
    text = f'{{"base":"{BASE.digest}","method":"ties","params":{params},"parents":["{A.digest}"]}}'
    recipe = merge("ties", A, base=BASE, normalize=True, density=(0.5, 1))

    assert recipe.digest == hashlib.sha256(text.encode()).hexdigest()


def test_digest_ignores_names_of_founders() -> None:
    renamed = Founder(A.digest, "another name")

    assert renamed == A
    assert merge("slerp", renamed, B, t=0.5).digest == merge("slerp", A, B, t=0.5).digest


def test_digest_ignores_order_and_spelling_of_parameters() -> None:
    one = Merge("ties", (A, B), {"lambda": 1, "weight": [1, 2]})
    other = Merge("ties", (A, B), {"weight": (1.0, 2.0), "lambda": 1.0})

    assert one == other
    assert hash(one) == hash(other)


@pytest.mark.parametrize(
    "other",
    [
        merge("slerp", B, A, t=0.5),
        merge("linear", A, B, t=0.5),
        merge("slerp", A, B, t=0.25),
        merge("slerp", A, B),
        merge("slerp", A, B, base=BASE, t=0.5),
        merge("slerp", merge("slerp", A, B), B, t=0.5),
    ],
)
def test_digest_changes_with_everything_that_makes_a_model(other: Merge) -> None:
    assert other != merge("slerp", A, B, t=0.5)


def test_parameters_cannot_be_changed_afterwards() -> None:
    recipe = merge("slerp", A, B, t=0.5)

    with pytest.raises(TypeError, match="does not support item assignment"):
        recipe.params["t"] = 0.25  # type: ignore[index]


@given(recipes())
def test_nodes_round_trip_through_json(recipe: Recipe) -> None:
    back = from_text(to_text(recipe))

    assert back == recipe
    names = [[node.name for node in topological([one]) if isinstance(node, Founder)] for one in (back, recipe)]
    assert names[0] == names[1]


@given(recipes())
def test_nodes_come_after_their_parents_and_once(recipe: Recipe) -> None:
    order = topological([recipe])

    assert len({node.digest for node in order}) == len(order)
    for number, node in enumerate(order):
        before = {earlier.digest for earlier in order[:number]}
        assert {parent.digest for parent in getattr(node, "parents", ())} <= before
    assert order[-1] == recipe


def test_shared_ancestors_are_written_once() -> None:
    shared = merge("slerp", A, B)
    recipe = merge("slerp", shared, merge("linear", shared, A))

    assert len(nodes_of(recipe)) == 5


def _tower(depth: int) -> Recipe:
    """Merge each model with the one before it: 2^depth paths, depth nodes."""
    older, newer = B, A
    for _ in range(depth):
        older, newer = newer, merge("slerp", newer, older)
    return newer


def test_deepest_recipe_is_handled_without_recursion() -> None:
    recipe = _tower(256)

    assert len(nodes_of(recipe)) == 258
    assert from_text(to_text(recipe)) == recipe


def test_deeper_recipe_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"depth 257. The limit is 256"):
        _tower(257)


def test_sixty_four_parents_are_the_most() -> None:
    many = tuple(founder(str(number)) for number in range(65))
    assert Merge("linear", many[:64]).depth == 1

    with pytest.raises(RecipeError, match=r"has 65 parents. Give it between 1 and 64"):
        Merge("linear", many)
    with pytest.raises(RecipeError, match="has 0 parents"):
        Merge("linear", ())


def test_more_than_4096_nodes_are_refused() -> None:
    groups = [Merge("linear", tuple(founder(f"{group}/{i}") for i in range(64))) for group in range(64)]
    recipe = Merge("linear", tuple(groups))

    with pytest.raises(RecipeError, match=r"has 4161 nodes. The limit is 4096"):
        nodes_of(recipe)
    with pytest.raises(RecipeError, match="a list of 1 to 4096 nodes"):
        from_nodes([{"founder": A.digest, "name": "a"}] * 4097)


@pytest.mark.parametrize("index", [2, 3, -1, True, 0.0, "0", None, [0]])
def test_parent_that_is_no_earlier_node_is_refused(index: Any) -> None:
    nodes = [*NODES[:2], {"method": "slerp", "parents": [0, index], "params": {}}]

    with pytest.raises(RecipeError, match="which is not an earlier node"):
        from_nodes(nodes)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 10**400, None, [1, True], [[1]], [1, "x"]])
def test_parameter_that_is_no_finite_value_is_refused(value: Any) -> None:
    with pytest.raises(RecipeError, match=r"Parameter 't' of 'slerp' holds .* It must be a finite number"):
        from_nodes([*NODES[:2], {"method": "slerp", "parents": [0, 1], "params": {"t": value}}])


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"founder": "abc", "name": "a"}, "64 hex digits, not 'abc'"),
        ({"founder": A.digest.upper(), "name": "a"}, "64 hex digits"),
        ({"method": "slerp", "parents": [0, 1], "params": {}, "parent": 1}, "unknown keys: parent"),
        ({"method": "slerp", "parents": [0, 1]}, "Node 3 of the recipe is not readable"),
        ({"method": 7, "parents": [0, 1], "params": {}}, "needs a method"),
        ({"method": "ties", "parents": [0, 1], "params": {}, "base": 2}, "base of a merge must be a founder"),
        ("founder", "Node 3 of the recipe is not readable"),
    ],
)
def test_damaged_node_is_refused(node: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        from_nodes([*NODES, node])


@given(plain_json)
def test_arbitrary_json_is_a_recipe_error(data: Any) -> None:
    with pytest.raises(RecipeError, match=r"."):
        from_nodes(data)


@given(
    st.sampled_from(range(3)),
    st.sampled_from(["founder", "name", "method", "parents", "params", "base", "x"]),
    plain_json,
)
def test_recipe_with_one_arbitrary_value_is_read_or_refused(place: int, key: str, value: Any) -> None:
    nodes = [dict(node) for node in NODES]
    nodes[place][key] = value

    try:
        recipe = from_nodes(nodes)
    except RecipeError:
        return
    assert from_text(to_text(recipe)) == recipe
