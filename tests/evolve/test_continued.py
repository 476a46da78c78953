"""What may be changed when a run goes on."""

import pytest

from kinray.config import Config, parse_config
from kinray.errors import KinrayError
from kinray.evolve.continued import continued

BUDGETS = {"max_children": 8, "max_generations": 4, "stop_kinship": 0.8}


@pytest.fixture
def config() -> Config:
    methods = {"slerp": {"t": {"low": 0.2, "high": 0.8, "layers": 3}}, "ties": {"weight": {"models": [1, [0.5, 1]]}}}
    return parse_config(
        {
            "base": "b",
            "founders": ["x", {"name": "y", "model": "b", "adapter": "z"}],
            "tasks": ["t", {"name": "u", "scale": [100, 1]}],
            "search": BUDGETS,
            "merge": {"methods": methods},
            "evaluation": {"holdout": ["v"]},
        }
    )


def test_without_changes_it_is_as_it_was(config: Config) -> None:
    assert continued(config, []) == config


def test_budgets_may_be_raised_and_the_cluster_be_another(config: Config) -> None:
    changes = {"max_children": 9, "max_generations": None, "stop_kinship": 0.9, "max_hours": 1}
    overrides = [f"search.{name}={'null' if value is None else value}" for name, value in changes.items()]

    result = continued(config, [*overrides, "cluster.evaluators=3", "cluster.address=auto"])

    assert result.search == config.search.model_copy(update=changes)
    assert (result.cluster.evaluators, result.cluster.address) == (3, "auto")
    assert result.model_copy(update={"search": config.search, "cluster": config.cluster}) == config


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_cannot_be_lowered(config: Config, name: str) -> None:
    lower = BUDGETS[name] / 2

    with pytest.raises(KinrayError, match=rf"--set search.{name}={lower:g}: it was {BUDGETS[name]:g}, .* only be raised"):
        continued(config, [f"search.{name}={lower:g}"])
    with pytest.raises(KinrayError, match=rf"--set search.{name}={lower:g}: it was none"):
        continued(continued(config, [f"search.{name}=null"]), [f"search.{name}={lower:g}"])


@pytest.mark.parametrize(
    "override", ["search.k=4", "seed=1", "evaluation.device=cuda", "output=x", "search={}", "clusters.x=1"]
)
def test_what_makes_another_search_of_it_is_refused(config: Config, override: str) -> None:
    with pytest.raises(KinrayError, match=r"continues a run as it was configured\. It can change search\.max_children"):
        continued(config, [override])


def test_a_setting_that_there_is_not_is_told(config: Config) -> None:
    with pytest.raises(KinrayError, match=r"unknown key 'cluster\.evaluator'\. Did you mean 'evaluators'"):
        continued(config, ["cluster.evaluator=3"])
    with pytest.raises(KinrayError, match="is not of the form key=value"):
        continued(config, ["search.max_children"])
