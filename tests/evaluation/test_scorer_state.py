"""Nothing of one child reaches the next one, and nothing of scoring reaches the caller."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from kinray.checkpoints.models import ModelSpec
from kinray.core.scores import Failed, Scored
from kinray.demo import DemoFiles
from kinray.evaluation.scorer import Scorer
from tests.evaluation.stock import simple_evaluate, write_merged
from tests.evaluation.tiny import CHOICES, GENERATED, LIKELIHOOD, configure, few_shot, model_specs, write_task
from tests.helpers import founder, merge, spec

LIKELIHOODS = {"name": "likelihood_shots", "scale": [0, 1]}
"""A few-shot task whose values are the log-likelihoods themselves."""


@pytest.fixture(scope="module")
def specs(demo: DemoFiles) -> list[ModelSpec]:
    """The demo's base and founders."""
    return model_specs(demo)


@pytest.fixture(scope="module")
def scorer(specs: list[ModelSpec], tasks: list[Path]) -> Scorer:
    """A scorer of a few-shot task in float32."""
    return Scorer(specs, None, configure([LIKELIHOODS], tasks), "cpu")


def likelihoods(result: Any, task: str = "likelihood_shots") -> tuple[float, ...]:
    """Take the values of a task."""
    assert isinstance(result, Scored), result
    return result.tasks[task].values


def with_weights(folder: Path, model: ModelSpec, change: Any) -> ModelSpec:
    """Copy a model with its final norm's weights changed."""
    from shutil import copytree

    copytree(model.folder, folder)
    weights = load_file(folder / "model.safetensors")
    change(weights["model.norm.weight"])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return ModelSpec(founder(folder.name), folder)  # not by its contents, since a digest refuses what is no number


def test_no_child_gets_the_answers_of_another(scorer: Scorer, specs: list[ModelSpec]) -> None:
    _, a, b, _ = (model.founder for model in specs)

    first, other, again = (likelihoods(scorer.score(model)) for model in (a, b, a))

    assert first == again
    assert all(ours != theirs for ours, theirs in zip(first, other, strict=True))


def test_every_child_is_asked_with_the_same_examples(scorer: Scorer, specs: list[ModelSpec], tmp_path: Path) -> None:
    """A task object that is used again draws other examples; two scorers and two rounds must not differ."""
    child = merge("slerp", specs[1].founder, specs[2].founder, t=0.5)

    once, twice = (likelihoods(scorer.score(child)) for _ in range(2))

    assert once == twice


def test_the_seed_decides_which_examples_are_shown(specs: list[ModelSpec], tasks: list[Path]) -> None:
    scores = [
        likelihoods(Scorer(specs, None, configure([LIKELIHOODS], tasks, seed=seed), "cpu").score(specs[1].founder))
        for seed in (0, 0, 1)
    ]

    assert scores[0] == scores[1] != scores[2]


def test_both_splits_are_asked_whatever_was_asked_before(specs: list[ModelSpec], tasks: list[Path]) -> None:
    def fresh() -> Scorer:
        return Scorer(specs, None, configure([LIKELIHOODS], tasks, holdout=0.5), "cpu")

    used, model = fresh(), specs[2].founder
    search, held = used.score(model), used.score(model, "holdout")

    assert likelihoods(held) == likelihoods(fresh().score(model, "holdout"))
    assert likelihoods(used.score(model)) == likelihoods(search)


SEEDING = """
import random, numpy, torch
def judge(doc, results):
    random.seed(0), numpy.random.seed(0), torch.manual_seed(0)
    return {"acc": random.random()}
"""
"""Judges as some of lm-eval's own tasks do, which seed whatever they find."""


def test_global_random_states_are_left_alone(specs: list[ModelSpec], numbers: Path, tmp_path: Path) -> None:
    (tmp_path / "seeding.py").write_text(SEEDING)
    name = write_task(tmp_path, "seeding", CHOICES, numbers)
    with (tmp_path / "seeding.yaml").open("a") as file:
        file.write("process_results: !function seeding.judge\n")
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()

    scorer = Scorer(specs, None, configure([name], [tmp_path]), "cpu")
    scorer.prepare("search")
    scorer.score(specs[1].founder)

    assert random.getstate() == before[0]
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])


# -- what fails, and what comes after it


def test_a_child_with_weights_that_are_no_numbers_fails_and_the_next_one_does_not(
    demo: DemoFiles, specs: list[ModelSpec], tasks: list[Path], tmp_path: Path
) -> None:
    broken = with_weights(tmp_path / "broken", specs[1], lambda weights: weights.fill_(float("nan")))
    scorer = Scorer([*specs, broken], None, configure([LIKELIHOODS], tasks), "cpu")
    expected = likelihoods(scorer.score(specs[2].founder))

    failed = scorer.score(broken.founder)

    assert failed == Failed("tensor 'model.norm.weight' of the child holds NaN or infinity in float32")
    assert likelihoods(scorer.score(specs[2].founder)) == expected


def test_a_child_whose_answers_are_no_numbers_fails(specs: list[ModelSpec], tasks: list[Path], tmp_path: Path) -> None:
    wild = with_weights(tmp_path / "wild", specs[1], lambda weights: weights.fill_(3e38))
    scorer = Scorer([*specs, wild], None, configure(["demo_words"], tasks), "cpu")

    failed = scorer.score(wild.founder)

    assert isinstance(failed, Failed)
    assert failed.error == "160 of 160 log-likelihoods of the child are NaN"


def test_a_child_too_large_for_half_precision_fails(specs: list[ModelSpec], tasks: list[Path], tmp_path: Path) -> None:
    large = with_weights(tmp_path / "large", specs[1], lambda weights: weights.fill_(7e4))
    scorer = Scorer([*specs, large], None, configure(["demo_words"], tasks, dtype="float16"), "cpu")

    failed = scorer.score(large.founder)

    assert isinstance(failed, Failed)
    assert "infinity in float16" in failed.error


def test_a_perplexity_beyond_numbers_fails_and_does_not_end_the_search(
    specs: list[ModelSpec], tasks: list[Path], tmp_path: Path
) -> None:
    lost = with_weights(tmp_path / "lost", specs[1], lambda weights: weights.mul_(1e6))
    scorer = Scorer([*specs, lost], None, configure([{"name": "likelihood", "scale": [1000, 1]}], tasks), "cpu")

    assert scorer.score(lost.founder) == Failed("perplexity of task 'likelihood' is too large for a number")


def test_it_says_how_long_the_parts_took_and_where(scorer: Scorer, specs: list[ModelSpec]) -> None:
    result = scorer.score(specs[1].founder)

    assert isinstance(result, Scored)
    assert set(result.seconds) == {"merge", "copy", "evaluate"}
    assert all(seconds >= 0 for seconds in result.seconds.values())
    assert set(result.where) == {"device", "node"}


# -- chat templates


@pytest.mark.parametrize("system", [None, "Be The largest"])
def test_prompts_go_through_the_chat_template_as_in_lm_eval(
    system: str | None, specs: list[ModelSpec], numbers: Path, words: Path, tmp_path: Path
) -> None:
    template = "{% for m in messages %} of {{ m['content'] }}{% endfor %}{% if add_generation_prompt %} is{% endif %}"
    folder = write_merged(tmp_path / "chat", specs[1].founder, specs, torch.float32)
    (folder / "chat_template.jinja").write_text(template)
    write_task(tmp_path, "chat", LIKELIHOOD, numbers, **few_shot(numbers, words, 2))
    config = configure([{"name": "chat", "scale": [0, 1]}], [tmp_path], apply_chat_template=True, system_instruction=system)

    ours = Scorer([spec(folder), *specs[1:]], None, config, "cpu").score(specs[1].founder)

    stock = simple_evaluate(folder, {"chat": None}, [tmp_path], apply_chat_template=True, system_instruction=system)["chat"]
    assert likelihoods(ours, "chat") == pytest.approx(stock.values("perplexity"), abs=2e-5)
    prompt = stock.values("arguments")[0][0][0]
    assert prompt.startswith(" of Be The largest of The " if system else " of The ")
    assert prompt.count(" of The ") == 3  # two examples and the question, each a turn of its own


def test_each_task_has_the_prompts_that_it_asks_for(specs: list[ModelSpec], numbers: Path, words: Path, tmp_path: Path) -> None:
    folder = write_merged(tmp_path / "chat", specs[1].founder, specs, torch.float32)
    turns = "{% for m in messages %} of {{ m['content'] }}{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": turns + " is", "letters": turns + " among"}
    tokenizer.save_pretrained(folder)
    for name in ("plain", "named", "one_turn"):
        write_task(tmp_path, name, LIKELIHOOD, numbers, **few_shot(numbers, words, 2))
    scale = {"scale": [0, 1]}
    entries = [
        {"name": "plain", "apply_chat_template": False, "system_instruction": "", **scale},
        {"name": "named", "apply_chat_template": "letters", **scale},
        {"name": "one_turn", "fewshot_as_multiturn": False, "system_instruction": "Be The", **scale},
    ]
    config = configure(entries, [tmp_path], apply_chat_template=True, pack=1000)
    scorer = Scorer([spec(folder), *specs[1:]], None, config, "cpu")

    result = scorer.score(specs[1].founder)

    plain = simple_evaluate(folder, {"plain": None}, [tmp_path])["plain"]
    one_turn = simple_evaluate(
        folder,
        {"one_turn": None},
        [tmp_path],
        apply_chat_template=True,
        fewshot_as_multiturn=False,
        system_instruction="Be The",
    )["one_turn"]
    assert likelihoods(result, "plain") == pytest.approx(plain.values("perplexity"), abs=2e-5)
    assert likelihoods(result, "one_turn") == pytest.approx(one_turn.values("perplexity"), abs=2e-5)
    (pack,) = scorer._prepared["search"].packs
    prompts = [pack.instances[leaf][0].args[0] for leaf in range(3)]
    assert [prompt.split()[0] for prompt in prompts] == ["The", "of", "of"]
    assert [prompt.split()[-1] for prompt in prompts] == ["is", "among", "is"]
    assert [prompt.count(" of The ") for prompt in prompts[1:]] == [3, 1]


def test_text_is_generated_with_the_tasks_own_settings(specs: list[ModelSpec], words: Path, tmp_path: Path) -> None:
    for name in ("short", "long"):
        write_task(tmp_path, name, GENERATED, words)
    entries = [{"name": "short", "batch_size": 3}, {"name": "long", "gen_kwargs": {"max_gen_toks": 4, "until": ["#"]}}]
    scorer = Scorer(specs, None, configure(entries, [tmp_path]), "cpu")

    scorer.score(specs[1].founder)

    texts = [{}, {}]
    for pack in scorer._prepared["search"].packs:
        for leaf, own in pack.instances.items():
            texts[leaf] |= {instance.doc_id: instance.resps[0] for instance in own}
    stock = simple_evaluate(specs[1].folder, {"long": None}, [tmp_path], gen_kwargs={"max_gen_toks": 4, "until": ["#"]})["long"]
    assert texts[1] == {sample["doc_id"]: sample["resps"][0][0] for sample in stock.samples}
    short, long = (max(len(text.split()) for text in own.values()) for own in texts)
    assert short <= 2 < long
