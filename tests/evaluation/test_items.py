"""Which items a search sees and which are held out."""

import json
from pathlib import Path

import pytest

from kinray.errors import TaskError
from kinray.evaluation.tasks import Leaf
from tests.evaluation.tiny import CHOICES, load, write_task


def items(
    tasks: list[Path], name: str = "demo_numbers", *, seed: int = 0, holdout: float = 0.5, limit: int | None = None
) -> Leaf:
    (leaf,) = load([{"name": name, "limit": limit}], tasks, seed=seed, holdout=holdout).leaves
    return leaf


def test_splits_are_disjoint_and_together_everything(tasks: list[Path]) -> None:
    split = items(tasks, holdout=0.25).items

    assert sorted(split["search"] + split["holdout"]) == list(range(40))
    assert (len(split["search"]), len(split["holdout"])) == (30, 10)


def test_items_are_drawn_over_the_whole_task_and_kept_in_order(tasks: list[Path]) -> None:
    split = items(tasks, limit=10).items

    assert split["search"] == sorted(split["search"]) != list(range(10))
    assert split["holdout"] == sorted(split["holdout"])


def test_one_seed_gives_one_split_and_another_seed_another(tasks: list[Path]) -> None:
    assert items(tasks, seed=1).items == items(tasks, seed=1).items != items(tasks, seed=2).items


def test_tasks_of_one_length_are_split_differently(tasks: list[Path]) -> None:
    assert items(tasks, "demo_numbers").items != items(tasks, "demo_words").items


def test_a_limit_never_moves_an_item_from_one_side_to_the_other(tasks: list[Path]) -> None:
    whole = items(tasks).items

    for limit in (2, 5, 10, 19, 20, 40):
        limited = items(tasks, limit=limit).items
        assert set(limited["search"]) <= set(whole["search"])
        assert set(limited["holdout"]) <= set(whole["holdout"])


def test_a_larger_limit_only_adds_items(tasks: list[Path]) -> None:
    small, large = items(tasks, limit=6).items, items(tasks, limit=12).items

    assert set(small["search"]) < set(large["search"])
    assert set(small["holdout"]) < set(large["holdout"])


@pytest.mark.parametrize(("holdout", "search", "held"), [(0.5, 8, 8), (0.2, 8, 2), (0.75, 8, 24), (0.0, 8, 0)])
def test_a_limit_keeps_the_share_that_is_held_out(holdout: float, search: int, held: int, tasks: list[Path]) -> None:
    split = items(tasks, holdout=holdout, limit=8).items

    assert (len(split["search"]), len(split["holdout"])) == (search, held)


def test_nothing_is_held_out_unless_asked(tasks: list[Path]) -> None:
    split = items(tasks, holdout=0).items

    assert split == {"search": list(range(40)), "holdout": []}


@pytest.mark.parametrize("holdout", [0.01, 0.97])
def test_a_task_too_small_to_split_is_refused(holdout: float, tasks: list[Path]) -> None:
    with pytest.raises(TaskError, match=r"'demo_numbers' has 40 items: too few to search on \d+% and hold out \d+%"):
        items(tasks, holdout=holdout)


def test_named_tasks_are_held_out_whole_and_the_others_searched_whole(tasks: list[Path]) -> None:
    loaded = load(["demo_numbers"], tasks, holdout=["demo_words", {"name": "demo_letters", "limit": 10}])

    counts = {task.spec.name: (task.count("search"), task.count("holdout")) for task in loaded.tasks}
    assert counts == {"demo_numbers": (40, 0), "demo_words": (0, 40), "demo_letters": (0, 10)}
    assert {item.task for item in loaded.items("search", 0)} == {"demo_numbers"}
    assert {item.task for item in loaded.items("holdout", 0)} == {"demo_words", "demo_letters"}


def test_a_small_limit_holds_out_two_items_at_least(tasks: list[Path]) -> None:
    split = items(tasks, holdout=0.1, limit=4).items

    assert (len(split["search"]), len(split["holdout"])) == (4, 2)


def test_answers_to_one_question_are_on_one_side(tmp_path: Path) -> None:
    rows = [
        {
            "prompt": f"{number}",
            "choices": ["no", "yes"],
            "answer": 1,
            "idx": {"paragraph": question // 2, "question": question},
        }
        for question in range(20)
        for number in range(3)
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "metrics.py").write_text("from lm_eval.api.metrics import acc_all\n")
    name = write_task(tmp_path, "clusters", {**CHOICES, "metric_list": None}, tmp_path / "rows.jsonl")
    settings = (tmp_path / f"{name}.yaml").read_text()
    metrics = "metric_list: [{metric: acc, aggregation: !function metrics.acc_all, higher_is_better: true}]"
    (tmp_path / f"{name}.yaml").write_text(settings.replace("metric_list: null", metrics))

    (leaf,) = load([{"name": name, "limit": 5}], [tmp_path], holdout=0.5).leaves

    questions = {split: [rows[number]["idx"]["question"] for number in own] for split, own in leaf.items.items()}
    assert all(len(own) == 15 and len(set(own)) == 5 for own in questions.values())
    assert not set(questions["search"]) & set(questions["holdout"])


@pytest.mark.parametrize("sampler", ["default", "first_n"])
def test_no_held_out_item_is_an_example_where_examples_come_from_the_same_items(
    sampler: str, words: Path, tmp_path: Path
) -> None:
    name = write_task(tmp_path, "own", CHOICES, words, fewshot_config={"sampler": sampler, "split": "test"})

    (leaf,) = load([{"name": name, "num_fewshot": 3}], [tmp_path], holdout=0.5).leaves

    hidden = [leaf.task.eval_docs[number] for number in leaf.items["holdout"]]
    leaf.task.set_fewshot_seed(0)
    drawn = [example for number in range(40) for example in leaf.task.sampler.sample(3, leaf.task.eval_docs[number])]
    assert len(drawn) == 120 and not any(example in hidden for example in drawn)


def test_too_few_examples_beside_the_held_out_items_are_said(words: Path, tmp_path: Path) -> None:
    name = write_task(tmp_path, "own", CHOICES, words)

    with pytest.raises(TaskError, match=r"draws its 10 few-shot examples from its own items, and 8 are left"):
        load([{"name": name, "num_fewshot": 10}], [tmp_path], holdout=0.8)
