"""Selection of a rank, against a sort, whatever is frequent among the values."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kinray.core.methods.blocks import Operands, select_ranks, weighted_sum


@given(st.integers(0, 2**32), st.sampled_from([0.0, 0.03, 0.3, 0.9, 1.0]), st.sampled_from([0.0, 0.7, 5.0]))
def test_selected_values_are_those_of_a_sort(seed: int, share: float, frequent: float) -> None:
    random = np.random.default_rng(seed)
    values = np.abs(random.standard_normal(20_000)).astype(np.float32)
    values[random.random(len(values)) < share] = frequent
    ranks = sorted(int(rank) for rank in random.integers(0, len(values), 3))

    got = select_ranks(torch.from_numpy(values.copy()), ranks)

    assert got == [float(value) for value in np.sort(values)[ranks]]


@pytest.mark.parametrize("values", [[3.0], [2.0, 2.0], [0.0] * 10_000, [1.0, 0.0] * 5_000])
def test_few_and_equal_values_are_selected_too(values: list[float]) -> None:
    ranks = sorted({0, len(values) // 2, len(values) - 1})

    assert select_ranks(torch.tensor(values), ranks) == [sorted(values)[rank] for rank in ranks]


def test_blocks_hold_whole_rows_and_cover_every_element() -> None:
    operands = Operands(None, [torch.zeros(1000, 300)])

    blocks = list(operands.blocks(whole=operands.width))

    assert [at.start for at in blocks[1:]] == [at.stop for at in blocks[:-1]]
    assert (blocks[0].start, blocks[-1].stop) == (0, 300_000)
    assert all((at.stop - at.start) % 300 == 0 for at in blocks)
    assert len(blocks) > 1


def test_a_parent_of_weight_zero_is_not_read() -> None:
    hostile = torch.full((4,), float("nan"))
    operands = Operands(torch.ones(4), [torch.full((4,), 3.0), hostile])

    (child,) = list(weighted_sum(operands, 0.5, [0.25, 0.0]))

    assert child.tolist() == [1.0] * 4  # 0.5·1 + 0.25·(3 − 1)


@pytest.mark.parametrize("rank", [0, 50_000])
def test_values_that_are_mostly_nan_end_in_a_selection(rank: int) -> None:
    values = torch.full((100_000,), torch.nan)
    values[::3] = 1.0

    (selected,) = select_ranks(values, [rank])

    assert selected == 1.0 or np.isnan(selected)
