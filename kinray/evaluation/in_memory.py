"""The resident backend: children are merged straight into one model in memory, which is asked what was planned once."""

import logging
from collections.abc import Generator, Sequence
from typing import Any

from kinray.checkpoints.models import Models
from kinray.config import Config
from kinray.core.recipe import Recipe
from kinray.core.statistics import Statistics
from kinray.engine.materialise import Materialiser
from kinray.engine.parent_cache import ParentCache
from kinray.errors import RunError
from kinray.evaluation.backend import Answers, Ask, Requests
from kinray.evaluation.likelihoods import Likelihoods
from kinray.evaluation.model_class import batched
from kinray.evaluation.packed import Prefixes
from kinray.evaluation.resident import ResidentModel
from kinray.evaluation.sharing import Sharing, sharing_of
from kinray.evaluation.tokens import counting


class InMemory:
    """A ``Backend`` that writes nothing and shares what requests have in common.

    Args:
        models: the base and the founders.
        statistics: of them.
        config: of the run.
        device: where to merge and to compute.
        cache: of parents' weights, if there is one.
    """

    def __init__(
        self, models: Models, statistics: Statistics | None, config: Config, device: str, cache: ParentCache | None
    ) -> None:
        from lm_eval.models.huggingface import HFLM

        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        evaluation = config.evaluation
        self._materialiser = Materialiser(models, statistics, device, cache=cache)
        gpus = config.cluster.gpus_per_evaluator
        devices = [f"cuda:{number}" for number in range(gpus)] if device == "cuda" else [device]
        self.resident = ResidentModel(models.specs[0].folder, models, config.merge.dtype, devices, evaluation)
        self._lm: Any = HFLM(
            pretrained=self.resident.model,
            tokenizer=self.resident.tokenizer,
            batch_size=evaluation.batch_size,
            max_length=evaluation.max_length,
        )
        self.prompter = self._lm
        self._budget = evaluation.token_budget(device)
        self.sharing = self._find_sharing(models.specs[0].founder, share=evaluation.share_prompts)

    def use(self, statistics: Statistics) -> None:
        """Take the founders' statistics, from now on."""
        self._materialiser.statistics = statistics

    def prepared(self, packs: Sequence[Requests]) -> Ask:
        """Plan requests."""
        likelihoods = Likelihoods(self._lm, [requests.likely for requests in packs], self.sharing, self._budget)

        def ask(recipe: Recipe) -> Generator[Answers]:
            seconds, prefixes = self._load(recipe), Prefixes()
            for pack, requests in enumerate(packs):
                with counting(self.resident.model) as passed:
                    likely = likelihoods.answer(pack, prefixes)
                    others = {group: self._others(*group, asked) for group, asked in requests.others.items()}
                yield Answers(likely, others, seconds, passed.tokens)
                seconds = {}

        return ask

    def _others(self, kind: str, batch: int, instances: list[Any]) -> list[Any]:
        with batched(self._lm, batch):
            return list(getattr(self._lm, kind)(instances, disable_tqdm=True))

    def _load(self, recipe: Recipe) -> dict[str, float]:
        return self.resident.load(self._materialiser.tensors(recipe, self.resident.dtype))

    def _find_sharing(self, base: Recipe, *, share: bool) -> Sharing:
        """Find out, with the base's weights, what requests may share."""
        if not share:
            return Sharing(0, None, "evaluation.share_prompts is false")
        try:
            self._load(base)
        except RunError as error:
            return Sharing(0, None, f"the base cannot be asked: {error}")
        return sharing_of(self._lm, self._budget)
