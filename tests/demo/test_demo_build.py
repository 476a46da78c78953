"""Tests of how the demo's folder comes to be: whole or not at all, once, and the same every time."""

import json
import random
from pathlib import Path

import pytest
import torch
import yaml  # type: ignore[import-untyped]
from transformers import AutoModelForCausalLM

from kinray.demo import DemoFiles, DemoSettings, Lesson, build_demo, training

TINY = DemoSettings(
    lessons=(Lesson("numbers", 0.1, 2), Lesson("letters", 0.1, 2), Lesson("words", 0.1, 2)),
    hidden_size=16,
    intermediate_size=32,
    layers=1,
    heads=2,
    base_steps=3,
    batch=8,
    training_items=40,
    test_items=12,
)


def test_models_load_and_founders_differ_from_the_base(tmp_path: Path) -> None:
    files = build_demo(tmp_path, settings=TINY)

    weights = {name: _weights(folder) for name, folder in {"base": files.base, **files.founders}.items()}

    assert list(weights) == ["base", "numbers", "letters", "words"]
    for name in files.founders:
        assert weights[name].keys() == weights["base"].keys()
        assert any(not torch.equal(weights[name][key], weights["base"][key]) for key in weights["base"])


def test_task_files_name_data_that_is_there(tmp_path: Path) -> None:
    files = build_demo(tmp_path / "a folder: with # odd 'signs'", settings=TINY)

    for name in files.founders:
        task = yaml.safe_load((files.tasks / f"demo_{name}.yaml").read_text())
        lines = Path(task["dataset_kwargs"]["data_files"]["test"]).read_text().splitlines()
        assert task["task"] == f"demo_{name}"
        assert len(lines) == TINY.test_items
        assert json.loads(lines[0]).keys() == {"prompt", "choices", "answer"}


def test_second_call_returns_the_same_folder_as_it_is(tmp_path: Path) -> None:
    first = build_demo(tmp_path, settings=TINY)
    made = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")}

    second = build_demo(tmp_path, settings=TINY)

    assert second == first
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*")} == made


def test_two_builds_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    one, two = build_demo(tmp_path / "one", settings=TINY), build_demo(tmp_path / "two", settings=TINY)

    for first, second in zip(_models(one), _models(two), strict=True):
        assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()


def test_other_settings_give_another_folder(tmp_path: Path) -> None:
    other = DemoSettings(**{**vars(TINY), "seed": 1})

    assert build_demo(tmp_path, settings=other).base != build_demo(tmp_path, settings=TINY).base


def test_interrupted_build_leaves_nothing_and_the_next_call_builds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt("the user has had enough")

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_founder", interrupt)
        with pytest.raises(KeyboardInterrupt, match="had enough"):
            build_demo(tmp_path, settings=TINY)
    assert list(tmp_path.iterdir()) == []

    assert build_demo(tmp_path, settings=TINY).base.is_dir()


def test_leftovers_of_a_killed_build_are_neither_used_nor_removed(tmp_path: Path) -> None:
    final = build_demo(tmp_path / "probe", settings=TINY).base.parent.name
    leftover = tmp_path / f".{final}.killed" / "base"
    leftover.mkdir(parents=True)

    files = build_demo(tmp_path, settings=TINY)

    assert (files.base / "model.safetensors").is_file()
    assert leftover.is_dir()


def test_of_two_builds_at_once_both_return_the_one_that_finished_first(tmp_path: Path) -> None:
    overtaking: list[DemoFiles] = []
    finished: list[int] = []

    def overtake(message: str, fraction: float) -> None:
        if not overtaking:
            overtaking.append(build_demo(tmp_path, settings=TINY))
            finished.append(overtaking[0].base.stat().st_ino)

    files = build_demo(tmp_path, overtake, TINY)

    assert files == overtaking[0]
    assert files.base.stat().st_ino == finished[0]
    assert list(tmp_path.iterdir()) == [files.base.parent]


def test_progress_rises_from_zero_to_one(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []

    build_demo(tmp_path, lambda message, fraction: seen.append((message, fraction)), TINY)

    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert any("'letters'" in message for message, _ in seen)


def test_build_leaves_global_state_alone(tmp_path: Path) -> None:
    torch_state, python_state, threads = torch.get_rng_state(), random.getstate(), torch.get_num_threads()

    with torch.no_grad():
        build_demo(tmp_path, settings=TINY)

    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert torch.get_num_threads() == threads


def _models(files: DemoFiles) -> list[Path]:
    return [files.base, *files.founders.values()]


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return weights
