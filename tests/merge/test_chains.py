"""Recipes of several merges: collapsed where they can be, never rounded between, in any order of documents."""

import re
from itertools import permutations

import numpy as np
import pytest
import torch
from torch import Tensor

from kinray.core.recipe import Merge
from kinray.merge.document import read_recipe
from kinray.merge.open import Shelf
from kinray.merge.plan import MAX_NESTED, plan_merges
from tests.checkpoints.worded import model_with
from tests.helpers import random_tensors
from tests.merge.kitchen import Kitchen, assert_close, depth_of, near, read, same, shapes, total
from tests.merge.test_merge import slerp, ties

FIRST = """
name: first
merge_method: linear
models: [{model: a, parameters: {weight: 3}}, {model: b, parameters: {weight: 1}}]
dtype: bfloat16
"""
SECOND = """
name: second
merge_method: task_arithmetic
base_model: base
models: [{model: first, parameters: {weight: 0.6}}, {model: c, parameters: {weight: [0.2, 0.4]}}]
"""
LAST = """
merge_method: linear
models: [{model: second, parameters: {weight: 1}}, {model: first, parameters: {weight: 1}}, {model: c, parameters: {weight: 2}}]
dtype: float32
"""


@pytest.mark.parametrize("order", list(permutations([FIRST, SECOND, LAST])))
def test_chain_is_one_weighted_sum_of_founders_in_any_order_of_documents(kitchen: Kitchen, order: tuple[str, ...]) -> None:
    base, a, b, c = kitchen.family("base", "a", "b", "c")

    merged = kitchen.merge("---".join(order))

    first = total([0.75, 0.25], [a, b])
    expected = {}
    for name in base:
        of_c = 0.2 + 0.2 * depth_of(name)
        second = base[name] + 0.6 * (first[name] - base[name]) + of_c * (c[name] - base[name])
        expected[name] = (second + first[name] + 2 * c[name]) / 4
    assert_close(merged, expected)


def test_result_of_an_earlier_merge_is_not_rounded(kitchen: Kitchen) -> None:
    base = random_tensors(0, shapes(), torch.bfloat16)
    kitchen.model("a", base)
    kitchen.model("b", near(base, 1))

    for chain in ("models: [{model: first}, {model: a}]", "slices: [{sources: [{model: first, layer_range: [0, 3]}]}]"):
        scale = "passthrough" if "slices" in chain else "linear"
        merged = kitchen.merge(f"{FIRST}---\nmerge_method: {scale}\n{chain}\nout_dtype: float32", "--overwrite")

        a, b = ({n: t.double().numpy() for n, t in read(kitchen.folder / name).items()} for name in "ab")
        first = total([0.75, 0.25], [a, b])
        assert_close(merged, first if "slices" in chain else total([0.5, 0.5], [first, a]))


def collapsed(kitchen: Kitchen, recipe: str) -> bool:
    """Tell whether a recipe is planned as one of founders."""
    documents, _ = read_recipe(kitchen.write(recipe))
    (section,) = plan_merges(documents, Shelf()).sections
    return any(isinstance(parent, Merge) for parent in section.recipe.parents)


def test_merges_of_one_base_are_planned_as_one_recipe_and_others_are_not(kitchen: Kitchen) -> None:
    kitchen.family("base", "a", "b", "c")

    assert collapsed(kitchen, f"{FIRST}---{SECOND}---{LAST}")
    assert not collapsed(kitchen, f"{FIRST}---\nmerge_method: ties\nbase_model: first\nmodels: [{{model: c}}]")


def test_result_of_a_merge_may_be_the_base_of_another(kitchen: Kitchen) -> None:
    _, a, b, c = kitchen.family("base", "a", "b", "c")

    last = "merge_method: ties\nbase_model: first\nmodels: [{model: c}]\nparameters: {density: 0.5}\ndtype: float32"
    merged = kitchen.merge(f"{FIRST}---\n{last}")

    first = total([0.75, 0.25], [a, b])
    assert_close(merged, {name: ties(first[name], [c[name]], [1.0], [0.5]) for name in a})


def test_merges_of_different_bases_and_of_slices_follow_each_other(kitchen: Kitchen) -> None:
    base, a, b, c = kitchen.family("base", "a", "b", "c")

    merged = kitchen.merge("""
        name: up
        merge_method: task_arithmetic
        base_model: base
        models: [{model: a, parameters: {weight: 0.5}}]
        ---
        name: down
        merge_method: task_arithmetic
        base_model: c
        models: [{model: b, parameters: {weight: 0.5}}]
        ---
        name: turned
        merge_method: slerp
        base_model: up
        slices:
          - sources: [{model: up, layer_range: [0, 3]}, {model: down, layer_range: [0, 3]}]
        parameters: {t: 0.25}
        ---
        merge_method: linear
        models: [{model: turned}, {model: c}]
        """)

    expected = {}
    for name in base:
        up, down = (base[name] + a[name]) / 2, (c[name] + b[name]) / 2
        expected[name] = (slerp(0.25, up, down) + c[name]) / 2
    assert_close(merged, expected)


def test_deep_chain_makes_each_tensor_of_each_step_a_few_times_only(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.family("base", "a")
    steps = [
        f"name: s{n + 1}\nmerge_method: slerp\nbase_model: {f's{n}' if n else 'a'}\nslices:\n"
        f"- sources: [{{model: {f's{n}' if n else 'a'}, layer_range: [0, 3]}}, {{model: base, layer_range: [0, 3]}}]\n"
        for n in range(12)
    ]
    calls: list[str] = []
    from kinray.engine.materialise import Materialiser

    make = Materialiser.blocks
    monkeypatch.setattr(
        Materialiser, "blocks", lambda self, plan, name, *rest: calls.append(name) or make(self, plan, name, *rest)
    )

    kitchen.merge("---\n".join(steps), "--threads", "1")

    assert len(calls) == 12 * len(shapes())


@pytest.mark.parametrize("count", [MAX_NESTED, MAX_NESTED + 1])
def test_results_that_cannot_be_one_recipe_may_follow_each_other_to_a_limit(
    kitchen: Kitchen, count: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (a,) = kitchen.family("a")
    models = ["a", *(f"s{n}" for n in range(count))]
    slices = "slices: [{sources: [{model: MODEL, layer_range: [0, 3]}]}]\n"
    steps = [f"name: s{n}\nmerge_method: passthrough\n{slices.replace('MODEL', models[n])}" for n in range(count)]

    code = kitchen.run("---\n".join(steps))

    if count > MAX_NESTED:
        assert code == 2
        assert f"Merge 's{MAX_NESTED}': It is made of {MAX_NESTED} merges one behind the other" in capsys.readouterr().err
    else:
        assert code == 0
        assert_close(read(kitchen.out), a)


def test_memory_of_merges_within_a_merge_is_counted(kitchen: Kitchen) -> None:
    kitchen.family("base", "a", "b")
    inner = "name: inner\nmerge_method: ties\nbase_model: base\nmodels: [{model: a}]\n"
    outer = "merge_method: ties\nbase_model: inner\nmodels: [{model: b}]\n"

    alone, both = (
        plan_merges(read_recipe(kitchen.write(recipe))[0], Shelf()).tensors()[0].buffers
        for recipe in (inner, f"{inner}---\n{outer}")
    )

    assert both == 2 * alone + 1  # the inner one's, its result, and as much for the outer one


def test_output_takes_config_tokenizer_and_dtype_from_the_base_of_its_base(kitchen: Kitchen) -> None:
    base = random_tensors(0, shapes(), torch.float16)
    kitchen.model("a", base, mark="a")
    kitchen.model("b", near(base, 1), mark="b")
    (kitchen.folder / "b" / "chat_template.jinja").write_text("b")
    inner = "name: inner\nmerge_method: slerp\nbase_model: b\nmodels: [{model: a}]\n"
    outer = "merge_method: slerp\nbase_model: inner\nmodels: [{model: a}]\n"
    sliced = "merge_method: passthrough\nslices: [{sources: [{model: inner, layer_range: [0, 3]}]}]\n"

    for last in (outer, sliced):
        merged = kitchen.merge(f"{inner}---\n{last}", "--overwrite")
        assert (kitchen.config()["mark"], kitchen.config()["dtype"]) == ("b", "float16")
        assert (kitchen.out / "chat_template.jinja").read_text() == "b"
        assert {tensor.dtype for tensor in merged.values()} == {torch.float16}
        asked = kitchen.merge(f"{inner}dtype: bfloat16\n---\n{last}", "--overwrite")
        assert {tensor.dtype for tensor in asked.values()} == {torch.bfloat16}


def test_tokenizer_of_an_earlier_merge_reaches_the_output(kitchen: Kitchen) -> None:
    model_with(kitchen.folder / "x", {"?": 0, "cat": 1, "dog": 2}, seed=1, num_hidden_layers=1)
    model_with(kitchen.folder / "y", {"?": 0, "dog": 1, "cow": 2, "pig": 3}, seed=2, num_hidden_layers=1)

    merged = kitchen.merge("""
        name: both
        merge_method: linear
        models: [{model: x}, {model: y}]
        tokenizer_source: union
        ---
        merge_method: passthrough
        models: [{model: both}]
        """)

    from tokenizers import Tokenizer

    assert set(Tokenizer.from_file(str(kitchen.out / "tokenizer.json")).get_vocab()) == {"?", "cat", "dog", "cow", "pig"}
    assert merged["lm_head.weight"].shape[0] == kitchen.config()["vocab_size"] == 5


def test_merge_that_the_output_does_not_need_is_noted(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    _, a, b, _ = kitchen.family("base", "a", "b", "c")

    merged = kitchen.merge(f"{SECOND}---{FIRST}---\nmerge_method: passthrough\nmodels: [{{model: first}}]\ndtype: float32")

    assert_close(merged, total([0.75, 0.25], [a, b]))
    assert "Note: The output does not need the merge 'second': not made." in capsys.readouterr().err


def test_last_of_named_merges_is_the_output(kitchen: Kitchen) -> None:
    kitchen.family("base", "a", "b", "c")
    models: list[dict[str, Tensor]] = [
        kitchen.merge(FIRST + "---" + SECOND.replace("second", name), "--overwrite") for name in "xy"
    ]

    assert same(*models)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (
            "name: x\nmerge_method: linear\nmodels: [{model: y}]\n---\nname: y\nmerge_method: linear\nmodels: [{model: x}]",
            "The merges 'y', 'x' refer to each other in a circle. Break it",
        ),
        ("name: x\nmerge_method: linear\nmodels: [{model: x}]", "The merges 'x' refer to each other in a circle"),
        (f"{FIRST}---{FIRST}", "2 merges of the recipe are called 'first'. Only the output may be without; name the others"),
        (f"{LAST}---{LAST}", "2 merges of the recipe are without a name"),
        (f"{FIRST}---\nmerge_method: linear\nmodels: [{{model: frist}}]", "there is no folder frist"),
        (FIRST.replace("weight: 3", "wieght: 3") + "---" + SECOND, "Merge 'second': .*no parameter 'wieght'|Merge 'first': .*"),
        (
            f"{FIRST}---\nmerge_method: linear\nmodels: [{{model: first+lora}}]",
            "'first.lora' names the merge 'first' with a revision or an adapter",
        ),
        (
            f"{FIRST}---\nmerge_method: passthrough\nslices: [{{sources: [{{model: first, layer_range: [0, 3]}}]}}]\n"
            "tokenizer_source: base",
            "tokenizer_source cannot be used with 'first', the result of another merge",
        ),
    ],
)
def test_merges_that_do_not_make_one_output_are_refused(
    kitchen: Kitchen, recipe: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen.family("base", "a", "b", "c")

    assert kitchen.run(recipe) == 2

    errors = capsys.readouterr().err
    assert re.search(message, errors), errors
    assert kitchen.left() == []


def test_hundreds_of_merges_in_a_row_are_planned_in_time(kitchen: Kitchen) -> None:
    _, _, b = kitchen.family("base", "a", "b")
    steps = [
        f"name: s{n}\nmerge_method: linear\nmodels: [{{model: {f's{n - 1}' if n else 'a'}}}, {{model: b}}]\n"
        for n in range(200)
    ]

    merged = kitchen.merge("---\n".join(reversed(steps[:-1])) + "---\n" + steps[-1])

    np.testing.assert_allclose(merged["model.norm.weight"].double().numpy(), b["model.norm.weight"], rtol=1e-6, atol=1e-6)
