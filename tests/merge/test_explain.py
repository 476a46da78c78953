"""What ``--explain`` tells: parameters as they take effect, and true weights, in a table that fits a screen."""

import re

import numpy as np
import pytest
import torch

from kinray.core.recipe import Merge, topological
from kinray.merge.cli import main
from kinray.merge.document import read_recipe
from kinray.merge.explain import groups_of
from kinray.merge.open import Shelf
from kinray.merge.output import Section
from kinray.merge.plan import plan_merges
from kinray.merge.shares import measure, shares
from kinray.merge.words import aligned, short_names
from tests.helpers import random_tensors
from tests.merge.kitchen import Array, Kitchen, depth_of, read, shapes


def plan(kitchen: Kitchen, recipe: str) -> Section:
    documents, _ = read_recipe(kitchen.write(recipe))
    (section,) = plan_merges(documents, Shelf()).sections
    return section


def shares_by_tensor(section: Section) -> dict[str, Array]:
    """Name each tensor and the shares of its parents in it."""
    (merge,) = [node for node in topological([section.recipe]) if isinstance(node, Merge)]
    return {name: shares([one], len(merge.parents)) for name, one in measure(section)[merge.digest].items()}


def least_squares(origin: Array, parents: list[Array], child: Array) -> Array:
    columns = np.stack([(parent - origin).ravel() for parent in parents], axis=1)
    result: Array = np.linalg.lstsq(columns, (child - origin).ravel(), rcond=None)[0]
    return result


@pytest.mark.parametrize("normalize", [True, False])
def test_shares_of_a_linear_merge_are_its_weights(kitchen: Kitchen, normalize: bool) -> None:
    kitchen.family("a", "b", "c")

    section = plan(
        kitchen,
        f"""
        merge_method: linear
        models:
          - {{model: a, parameters: {{weight: [0.2, 0.6]}}}}
          - {{model: b, parameters: {{weight: 0.5}}}}
          - {{model: c, parameters: {{weight: 1}}}}
        parameters: {{normalize: {str(normalize).lower()}}}
        """,
    )

    for name, found in shares_by_tensor(section).items():
        weights = np.array([0.2 + 0.4 * depth_of(name), 0.5, 1.0])
        np.testing.assert_allclose(found, weights / weights.sum() if normalize else weights, atol=1e-12)


def test_shares_of_changes_are_exact_even_where_parents_are_alike(kitchen: Kitchen) -> None:
    kitchen.family("base", "a")
    kitchen.model("twin", read(kitchen.folder / "a"))

    section = plan(
        kitchen,
        """
        merge_method: task_arithmetic
        base_model: base
        models: [{model: a, parameters: {weight: 0.7}}, {model: twin, parameters: {weight: 0.1}}]
        parameters: {lambda: 0.5}
        """,
    )

    for found in shares_by_tensor(section).values():
        np.testing.assert_allclose(found, [0.35, 0.05], atol=1e-12)


def test_shares_of_slerp_are_those_of_the_arc(kitchen: Kitchen) -> None:
    a, b = kitchen.model("a", seed=1), kitchen.model("b", seed=2)

    section = plan(kitchen, "merge_method: slerp\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.3}")

    for name, found in shares_by_tensor(section).items():
        cosine = float(a[name].ravel() @ b[name].ravel() / np.linalg.norm(a[name]) / np.linalg.norm(b[name]))
        angle = np.arccos(cosine)
        np.testing.assert_allclose(found, np.sin([0.7 * angle, 0.3 * angle]) / np.sin(angle), rtol=1e-5)


@pytest.mark.parametrize("threads", [1, 3])
def test_shares_of_other_methods_are_the_closest_sum_of_changes(kitchen: Kitchen, threads: int) -> None:
    base, a, b = kitchen.family("base", "a", "b")
    recipe = (
        "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\nparameters: {density: 0.5}\ndtype: float32"
    )
    merged = {name: tensor.double().numpy() for name, tensor in kitchen.merge(recipe).items()}

    torch.set_num_threads(threads)
    found = shares_by_tensor(plan(kitchen, recipe))
    torch.set_num_threads(1)

    for name in base:
        expected = least_squares(base[name], [a[name], b[name]], merged[name])
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5)


def test_without_a_base_the_first_parent_has_what_the_others_leave(kitchen: Kitchen) -> None:
    a, b = kitchen.model("a", seed=1), kitchen.model("b", seed=2)
    recipe = "merge_method: nearswap\nbase_model: a\nmodels: [{model: b}]\nparameters: {t: 0.5}"
    merged = {name: tensor.double().numpy() for name, tensor in kitchen.merge(recipe).items()}

    for name, found in shares_by_tensor(plan(kitchen, recipe)).items():
        (of_b,) = least_squares(a[name], [b[name]], merged[name])
        np.testing.assert_allclose(found, [1 - of_b, of_b], rtol=1e-4)


def test_shares_are_unknown_where_weights_are_not_finite(kitchen: Kitchen) -> None:
    kitchen.family("base", "a")
    broken = read(kitchen.folder / "a")
    broken["model.norm.weight"][0] = float("nan")
    kitchen.model("b", broken)

    found = shares_by_tensor(plan(kitchen, "merge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]"))

    assert np.isnan(found["model.norm.weight"]).all()
    assert np.isfinite(found["lm_head.weight"]).all()


def test_every_merge_of_a_collapsed_chain_is_measured(kitchen: Kitchen) -> None:
    kitchen.family("base", "a", "b")

    section = plan(
        kitchen,
        """
        name: inner
        merge_method: slerp
        base_model: a
        models: [{model: b}]
        ---
        name: trimmed
        merge_method: ties
        base_model: base
        models: [{model: inner}, {model: b}]
        ---
        merge_method: nuslerp
        models: [{model: trimmed, parameters: {weight: 0.3}}, {model: inner, parameters: {weight: 0.7}}]
        """,
    )
    found = measure(section)

    merges = [node for node in topological([section.recipe]) if isinstance(node, Merge)]
    assert set(found) == {merge.digest for merge in merges}
    for merge in merges:
        together = shares(list(found[merge.digest].values()), 2)
        assert together.sum() == pytest.approx(1.0, abs=0.2)


def test_weights_are_not_read_where_shares_do_not_depend_on_them(kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch) -> None:
    kitchen.family("a", "b")
    monkeypatch.setattr("kinray.checkpoints.folder._open", lambda file: pytest.fail(f"{file} was read"))

    assert main([str(kitchen.write("merge_method: linear\nmodels: [{model: a}, {model: b}]")), "--explain"]) == 0


def test_tensors_are_grouped_by_kind_and_layers_in_a_row(kitchen: Kitchen) -> None:
    kitchen.family("a", "b")
    section = plan(
        kitchen,
        """
        merge_method: slerp
        base_model: a
        models: [{model: b}]
        parameters: {t: [{filter: self_attn, value: [0, 1, 1]}, {filter: embed, value: 1}, {value: 0.5}]}
        """,
    )

    groups = groups_of(section, section.recipe)

    assert sorted(name for group in groups for name in group.names) == sorted(section.models.names)
    assert {(group.where(group.layers[1]), group.params["t"]) for group in groups} == {
        ("model.embed_tokens.weight", 1.0),
        ("lm_head.weight, model.norm.weight", 0.5),
        ("model.layers.0: self_attn", 0.0),
        ("model.layers.1 to 2: self_attn", 1.0),
        ("model.layers.0 to 2: input_layernorm, mlp", 0.5),
    }


def explained(kitchen: Kitchen, recipe: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(kitchen.write(recipe)), "--explain"]) == 0
    return capsys.readouterr().out


def test_explain_alone_writes_nothing_and_shows_a_folded_table(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    deep = shapes(12)
    for number, name in enumerate("ab"):
        kitchen.model(f"x/{name}", random_tensors(number, deep))

    shown = explained(
        kitchen,
        """
        merge_method: linear
        models:
          - {model: x/a, parameters: {weight: [1, 0]}}
          - {model: x/b, parameters: {weight: [{filter: mlp, value: [1, 0, 1]}, {value: 1}]}}
        """,
        capsys,
    )

    assert kitchen.left() == []
    assert shown.startswith("models\n  a is x/a\n  b is x/b\n\nthe output = linear of a, b; normalize true\n")
    rows = [re.split(r"  +", line.strip()) for line in shown.split("\n\n")[1].splitlines()[2:]]
    assert rows == [
        ["lm_head.weight, model.embed_tokens.weight, model.norm.weight", "1, 1", "0.500", "0.500"],
        ["model.layers.0 to 11: input_layernorm, self_attn", "1, 1 → 0, 1", "0.500 → 0.000", "0.500 → 1.000"],
        ["model.layers.0 to 6: mlp", "1, 1 → 0.4545, 0.09091", "0.500 → 0.833", "0.500 → 0.167"],
        ["model.layers.7 to 11: mlp", "0.3636, 0.2727 → 0, 1", "0.571 → 0.000", "0.429 → 1.000"],
    ]
    assert max(map(len, shown.splitlines())) <= 124


def test_explain_tells_merges_in_their_order_and_what_is_taken_as_it_is(
    kitchen: Kitchen, capsys: pytest.CaptureFixture[str]
) -> None:
    kitchen.model("a", random_tensors(0, shapes()) | {"model.ids": torch.arange(3)})
    kitchen.model("b", seed=1)

    shown = explained(
        kitchen,
        """
        merge_method: slerp
        base_model: first
        slices: [{sources: [{model: first, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}]}]
        ---
        name: first
        merge_method: linear
        models: [{model: a}, {model: b}]
        """,
        capsys,
    )

    titles = [part.splitlines()[0] for part in shown.split("\n\n")]
    assert titles[:4] == [
        "first = linear of a, b; weight 1, normalize true",
        "as they are, from a",
        "the output = slerp of first, b; t 0.5",
        "as they are, from first",
    ]


def test_explain_and_merge_go_together(kitchen: Kitchen, capsys: pytest.CaptureFixture[str]) -> None:
    kitchen.family("a", "b")

    assert kitchen.run("merge_method: linear\nmodels: [{model: a}, {model: b}]", "--explain") == 0

    shown = capsys.readouterr().out
    assert "the output = linear" in shown and "Wrote" in shown
    assert len(read(kitchen.out)) == len(shapes())


@pytest.mark.parametrize(
    ("names", "short"),
    [
        (["/m/a", "/m/b"], ["a", "b"]),
        (["/one/chat", "/two/chat"], ["one/chat", "two/chat"]),
        (["/one/chat", "chat"], ["one/chat", "chat"]),
        (["owner/model@v1", "owner/model@v2"], ["model@v1", "model@v2"]),
        (["/m/base+/l/math", "/m/base", "/m/base+/l/code"], ["base+math", "base", "base+code"]),
        (["/x/m+/y/l", "/z/m+/y/l"], ["x/m+y/l", "z/m+y/l"]),
        (["a", "a"], ["a"]),
    ],
)
def test_models_have_the_shortest_names_that_tell_them_apart(names: list[str], short: list[str]) -> None:
    assert list(short_names(names).values()) == short


def test_columns_line_up() -> None:
    assert aligned([["x", "1"], ["long", "123"]]) == "  x       1\n  long  123"
