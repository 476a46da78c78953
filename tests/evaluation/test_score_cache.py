"""Scores are remembered from run to run, by everything that they depend on."""

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from kinray.checkpoints.models import ModelSpec
from kinray.config import SearchConfig
from kinray.core.scores import FROM_CACHE, Failed, Result, Scored, TaskScore
from kinray.demo import DemoFiles
from kinray.errors import ConfigError
from kinray.evaluation import score_key
from kinray.evaluation.score_cache import ScoreCache, check_score_cache
from kinray.evaluation.score_key import key_of, plain
from kinray.evaluation.scorer import Scorer
from kinray.search.policy import TopK
from tests.evaluation.test_scorer_state import with_weights
from tests.evaluation.tiny import CHOICES, GENERATED, configure, few_shot, model_specs, write_task
from tests.helpers import merge, spec
from tests.helpers.search import chance_kinship, lineage, proposer, run, with_each


@pytest.fixture(scope="module")
def specs(demo: DemoFiles) -> list[ModelSpec]:
    """The demo's base and founders."""
    return model_specs(demo)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where scores are remembered."""
    return tmp_path / "scores"


def without_a_model(scorer: Scorer) -> Scorer:
    """Let nothing be asked of a scorer's model."""

    def refuse(_: Any) -> Any:
        raise AssertionError("a child was scored")

    scorer.prepare("search")
    scorer._prepared["search"].ask = refuse
    return scorer


# -- runs


def search(scorer: Scorer, specs: list[ModelSpec]) -> tuple[TopK, list[Result]]:
    """Search among the demo's founders."""
    base, *founders = (model.founder for model in specs)
    settings = SearchConfig(k=2, max_children=6)
    methods = {"task_arithmetic": {"lambda": {"low": 0.5, "high": 1.5}}}
    policy = TopK(founders, base, proposer(methods), with_each(chance_kinship(0)), settings, 0)
    results: list[Result] = []

    def score(child: Any) -> float | None:
        results.append(scorer.score(child.recipe))
        return results[-1].score if isinstance(results[-1], Scored) else None

    return run(policy, score), results


def test_a_second_run_of_a_search_scores_nothing_and_has_the_same_lineage(
    specs: list[ModelSpec], tasks: list[Path], folder: Path
) -> None:
    config = configure(["demo_numbers", "shots"], tasks, score_cache=str(folder))

    first, scored = search(Scorer(specs, None, config, "cpu"), specs)
    second, remembered = search(without_a_model(Scorer(specs, None, config, "cpu")), specs)

    assert len(scored) == 9
    assert lineage(second) == lineage(first)
    assert [vars(one)["tasks"] for one in remembered] == [vars(one)["tasks"] for one in scored]
    assert {(one.where["device"], one.tokens, sum(one.seconds.values())) for one in remembered if isinstance(one, Scored)} == {
        (FROM_CACHE, 0, 0.0)
    }


def test_models_that_were_moved_and_renamed_are_known_by_what_they_are(
    specs: list[ModelSpec], tasks: list[Path], folder: Path, tmp_path: Path
) -> None:
    config = configure(["demo_words"], tasks, score_cache=str(folder))
    first = Scorer(specs, None, config, "cpu").score(merge("linear", specs[1].founder, specs[2].founder))

    moved = [spec(copytree(one.folder, tmp_path / f"moved-{number}"), f"m{number}") for number, one in enumerate(specs[:3])]
    again = without_a_model(Scorer(moved, None, config, "cpu")).score(merge("linear", moved[1].founder, moved[2].founder))

    assert isinstance(first, Scored) and isinstance(again, Scored)
    assert again.tasks == first.tasks


def test_a_child_that_failed_is_not_tried_again(
    specs: list[ModelSpec], tasks: list[Path], folder: Path, tmp_path: Path
) -> None:
    broken = with_weights(tmp_path / "broken", specs[1], lambda weights: weights.fill_(float("nan")))
    config = configure(["demo_words"], tasks, score_cache=str(folder))
    failed = Scorer([*specs, broken], None, config, "cpu").score(broken.founder)

    again = without_a_model(Scorer([*specs, broken], None, config, "cpu")).score(broken.founder)

    assert isinstance(failed, Failed) and again == failed


def test_nothing_is_remembered_unless_it_is_asked_for(
    specs: list[ModelSpec], tasks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ScoreCache, "get", lambda *_: pytest.fail("it was looked for"))
    scorer = Scorer(specs, None, configure(["demo_words"], tasks), "cpu")

    assert isinstance(scorer.score(specs[1].founder), Scored)


# -- keys

JUDGE = "from helper import right\n\n\ndef judge(doc, results):\n    return {'acc': right(doc, results)}\n"
HELPER = "def right(doc, results):\n    return float(len(results) > 0)\n"


class Setting:
    """A scorer's surroundings, of which a test changes one thing."""

    def __init__(self, folder: Path, specs: list[ModelSpec], questions: Path, examples: Path) -> None:
        self.folder, self.device = folder, "cpu"
        folder.mkdir()
        copytree(specs[0].folder, folder / "base")
        self.specs = [spec(folder / "base", "base"), *specs[1:]]
        for name, path in (("questions", questions), ("examples", examples)):
            (folder / f"{name}.jsonl").write_text(path.read_text())
        files = folder / "questions.jsonl", folder / "examples.jsonl"
        write_task(folder, "judged", CHOICES, files[0], **few_shot(*files, 1))
        write_task(folder, "generated", GENERATED, files[0])
        (folder / "helper.py").write_text(HELPER)
        (folder / "utils.py").write_text(f"import sys\nsys.path.insert(0, {str(folder)!r})\n{JUDGE}")
        with (folder / "judged.yaml").open("a") as file:
            file.write("process_results: !function utils.judge\n")
        self.judged: dict[str, Any] = {"name": "judged"}
        self.generated: dict[str, Any] = {"name": "generated"}
        self.options: dict[str, Any] = {"max_length": 64, "holdout": 0.25}

    def key(self, split: Any = "search") -> str:
        """Hash what a founder's score depends on."""
        options = {"score_cache": str(self.folder / "scores"), **self.options}
        config = configure([self.judged, self.generated], [self.folder], **options)
        scorer = Scorer(self.specs, None, config, "cpu")
        scorer._device = self.device
        scorer.prepare(split)
        scope = scorer._prepared[split].scope
        assert scope is not None
        return key_of(scope.of(self.specs[1].founder))

    def edit(self, file: str, old: str, new: str) -> None:
        """Change a file."""
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def set(self, **options: Any) -> None:
        """Change what ``evaluation`` says."""
        self.options |= options


CHANGES: dict[str, Callable[[Setting], Any]] = {
    "dtype": lambda one: one.set(dtype="bfloat16"),
    "device": lambda one: setattr(one, "device", "cuda"),
    "seed": lambda one: one.set(seed=1),
    "backend": lambda one: one.set(backend="hf"),
    "backend_args": lambda one: one.set(backend="hf", backend_args={"softmax_dtype": "float32"}),
    "share_prompts": lambda one: one.set(share_prompts=False),
    "batch_tokens": lambda one: one.set(batch_tokens=256),
    "batch_size": lambda one: one.set(batch_size=4),
    "max_length": lambda one: one.set(max_length=63),
    "system_instruction": lambda one: one.set(system_instruction="Be The"),
    "items": lambda one: one.set(holdout=0.5),
    "limit": lambda one: one.judged.update(limit=10),
    "metric": lambda one: one.generated.update(metric="exact_match", scale=[0, 2]),
    "weight": lambda one: one.judged.update(weight=2),
    "num_fewshot": lambda one: one.judged.update(num_fewshot=2),
    "fewshot_seed": lambda one: one.judged.update(fewshot_seed=5),
    "gen_kwargs": lambda one: one.generated.update(gen_kwargs={"max_gen_toks": 3}),
    "the task's own batch size": lambda one: one.generated.update(batch_size=2),
    "the task's file": lambda one: one.edit("generated.yaml", "exact_match", "exact_match\n  ignore_case: true"),
    "the task's function": lambda one: one.edit("utils.py", "'acc': right", "'acc': 1 - right"),
    "what that calls": lambda one: one.edit("helper.py", "> 0", "> 1"),
    "a question": lambda one: one.edit("questions.jsonl", "The largest", "The smallest"),
    "an example": lambda one: one.edit("examples.jsonl", '"prompt": "', '"prompt": "The '),
    "the base's config": lambda one: one.edit("base/config.json", '"rms_norm_eps": ', '"rms_norm_eps": 1'),
    "the tokenizer": lambda one: one.edit("base/tokenizer_config.json", "{", '{"x": 1,'),
    "another entry less": lambda one: one.judged.update(name="generated") or one.generated.update(name="judged"),
}


@pytest.fixture
def setting(tmp_path: Path, specs: list[ModelSpec], numbers: Path, words: Path) -> Setting:
    """Surroundings that a test may change."""
    return Setting(tmp_path / "setting", specs, numbers, words)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_of_anything_that_a_score_depends_on_misses(change: Any, setting: Setting) -> None:
    before = setting.key()
    assert setting.key() == before

    change(setting)

    assert setting.key() != before


@pytest.mark.parametrize("package", ["lm-eval", "transformers", "torch", "kinray"])
def test_other_versions_miss(package: str, setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    before, real = setting.key(), score_key.installed

    monkeypatch.setattr(score_key, "installed", lambda name: "9.9" if name == package else real(name))

    assert setting.key() != before


def test_other_models_bases_and_splits_miss(setting: Setting, specs: list[ModelSpec], tmp_path: Path) -> None:
    before = setting.key()
    assert setting.key("holdout") != before

    setting.specs[1] = specs[2]
    assert setting.key() != before

    other = copytree(specs[3].folder, tmp_path / "other")
    setting.specs = [spec(other, "base"), *specs[1:3]]
    assert setting.key() != before


def test_recipes_differ_by_their_founders_and_parameters(specs: list[ModelSpec]) -> None:
    scope, (_, a, b, c) = score_key.Scope({}), (one.founder for one in specs)
    recipes = [a, merge("slerp", a, b, t=0.5), merge("slerp", a, c, t=0.5), merge("slerp", b, a, t=0.5)]
    recipes += [merge("slerp", a, b, t=0.25), merge("linear", a, b)]

    assert len({key_of(scope.of(recipe)) for recipe in recipes}) == len(recipes)


def test_what_a_score_does_not_depend_on_does_not_miss(setting: Setting) -> None:
    before = setting.key()

    setting.set(score_cache=str(setting.folder / "elsewhere"), confirm_run_unsafe_code=True)
    (setting.folder / "other.yaml").write_text("task: other\n")

    assert setting.key() == before


PROGRAM = """
import functools, json, sys
sys.path.insert(0, {!r})
from kinray.evaluation.score_key import plain
import shared_functions as own
some = {{"f": own.judge, "p": functools.partial(own.judge, 1), "n": float("nan"), "l": (1, None, own.Judge())}}
print(json.dumps(plain(some)))
"""


def test_functions_are_the_same_in_every_process_and_stay_themselves(tmp_path: Path) -> None:
    file = tmp_path / "shared_functions.py"
    file.write_text("def judge(a, b=0):\n    return a\nclass Judge:\n    def __call__(self):\n        pass\n")
    program = [sys.executable, "-c", PROGRAM.format(str(tmp_path))]
    once, twice = (subprocess.run(program, check=True, capture_output=True, text=True).stdout for _ in range(2))
    file.write_text(file.read_text().replace("return a", "return b"))

    assert once == twice != subprocess.run(program, check=True, capture_output=True, text=True).stdout
    assert json.loads(once)["n"] == "nan" and json.loads(once)["l"][2]["function"] == "Judge"
    assert plain(b"12") == "b'12'"


# -- files

PARTS = {"recipe": "a" * 64, "format": 1}
RESULT = Scored(
    {
        "maths": TaskScore(0.1 + 0.2, 0.05, ("0", "7"), (1.0, 1 / 3)),
        "text": TaskScore(0.5, math.nan, ("a:0", "b:1"), (-2.5, math.nan), weight=2.0, paired=False),
    }
)


def the_file(folder: Path) -> Path:
    """Find the only file."""
    (file,) = [path for path in folder.rglob("*") if path.is_file()]
    return file


def test_a_result_comes_back_to_the_last_bit(folder: Path) -> None:
    cache = ScoreCache(folder)
    assert cache.get(PARTS) is None

    cache.put(PARTS, RESULT)

    back = ScoreCache(folder).get(PARTS)
    assert isinstance(back, Scored) and repr(back.tasks) == repr(RESULT.tasks)
    assert the_file(folder).name == f"{key_of(PARTS)}.json"
    assert cache.get({**PARTS, "format": 2}) is None


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_torn_file_is_as_good_as_none(keep: int, folder: Path) -> None:
    cache = ScoreCache(folder)
    cache.put(PARTS, RESULT)
    file = the_file(folder)

    file.write_bytes(file.read_bytes()[:keep])

    assert cache.get(PARTS) is None
    cache.put(PARTS, RESULT)
    assert cache.get(PARTS) is not None


@pytest.mark.parametrize(
    "contents",
    [
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        b'{"key": {"recipe": "b"}, "result": {"error": "no"}, "checksum": ""}',
        b"[" * 100_000,
    ],
)
def test_a_foreign_file_is_as_good_as_none(contents: bytes, folder: Path) -> None:
    cache = ScoreCache(folder)
    cache.put(PARTS, RESULT)

    the_file(folder).write_bytes(contents)

    assert cache.get(PARTS) is None


def test_a_changed_score_is_noticed(folder: Path) -> None:
    cache = ScoreCache(folder)
    cache.put(PARTS, RESULT)
    file = the_file(folder)

    file.write_text(file.read_text().replace("0.5", "0.9"))

    assert cache.get(PARTS) is None


def test_another_keys_file_under_this_name_is_not_taken(folder: Path) -> None:
    cache = ScoreCache(folder)
    cache.put({**PARTS, "recipe": "b" * 64}, RESULT)
    target = folder / key_of(PARTS)[:2] / f"{key_of(PARTS)}.json"
    target.parent.mkdir(exist_ok=True)
    the_file(folder).rename(target)

    assert cache.get(PARTS) is None


def test_what_cannot_be_written_is_not_remembered_and_nothing_breaks(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    ScoreCache(tmp_path / "file").put(PARTS, RESULT)

    assert ScoreCache(tmp_path / "file").get(PARTS) is None


WRITER = """
import sys
from pathlib import Path
from kinray.core.scores import Scored, TaskScore
from kinray.evaluation.score_cache import ScoreCache
cache = ScoreCache(Path(sys.argv[1]))
tasks = {"t": TaskScore(0.5, 0.1, tuple(map(str, range(2000))), (0.5,) * 2000)}
for number in range(60):
    cache.put({"recipe": "x"}, Scored(tasks))
    found = cache.get({"recipe": "x"})
    assert found is not None and found.tasks == tasks, number
"""


def test_several_processes_may_share_a_folder(folder: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(folder)]) for _ in range(3)]

    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    the_file(folder)


def test_a_folder_that_cannot_be_is_told_before_the_search(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(ConfigError, match=r"evaluation\.score_cache is '.*file/in', but .*file is not a folder\. Name another"):
        check_score_cache(str(tmp_path / "file" / "in"))

    check_score_cache(str(tmp_path / "new" / "one"))
    assert not (tmp_path / "new").exists()
