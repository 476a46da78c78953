"""Tiny lm-eval tasks over the demo's questions, and short ways to configure and to load them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from kinray.checkpoints.models import ModelSpec
from kinray.config import Config, EvaluationConfig, TaskSpec, parse_config
from kinray.demo import DemoFiles
from kinray.evaluation.task_loading import load_tasks
from kinray.evaluation.tasks import TaskSet
from tests.helpers import spec

CHOICES = {
    "output_type": "multiple_choice",
    "doc_to_text": "prompt",
    "doc_to_choice": "choices",
    "doc_to_target": "answer",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}
LIKELIHOOD = {
    "output_type": "loglikelihood",
    "doc_to_text": "prompt",
    "doc_to_target": " {{choices[answer]}}",
    "target_delimiter": "",
    "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
}
"""Its item values are the log-likelihoods themselves when it is scaled from 0 to 1, which leaves them alone."""
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "prompt",
    "metric_list": [{"metric": "word_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
}
GENERATED = {
    "output_type": "generate_until",
    "doc_to_text": "prompt",
    "doc_to_target": "{{choices[answer]}}",
    "generation_kwargs": {"until": ["."], "do_sample": False, "max_gen_toks": 2},
    "metric_list": [
        {
            "metric": "exact_match",
            "aggregation": "mean",
            "higher_is_better": True,
            "regexes_to_ignore": ["^[^aeiou]*|(?<=[aeiou]).*"],
        }
    ],
}
"""An answer is right when its first vowel is, so that models that know nothing yet are right now and then."""


def write_task(folder: Path, name: str, kind: Mapping[str, Any], data: Path, **further: Any) -> str:
    """Write a task of one kind over a file of questions; ``further`` settings win. Returns its name."""
    settings = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "fewshot_delimiter": " ",
        "metadata": {"version": 1.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**settings, **kind, **further}))
    return name


def few_shot(questions: Path, examples: Path, shots: int) -> dict[str, Any]:
    """Settings of a task that draws its examples from a file of their own."""
    files = {"train": str(examples), "test": str(questions)}
    return {"num_fewshot": shots, "training_split": "train", "dataset_kwargs": {"data_files": files}}


def questions(path: Path) -> list[dict[str, Any]]:
    """Read a file of questions."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def load(tasks: Sequence[str | dict[str, Any]], paths: Sequence[Path], *, seed: int = 0, **evaluation: Any) -> TaskSet:
    """Load tasks as a configuration would name them."""
    specs = [TaskSpec.model_validate(task) for task in tasks]
    return load_tasks(specs, [str(path) for path in paths], EvaluationConfig(**evaluation), seed)


def model_specs(demo: DemoFiles) -> list[ModelSpec]:
    """Describe the demo's base and founders."""
    return [spec(demo.base, "base"), *(spec(folder, name) for name, folder in demo.founders.items())]


def configure(
    tasks: Sequence[str | dict[str, Any]], paths: Sequence[Path], *, dtype: str = "float32", seed: int = 0, **evaluation: Any
) -> Config:
    """Configure a search that is only ever scored, with a holdout of none unless it is given."""
    return parse_config(
        {
            "base": "base",
            "founders": ["a", "b"],
            "tasks": list(tasks),
            "task_paths": [str(path) for path in paths],
            "merge": {"dtype": dtype},
            "evaluation": {"holdout": 0, "batch_size": 8, **evaluation},
            "seed": seed,
        }
    )
