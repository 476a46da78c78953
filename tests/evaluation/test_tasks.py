"""Loading tasks: names, metrics and scales, with errors that say what to do."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kinray.errors import TaskError
from kinray.evaluation.tasks import Prompts
from tests.evaluation.tiny import CHOICES, GENERATED, few_shot, load, write_task


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Stand in for lm-eval's own 10 000 task files, which take long to index, and note when they were asked for."""
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager
    asked: list[bool] = []

    def stand_in(include_path: list[str], include_defaults: bool = True, metadata: object = None) -> object:
        asked.append(include_defaults)
        return manager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", stand_in)
    return asked


def test_a_task_brings_its_first_metric_and_all_of_its_items(tasks: list[Path]) -> None:
    loaded = load(["demo_numbers"], tasks, holdout=0)

    (leaf,) = loaded.leaves
    assert (leaf.name, leaf.metric, leaf.filter, leaf.is_mean) == ("demo_numbers", "acc", None, True)
    assert leaf.items["search"] == list(range(40))
    assert loaded.count("search") == 40


def test_few_shot_examples_may_be_asked_for_though_the_task_says_none(numbers: Path, words: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "zero", CHOICES, numbers, **few_shot(numbers, words, 0))

    kept = load(["zero"], [tmp_path]).leaves[0].task
    asked = load([{"name": "zero", "num_fewshot": 2}], [tmp_path]).leaves[0].task

    assert (kept.config.num_fewshot, asked.config.num_fewshot) == (0, 2)


def test_an_unknown_task_gets_a_suggestion(tasks: list[Path], indexed: list[bool]) -> None:
    with pytest.raises(TaskError, match=r"no lm-eval task 'demo_numbres'\. Did you mean 'demo_numbers'\?"):
        load(["demo_numbres"], tasks)

    assert indexed == [False, True]


@pytest.mark.slow
def test_a_stock_task_is_suggested_too(tasks: list[Path]) -> None:
    with pytest.raises(TaskError, match=r"Did you mean 'winogrande'\? Known: .* \(\d{5} in all\)"):
        load(["winogrand"], tasks)


def test_an_unknown_metric_gets_a_suggestion(tasks: list[Path]) -> None:
    with pytest.raises(TaskError, match=r"'demo_words' has no metric 'ac'\. Did you mean 'acc'\? Known: acc\."):
        load([{"name": "demo_words", "metric": "ac"}], tasks)


def test_an_unknown_filter_gets_a_suggestion(tasks: list[Path]) -> None:
    with pytest.raises(TaskError, match=r"'demo_words' has no filter 'nome'\. Did you mean 'none'\? Known: none\."):
        load([{"name": "demo_words", "metric": "acc,nome"}], tasks)


def test_a_filter_chooses_which_answers_count(words: Path, tmp_path: Path) -> None:
    write_task(
        tmp_path,
        "two",
        GENERATED,
        words,
        filter_list=[
            {"name": "strict", "filter": [{"function": "take_first"}]},
            {"name": "loose", "filter": [{"function": "take_first"}]},
        ],
    )

    loaded = load([{"name": "two", "metric": "exact_match,loose"}], [tmp_path])

    assert loaded.leaves[0].filter == "loose"


@pytest.mark.parametrize("task", ["likelihood", "rolling"])
def test_a_metric_without_bounds_needs_a_scale(task: str, tasks: list[Path]) -> None:
    with pytest.raises(TaskError, match=r"perplexity' of task '\w+' is not between 0 and 1\. Give the task a scale"):
        load([task], tasks)

    assert load([{"name": task, "scale": [500, 1]}], tasks).count("search") == 20


@pytest.mark.parametrize(("metric", "bounded"), [("bleu_acc", True), ("bleu_max", False), ("parameter_acc", True)])
def test_a_share_of_right_answers_is_bounded_whatever_it_counts(
    metric: str, bounded: bool, words: Path, tmp_path: Path
) -> None:
    (tmp_path / "judge.py").write_text(f"def judge(doc, results):\n    return {{'{metric}': 1.0}}\n")
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True}]
    name = write_task(tmp_path, "own", GENERATED, words, metric_list=metrics)
    file = tmp_path / "own.yaml"
    file.write_text(f"{file.read_text()}process_results: !function judge.judge\n")

    if bounded:
        assert load([name], [tmp_path]).leaves[0].metric == metric
    else:
        with pytest.raises(TaskError, match=f"'{metric}' of task 'own' is not between 0 and 1"):
            load([name], [tmp_path])


def test_missing_data_are_an_error_of_the_task(tmp_path: Path) -> None:
    write_task(tmp_path, "lost", CHOICES, tmp_path / "gone.jsonl")

    with pytest.raises(TaskError, match=r"Task 'lost' cannot be loaded: FileNotFoundError: .*gone\.jsonl"):
        load(["lost"], [tmp_path])


def test_a_missing_task_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match=r"task_paths: there is no folder .*nowhere"):
        load(["demo_numbers"], [tmp_path / "nowhere"])


def test_tasks_that_run_code_need_consent(numbers: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "unsafe", CHOICES, numbers, unsafe_code=True)

    with pytest.raises(TaskError, match="confirm_run_unsafe_code: true"):
        load(["unsafe"], [tmp_path])

    assert load(["unsafe"], [tmp_path], confirm_run_unsafe_code=True).count("search") == 20
    assert load([{"name": "unsafe", "confirm_run_unsafe_code": True}], [tmp_path]).count("search") == 20
    with pytest.raises(TaskError, match="confirm_run_unsafe_code: true"):
        load([{"name": "unsafe", "confirm_run_unsafe_code": False}], [tmp_path], confirm_run_unsafe_code=True)


def test_a_task_may_stand_in_one_entry_only(tasks: list[Path], tmp_path: Path) -> None:
    (tmp_path / "both.yaml").write_text("group: both\ntask: [demo_numbers, demo_words]\n")

    with pytest.raises(TaskError, match=r"'demo_words' is named by two entries of tasks\. Name each task once"):
        load(["demo_words", "both"], [*tasks, tmp_path])


def test_a_group_of_ones_own_may_name_lm_evals_tasks(tasks: list[Path], tmp_path: Path, indexed: list[bool]) -> None:
    (tmp_path / "mine.yaml").write_text("group: mine\ntask: [demo_words, winogrande]\n")

    with pytest.raises(TaskError, match="Task 'mine' cannot be loaded"):  # for the stand-in has no winogrande
        load(["mine"], [*tasks, tmp_path])

    assert indexed == [False, True]


def test_lm_evals_own_files_are_left_alone_when_they_are_not_needed(tasks: list[Path], indexed: list[bool]) -> None:
    load(["demo_numbers"], tasks)

    assert indexed == [False]


# -- options of one task


def test_a_task_inherits_what_holds_for_all_and_may_say_otherwise(tasks: list[Path]) -> None:
    own = {
        "apply_chat_template": False,
        "fewshot_as_multiturn": False,
        "system_instruction": "Own",
        "batch_size": 2,
        "fewshot_seed": 9,
    }

    loaded = load(
        ["demo_numbers", {"name": "demo_words", **own}, {"name": "demo_letters", "fewshot_as_multiturn": False}],
        tasks,
        seed=4,
        apply_chat_template="chat",
        system_instruction="All",
        batch_size=8,
    )

    assert [leaf.prompts for leaf in loaded.leaves] == [
        Prompts("chat", True, "All", 4, 8),
        Prompts(False, False, "Own", 9, 2),
        Prompts("chat", False, "All", 4, 8),
    ]


def test_settings_of_generation_go_over_those_of_the_task(words: Path, tmp_path: Path) -> None:
    write_task(tmp_path, "generated", GENERATED, words)

    loaded = load([{"name": "generated", "gen_kwargs": {"max_gen_toks": 7, "temperature": 0.5}}], [tmp_path])

    generation = loaded.leaves[0].task.config.generation_kwargs
    assert generation == {"until": ["."], "do_sample": False, "max_gen_toks": 7, "temperature": 0.5}


def test_settings_of_generation_need_a_task_that_generates(tasks: list[Path]) -> None:
    with pytest.raises(TaskError, match="Task 'demo_words' generates no text, so it takes no gen_kwargs"):
        load([{"name": "demo_words", "gen_kwargs": {"max_gen_toks": 7}}], tasks)


def test_metadata_reach_the_functions_that_make_a_tasks_data(words: Path, tmp_path: Path) -> None:
    (tmp_path / "making.py").write_text(
        "import datasets\n"
        "def make(items, **_):\n"
        "    docs = [{'prompt': 'The', 'choices': ['a', 'b'], 'answer': 0}] * items\n"
        "    return {'test': datasets.Dataset.from_list(docs)}\n"
    )
    write_task(tmp_path, "made", CHOICES, words, dataset_kwargs={})
    file = tmp_path / "made.yaml"
    file.write_text(f"{file.read_text()}custom_dataset: !function making.make\n")

    loaded = load([{"name": "made", "metadata": {"items": 12}}], [tmp_path], holdout=0)

    assert loaded.count("search") == 12


def test_a_template_is_compiled_once_for_all_documents(tasks: list[Path]) -> None:
    import lm_eval.utils

    load(["demo_numbers"], tasks)

    assert lm_eval.utils.env.from_string("{{a}} of {{b}}") is lm_eval.utils.env.from_string("{{a}} of {{b}}")
    assert lm_eval.utils.apply_template("{{a}} of {{b}}", {"a": 1, "b": 2}) == "1 of 2"
    assert lm_eval.utils.apply_template("{{a}} of {{b}}", {"a": 3, "b": 4}) == "3 of 4"


FUNCTIONS = """
def several(references, predictions, **_):
    right = float(references[0] == predictions[0])
    return {"right@1": right, "wrong@1": 1 - right}
"""


@pytest.mark.parametrize(("metric", "expected"), [(None, [1.0, 0.0]), ("wrong@1", [0.0, 1.0])])
def test_a_metric_that_is_a_function_names_its_results_itself(
    metric: str | None, expected: list[float], words: Path, tmp_path: Path
) -> None:
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    name = write_task(tmp_path, "several", GENERATED, words)
    said = "metric_list:\n- {metric: !function functions.several, aggregation: mean, higher_is_better: true}\n"
    settings = yaml.safe_load((tmp_path / f"{name}.yaml").read_text())
    del settings["metric_list"]
    (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings) + said)
    (leaf,) = load([{"name": name, "metric": metric}], [tmp_path], holdout=0).leaves
    leaf.task.build_all_requests(samples=[0, 1], rank=0, world_size=1)
    for instance, right in zip(leaf.task.instances, (True, False), strict=True):
        instance.resps = [leaf.task.doc_to_target(instance.doc) if right else "neither"]

    values = leaf.values(leaf.task.instances)

    assert list(values.values()) == expected


def test_a_name_that_no_function_gives_is_told_when_the_first_model_is_judged(words: Path, tmp_path: Path) -> None:
    (leaf,) = load(["demo_words"], [words.parent], holdout=0).leaves
    leaf.metric = "brier"

    with pytest.raises(TaskError, match="gives no metric 'brier'"):
        leaf._name_in({"acc": 1.0})


@pytest.mark.parametrize("form", [{"task": "winogrande", "num_fewshot": 2}, {"group": "inner", "task": ["winogrande"]}])
def test_a_group_may_name_lm_evals_tasks_with_settings_of_their_own(
    form: dict[str, Any], tasks: list[Path], tmp_path: Path, indexed: list[bool]
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"group": "mine", "task": ["demo_words", form]}))

    with pytest.raises(TaskError, match="Task 'mine' cannot be loaded"):  # for the stand-in has no winogrande
        load(["mine"], [*tasks, tmp_path])

    assert indexed == [False, True]


def test_a_task_that_a_group_defines_needs_no_file_of_lm_evals(words: Path, tmp_path: Path, indexed: list[bool]) -> None:
    own = {
        "task": "inside",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(words)}},
        "test_split": "test",
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"group": "mine", "task": [{**own, **CHOICES}]}))

    (leaf,) = load(["mine"], [tmp_path], holdout=0).leaves

    assert leaf.name == "mine::inside" and indexed == [False]


def test_a_correlation_needs_a_scale(words: Path, tmp_path: Path) -> None:
    metrics = [{"metric": "mcc", "aggregation": "matthews_corrcoef", "higher_is_better": True}]
    name = write_task(tmp_path, "pairs", CHOICES, words, metric_list=metrics)

    with pytest.raises(TaskError, match="'mcc' of task 'pairs' is not between 0 and 1"):
        load([name], [tmp_path])
