"""Score recipes: ask each child requests that were prepared once, and judge its answers."""

import math
import platform
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from kinray.checkpoints.models import ModelSpec, open_models
from kinray.config import Config
from kinray.core.recipe import Recipe
from kinray.core.scores import Failed, Scored, TaskScore
from kinray.core.statistics import Statistics
from kinray.engine.parent_cache import ParentCache
from kinray.errors import RoomError, RunError
from kinray.evaluation.backend import Answers, Ask, Requests, open_backend
from kinray.evaluation.randomness import seeded
from kinray.evaluation.score_cache import ScoreCache
from kinray.evaluation.score_key import Scope, scope_of
from kinray.evaluation.task_loading import load_tasks
from kinray.evaluation.tasks import Item, Leaf, Split


@dataclass
class _Pack:
    """Items that are asked together.

    Args:
        requests: what is asked.
        instances: the same as lm-eval's instances of each leaf, by its number.
        end: how many items have been asked with it.
    """

    requests: Requests
    instances: dict[int, list[Any]]
    end: int


@dataclass
class _Prepared:
    """A split's requests: in packs, the items in their order by task, what asks a child, and what is remembered of scores.

    The scope is what scores depend on besides the recipe, where they are remembered.
    """

    packs: list[_Pack]
    items: list[Item]
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
        self._asking: Generator[Answers] | None = None
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

    def score(self, recipe: Recipe, split: Split = "search") -> Scored | Failed:
        """Make a child, ask it the items of a split and judge its answers, unless its score is remembered.

        Returns:
            Scored; or Failed when its weights or answers are not finite, which would happen again.

        Raises:
            RoomError: when a backend that loads folders has no room for one.
        """
        *_, result = self.rounds(recipe, split)
        return result

    def rounds(self, recipe: Recipe, split: Split = "search", ends: Sequence[int] = ()) -> Iterator[Scored | Failed]:
        """Score a child as ``score`` does, and yield what is known after some of its items; the last is its result.

        Its answers do not depend on where rounds end. What is remembered comes in the same rounds, so that a child meets the
        same fate. It is given up when another one begins.

        Args:
            recipe: the child.
            split: the items.
            ends: how many items have been asked at the end of each round: whole packs.
        """
        self.prepare(split)
        prepared = self._prepared[split]
        if self._remembered is None or prepared.scope is None:
            yield from self._asked(recipe, prepared, ends)
            return
        parts = prepared.scope.of(recipe)
        result = self._remembered.get(parts)
        if result is None:
            for result in self._asked(recipe, prepared, ends):
                if isinstance(result, Failed) or result.asked == len(prepared.items):
                    self._remembered.put(parts, result)
                yield result
            return
        if isinstance(result, Failed):
            yield result
            return
        if all(task.paired for task in result.tasks.values()) and all(task.separable for task in self._tasks.tasks):
            for end in ends:
                if end < len(prepared.items):
                    yield replace(result.on(_by_task(prepared.items[:end])), asked=end)
        yield replace(result, asked=len(prepared.items))

    def _asked(self, recipe: Recipe, prepared: _Prepared, ends: Sequence[int]) -> Iterator[Scored | Failed]:
        if self._asking is not None:
            self._asking.close()
        self._asking = asking = prepared.ask(recipe)
        values: list[dict[int, Any]] = [{} for _ in self._tasks.leaves]
        total, tokens, seconds = 0.0, 0, dict[str, float]()
        for pack in prepared.packs:
            started, scores = perf_counter(), dict[str, TaskScore]()
            try:
                with seeded(self._config.seed):
                    answers = next(asking)
                    self._take(pack, answers, values)
                    if pack.end in ends or pack is prepared.packs[-1]:
                        scores = self._judged(values)
            except RoomError:
                raise
            except RunError as error:
                yield Failed(str(error))
                return
            total, tokens, seconds = total + perf_counter() - started, tokens + answers.tokens, seconds | answers.seconds
            if pack is prepared.packs[-1]:
                asking.close()
                if any(math.isnan(task.score) for task in scores.values()):
                    yield Failed("the score is NaN")
                    return
            if scores:
                spent = seconds | {"evaluate": total - sum(seconds.values())}
                where = {"device": self._device, "node": platform.node()}
                gpus = self._config.cluster.gpus_per_evaluator if self._device == "cuda" else 0
                yield Scored(scores, spent, where, tokens, gpus * total, pack.end)

    def _take(self, pack: _Pack, answers: Answers, values: list[dict[int, Any]]) -> None:
        """Put a pack's answers where lm-eval's tasks look for them, and let these say what each item is worth."""
        for own in pack.instances.values():
            for instance in own:
                instance.resps, instance.filtered_resps = [], {}
        for instance, answer in zip(pack.requests.likely, answers.likely, strict=True):
            instance.resps.extend([answer] * instance.repeats)
        for group, instances in pack.requests.others.items():
            for instance, answer in zip(instances, answers.others[group], strict=True):
                instance.resps.append(answer)
        for leaf, own in pack.instances.items():
            values[leaf] |= self._tasks.leaves[leaf].values(own)

    def _judged(self, values: Sequence[Mapping[int, Any]]) -> dict[str, TaskScore]:
        """Judge the tasks of which an item was asked."""
        remaining = iter(values)
        by_task = [(task, [next(remaining) for _ in task.leaves]) for task in self._tasks.tasks]
        return {task.spec.name: task.judge(own) for task, own in by_task if any(own)}

    # -- requests

    def _prepare(self, split: Split) -> _Prepared:
        built = [self._build(leaf, split) for leaf in self._tasks.leaves]
        instances: dict[tuple[int, int], list[Any]] = defaultdict(list)
        for leaf, own in enumerate(built):
            for instance in own:
                instances[leaf, instance.doc_id].append(instance)
        items = self._tasks.items(split, self._config.seed)
        packs, size = list[_Pack](), self._config.evaluation.pack_items(self._device)
        for start in range(0, len(items), size):
            asked: dict[int, list[Any]] = defaultdict(list)
            for item in items[start : start + size]:
                asked[item.leaf] += instances[item.leaf, item.document]
            packs.append(_Pack(self._requests(asked), dict(asked), min(start + size, len(items))))
        scope = None
        if self._remembered is not None:
            scope = scope_of(self._base, self._config, self._tasks, built, self.sharing, self._device)
        return _Prepared(packs, items, self.backend.prepared([pack.requests for pack in packs]), scope)

    def _requests(self, asked: Mapping[int, Sequence[Any]]) -> Requests:
        likely = []
        others: dict[tuple[str, int], list[Any]] = defaultdict(list)
        for leaf, own in asked.items():
            for instance in own:
                if instance.request_type in ("loglikelihood", "loglikelihood_rolling"):
                    likely.append(instance)
                else:
                    batch = self._tasks.leaves[leaf].prompts.batch_size
                    others[instance.request_type, batch].extend([instance] * instance.repeats)
        return Requests(likely, dict(others))

    def _build(self, leaf: Leaf, split: Split) -> list[Any]:
        """Let lm-eval build the prompts of a task, with the same few-shot examples in every worker."""
        if not leaf.items[split]:
            return []
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
        instances: list[Any] = list(leaf.task.instances)
        for instance in instances:
            instance.doc_id = leaf.items[split][instance.doc_id]  # lm-eval counts those that it was asked to take
        return instances


def _by_task(items: Sequence[Item]) -> dict[str, list[str]]:
    """List the labels of items by task, in the order in which scores have them."""
    labels: dict[str, list[str]] = defaultdict(list)
    for item in sorted(items, key=lambda item: (item.leaf, item.document)):
        labels[item.task].append(item.label)
    return labels
