"""The other backends: each child is written to a temporary folder, asked by one of lm-eval's model classes, and removed."""

import gc
import os
import traceback
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from kinray.checkpoints.header import DTYPE_BYTES
from kinray.checkpoints.models import Models
from kinray.checkpoints.writer import CODES
from kinray.config import Config
from kinray.core.recipe import Recipe
from kinray.core.statistics import Statistics
from kinray.engine.export import write_recipe
from kinray.engine.materialise import Materialiser
from kinray.errors import RunError
from kinray.evaluation.backend import Answers, Ask, Requests
from kinray.evaluation.likelihoods import Answer
from kinray.evaluation.model_class import arguments, batched, model_class, quiet
from kinray.evaluation.resident import open_tokenizer
from kinray.evaluation.scratch import scratch_folder
from kinray.evaluation.sharing import Sharing
from kinray.evaluation.tokens import Passed, counting

_WRITERS = 8
"""Threads that write a child beside a GPU, at most; without one as many as torch is set to."""


class Exported:
    """A ``Backend`` over any model class of lm-eval that loads a folder.

    The folder holds the bits of an export. The class is asked through its own methods, so batches and arithmetic are its own.

    Args:
        models: the base and the founders.
        statistics: of them.
        config: of the run.
        device: where the class computes; merging is the CPU's, as for an export.
    """

    def __init__(self, models: Models, statistics: Statistics | None, config: Config, device: str) -> None:
        self._evaluation, self._dtype, self._device = config.evaluation, config.merge.dtype, device
        self._class = model_class(config.evaluation.backend)
        self._materialiser = Materialiser(models, statistics)
        self._nbytes = models.parameters * DTYPE_BYTES[CODES[self._dtype]]
        self.prompter = Prompter(open_tokenizer(models.specs[0].folder, config.evaluation), config.evaluation.backend_args)
        self.sharing = Sharing(0, None, f"evaluation.backend is {config.evaluation.backend}")

    def use(self, statistics: Statistics) -> None:
        """Take the founders' statistics, from now on."""
        self._materialiser.statistics = statistics

    def prepared(self, packs: Sequence[Requests]) -> Ask:
        """Do nothing yet: the class has its own way with requests."""

        def ask(recipe: Recipe) -> Generator[Answers]:
            started = perf_counter()
            with scratch_folder(self._nbytes) as folder:
                write_recipe(folder, self._materialiser, recipe, self._dtype, threads=self._threads())
                written = perf_counter()
                with self._open(folder) as opened:
                    seconds = {"merge": written - started, "copy": perf_counter() - written}
                    for requests in packs:
                        yield self._asked(opened[0], requests, seconds)
                        seconds = {}

        return ask

    def _threads(self) -> int | None:
        return min(_WRITERS, len(os.sched_getaffinity(0))) if self._device == "cuda" else None

    @contextmanager
    def _open(self, folder: Path) -> Iterator[list[Any]]:
        """Load a child, and let go of all that it took when the block ends.

        It is given in a list, so that nobody else holds it then.
        """
        held: list[Any] = []
        try:
            with quiet():
                held.append(self._class(**arguments(self._class, str(folder), self._evaluation, self._device, self._dtype)))
            yield held
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # they hold the model
            raise
        finally:
            if held:
                _shut_down(held.pop())
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _asked(self, lm: Any, requests: Requests, seconds: dict[str, float]) -> Answers:
        with _counted(lm) as passed:
            likely = _likely(lm, requests.likely)
            others = {group: self._others(lm, *group, asked) for group, asked in requests.others.items()}
        return Answers(likely, others, seconds, passed.tokens if passed else self._tokens(requests, others))

    def _others(self, lm: Any, kind: str, batch: int, instances: Sequence[Any]) -> list[Any]:
        with nullcontext() if "batch_size" in self._evaluation.backend_args else batched(lm, batch):
            return list(getattr(lm, kind)(list(instances), disable_tqdm=True))

    def _tokens(self, requests: Requests, others: dict[tuple[str, int], list[Any]]) -> int:
        """Count the tokens of prompts and answers, for a model that cannot be watched."""
        texts = ["".join(map(str, instance.args)) for instance in requests.likely]
        for group, instances in requests.others.items():
            texts += [f"{instance.args[0]}{answer}" for instance, answer in zip(instances, others[group], strict=True)]
        return sum(map(len, self.prompter.tokenizer(texts)["input_ids"])) if texts else 0


class Prompter:
    """The chat templates of a tokenizer, applied as lm-eval's own model does, before there is a model.

    Args:
        tokenizer: of the base, which all children have.
        given: the backend's arguments, of which some are for templates.
    """

    def __init__(self, tokenizer: Any, given: dict[str, Any]) -> None:
        self.tokenizer = tokenizer
        self.tokenizer_name: str = tokenizer.name_or_path
        thinking = {name: value for name, value in given.items() if name == "enable_thinking" and value is not None}
        self.chat_template_args: dict[str, Any] = {**(given.get("chat_template_args") or {}), **thinking}

    def apply_chat_template(self, history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Put turns into the template."""
        from lm_eval.models.huggingface import HFLM

        return str(HFLM.apply_chat_template(self, history, add_generation_prompt))


def _likely(lm: Any, instances: Sequence[Any]) -> list[Answer]:
    """Ask for likelihoods, each kind through its own method."""
    answers: list[Any] = [None] * len(instances)
    for kind in ("loglikelihood", "loglikelihood_rolling"):
        places = [place for place, instance in enumerate(instances) if instance.request_type == kind]
        if places:
            own = getattr(lm, kind)([instances[place] for place in places], disable_tqdm=True)
            for place, answer in zip(places, own, strict=True):
                answers[place] = answer
    values = [answer[0] if isinstance(answer, tuple) else answer for answer in answers]
    if bad := sum(value != value for value in values):
        raise RunError(f"{bad} of {len(answers)} log-likelihoods of the child are NaN")
    return answers


@contextmanager
def _counted(lm: Any) -> Iterator[Passed | None]:
    """Count what goes through a model that lives in this process; None for one that does not."""
    model = getattr(lm, "model", None)
    if not isinstance(model, torch.nn.Module):
        yield None
        return
    with counting(model) as passed:
        yield passed


def _shut_down(lm: Any) -> None:
    """End the processes that engines start: sglang's has a ``shutdown``, vLLM's has one deep inside."""
    for path in ("model.shutdown", "model.llm_engine.engine_core.shutdown"):
        end: Any = lm
        for name in path.split("."):
            end = getattr(end, name, None)
        if callable(end):
            with suppress(Exception):
                end()
