"""The deterministic methods against what mergekit 0.1.4 made of the same tensors.

benchmarks/merge_methods.py wrote the fixture. ``ram`` and ``ramplus_tl`` are not in mergekit 0.1.4. Of the random methods only
the addition is compared, at density 1: mergekit's masks depend on the order of its work, and where it drops weights it
restores the L1 norm, while ours divide by the keep probability, as the papers do.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kinray.core.masks import HashedMasks
from kinray.core.methods import METHODS

RECORD = json.loads((Path(__file__).parent / "fixtures" / "mergekit.json").read_text())

SAME = [case for case in RECORD["cases"] if "differs" not in case]
DIFFERENT = [case for case in RECORD["cases"] if "differs" in case]

NOT_IN_MERGEKIT = {"ram", "ramplus_tl"}


def name_of(case: dict[str, Any]) -> str:
    return f"{case['method']}-{case['inputs'].split(',')[0]}-{'-'.join(case['params'])}".replace(" ", "_")


def both(case: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return our child and mergekit's, float32."""
    given = RECORD["inputs"][case["inputs"]]
    base, *parents = (torch.tensor(numbers).reshape(given["shape"]) for numbers in (given["base"], *given["parents"]))
    params = {name: tuple(value) if isinstance(value, list) else value for name, value in case["params"].items()}
    origin = base if case.get("base") == "base" else None
    child = METHODS[case["method"]].merge(origin, parents[: case["parents"]], params, HashedMasks("0", "w"))
    return child, torch.tensor(case["output"]).reshape(given["shape"])


def share_within_one_unit(mine: torch.Tensor, other: torch.Tensor) -> float:
    """Return the share of weights that are equal or neighbours once both are cast to bfloat16."""
    mine, other = mine.bfloat16(), other.bfloat16()
    up, down = (torch.nextafter(other, torch.full_like(other, end)) for end in (torch.inf, -torch.inf))
    return float(((down <= mine) & (mine <= up)).double().mean())


@pytest.mark.parametrize("case", SAME, ids=name_of)
def test_child_is_mergekits_within_one_unit(case: dict[str, Any]) -> None:
    mine, other = both(case)

    assert share_within_one_unit(mine, other) >= 0.999
    torch.testing.assert_close(mine, other, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("case", DIFFERENT, ids=name_of)
def test_child_differs_from_mergekits_only_where_that_is_meant(case: dict[str, Any]) -> None:
    mine, other = both(case)

    assert not torch.allclose(mine, other, rtol=1e-6, atol=1e-8), case["differs"]


def test_every_method_of_mergekit_is_compared() -> None:
    assert {case["method"] for case in SAME} | NOT_IN_MERGEKIT == set(METHODS)
