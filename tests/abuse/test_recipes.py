"""Recipes that are circles or beyond the limits, as files and as nodes.

More: tests/merge/test_chains.py, tests/core/test_recipe.py.
"""

import re
from typing import Any

import pytest

from kinray.core.recipe import MAX_DEPTH, MAX_NODES, MAX_PARENTS, from_nodes
from kinray.errors import RecipeError
from tests.abuse.refusing import LINEAR, Refusing

SLERP = "merge_method: slerp\nbase_model: {base}\nmodels: [{{model: b}}]\nparameters: {{t: 0.5}}\n"


def chain(length: int) -> str:
    """Write merges that each take the one before as their only other model."""
    documents = [f"name: m0\n{LINEAR}"]
    documents += [
        f"name: m{n}\nmerge_method: linear\nmodels: [{{model: m{n - 1}}}, {{model: b}}]\n" for n in range(1, length - 1)
    ]
    return "---\n".join([*documents, f"merge_method: linear\nmodels: [{{model: m{length - 2}}}, {{model: b}}]\n"])


def slices(count: int) -> str:
    return "merge_method: passthrough\nslices:\n" + "- sources: [{model: a, layer_range: [0, 1]}]\n" * count


FILES = {
    "a circle of one": (
        "name: x\nmerge_method: linear\nmodels: [{model: x}, {model: a}]\n---\n" + LINEAR.replace("b}", "x}"),
        "'x' refer to each other in a circle",
    ),
    "a circle of two": (
        "name: x\nmerge_method: linear\nmodels: [{model: y}, {model: a}]\n---\n"
        "name: y\nmerge_method: linear\nmodels: [{model: x}, {model: a}]\n---\n" + LINEAR.replace("b}", "x}"),
        "'x', 'y' refer to each other in a circle. Break it",
    ),
    "two of one name": (f"name: x\n{LINEAR}---\nname: x\n{LINEAR}---\n{LINEAR}", "2 merges of the recipe are called 'x'"),
    "two without a name": (f"{LINEAR}---\n{LINEAR}", "2 merges of the recipe are without a name"),
    "a chain of 257": (chain(MAX_DEPTH + 1), "depth 257. The limit is 256 generations"),
    "1025 merges": ("---\n".join(f"name: m{n}\n{LINEAR}" for n in range(1025)), "holds 1025 merges. A recipe has 1 to 1024"),
    "66 models": ("merge_method: linear\nmodels:\n" + "".join(f"- model: m{n}\n" for n in range(66)), "at most 65 items"),
    "4097 slices": (slices(4097), "at most 4096 items|more than 50000 values"),
    "a slice of more layers than there are": (
        slices(1).replace("[0, 1]", "[0, 1000000000000]"),
        "has 3 layers, numbered from 0",
    ),
    "a slice that ends before it begins": (slices(1).replace("[0, 1]", "[1, 0]"), "from a layer to a later one"),
    "49 merges within each other": (
        "---\n".join(
            [f"name: m{n}\n{SLERP.format(base='a' if not n else f'm{n - 1}')}" + ("tokenizer_source: base\n" if n == 0 else "")
             for n in range(49)]
        ),
        "made of 48 merges one behind the other|cannot be used with|no tokenizer",
    ),
    "weights of nothing": (LINEAR + "parameters: {weight: 0}", "weights of 'linear' add up to 0"),
    "weight too large for float32": (
        LINEAR + "parameters: {weight: 1.0e+300, normalize: false}",
        "'weight' of 'linear' is 1e.300, which float32 cannot hold",
    ),
    "a product too large for float32": (
        LINEAR.replace("linear", "task_arithmetic") + "base_model: base\nparameters: {weight: 1.0e+30, lambda: 1.0e+30}",
        "of the merge holds NaN or infinity in .* Change the parameters of the merge",
    ),
    "a passage to another folder": (LINEAR.replace("model: b", "model: ../b"), "there is no folder ../b"),
    "tokenizer of a stranger": (LINEAR + "tokenizer_source: /etc", "tokenizer_source '/etc' is none of the merge's models"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_recipe_file(refusing: Refusing, case: str) -> None:
    text, message = FILES[case]

    line = refusing.merge(text)

    assert re.search(message, line), line


def test_thousand_merges_that_each_name_sixty_others_are_put_in_order_at_once(refusing: Refusing) -> None:
    documents = [f"name: m0\n{LINEAR}"]
    for number in range(1, 600):
        models = ", ".join(f"{{model: m{other}}}" for other in range(max(0, number - 10), number))
        documents.append(f"name: m{number}\nmerge_method: linear\nmodels: [{models}]\n")

    line = refusing.merge("---\n".join(documents))

    assert "depth 257. The limit is 256 generations" in line


@pytest.mark.parametrize(
    ("merge", "message"),
    [
        ("0,1,1e400:1,1", "is not|neither|names"),
        ("0,1:nan,nan", "finite|nan"),
        ("0,1:inf,1", "finite|inf"),
        ("99999999999999999999,1:1,1", "names model 99999999999999999999"),
        ("0,-1:1,1", "-1"),
        ("slerp:0,1:t=9", "'t' of 'slerp' is 9"),
        ("\x1b[2J:0,1", r"\\x1b\[2J"),
        ("x" * 10_000, "x … .* is not a planned merge"),
        ("linear:0,1:1,1,normalize=2", "normalize"),
        (",".join(["0"] * 65) + ":" + ",".join(["1"] * 65), "64"),
    ],
)
def test_planned_merge(refusing: Refusing, merge: str, message: str) -> None:
    line = refusing.kinship("a", "b", "--merge-of", merge)

    assert re.search(message, line), line


F = {"founder": "0" * 64, "name": "f"}
G = {"founder": "1" * 64, "name": "g"}


def node(*parents: Any, **more: Any) -> dict[str, Any]:
    return {"method": "linear", "parents": list(parents), "params": {}} | more


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([F, node(1, 0)], "names parent 1, which is not an earlier node"),
        ([F, node(2), node(1)], "names parent 2, which is not an earlier node"),
        ([F, node(-1)], "names parent -1"),
        ([F, node(True)], "names parent True"),
        ([F, node(0.0)], "names parent 0.0"),
        ([F, node("0")], "names parent '0'"),
        ([F, node(10**30)], "names parent 1000000000000000000000000000000"),
        ([F] + [node(n) for n in range(MAX_DEPTH + 1)], "depth 257. The limit is 256"),
        ([F] * (MAX_NODES + 1), "a list of 1 to 4096 nodes"),
        ([F, node(*[0] * (MAX_PARENTS + 1))], "65 parents. Give it between 1 and 64"),
        ([F, node()], "0 parents"),
        ([F, node(0, params={"weight": [float("nan")]})], "must be a finite number"),
        ([F, node(0, params={"weight": 10**400})], "must be a finite number"),
        ([F, node(0, params={"weight": [[1]]})], "must be a finite number"),
        ([F, node(0, params={"weight": {"cases": [{"value": [1] * 257}]}})], "257 knots"),
        ([F, node(0, params={"weight": [1.0] * 100_000})], "holds 100000 values. Give it at most 64"),
        ([F, node(0, method=5)], "needs a method"),
        ([F, node(0, seed=5)], "a seed must be a word"),
        ([F, node(0, base=2)], "names parent 2"),
        ([F, node(0), node(0, base=1)], "The base of a merge must be a founder"),
        ([F, node(0, more=1)], "has unknown keys: more"),
        ([{"founder": "../../x"}], "must be 64 hex digits, not '../../x'"),
        ([{"founder": "Ａ" * 64}], "must be 64 hex digits"),
        (["founder"], "Node 0 of the recipe is not readable"),
        ([None], "Node 0 of the recipe is not readable"),
        ([G, [["founder", "0" * 64]]], "Node 1 of the recipe is not readable"),
        ({"0": F}, "a list of 1 to 4096 nodes, not dict"),
        ([], "a list of 1 to 4096 nodes"),
    ],
)  # fmt: skip
def test_nodes_of_a_recipe(nodes: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        from_nodes(nodes)
