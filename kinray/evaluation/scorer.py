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
from kinray.evaluation.likelihoods import Likelihoods
from kinray.evaluation.randomness import seeded
from kinray.evaluation.sharing import Sharing, sharing_of
from kinray.evaluation.tasks import Leaf, Split, TaskSet, load_tasks


@dataclass
class _Prepared:
    """A split's requests: lm-eval's instances of each leaf; those for log-likelihoods planned, the others by type and batch."""

    instances: list[list[Any]]
    likely: list[Any]
    likelihoods: Likelihoods
    others: dict[tuple[str, int], list[Any]]


class Scorer:
    """Scores one recipe after another on fixed items.

    Everything that does not depend on weights is made once: model skeleton, tokenizer, tasks, prompts (with their few-shot
    examples), tokens, and which requests share a row. No answer is ever remembered from one child to the next. The global
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
        from kinray.engine.materialise import Materialiser
        from kinray.evaluation.resident import ResidentModel

        models = open_models(specs)
        self._config, self._device = config, device
        self._materialiser = Materialiser(models, statistics, device, cache=cache)
        self._resident = ResidentModel(Path(specs[0].folder), models, config.merge.dtype, device, config.evaluation)
        self._tasks = load_tasks(config.tasks, config.task_paths, config.evaluation, config.seed)
        self._lm = self._language_model()
        self._prepared: dict[Split, _Prepared] = {}
        self._budget = config.evaluation.token_budget(device)
        self.sharing = self._find_sharing(specs[0].founder)

    def prepare(self, split: Split) -> None:
        """Make the requests of a split, unless they are made."""
        with seeded(self._config.seed):
            self._prepare(split)

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

    def _find_sharing(self, base: Recipe) -> Sharing:
        """Find out, with the base's weights, what requests may share."""
        if not self._config.evaluation.share_prompts:
            return Sharing(0, None, "evaluation.share_prompts is false")
        try:
            self._resident.load(self._materialiser.tensors(base, self._resident.dtype))
        except RunError as error:
            return Sharing(0, None, f"the base cannot be asked: {error}")
        return sharing_of(self._lm, self._budget)

    # -- requests

    def _prepare(self, split: Split) -> _Prepared:
        if split not in self._prepared:
            instances = [self._build(leaf, split) for leaf in self._tasks.leaves]
            likely = []
            others: dict[tuple[str, int], list[Any]] = defaultdict(list)
            for leaf, own in zip(self._tasks.leaves, instances, strict=True):
                for instance in own:
                    if instance.request_type in ("loglikelihood", "loglikelihood_rolling"):
                        likely.append(instance)
                    else:
                        batch = leaf.prompts.batch_size
                        others[instance.request_type, batch].extend([instance] * instance.repeats)
            likelihoods = Likelihoods(self._lm, likely, self.sharing, self._budget)
            self._prepared[split] = _Prepared(instances, likely, likelihoods, others)
        return self._prepared[split]

    def _build(self, leaf: Leaf, split: Split) -> list[Any]:
        """Let lm-eval build the prompts of a task, with the same few-shot examples in every worker."""
        prompts = leaf.prompts
        templates = self._lm.chat_template_args
        if isinstance(prompts.chat_template, str):
            self._lm.chat_template_args = {**templates, "chat_template": prompts.chat_template}
        leaf.task.set_fewshot_seed(prompts.fewshot_seed)
        leaf.task.build_all_requests(
            samples=frozenset(leaf.items[split]),
            system_instruction=prompts.system_instruction,
            apply_chat_template=bool(prompts.chat_template),
            fewshot_as_multiturn=prompts.multiturn,
            chat_template=self._lm.apply_chat_template if prompts.chat_template else None,
            tokenizer_name=self._lm.tokenizer_name if prompts.chat_template else "",
        )
        self._lm.chat_template_args = templates
        return list(leaf.task.instances)

    # -- answers

    def _answer(self, prepared: _Prepared) -> None:
        """Ask the resident model everything, request type by request type over all tasks, as lm-eval does."""
        for own in prepared.instances:
            for instance in own:
                instance.resps, instance.filtered_resps = [], {}
        for instance, answer in zip(prepared.likely, prepared.likelihoods.answer(), strict=True):
            instance.resps.extend([answer] * instance.repeats)
        for (kind, batch), instances in prepared.others.items():
            self._lm.batch_size_per_gpu = batch
            answers = getattr(self._lm, kind)(instances, disable_tqdm=True)
            for instance, answer in zip(instances, answers, strict=True):
                instance.resps.append(answer)


def _judge(tasks: TaskSet, split: Split, values: Sequence[Sequence[Any]]) -> dict[str, Any]:
    remaining = iter(values)
    return {task.spec.name: task.judge(split, [next(remaining) for _ in task.leaves]) for task in tasks.tasks}
