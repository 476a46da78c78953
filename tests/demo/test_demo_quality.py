"""Builds the real demo and checks that its founders are worth merging. Takes about a minute."""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from kinray.demo import DemoFiles, build_demo

pytestmark = pytest.mark.slow
ITEMS = 300


class Scorer:
    """Scores sums of deltas with plain torch, independent of lm-eval and of kinray's merging."""

    def __init__(self, files: DemoFiles) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(files.base)
        self.model = AutoModelForCausalLM.from_pretrained(files.base)
        self.base = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.deltas = {name: self._delta(folder) for name, folder in files.founders.items()}
        self.folder = files.tasks
        self.tasks = {name: _read(files.tasks / f"demo_{name}.jsonl") for name in files.founders}

    def __call__(self, amounts: Mapping[str, float]) -> dict[str, float]:
        """Gives the accuracy on each task of base + the sum of amount * delta."""
        merged = {
            name: tensor + sum(amount * self.deltas[founder][name] for founder, amount in amounts.items())
            for name, tensor in self.base.items()
        }
        self.model.load_state_dict(merged)
        return {name: self._accuracy(items) for name, items in self.tasks.items()}

    def flat_delta(self, founder: str) -> torch.Tensor:
        return torch.cat([tensor.flatten() for tensor in self.deltas[founder].values()])

    def _delta(self, folder: Path) -> dict[str, torch.Tensor]:
        weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        return {name: weights[name] - tensor for name, tensor in self.base.items()}

    def _accuracy(self, items: list[dict[str, Any]]) -> float:
        prompts = torch.tensor(self.tokenizer([item["prompt"] for item in items])["input_ids"])
        choices = torch.tensor([[self.tokenizer.encode(f" {word}")[0] for word in item["choices"]] for item in items])
        with torch.no_grad():
            logits = self.model(input_ids=prompts).logits[:, -1]
        right = logits.gather(1, choices).argmax(1) == torch.tensor([item["answer"] for item in items])
        return float(right.double().mean())


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer(build_demo(tmp_path_factory.mktemp("cache")))


def test_the_base_knows_little_of_every_skill(scorer: Scorer) -> None:
    assert all(0.2 <= score <= 0.55 for score in scorer({}).values())


def test_each_founder_is_good_at_its_own_skill_only(scorer: Scorer) -> None:
    for founder in scorer.deltas:
        for task, score in scorer({founder: 1.0}).items():
            assert (score >= 0.75) if task == founder else (score <= 0.55), (founder, task, score)


def test_founders_are_about_equal_on_the_whole(scorer: Scorer) -> None:
    means = [_mean(scorer({founder: 1.0})) for founder in scorer.deltas]

    assert max(means) - min(means) <= 0.1


def test_founders_moved_in_nearly_orthogonal_directions(scorer: Scorer) -> None:
    for one, two in itertools.combinations(scorer.deltas, 2):
        assert abs(torch.cosine_similarity(scorer.flat_delta(one), scorer.flat_delta(two), dim=0)) < 0.15


def test_the_sum_of_all_three_beats_every_founder_and_the_plain_average(scorer: Scorer) -> None:
    best = max(_mean(scorer(dict.fromkeys(scorer.deltas, amount))) for amount in (0.5, 0.7, 0.85, 1.0, 1.2, 1.5))

    assert best >= max(_mean(scorer({founder: 1.0})) for founder in scorer.deltas) + 0.12
    assert best >= _mean(scorer(dict.fromkeys(scorer.deltas, 1 / 3))) + 0.06


def test_sums_of_two_lie_between_founders_and_the_sum_of_three(scorer: Scorer) -> None:
    three = _mean(scorer(dict.fromkeys(scorer.deltas, 1.0)))

    for pair in itertools.combinations(scorer.deltas, 2):
        two = _mean(scorer(dict.fromkeys(pair, 1.0)))
        assert max(_mean(scorer({founder: 1.0})) for founder in pair) < two < three


def test_lm_eval_gives_the_same_accuracies(scorer: Scorer) -> None:
    evaluator = pytest.importorskip("lm_eval.evaluator")
    tasks = pytest.importorskip("lm_eval.tasks")
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    expected = scorer({"numbers": 1.0, "words": 1.0})

    lm = huggingface.HFLM(pretrained=scorer.model, tokenizer=scorer.tokenizer, batch_size=64)
    manager = tasks.TaskManager(include_path=str(scorer.folder), include_defaults=False)
    loaded = manager.load([f"demo_{name}" for name in scorer.tasks])
    results = evaluator.evaluate(lm, loaded, limit=ITEMS, bootstrap_iters=0)["results"]

    # One item in 300 may flip where two choices are equally likely to the last bit or so.
    for name in scorer.tasks:
        assert results[f"demo_{name}"]["acc,none"] == pytest.approx(expected[name], abs=1 / ITEMS + 1e-9)


def _mean(scores: Mapping[str, float]) -> float:
    return sum(scores.values()) / len(scores)


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()[:ITEMS]]
