"""Whole models by each kind of method, end to end, against numpy in float64."""

import numpy as np
import pytest
import torch

from tests.merge.kitchen import Array, Kitchen, assert_close, depth_of, read, same, total


def slerp(t: float, a: Array, b: Array) -> Array:
    """Go from a to b along the arc between them (Shoemake 1985), straight where they are nearly parallel."""
    cosine = float(a.ravel() @ b.ravel() / (np.linalg.norm(a) * np.linalg.norm(b)))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = np.arccos(cosine)
    result: Array = (np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle)
    return result


def ties(base: Array, parents: list[Array], weights: list[float], densities: list[float]) -> Array:
    """Trim, elect signs, average what agrees (Yadav et al., section 3.1)."""
    deltas = []
    for parent, density in zip(parents, densities, strict=True):
        delta = (parent.astype(np.float32) - base.astype(np.float32)).astype(np.float64)
        kept = max(int(density * delta.size), 1)
        smallest = np.sort(np.abs(delta).ravel())[-kept]
        deltas.append(np.where(np.abs(delta) >= smallest, delta, 0.0))
    weighted = [weight * delta for weight, delta in zip(weights, deltas, strict=True)]
    sign = np.where(np.sum(weighted, axis=0) >= 0, 1.0, -1.0)
    agree = [(np.sign(one) == sign) for one in weighted]
    share = np.sum([weight * one for weight, one in zip(weights, agree, strict=True)], axis=0)
    added = np.sum([one * good for one, good in zip(weighted, agree, strict=True)], axis=0)
    result: Array = base + np.where(share > 0, added / np.where(share > 0, share, 1.0), 0.0)
    return result


def test_linear_is_the_weighted_mean(kitchen: Kitchen) -> None:
    models = kitchen.family("a", "b", "c")

    merged = kitchen.merge("""
        merge_method: linear
        models:
          - {model: a, parameters: {weight: 1.0}}
          - {model: b, parameters: {weight: 2.0}}
          - {model: c}
        parameters: {weight: 0.5}
        """)

    assert_close(merged, total([1 / 3.5, 2 / 3.5, 0.5 / 3.5], models))


def test_linear_without_normalize_is_the_sum(kitchen: Kitchen) -> None:
    models = kitchen.family("a", "b")

    merged = kitchen.merge("""
        merge_method: linear
        models: [{model: a, parameters: {weight: 0.9}}, {model: b, parameters: {weight: -0.4}}]
        parameters: {normalize: false}
        """)

    assert_close(merged, total([0.9, -0.4], models))


@pytest.mark.parametrize("listed", ["[{model: a}, {model: b}]", "[{model: b}, {model: a}]", "[{model: b}]"])
def test_slerp_goes_from_its_base_to_the_other_with_a_gradient(kitchen: Kitchen, listed: str) -> None:
    a, b = kitchen.model("a", seed=1), kitchen.model("b", seed=2)

    merged = kitchen.merge(f"""
        merge_method: slerp
        base_model: a
        models: {listed}
        parameters:
          t:
            - filter: self_attn
              value: [0, 0.5, 0.2]
            - filter: mlp
              value: [1, 0]
            - value: 0.4
        """)

    def t(name: str) -> float:
        if "self_attn" in name:
            return {0.0: 0.0, 0.5: 0.5, 1.0: 0.2}[depth_of(name)]
        return 1 - depth_of(name) if "mlp" in name else 0.4

    assert_close(merged, {name: slerp(t(name), a[name], b[name]) for name in a})


@pytest.mark.parametrize("base_listed", [True, False])
def test_task_arithmetic_adds_weighted_changes(kitchen: Kitchen, base_listed: bool) -> None:
    base, a, b = kitchen.family("base", "a", "b")

    merged = kitchen.merge(f"""
        merge_method: task_arithmetic
        base_model: base
        models:
          - {{model: a, parameters: {{weight: [0.0, 1.0]}}}}
          {"- model: base" if base_listed else ""}
          - {{model: b, parameters: {{weight: 0.5}}}}
        parameters: {{lambda: 0.8}}
        """)

    expected = {n: base[n] + 0.8 * (depth_of(n) * (a[n] - base[n]) + 0.5 * (b[n] - base[n])) for n in base}
    assert_close(merged, expected)


def test_ties_trims_elects_and_averages(kitchen: Kitchen) -> None:
    base, a, b, c = kitchen.family("base", "a", "b", "c")

    merged = kitchen.merge("""
        merge_method: ties
        base_model: base
        models:
          - model: base
          - {model: a, parameters: {density: 0.5, weight: 1.0}}
          - {model: b, parameters: {density: 0.5, weight: 0.7}}
          - {model: c, parameters: {density: 1.0, weight: 0.4}}
        parameters: {normalize: true, int8_mask: true}
        """)

    expected = {n: ties(base[n], [a[n], b[n], c[n]], [1.0, 0.7, 0.4], [0.5, 0.5, 1.0]) for n in base}
    assert_close(merged, expected)


DARE = """
    merge_method: dare_ties
    base_model: base
    models: [{model: a}, {model: b}]
    parameters: {density: 0.5, weight: 0.5}
"""


def test_random_masks_are_the_same_every_time_until_another_seed_is_asked_for(kitchen: Kitchen) -> None:
    kitchen.family("base", "a", "b")

    first = kitchen.merge(DARE)
    again = kitchen.merge(DARE, "--overwrite", "--threads", "3")
    other = kitchen.merge(DARE, "--overwrite", "--seed", "1")

    assert same(first, again)
    assert not same(first, other)


def test_seed_of_the_command_line_draws_anew_where_the_recipe_has_one(kitchen: Kitchen) -> None:
    kitchen.family("base", "a", "b")
    seeded = DARE + "    kinray: {seed: abc}\n"

    plain, own, both = kitchen.merge(DARE), *(kitchen.merge(seeded, "--overwrite", *more) for more in ([], ["--seed", "1"]))

    assert not same(plain, own)
    assert not same(own, both)


def test_dare_keeps_a_share_of_each_change_and_divides_by_it(kitchen: Kitchen) -> None:
    base, a = kitchen.family("base", "a")

    merged = kitchen.merge("""
        merge_method: dare_linear
        base_model: base
        models: [{model: a}]
        parameters: {density: 0.25}
        """)

    kept = 0
    for name, tensor in merged.items():
        share = (tensor.double().numpy() - base[name]) / (a[name] - base[name])
        assert np.all((np.abs(share) < 1e-3) | (np.abs(share - 4) < 1e-2))
        kept += int((share > 2).sum())
    assert 0.15 < kept / sum(tensor.numel() for tensor in merged.values()) < 0.35


def test_nuslerp_without_base_turns_weights_by_the_share_of_their_weights(kitchen: Kitchen) -> None:
    a, b = kitchen.model("a", seed=1), kitchen.model("b", seed=2)

    merged = kitchen.merge("""
        merge_method: nuslerp
        models: [{model: a, parameters: {weight: 3}}, {model: b, parameters: {weight: 1}}]
        """)

    assert_close(merged, {name: slerp(0.25, a[name], b[name]) for name in a})


def test_passthrough_scales_one_model(kitchen: Kitchen) -> None:
    (a,) = kitchen.family("a")

    merged = kitchen.merge("""
        merge_method: passthrough
        models:
          - model: a
            parameters: {scale: [{filter: q_proj, value: [0.5, 1.5]}, {value: 1}]}
        """)

    assert_close(merged, {n: a[n] * (0.5 + depth_of(n) if "q_proj" in n else 1.0) for n in a})


def test_model_stock_goes_from_the_base_to_the_mean_by_the_angle(kitchen: Kitchen) -> None:
    base = kitchen.model("base", seed=0)
    shift = {name: np.random.default_rng(0).normal(size=tensor.shape) for name, tensor in base.items()}
    near = {}
    for number, name in enumerate(("a", "b"), 1):
        noise = np.random.default_rng(number)
        tensors = {
            key: torch.tensor(base[key] + 0.1 * shift[key] + 0.02 * noise.normal(size=shift[key].shape)).float() for key in base
        }
        near[name] = kitchen.model(name, tensors)

    merged = kitchen.merge("""
        merge_method: model_stock
        base_model: base
        models: [{model: a}, {model: b}]
        """)

    expected = {}
    for key, start in base.items():
        one, two = (near[name][key] - start for name in ("a", "b"))
        cosine = float(one.ravel() @ two.ravel() / np.linalg.norm(one) / np.linalg.norm(two))
        expected[key] = start + 2 * cosine / (1 + cosine) * (one + two) / 2
    assert_close(merged, expected)


def test_equal_parents_give_their_own_bits(kitchen: Kitchen) -> None:
    kitchen.model("a", seed=3)
    kitchen.model("b", seed=3)

    merged = kitchen.merge("merge_method: linear\nmodels: [{model: a}, {model: b}]")

    assert same(merged, read(kitchen.folder / "a"))
