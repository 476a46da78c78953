"""Other backends: any of lm-eval's model classes, on a folder that is gone afterwards."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from lm_eval.api.registry import model_registry
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from kinray.checkpoints.folder import read_json
from kinray.checkpoints.models import ModelSpec, open_models
from kinray.config import EvaluationConfig
from kinray.core.scores import Failed, Scored
from kinray.demo import DemoFiles
from kinray.engine.gram import gram_pass
from kinray.errors import ConfigError, RoomError
from kinray.evaluation import scratch
from kinray.evaluation.backend import check_backend
from kinray.evaluation.model_class import arguments, model_class
from kinray.evaluation.scorer import Scorer
from tests.evaluation.stock import simple_evaluate, write_merged
from tests.evaluation.tiny import LIKELIHOOD, configure, few_shot, model_specs, write_task
from tests.helpers import merge, spec

AS_IT_IS = {"scale": [0, 1]}
KINDS: list[Any] = [
    "demo_numbers",
    "demo_words",
    {"name": "likelihood", **AS_IT_IS},
    {"name": "likelihood_shots", **AS_IT_IS},
    "shots",
    {"name": "generated", "batch_size": 3},
]


@pytest.fixture(scope="module")
def specs(demo: DemoFiles) -> list[ModelSpec]:
    """The demo's base and founders."""
    return model_specs(demo)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Give every test a RAM disk and a temporary folder of its own, both empty."""
    own = [tmp_path / "ram", tmp_path / "temporary"]
    for place in own:
        place.mkdir()
    monkeypatch.setattr(scratch, "RAM", own[0])
    monkeypatch.setattr("tempfile.tempdir", str(own[1]))
    return own


def left(places: list[Path]) -> list[Path]:
    """List what lies in them."""
    return [path for place in places for path in place.iterdir()]


@pytest.fixture
def register() -> Iterator[Callable[[type], str]]:
    """Register a model class under a name of its own while a test runs."""
    names: list[str] = []

    def registered(kind: type) -> str:
        names.append(f"test-{kind.__name__}")
        model_registry.register(names[-1], target=kind)
        return names[-1]

    yield registered
    for name in names:
        del model_registry._objs[name]


# -- answers


@pytest.mark.parametrize("split", ["search", "holdout"])
def test_hf_on_a_folder_scores_exactly_as_the_resident_model(
    split: Any, specs: list[ModelSpec], tasks: list[Path], places: list[Path]
) -> None:
    base, numbers, letters, words = (spec.founder for spec in specs)
    models = [
        words,
        merge("slerp", numbers, words, t=0.3),
        merge("ties", numbers, merge("linear", letters, words), base=base, density=0.5),
    ]
    resident = Scorer(specs, None, configure(KINDS, tasks, holdout=0.5, share_prompts=False, pack=24), "cpu")
    exported = Scorer(specs, None, configure(KINDS, tasks, holdout=0.5, backend="hf", pack=24), "cpu")

    for model in models:
        ours, expected = exported.score(model, split), resident.score(model, split)
        assert isinstance(ours, Scored) and isinstance(expected, Scored), (ours, expected)
        assert ours.tasks == expected.tasks
    assert left(places) == []


def test_rolling_likelihoods_and_the_longest_prompt_are_those_of_the_class(specs: list[ModelSpec], tasks: list[Path]) -> None:
    config = configure([{"name": "rolling", "scale": [1000, 0]}], tasks, backend="hf", max_length=8)

    result = Scorer(specs, None, config, "cpu").score(specs[1].founder)

    stock = simple_evaluate(specs[1].folder, {"rolling": None}, tasks, max_length=8)["rolling"]
    assert isinstance(result, Scored)
    assert result.tasks["rolling"].score == pytest.approx(1 - stock.results["word_perplexity,none"] / 1000)


def test_the_folder_holds_what_an_export_would(
    specs: list[ModelSpec], tasks: list[Path], tmp_path: Path, register: Any
) -> None:
    from shutil import copytree

    from kinray.engine.export import write_recipe
    from kinray.engine.materialise import Materialiser

    class Copying(HFLM):
        def __init__(self, pretrained: str, **further: Any) -> None:
            copytree(pretrained, tmp_path / "seen")
            super().__init__(pretrained, **further)

    models = open_models(specs)
    statistics = gram_pass(models, models.names)
    child = merge("slerp", specs[1].founder, specs[2].founder, t=0.3)
    scorer = Scorer(specs, statistics, configure(["demo_words"], tasks, dtype="bfloat16", backend=register(Copying)), "cpu")

    assert isinstance(scorer.score(child), Scored)

    (tmp_path / "export").mkdir()
    write_recipe(tmp_path / "export", Materialiser(models, statistics), child, "bfloat16")
    exported = {file.name: file.read_bytes() for file in (tmp_path / "export").iterdir()}
    assert {file.name: file.read_bytes() for file in (tmp_path / "seen").iterdir()} == exported
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(exported)
    assert read_json(tmp_path / "seen" / "config.json", "child")["dtype"] == "bfloat16"


@pytest.mark.parametrize("template", [True, "letters"])
def test_prompts_go_through_the_chat_template_without_a_model(
    template: bool | str, specs: list[ModelSpec], numbers: Path, words: Path, tmp_path: Path
) -> None:
    folder = write_merged(tmp_path / "chat", specs[1].founder, specs, torch.float32)
    turns = "{% for m in messages %} of {{ m['content'] }}{% endfor %}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = {"default": turns + " is", "letters": turns + " among"}
    tokenizer.save_pretrained(folder)
    write_task(tmp_path, "chat", LIKELIHOOD, numbers, **few_shot(numbers, words, 2))

    results = []
    for backend in ("resident", "hf"):
        config = configure(
            [{"name": "chat", **AS_IT_IS}],
            [tmp_path],
            apply_chat_template=template,
            backend=backend,
            share_prompts=False,
        )
        results.append(Scorer([spec(folder), *specs[1:]], None, config, "cpu").score(specs[1].founder))

    assert isinstance(results[0], Scored) and isinstance(results[1], Scored)
    assert results[0].tasks == results[1].tasks


# -- nothing is left


class Model(HFLM):
    """Notes its instances, and may break."""

    made: ClassVar[list["weakref.ref[Any]"]] = []
    error: type[BaseException] | None = None

    def __init__(self, pretrained: str, **further: Any) -> None:
        super().__init__(pretrained, **further)
        Model.made = [weakref.ref(self), weakref.ref(self.model)]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        answers = super().loglikelihood(requests, disable_tqdm)
        if self.error is not None:
            raise self.error("it broke")
        return answers


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_folder_and_model_are_gone_however_scoring_ends(
    error: Any, specs: list[ModelSpec], tasks: list[Path], places: list[Path], register: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "error", error)
    scorer = Scorer(specs, None, configure(["demo_words"], tasks, backend=register(Model)), "cpu")
    gc.disable()
    try:
        if error is None:
            scorer.score(specs[1].founder)
            assert [made() for made in Model.made] == [None, None]
        else:
            with pytest.raises(error, match="it broke") as caught:
                scorer.score(specs[1].founder)
            assert [made() for made in Model.made] == [None, None], caught  # though the error is still held
    finally:
        gc.enable()

    assert left(places) == []


def test_engines_are_shut_down(specs: list[ModelSpec], tasks: list[Path], register: Any) -> None:
    ended = []

    class Core:
        def shutdown(self) -> None:
            ended.append("core")
            raise RuntimeError("it was gone already")

    class Engine:
        def __init__(self) -> None:
            self.llm_engine = type("LLMEngine", (), {"engine_core": Core()})()

        def shutdown(self) -> None:
            ended.append("engine")

    class Remote(HFLM):
        def __init__(self, pretrained: str, **further: Any) -> None:
            super().__init__(pretrained, **further)
            self.inner, self.engine = self._model, Engine()
            self._max_length = 64

        @property
        def model(self) -> Any:
            return self.__dict__.get("engine") or self._model

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            with torch.no_grad():
                return self.inner(inps).logits

    config = configure(["demo_words"], tasks, backend=register(Remote))

    result = Scorer(specs, None, config, "cpu").score(specs[1].founder)

    assert isinstance(result, Scored)
    assert ended == ["engine", "core"]


def test_a_child_that_is_no_number_fails_and_is_not_asked(
    specs: list[ModelSpec], tasks: list[Path], places: list[Path], tmp_path: Path
) -> None:
    from tests.evaluation.test_scorer_state import with_weights

    broken = with_weights(tmp_path / "broken", specs[1], lambda weights: weights.fill_(float("nan")))
    wild = with_weights(tmp_path / "wild", specs[1], lambda weights: weights.fill_(3e38))
    scorer = Scorer([*specs, broken, wild], None, configure(["demo_words"], tasks, backend="hf"), "cpu")

    results = [scorer.score(model.founder) for model in (broken, wild)]

    assert isinstance(results[0], Failed) and "'broken': tensor 'model.norm.weight' holds NaN or infinity" in results[0].error
    assert results[1] == Failed("160 of 160 log-likelihoods of the child are NaN")
    assert left(places) == []


def test_too_little_room_is_not_the_childs_fault(
    specs: list[ModelSpec], tasks: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = Scorer(specs, None, configure(["demo_words"], tasks, backend="hf"), "cpu")
    monkeypatch.setattr(scratch, "_free", lambda place: 1000)

    with pytest.raises(RoomError, match="Too little room for a child of"):
        scorer.score(specs[1].founder)


# -- where folders are


def test_a_folder_lies_in_memory_if_there_is_room_for_it_twice(places: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    ram, temporary = places
    free = {ram: 300 << 20, temporary: 10 << 30}
    monkeypatch.setattr(scratch, "_free", free.__getitem__)
    monkeypatch.setattr(scratch, "_memory", lambda: 1 << 40)

    assert [scratch.place_for(size << 20) for size in (100, 200)] == [ram, temporary]
    monkeypatch.setattr(scratch, "_memory", lambda: 100 << 20)
    assert scratch.place_for(100 << 20) == temporary
    with pytest.raises(RoomError, match=r"21\.47 GB.*temporary has 10\.74 GB free, and .*ram 0\.10 GB.*set TMPDIR"):
        scratch.place_for(20 << 30)


def test_the_folder_is_private_and_survives_the_sweeps_of_others(places: list[Path]) -> None:
    with scratch.scratch_folder(0) as folder:
        (folder / "weights").write_text("")
        assert folder.parent.parent == places[0]
        assert folder.parent.stat().st_mode & 0o077 == 0
        subprocess.run([sys.executable, "-c", _PROGRAM.format(*places, "scratch.sweep()")], check=True)
        assert (folder / "weights").exists()

    assert left(places) == []


def test_folders_of_processes_that_were_killed_are_removed(places: list[Path]) -> None:
    die = "held = scratch.scratch_folder(0); held.__enter__(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", _PROGRAM.format(*places, die)], check=False)
    assert len(left(places)) == 1

    with scratch.scratch_folder(0) as folder:
        assert left(places) == [folder.parent]


_PROGRAM = """
import os, tempfile
from pathlib import Path
from kinray.evaluation import scratch
scratch.RAM, tempfile.tempdir = Path("{}"), "{}"
{}
"""


# -- which class, and what it is made with


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("vlm", r"backend is vlm, which is no model class of lm-eval\. Did you mean 'vllm'"),
        ("vllm", r"backend is vllm, but vllm is not installed \(No module named 'vllm'\)\. Install it on every node"),
        ("sglang", "but sglang is not installed"),
        ("local-completions", r"loads no model from a folder.*kinray starts no server"),
        ("dummy", "loads no model from a folder"),
    ],
)
def test_a_class_that_cannot_be_used_is_told_before_the_search(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_backend(EvaluationConfig(backend=name), 0)


def test_a_class_without_room_for_its_children_is_told_before_the_search() -> None:
    with pytest.raises(RoomError, match="Too little room"):
        check_backend(EvaluationConfig(backend="hf"), 1 << 60)


def test_the_resident_model_needs_neither_class_nor_room() -> None:
    check_backend(EvaluationConfig(), 1 << 60)


def test_a_class_gets_what_the_configuration_says_in_its_own_words() -> None:
    class Engine:
        def __init__(
            self, pretrained: str, dtype: str, max_model_len: int | None = None, trust_remote_code: bool = True
        ) -> None:
            pass

    hf = EvaluationConfig(backend="hf", batch_size=3, max_length=99, backend_args={"dtype": "auto", "revision": "x"})

    assert arguments(model_class("hf"), "/child", hf, "cuda", "bfloat16") == {
        "pretrained": "/child",
        "dtype": "auto",
        "device": "cuda",
        "batch_size": 3,
        "trust_remote_code": False,
        "max_length": 99,
        "revision": "x",
    }
    own = EvaluationConfig(backend="x", max_length=99)
    said = {"pretrained": "/child", "dtype": "float32", "trust_remote_code": False, "max_model_len": 99}
    assert arguments(Engine, "/child", own, "cuda", "float32") == said
    less = own.model_copy(update={"backend_args": {"max_model_len": 5}})
    assert arguments(Engine, "/child", less, "cuda", "float32")["max_model_len"] == 5
    with pytest.raises(ConfigError, match=r"max_length is 99, but Other has no such argument"):
        arguments(type("Other", (), {"__init__": lambda self, pretrained: None}), "", own, "cpu", "float32")
