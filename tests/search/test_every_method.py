"""Every merge method runs in a search over pairs, with everything open that may be: from the policy to finite weights."""

from typing import Any

import pytest
import torch

from kinray.checkpoints.models import Models
from kinray.config import MergeConfig, SearchConfig
from kinray.core.methods import METHODS
from kinray.core.parameters import Varied
from kinray.core.recipe import Merge
from kinray.engine.materialise import Materialiser
from kinray.search.policy import TopK
from kinray.search.population import Outcome
from kinray.search.proposals import proposer_for
from kinray.search.space import search_space
from tests.helpers import family, random_tensors

SHAPES = {"embed.weight": (10, 6), "norm.weight": (6,)} | {
    f"layers.{layer}.{part}.weight": (6, 6) for layer in range(3) for part in ("self_attn.q_proj", "mlp.up_proj")
}
TOGETHER = {"density": (0.4, 0.6), "epsilon": (0.05, 0.15)}
"""Ranges of what must go together; all others are explored from a fifth below their default."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    base, *drawn = (random_tensors(seed, SHAPES) for seed in range(4))
    tuned = [{name: base[name] + 0.1 * delta[name] for name in SHAPES} for delta in drawn]
    return family(tmp_path_factory.mktemp("models"), [base, *tuned])


def everything_open(method: str) -> dict[str, Any]:
    """Give each number layers and filters, and each switch its choices."""
    params: dict[str, Any] = {}
    for parameter in METHODS[method].parameters:
        if isinstance(parameter.default, bool):
            params[parameter.name] = {"mlp": [True, False]}
            continue
        ranges = TOGETHER if METHODS[method].check else {}
        low, high = ranges.get(parameter.name, (0.8 * parameter.default, parameter.default))
        free = {"low": low, "high": high}
        params[parameter.name] = {"attention": {**free, "layers": 2}, "mlp": free, "rest": high}
    return params


@pytest.mark.parametrize("method", [name for name in METHODS if name != "passthrough"])
def test_a_search_with_every_method_makes_finite_children(models: Models, method: str) -> None:
    base, *founders = [spec.founder for spec in models.specs]
    methods = MergeConfig(methods={method: everything_open(method)}).methods
    spaces = [space.fitted(models.names) for space in search_space(methods)]
    search = TopK(
        founders, base, proposer_for(spaces, 0), lambda a, others: [0.5] * len(others), SearchConfig(max_generations=2, k=2), 0
    )
    maker = Materialiser(models)
    while (child := search.ask()) is not None:
        made = dict(maker.tensors(child.recipe, torch.float32))
        assert {name: tuple(tensor.shape) for name, tensor in made.items()} == SHAPES
        assert all(torch.isfinite(tensor).all() for tensor in made.values())
        search.tell(child.name, Outcome(-float(sum(tensor.square().sum() for tensor in made.values()))))

    children = [child.recipe for child in search.population.children if isinstance(child.recipe, Merge)]
    assert max(child.depth for child in children) == 2
    assert {child.method for child in children} == {method}
    if METHODS[method].parameters:
        assert all(isinstance(one, Varied) for child in children for value in child.params.values() for one in many(value))


def many(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_the_higher_ranked_parent_has_the_part_of_the_base(models: Models) -> None:
    base, *founders = [spec.founder for spec in models.specs]
    for method in [name for name, declared in METHODS.items() if declared.first_is_base]:
        spaces = search_space(MergeConfig(methods={method: {}}).methods)
        search = TopK(
            founders, base, proposer_for(spaces, 0), lambda a, others: [0.5] * len(others), SearchConfig(max_generations=1), 0
        )
        scores = dict(zip((founder.name for founder in founders), (0.1, 0.3, 0.2), strict=True))
        while (child := search.ask()) is not None:
            search.tell(child.name, Outcome(scores.get(child.name, 0.0)))
        parents = [child.recipe.parents for child in search.population.children if isinstance(child.recipe, Merge)]
        assert [[parent.name for parent in pair] for pair in parents] == [["f2", "f3"], ["f2", "f1"], ["f3", "f1"]]  # type: ignore[union-attr]
