"""Score recipes: ask each child requests that were prepared once, and judge its answers."""

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
from kinray.errors import RoomError, RunError
from kinray.evaluation.backend import Answers, Ask, Requests, open_backend
from kinray.evaluation.randomness import seeded
from kinray.evaluation.score_cache import ScoreCache
from kinray.evaluation.score_key import Scope, scope_of
from kinray.evaluation.tasks import Leaf, Split, TaskSet, load_tasks


@dataclass
class _Prepared:
    """A split's requests: lm-eval's instances of each leaf, all of them by how they are asked, and what asks them.

    The scope is what scores depend on besides the recipe, where they are remembered.
    """

    instances: list[list[Any]]
    requests: Requests
    ask: Ask
    scope: Scope | None


class Scorer:
    """Scores one recipe after another on fixed items.

    Everything that does not depend on weights is made once: tasks, prompts (with their few-shot examples), and what the backend
    can do before there is a child. No answer is ever remembered from one child to the next. The global
    random states of Python, numpy and torch are left as they were.

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
        self._config, self._device = config, device
        self._tasks = load_tasks(config.tasks, config.task_paths, config.evaluation, config.seed)
        self.backend = open_backend(open_models(specs), statistics, config, device, cache)
        self.sharing = self.backend.sharing
        self._prepared: dict[Split, _Prepared] = {}
        self._base = specs[0]
        folder = config.evaluation.score_cache
        self._remembered = None if folder is None else ScoreCache(Path(folder))

    def prepare(self, split: Split) -> None:
        """Make the requests of a split, unless they are made."""
        if split not in self._prepared:
            with seeded(self._config.seed):
                self._prepared[split] = self._prepare(split)

    def use(self, statistics: Statistics) -> None:
        """Take the founders' statistics, if they were not known when the scorer was made."""
        self.backend.use(statistics)

    def score(self, recipe: Recipe, split: Split = "search") -> Result:
        """Make a child, ask it the items of a split and judge its answers, unless its score is remembered.

        Returns:
            Scored; or Failed when its weights or answers are not finite, which would happen again.

        Raises:
            RoomError: when a backend that loads folders has no room for one.
        """
        self.prepare(split)
        prepared = self._prepared[split]
        if self._remembered is None or prepared.scope is None:
            return self._score(recipe, split, prepared)
        parts = prepared.scope.of(recipe)
        result = self._remembered.get(parts)
        if result is None:
            result = self._score(recipe, split, prepared)
            self._remembered.put(parts, result)
        return result

    def _score(self, recipe: Recipe, split: Split, prepared: _Prepared) -> Result:
        started = perf_counter()
        with seeded(self._config.seed):
            try:
                answers = prepared.ask(recipe)
                _answered(prepared, answers)
                values = [
                    leaf.values(instances) for leaf, instances in zip(self._tasks.leaves, prepared.instances, strict=True)
                ]
                scores = _judge(self._tasks, split, values)
            except RoomError:
                raise
            except RunError as error:
                return Failed(str(error))
        if any(math.isnan(task.score) for task in scores.values()):
            return Failed("the score is NaN")
        seconds = answers.seconds | {"evaluate": perf_counter() - started - sum(answers.seconds.values())}
        where = {"device": self._device, "node": platform.node()}
        gpu_seconds = sum(seconds.values()) if self._device == "cuda" else 0.0
        return Scored(scores, seconds, where, answers.tokens, gpu_seconds)

    # -- requests

    def _prepare(self, split: Split) -> _Prepared:
        instances = [self._build(leaf, split) for leaf in self._tasks.leaves]
        likely = []
        others: dict[tuple[str, int], list[Any]] = defaultdict(list)
        for leaf, own in zip(self._tasks.leaves, instances, strict=True):
            for instance in own:
                if instance.request_type in ("loglikelihood", "loglikelihood_rolling"):
                    likely.append(instance)
                else:
                    others[instance.request_type, leaf.prompts.batch_size].extend([instance] * instance.repeats)
        requests = Requests(likely, dict(others))
        scope = None
        if self._remembered is not None:
            scope = scope_of(self._base, self._config, self._tasks, instances, self.sharing, self._device)
        return _Prepared(instances, requests, self.backend.prepared(requests), scope)

    def _build(self, leaf: Leaf, split: Split) -> list[Any]:
        """Let lm-eval build the prompts of a task, with the same few-shot examples in every worker."""
        prompts, prompter = leaf.prompts, self.backend.prompter
        templates = prompter.chat_template_args
        if isinstance(prompts.chat_template, str):
            prompter.chat_template_args = {**templates, "chat_template": prompts.chat_template}
        leaf.task.set_fewshot_seed(prompts.fewshot_seed)
        leaf.task.build_all_requests(
            samples=frozenset(leaf.items[split]),
            system_instruction=prompts.system_instruction,
            apply_chat_template=bool(prompts.chat_template),
            fewshot_as_multiturn=prompts.multiturn,
            chat_template=prompter.apply_chat_template if prompts.chat_template else None,
            tokenizer_name=prompter.tokenizer_name if prompts.chat_template else "",
        )
        prompter.chat_template_args = templates
        return list(leaf.task.instances)


def _answered(prepared: _Prepared, answers: Answers) -> None:
    """Put the answers where lm-eval's tasks look for them."""
    for own in prepared.instances:
        for instance in own:
            instance.resps, instance.filtered_resps = [], {}
    for instance, answer in zip(prepared.requests.likely, answers.likely, strict=True):
        instance.resps.extend([answer] * instance.repeats)
    for group, instances in prepared.requests.others.items():
        for instance, answer in zip(instances, answers.others[group], strict=True):
            instance.resps.append(answer)


def _judge(tasks: TaskSet, split: Split, values: Sequence[Sequence[Any]]) -> dict[str, Any]:
    remaining = iter(values)
    return {task.spec.name: task.judge(split, [next(remaining) for _ in task.leaves]) for task in tasks.tasks}
