"""Recipes turned into weights, against the pure methods applied step by step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kinray.checkpoints.models import Models
from kinray.core.algebra import KinshipMap
from kinray.core.methods import METHODS, blocks
from kinray.core.parameters import Varied
from kinray.core.recipe import Founder, Merge, Recipe
from kinray.engine.gram import gram_pass
from kinray.engine.materialise import Materialiser
from kinray.errors import RecipeError
from tests.helpers import family, founder, merge, random_tensors, step_by_step


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def models(request: pytest.FixtureRequest, tmp_path: Path) -> Models:
    return family(tmp_path, [random_tensors(seed, dtype=request.param) for seed in range(4)])


def founders(models: Models) -> list[Founder]:
    """The base and three founders."""
    return [spec.founder for spec in models.specs]


def assert_same_as_steps(models: Models, recipe: Recipe, dtype: torch.dtype = torch.float32) -> None:
    for name, tensor in Materialiser(models).tensors(recipe, dtype):
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor, step_by_step(models, recipe, name).to(dtype), rtol=1e-6, atol=2e-6)


def test_linear_family_collapses_to_what_its_steps_give(models: Models) -> None:
    base, f1, f2, f3 = founders(models)
    first = merge("slerp", f1, f2, t=0.3)
    second = merge("task_arithmetic", first, f3, base=base, weight=(0.5, 0.4), lambda_=0.9)
    third = merge("linear", second, first, f1, weight=(1.0, 2.0, 0.5))

    for recipe in (first, second, third):
        assert_same_as_steps(models, recipe)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.weights is None])
def test_other_methods_are_applied_to_their_parents(models: Models, method: str) -> None:
    base, f1, f2, f3 = founders(models)
    density = {"density": 0.4} if any(p.name == "density" for p in METHODS[method].parameters) else {}

    assert_same_as_steps(models, merge(method, *(f1, f2, f3)[: METHODS[method].max_parents], base=base, **density))


@pytest.mark.parametrize("with_base", [False, True])
def test_methods_vector_by_vector_are_not_collapsed(models: Models, with_base: bool) -> None:
    base, f1, f2, _ = (spec.founder for spec in models.specs)

    assert_same_as_steps(models, merge("nuslerp", f1, f2, base=base if with_base else None, nuslerp_flatten=False))
    assert_same_as_steps(models, merge("model_stock", f1, f2, base=base, filter_wise=True))


def test_other_methods_on_top_of_linear_ancestry(models: Models) -> None:
    base, f1, f2, f3 = founders(models)
    left = merge("linear", merge("slerp", f1, f2), f3)

    assert_same_as_steps(models, merge("dare_ties", left, merge("linear", f1, f3), base=base, density=1.0))


def test_linear_on_top_of_other_methods(models: Models) -> None:
    base, f1, f2, f3 = founders(models)
    trimmed = merge("ties", f1, f2, base=base, density=0.5)
    child = merge("slerp", trimmed, merge("linear", f3, f1), t=0.25)

    assert_same_as_steps(models, merge("linear", child, trimmed, f2))


def test_child_of_rounded_models_enters_its_own_child_unrounded(tmp_path: Path) -> None:
    models = family(tmp_path, [random_tensors(seed, dtype=torch.bfloat16) for seed in range(4)])
    base, f1, f2, f3 = founders(models)
    for child in (merge("linear", f1, f2, weight=(1.0, 2.0)), merge("ties", f1, f2, base=base, weight=(1.0, 2.0))):
        grandchild = merge("linear", child, f3, weight=(0.3, 0.7))

        for name, tensor in Materialiser(models).tensors(grandchild, torch.float32):
            parent, other = step_by_step(models, child, name).double(), models.sources[f3.digest].load(name).double()
            torch.testing.assert_close(tensor.double(), 0.3 * parent + 0.7 * other, rtol=1e-6, atol=1e-6)
            rounded = 0.3 * parent.bfloat16().double() + 0.7 * other
            assert (tensor - rounded).abs().max() > 1e-5, "rounding must matter for this test to say something"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_output_is_the_float32_child_cast_once(models: Models, dtype: torch.dtype) -> None:
    base, f1, f2, _ = founders(models)
    recipe = merge("ties", merge("slerp", f1, f2), f1, base=base, density=0.5)
    maker = Materialiser(models)

    wide = dict(maker.tensors(recipe, torch.float32))

    for name, tensor in maker.tensors(recipe, dtype):
        assert torch.equal(tensor, wide[name].to(dtype))


def test_founder_comes_with_its_own_bits(models: Models) -> None:
    for model in founders(models):
        source = models.sources[model.digest]
        for name, tensor in Materialiser(models).tensors(model, source.load(models.names[0]).dtype):
            assert torch.equal(tensor, source.load(name))


def test_child_of_one_parent_twice_is_that_parent(models: Models) -> None:
    base, f1, _, _ = founders(models)
    child = merge("ties", f1, f1, base=base)

    assert_same_as_steps(models, merge("dare_ties", child, child, base=base, density=0.5))


def test_same_recipe_has_the_same_bits_with_and_without_given_statistics(models: Models) -> None:
    _, f1, f2, f3 = founders(models)
    recipe = merge("slerp", merge("slerp", f1, f2), f3)
    given = gram_pass(models, models.names[2:]) + gram_pass(models, models.names[:2])

    one, other = (dict(m.tensors(recipe, torch.float32)) for m in (Materialiser(models), Materialiser(models, given)))

    assert all(torch.equal(one[name], other[name]) for name in models.names)


def test_tensors_come_in_file_order_or_as_asked(models: Models) -> None:
    recipe = merge("linear", *founders(models)[1:3])
    maker = Materialiser(models)

    assert tuple(name for name, _ in maker.tensors(recipe, torch.float32)) == models.names
    some = ["scale", "norm.weight"]
    assert [name for name, _ in maker.tensors(recipe, torch.float32, some)] == some


def test_two_children_may_be_made_side_by_side(models: Models) -> None:
    _, f1, f2, f3 = founders(models)
    a, b = merge("slerp", f1, f2), merge("linear", f2, f3)
    maker = Materialiser(models)
    slow = maker.tensors(a, torch.float32)
    next(slow)

    assert len(list(maker.tensors(b, torch.float32, models.names[:1]))) == 1

    for name, tensor in slow:
        torch.testing.assert_close(tensor, step_by_step(models, a, name), rtol=1e-6, atol=2e-6)


def test_files_are_never_written_into(models: Models) -> None:
    base, f1, f2, _ = founders(models)
    before = {d: {n: source.load(n).clone() for n in models.names} for d, source in models.sources.items()}
    recipe = merge("task_arithmetic", merge("ties", f1, f2, base=base), f1, base=base, lambda_=0.3)

    list(Materialiser(models).tensors(recipe, torch.float32))
    list(Materialiser(models).tensors(merge("slerp", f1, f2), torch.float32))

    for digest, source in models.sources.items():
        assert all(torch.equal(source.load(name), before[digest][name]) for name in models.names)


def test_only_the_tensors_at_hand_are_in_memory(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    base, *rest = founders(models)
    recipe: Recipe = rest[0]
    for number in range(20):
        recipe = merge("ties", recipe, rest[number % 3], base=base, density=0.9)
    most = 0
    compute = Materialiser._blocks

    def counted(self: Materialiser, node: Merge, rows: Any, name: str, made: dict[str, Tensor]) -> Iterator[Tensor]:
        nonlocal most
        most = max(most, len(made))
        return compute(self, node, rows, name, made)

    monkeypatch.setattr(Materialiser, "_blocks", counted)
    list(Materialiser(models).tensors(recipe, torch.float32))

    assert most <= 4  # three founders and a parent, beside the child


def test_blocks_of_the_weighted_sum_do_not_show(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = merge("linear", *founders(models)[1:])
    whole = dict(Materialiser(models).tensors(recipe, torch.float32))
    monkeypatch.setitem(blocks._BLOCK, "cpu", 7)

    parts = dict(Materialiser(models).tensors(recipe, torch.float32))

    assert all(torch.equal(whole[name], parts[name]) for name in models.names)


def test_unknown_founder_is_refused(models: Models) -> None:
    stranger = founder("stranger")

    with pytest.raises(RecipeError, match=f"needs founder 'stranger' .{stranger.digest[:12]}., which is not given"):
        next(Materialiser(models).tensors(merge("linear", founders(models)[1], stranger), torch.float32))


def test_another_base_is_refused(models: Models) -> None:
    _, f1, f2, f3 = founders(models)

    with pytest.raises(RecipeError, match=r"A 'ties' of the recipe takes deltas against 'f3' .*, but the base is 'base'"):
        next(Materialiser(models).tensors(merge("ties", f1, f2, base=f3), torch.float32))


def test_deepest_recipe_is_made(models: Models) -> None:
    _, f1, f2, _ = founders(models)
    older: Recipe = f1
    newer: Recipe = f2
    for _ in range(255):
        older, newer = newer, Merge("linear", (newer, older))

    for name, tensor in Materialiser(models).tensors(newer, torch.float32, ["scale", "mlp.weight"]):
        # Weights of the two founders tend to 1/3 and 2/3.
        a, b = (models.sources[f.digest].load(name).double() for f in (f1, f2))
        torch.testing.assert_close(tensor.double(), a / 3 + 2 * b / 3, rtol=1e-5, atol=1e-6)


DEEP = {"embed": (10, 6), "norm": (6,)} | {f"layers.{at}.{part}": (6, 6) for at in range(4) for part in ("attn", "mlp")}


def deep_family(tmp_path: Path) -> Models:
    return family(tmp_path, [random_tensors(seed, DEEP) for seed in range(4)])


def test_gradient_weighs_each_layer_by_its_depth(tmp_path: Path) -> None:
    models = deep_family(tmp_path)
    base, f1, f2, f3 = founders(models)
    rising = Varied((("attn", (0.0, 0.6)), ("mlp", (0.2, 0.4, 0.9))))
    child = merge("task_arithmetic", merge("linear", f1, f2, weight=(rising, 1.0), normalize=False), f3, base=base, weight=0.5)

    made = dict(Materialiser(models).tensors(child, torch.float32))

    for name in models.names:
        t0, t1, t2, t3 = (models.sources[digest].load(name).double().numpy() for digest in models.digests)
        depth = int(name.split(".")[1]) / 3 if name.startswith("layers") else 0.0
        first = 1.0  # the default, where no case fits
        if "attn" in name:
            first = 0.6 * depth
        if "mlp" in name:
            first = float(np.interp(depth, [0, 0.5, 1], [0.2, 0.4, 0.9]))
        expected = t0 + 0.5 * (first * t1 + t2 - t0) + 0.5 * (t3 - t0)
        np.testing.assert_allclose(made[name].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("method", [name for name, m in METHODS.items() if m.parameters])
def test_gradients_reach_every_method(tmp_path: Path, method: str) -> None:
    models = deep_family(tmp_path)
    base, *parents = founders(models)
    declared = METHODS[method]
    numbers = [p.name for p in declared.parameters if not isinstance(p.default, bool)]
    knots = {"epsilon": (0.1, 0.2)}
    params: dict[str, Any] = {name: Varied((("mlp", knots.get(name, (0.4, 0.6))),)) for name in numbers}

    assert_same_as_steps(models, merge(method, *parents[: min(2, declared.max_parents)], base=base, **params))


def test_shards_measure_a_varied_child_as_algebra_does(tmp_path: Path) -> None:
    models = deep_family(tmp_path)
    _, f1, f2, _ = founders(models)
    child = merge("slerp", f1, f2, t=Varied((("attn", (0.1, 0.9)), ("", (0.3,)))))
    statistics = gram_pass(models, models.names)
    known = KinshipMap(statistics)

    measured = Materialiser(models, statistics).products(child, models.names)

    row_TM = known.row(child)
    assert row_TM is not None
    np.testing.assert_allclose(measured.dots_TM, np.einsum("tm,tmn->tn", row_TM, statistics.gram_TMM), rtol=1e-4, atol=1e-3)


def test_switch_that_varies_is_merged_tensor_by_tensor(tmp_path: Path) -> None:
    models = deep_family(tmp_path)
    _, f1, f2, _ = founders(models)
    by_vector = Varied((("attn", (False,)), ("", (True,))))

    assert_same_as_steps(models, merge("nuslerp", f1, f2, nuslerp_flatten=by_vector))


def test_parameters_that_do_not_fit_are_refused_before_any_work(models: Models) -> None:
    base, f1, f2, _ = founders(models)
    child = merge("della", f1, f2, base=base, density=Varied((("scale", (0.1,)), ("", (0.5,)))))

    with pytest.raises(RecipeError, match="lower epsilon"):
        Materialiser(models).plan(child)
