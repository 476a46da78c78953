"""What a child cost: tokens through the model, seconds by part, GPU-seconds."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.model import LM
from lm_eval.api.registry import model_registry
from transformers import AutoTokenizer

from kinray.checkpoints.models import ModelSpec
from kinray.core.scores import Scored
from kinray.demo import DemoFiles
from kinray.evaluation.scorer import Scorer
from kinray.evaluation.tokens import counting
from tests.evaluation.tiny import CHOICES, configure, model_specs, questions, write_task

GENERATED = {"name": "generated", "batch_size": 40}


@pytest.fixture(scope="module")
def specs(demo: DemoFiles) -> list[ModelSpec]:
    """The demo's base and founders."""
    return model_specs(demo)


def scored(specs: list[ModelSpec], tasks: list[Any], paths: list[Path], **evaluation: Any) -> Scored:
    """Score a founder."""
    result = Scorer(specs, None, configure(tasks, paths, **evaluation), "cpu").score(specs[1].founder)
    assert isinstance(result, Scored), result
    return result


PAIRS = "{{[choices[0] ~ ' ' ~ choices[1], choices[1] ~ ' ' ~ choices[2], choices[2] ~ ' ' ~ choices[3]]}}"
"""Three answers of two tokens, of which a model reads the first and predicts both."""


@pytest.fixture
def pairs(numbers: Path, tmp_path: Path) -> list[Path]:
    """A folder with a task of such answers."""
    write_task(tmp_path, "pairs", CHOICES, numbers, doc_to_choice=PAIRS, doc_to_target=0)
    return [tmp_path]


def prompts(folder: Path, data: Path) -> list[int]:
    """Count the tokens of each question."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [len(tokenizer(doc["prompt"])["input_ids"]) for doc in questions(data)]


def test_without_sharing_every_answer_goes_through_the_model_with_its_prompt(
    specs: list[ModelSpec], pairs: list[Path], numbers: Path
) -> None:
    result = scored(specs, ["pairs"], pairs, share_prompts=False, batch_size=1)

    assert result.tokens == sum(3 * (prompt + 1) for prompt in prompts(specs[0].folder, numbers))


def test_what_is_shared_counts_once(specs: list[ModelSpec], pairs: list[Path], numbers: Path) -> None:
    result = scored(specs, ["pairs"], pairs)

    once = sum(prompt + 3 for prompt in prompts(specs[0].folder, numbers))
    assert once <= result.tokens <= 1.2 * once  # and some padding


def test_a_backend_that_loads_folders_counts_as_the_resident_one(specs: list[ModelSpec], tasks: list[Path]) -> None:
    both = ["demo_numbers", GENERATED]

    resident = scored(specs, both, tasks, share_prompts=False)
    exported = scored(specs, both, tasks, backend="hf")

    assert resident.tokens == exported.tokens > 0
    assert set(exported.seconds) == {"merge", "copy", "evaluate"} and min(exported.seconds.values()) > 0


def test_a_model_elsewhere_counts_its_prompts_and_answers(
    specs: list[ModelSpec], tasks: list[Path], words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(LM):
        def __init__(self, pretrained: str) -> None:
            super().__init__()

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return [(-1.0, False)] * len(requests)

        loglikelihood_rolling = loglikelihood

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return [" a"] * len(requests)

    monkeypatch.setitem(model_registry._objs, "elsewhere", Elsewhere)

    result = scored(specs, ["generated"], tasks, backend="elsewhere")

    tokenizer = AutoTokenizer.from_pretrained(specs[0].folder)
    assert result.tokens == sum(len(tokenizer(f"{doc['prompt']} a")["input_ids"]) for doc in questions(words))


def test_all_forward_passes_of_a_block_are_counted_and_no_others() -> None:
    class Model(torch.nn.Module):
        def forward(self, input_ids: Any = None, past: Any = None) -> Any:
            return input_ids

    model, ids = Model(), torch.zeros(2, 5, dtype=torch.int64)
    with counting(model) as passed:
        model(ids)
        model(input_ids=ids[:, :1])
        model(past=ids)
    model(ids)

    assert passed.tokens == 12


@pytest.mark.parametrize(("device", "gpus", "held"), [("cpu", 1, 0), ("cuda", 1, 1), ("cuda", 4, 4)])
def test_gpu_seconds_are_those_for_which_gpus_were_held(
    device: str, gpus: int, held: int, specs: list[ModelSpec], tasks: list[Path]
) -> None:
    config = configure(["demo_words"], tasks)
    several = config.cluster.model_copy(update={"gpus_per_evaluator": gpus})
    scorer = Scorer(specs, None, config.model_copy(update={"cluster": several}), "cpu")
    scorer._device = device

    result = scorer.score(specs[1].founder)

    assert isinstance(result, Scored)
    assert result.gpu_seconds == held * sum(result.seconds.values())
