"""Score recipes: the child is merged straight into the resident model and asked requests that were prepared once."""

import logging
import math
import platform
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from kinray.checkpoints.models import ModelSpec, open_models
from kinray.config import Config
from kinray.core.recipe import Recipe
from kinray.core.scores import Failed, Result, Scored
from kinray.core.statistics import Statistics
from kinray.engine.parent_cache import ParentCache
from kinray.errors import RunError
from kinray.evaluation.randomness import seeded
from kinray.evaluation.tasks import Leaf, Split, TaskSet, load_tasks


@dataclass
class _Prepared:
    """A split's requests: lm-eval's instances of each leaf, and log-likelihood requests already in tokens."""

    instances: list[list[Any]]
    tokens: dict[int, tuple[Any, list[int], list[int]]]


class Scorer:
    """Scores one recipe after another on fixed items.

    Everything that does not depend on weights is made once: model skeleton, tokenizer, tasks, prompts (with their few-shot
    examples) and tokens. No answer is ever remembered from one child to the next. The global random states of Python,
    numpy and torch are left as they were.

    Args:
        specs: the base and the founders, on this node.
        statistics: of them, so that all scorers and the export use the same angles.
        config: of the run.
        device: ``cpu`` or ``cuda``.
        cache: of parents' weights, if there is one.
    """

    def __init__(
        self,
        specs: Sequence[ModelSpec],
        statistics: Statistics | None,
        config: Config,
        device: str,
        cache: ParentCache | None = None,
    ) -> None:
        from kinray.engine.materialise import Materialiser
        from kinray.evaluation.resident import ResidentModel

        models = open_models(specs)
        self._config, self._device = config, device
        self._materialiser = Materialiser(models, statistics, device, cache=cache)
        self._resident = ResidentModel(Path(specs[0].folder), models, config.merge.dtype, device, config.evaluation)
        self._tasks = load_tasks(config.tasks, config.task_paths, config.evaluation, config.seed)
        self._lm = self._language_model()
        self._prepared: dict[Split, _Prepared] = {}

    def use(self, statistics: Statistics) -> None:
        """Take the founders' statistics, if they were not known when the scorer was made."""
        self._materialiser.statistics = statistics

    def score(self, recipe: Recipe, split: Split = "search") -> Result:
        """Merge a child, ask it the items of a split and judge its answers.

        Returns:
            Scored; or Failed when its weights or answers are not finite, which would happen again.
        """
        with seeded(self._config.seed):
            try:
                tensors = self._materialiser.tensors(recipe, self._resident.dtype)
                seconds = self._resident.load(tensors)
                prepared = self._prepare(split)
                ready = perf_counter()
                self._answer(prepared)
                values = [
                    leaf.values(instances) for leaf, instances in zip(self._tasks.leaves, prepared.instances, strict=True)
                ]
                scores = _judge(self._tasks, split, values)
            except RunError as error:
                return Failed(str(error))
        seconds["evaluate"] = perf_counter() - ready
        if any(math.isnan(task.score) for task in scores.values()):
            return Failed("the score is NaN")
        return Scored(scores, seconds, {"device": self._device, "node": platform.node()})

    def _language_model(self) -> Any:
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        return HFLM(
            pretrained=self._resident.model,
            tokenizer=self._resident.tokenizer,
            batch_size=self._config.evaluation.batch_size,
            max_length=self._config.evaluation.max_length,
        )

    # -- requests

    def _prepare(self, split: Split) -> _Prepared:
        if split not in self._prepared:
            instances = [self._build(leaf, split) for leaf in self._tasks.leaves]
            tokens = {
                id(instance): self._encode(*instance.args)
                for own in instances
                for instance in own
                if instance.request_type == "loglikelihood"
            }
            self._prepared[split] = _Prepared(instances, tokens)
        return self._prepared[split]

    def _build(self, leaf: Leaf, split: Split) -> list[Any]:
        config = self._config.evaluation
        leaf.task.set_fewshot_seed(self._config.seed)
        leaf.task.build_all_requests(
            samples=frozenset(leaf.items[split]),
            system_instruction=config.system_instruction,
            apply_chat_template=config.apply_chat_template,
            fewshot_as_multiturn=config.apply_chat_template,
            chat_template=self._lm.apply_chat_template if config.apply_chat_template else None,
            tokenizer_name=self._lm.tokenizer_name if config.apply_chat_template else "",
        )
        return list(leaf.task.instances)

    def _encode(self, context: str, continuation: str) -> tuple[Any, list[int], list[int]]:
        """Put a request into tokens as lm-eval does; an empty context becomes the prefix token."""
        if context == "":
            tokens = self._lm.tok_encode(continuation, add_special_tokens=False)
            prefix = self._lm.prefix_token_id
            if tokens and tokens[0] == prefix:
                return (context, continuation), tokens[:1], tokens[1:]
            return (context, continuation), [prefix], tokens
        return (context, continuation), *self._lm._encode_pair(context, continuation)

    # -- answers

    def _answer(self, prepared: _Prepared) -> None:
        """Ask the resident model everything, request type by request type over all tasks, as lm-eval does."""
        by_type: dict[str, list[Any]] = defaultdict(list)
        for own in prepared.instances:
            for instance in own:
                instance.resps, instance.filtered_resps = [], {}
                by_type[instance.request_type].extend([instance] * instance.repeats)
        for kind, instances in by_type.items():
            if kind == "loglikelihood":
                requests = [prepared.tokens[id(instance)] for instance in instances]
                answers = self._lm._loglikelihood_tokens(requests, disable_tqdm=True)
                _check_finite(answers)
            else:
                answers = getattr(self._lm, kind)(instances, disable_tqdm=True)
                if kind == "loglikelihood_rolling":
                    _check_finite([(answer, False) for answer in answers])
            for instance, answer in zip(instances, answers, strict=True):
                instance.resps.append(answer)


def _judge(tasks: TaskSet, split: Split, values: Sequence[Sequence[Any]]) -> dict[str, Any]:
    remaining = iter(values)
    return {task.spec.name: task.judge(split, [next(remaining) for _ in task.leaves]) for task in tasks.tasks}


def _check_finite(answers: Sequence[tuple[float, bool]]) -> None:
    bad = sum(math.isnan(likelihood) for likelihood, _ in answers)
    if bad:
        raise RunError(f"{bad} of {len(answers)} log-likelihoods of the child are NaN")
