"""The demo's models, hardly trained, and tiny tasks of every kind over its questions."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from kinray.demo import DemoFiles, DemoSettings, Lesson, build_demo
from tests.evaluation import tiny

SETTINGS = DemoSettings(
    lessons=(Lesson("numbers", 0.1, 8), Lesson("letters", 0.1, 8), Lesson("words", 0.1, 8)),
    hidden_size=32,
    intermediate_size=64,
    layers=2,
    heads=2,
    base_steps=30,
    base_rate=1e-2,
    founder_rate=1e-2,
    batch=16,
    training_items=400,
    test_items=40,
)


@pytest.fixture(scope="session", autouse=True)
def _own_datasets_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the data that tasks load out of the home folder, and the tests from asking the hub."""
    import datasets.config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoFiles:
    """Base, three founders and three multiple-choice tasks of 40 items."""
    return build_demo(tmp_path_factory.mktemp("demo"), settings=SETTINGS)


@pytest.fixture(scope="session")
def numbers(demo: DemoFiles) -> Path:
    """The questions about numbers."""
    return demo.tasks / "demo_numbers.jsonl"


@pytest.fixture(scope="session")
def words(demo: DemoFiles) -> Path:
    """The questions about words."""
    return demo.tasks / "demo_words.jsonl"


@pytest.fixture(scope="session")
def tasks(demo: DemoFiles, numbers: Path, words: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Folders of the demo's tasks and of one task of each kind that lm-eval knows."""
    folder = tmp_path_factory.mktemp("tasks")
    tiny.write_task(folder, "likelihood", tiny.LIKELIHOOD, numbers)
    tiny.write_task(folder, "rolling", tiny.ROLLING, words)
    tiny.write_task(folder, "generated", tiny.GENERATED, words)
    tiny.write_task(folder, "shots", tiny.CHOICES, numbers, **tiny.few_shot(numbers, words, 2))
    tiny.write_task(folder, "likelihood_shots", tiny.LIKELIHOOD, numbers, **tiny.few_shot(numbers, words, 2))
    return [demo.tasks, folder]
