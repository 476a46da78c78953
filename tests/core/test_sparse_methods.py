"""TIES, DARE, DELLA and Model Breadcrumbs, on examples worked by hand, against numpy, and in expectation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from kinray.core.masks import HashedMasks
from kinray.core.methods import METHODS, blocks, method_named, selection
from kinray.core.methods.blocks import Operands
from kinray.core.methods.consensus import elect_and_add
from kinray.core.recipe import ParamValue
from kinray.core.statistics import Float64
from kinray.errors import RecipeError

MASKS = HashedMasks("d" * 64, "mlp.weight")


def apply(rule: str, delta: Tensor, *args: object, **named: object) -> Tensor:
    """Apply a rule of selection to a whole delta, in the blocks that it comes in."""
    operands = Operands(None, [delta])
    keep = getattr(selection, rule)(operands, *args, **named)
    rows = [keep(operands.delta(0, at), at).clone() for at in operands.blocks(whole=operands.width)]
    return torch.cat(rows).reshape(delta.shape)


def keep_largest(delta: Tensor, density: float) -> Tensor:
    return apply("keep_largest", delta, 0, density)


def drop_extremes(delta: Tensor, density: float, gamma: float) -> Tensor:
    return apply("drop_extremes", delta, 0, density, gamma)


def drop_at_random(delta: Tensor, density: float, masks: HashedMasks, *, rescale: bool) -> Tensor:
    return apply("drop_at_random", delta, density, 0, masks, rescale=rescale)


def drop_by_rank(delta: Tensor, density: float, epsilon: float, masks: HashedMasks, *, rescale: bool) -> Tensor:
    return apply("drop_by_rank", delta, density, epsilon, 0, masks, rescale=rescale)


small = hnp.arrays(np.float32, st.integers(1, 30), elements=st.integers(-5, 5).map(float))
densities = st.floats(0, 1)


def numpy_trim(delta: Float64, density: float) -> Float64:
    """Keep the first floor(density*n) of a stable sort by falling magnitude."""
    kept = np.argsort(-np.abs(delta), kind="stable")[: int(density * delta.size)]
    out = np.zeros_like(delta)
    out[kept] = delta[kept]
    return out


def ties(base: Tensor, parents: list[Tensor], **params: ParamValue) -> Tensor:
    named = {name.rstrip("_"): value for name, value in params.items()}
    return METHODS["ties"].merge(base, parents, named, MASKS)


@given(small, densities)
def test_trim_keeps_the_largest_and_of_equals_the_first(delta: Float64, density: float) -> None:
    got = keep_largest(torch.from_numpy(delta), density)

    np.testing.assert_array_equal(got.numpy(), numpy_trim(delta, density))


@given(st.integers(1, 200), densities)
def test_trim_keeps_exactly_the_share_that_is_asked_for(count: int, density: float) -> None:
    delta = torch.ones(count)

    kept = keep_largest(delta, density)

    assert kept[: int(density * count)].eq(1).all()
    assert kept[int(density * count) :].eq(0).all()


def test_trim_goes_over_the_whole_tensor_and_not_over_rows() -> None:
    delta = torch.tensor([[5.0, 4.0, 3.0], [-2.0, 1.0, 0.5]])

    assert keep_largest(delta, 0.5).tolist() == [[5, 4, 3], [0, 0, 0]]


def test_ties_by_hand() -> None:
    # Trimmed to 2 of 4:   a  [3, 0, -2, 0]    b  [-1, 0, -4, 0] -> b's largest are -4 and 2: [0, 2, -4, 0]
    # Elected signs: [+, +, -, +]; means over those that agree: [3, 2, -3, 0].
    base = torch.tensor([1.0, 1.0, 1.0, 1.0])
    a = base + torch.tensor([3.0, -0.5, -2.0, 1.0])
    b = base + torch.tensor([-1.0, 2.0, -4.0, 0.5])

    assert ties(base, [a, b], density=0.5).tolist() == [4, 3, -2, 1]


def test_ties_elects_the_sign_of_the_larger_mass() -> None:
    base = torch.zeros(3)
    a, b, c = torch.tensor([3.0, 1.0, 1.0]), torch.tensor([-1.0, -2.0, -1.0]), torch.tensor([-1.0, 0.5, 0.0])

    # Sums 1, -0.5, 0 (a sum of zero elects +); means of those that agree, zeros left out: 3, -2, 1.
    assert ties(base, [a, b, c]).tolist() == [3, -2, 1]


def test_ties_weights_enter_election_and_mean() -> None:
    base = torch.zeros(2)
    a, b = torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 3.0])

    # Weighted 2, 2 and -1, 3: elected +, +; (2)/2 and (2 + 3)/(2 + 1).
    torch.testing.assert_close(ties(base, [a, b], weight=(2.0, 1.0)), torch.tensor([1.0, 5 / 3]))


def test_ties_without_normalize_adds_and_lambda_scales() -> None:
    base = torch.full((2,), 10.0)
    a, b = base + torch.tensor([1.0, 1.0]), base + torch.tensor([-3.0, 3.0])

    assert ties(base, [a, b], normalize=False, lambda_=0.5).tolist() == [8.5, 12]


@given(hnp.arrays(np.float64, (3, 12), elements=st.integers(-4, 4).map(float)), st.booleans())
def test_elect_and_add_is_the_formula_in_numpy(deltas: Float64, normalize: bool) -> None:
    weights = np.array([[0.5], [1.0], [2.0]])
    weighted = weights * deltas
    agrees = np.sign(weighted) == np.where(weighted.sum(0) >= 0, 1, -1)
    total, share = (weighted * agrees).sum(0), (weights * agrees).sum(0)
    expected = np.divide(total, share, out=np.zeros(12), where=share > 0) if normalize else total

    got = elect_and_add([torch.from_numpy(row).float() for row in deltas], [0.5, 1.0, 2.0], normalize=normalize)

    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_keeps_the_share_that_is_asked_for(density: float) -> None:
    kept = drop_at_random(torch.ones(100_000), density, MASKS, rescale=False).mean()

    five_errors = 5 * np.sqrt(density * (1 - density) / 100_000)
    assert float(kept) == pytest.approx(density, abs=five_errors)


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_expectation_of_a_rescaled_delta_is_the_delta(density: float) -> None:
    delta = torch.randn(64, generator=torch.Generator().manual_seed(1))
    children = 4000

    draws = [drop_at_random(delta, density, HashedMasks(str(n), "t"), rescale=True) for n in range(children)]

    errors = delta.abs() * np.sqrt((1 - density) / density / children)
    assert ((torch.stack(draws).mean(0) - delta).abs() < 5 * errors).all()


def test_dare_scales_what_it_keeps_or_leaves_it() -> None:
    delta = torch.randn(1000, generator=torch.Generator().manual_seed(2))

    plain = drop_at_random(delta, 0.25, MASKS, rescale=False)
    scaled = drop_at_random(delta, 0.25, MASKS, rescale=True)

    assert torch.equal(plain[plain != 0], delta[plain != 0])
    assert torch.equal(scaled, plain * 4)


def test_dare_ties_drops_different_elements_of_each_parent() -> None:
    base, parent = torch.zeros(2000), torch.ones(2000)

    child = METHODS["dare_ties"].merge(base, [parent, parent], {"density": 0.5, "rescale": False}, MASKS)

    shares = [float((child == kept).float().mean()) for kept in (0, 1, 2)]
    assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.06)


def test_dare_ties_at_full_density_is_ties() -> None:
    generator = torch.Generator().manual_seed(3)
    base, a, b = (torch.randn(50, generator=generator) for _ in range(3))

    dare = METHODS["dare_ties"].merge(base, [a, b], {"normalize": True}, MASKS)

    assert torch.equal(dare, ties(base, [a, b]))


@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if "density" in {p.name for p in m.parameters}])
def test_density_zero_leaves_the_base(name: str) -> None:
    base, parent = torch.tensor([1.0, 2.0]), torch.tensor([5.0, -5.0])

    assert torch.equal(method_named(name).merge(base, [parent, parent], {"density": 0.0}, MASKS), base)


def test_dare_linear_adds_every_kept_change() -> None:
    base, parent = torch.zeros(2000), torch.ones(2000)

    child = METHODS["dare_linear"].merge(base, [parent, -parent], {"density": 0.5, "weight": (1.0, 2.0)}, MASKS)

    assert set(child.tolist()) == {-4, -2, 0, 2}


def test_dare_linear_with_normalize_divides_by_all_weights() -> None:
    base, a, b = torch.zeros(2), torch.tensor([4.0, 0.0]), torch.tensor([0.0, 4.0])

    assert METHODS["dare_linear"].merge(base, [a, b], {"weight": (1.0, 3.0), "normalize": True}, MASKS).tolist() == [1, 3]


@given(small, densities, st.floats(0, 1))
def test_breadcrumbs_keeps_the_middle_of_a_sort(delta: Float64, density: float, gamma: float) -> None:
    kept = int(density * delta.size)
    top = min(int(gamma * delta.size), delta.size - kept)
    size = np.sort(np.abs(delta))[delta.size - kept - top : delta.size - top]

    got = drop_extremes(torch.from_numpy(delta), density, gamma).numpy()

    if density < 1:
        np.testing.assert_array_equal(np.sort(np.abs(got))[delta.size - kept :], size)
        assert np.isin(got, [0, *delta]).all()


def test_breadcrumbs_by_hand() -> None:
    delta = torch.tensor([1.0, -9.0, 3.0, 4.0, -2.0, 6.0, 5.0, 7.0, 0.5, -8.0])

    # Of ten: one of the largest out (-9), five kept, four of the smallest out.
    assert drop_extremes(delta, 0.5, 0.1).tolist() == [0, 0, 0, 4, 0, 6, 5, 7, 0, -8]


@given(st.integers(1, 60), densities, st.floats(0, 1))
def test_breadcrumbs_of_equal_changes_keeps_the_first(count: int, density: float, gamma: float) -> None:
    kept = drop_extremes(torch.ones(count), density, gamma) == 1

    assert kept.tolist() == [index < int(density * count) for index in range(count)]


@pytest.mark.parametrize("name", ["breadcrumbs", "breadcrumbs_ties"])
def test_breadcrumbs_of_a_tensor_too_small_for_gamma_is_not_the_base(name: str) -> None:
    base, parent = torch.zeros(10), torch.arange(1.0, 11.0)

    child = METHODS[name].merge(base, [parent], {"density": 0.5}, MASKS)

    assert child.tolist() == [0, 0, 0, 0, 0, 6, 7, 8, 9, 10]


def della(delta: Tensor, children: int, *, rescale: bool) -> Tensor:
    draws = [drop_by_rank(delta, 0.5, 0.3, HashedMasks(str(n), "t"), rescale=rescale) for n in range(children)]
    return torch.stack(draws)


def test_della_keeps_by_rank_in_the_row() -> None:
    delta = torch.tensor([[5.0, -1.0, 3.0, 4.0], [-0.1, 0.4, 0.2, 0.3]])

    kept = (della(delta, 4000, rescale=False) != 0).float().mean(0)

    chances = torch.tensor([[0.8, 0.2, 0.4, 0.6], [0.2, 0.8, 0.4, 0.6]])
    torch.testing.assert_close(kept, chances, atol=0.04, rtol=0)


def test_della_ranks_equal_magnitudes_by_their_index(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = torch.randint(-4, 5, (9, 13), generator=torch.Generator().manual_seed(2)).float()
    ranks = np.argsort(np.argsort(delta.abs().numpy(), axis=1, kind="stable"), axis=1)
    monkeypatch.setitem(blocks._BLOCK, "cpu", 3 * 13)

    scaled = drop_by_rank(delta, 0.5, 0.4, MASKS, rescale=True).numpy()

    some = scaled != 0
    np.testing.assert_allclose((delta.numpy() / np.where(some, scaled, 1))[some], (0.1 + 0.8 * ranks / 12)[some], rtol=1e-5)


def test_expectation_of_a_rescaled_della_is_the_delta() -> None:
    delta = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))

    mean = della(delta, 4000, rescale=True).mean(0)

    assert ((mean - delta).abs() < 5 * delta.abs() * np.sqrt(0.8 / 0.2 / 4000)).all()


def test_della_of_rows_of_one_element_keeps_with_the_density() -> None:
    kept = drop_by_rank(torch.ones(20_000, 1), 0.3, 0.2, MASKS, rescale=False).mean()

    assert float(kept) == pytest.approx(0.3, abs=0.02)


def test_della_without_epsilon_is_dare() -> None:
    generator = torch.Generator().manual_seed(3)
    base, a, b = (torch.randn(5, 40, generator=generator) for _ in range(3))

    plain = METHODS["della_linear"].merge(base, [a, b], {"density": 0.5, "epsilon": 0.0}, MASKS)

    torch.testing.assert_close(plain, METHODS["dare_linear"].merge(base, [a, b], {"density": 0.5}, MASKS))


@pytest.mark.parametrize("density", [0.1, 0.9])
def test_della_refuses_probabilities_outside_of_zero_to_one(density: float) -> None:
    with pytest.raises(RecipeError, match="Both must lie between 0 and 1: lower epsilon"):
        METHODS["della"].resolve({"density": density, "epsilon": 0.15}, 2)


@pytest.mark.parametrize("name", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_blocks_do_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    base, a, b = (torch.randn(20, 30, generator=generator) for _ in range(3))
    whole = METHODS[name].merge(base, [a, b], {"density": 0.4}, MASKS)

    for length in (1, 7, 256):
        monkeypatch.setitem(blocks._BLOCK, "cpu", length)
        assert torch.equal(METHODS[name].merge(base, [a, b], {"density": 0.4}, MASKS), whole)
