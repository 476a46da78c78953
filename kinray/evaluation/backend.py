"""Where answers come from: kinray's own resident model, or one of lm-eval's model classes on a folder of each child."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from kinray.checkpoints.models import Models
from kinray.config import Config, EvaluationConfig
from kinray.core.recipe import Recipe
from kinray.core.statistics import Statistics
from kinray.engine.parent_cache import ParentCache
from kinray.evaluation.likelihoods import Answer
from kinray.evaluation.sharing import Sharing

RESIDENT = "resident"
"""The backend that writes nothing."""


@dataclass(frozen=True)
class Requests:
    """What is asked of every child in one pack: instances of lm-eval's tasks.

    Args:
        likely: of types ``loglikelihood`` and ``loglikelihood_rolling``.
        others: by type and by how many go through the model together.
    """

    likely: Sequence[Any] = ()
    others: dict[tuple[str, int], list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Answers:
    """What a child answered to a pack, and what it cost.

    Args:
        likely: to each of the requests' ``likely``.
        others: to each of their ``others``, in the same groups.
        seconds: wall time of ``merge`` and ``copy``: to make the weights, and to bring them into the model; of the first pack.
        tokens: that went through the model, padding included.
    """

    likely: Sequence[Answer]
    others: dict[tuple[str, int], list[Any]]
    seconds: dict[str, float]
    tokens: int


Ask = Callable[[Recipe], Generator[Answers]]
"""Asks one child the packs that it was made for, one after the other, until it is closed."""


class Backend(Protocol):
    """Answers requests with the weights of one child after the other.

    The seam between what is asked and judged, which is the same for all, and what computes the answers.

    Contract: one child is asked at a time, and nothing of it is left when ``Ask`` ends, is closed or raises. It raises RunError
    for a child that cannot be asked, and anything else for what is not the child's fault. What is answered to a pack depends
    on no other one.
    """

    sharing: Sharing
    prompter: Any
    """Knows the chat templates, as lm-eval's models do: ``apply_chat_template``, ``chat_template_args``, ``tokenizer_name``."""

    def use(self, statistics: Statistics) -> None:
        """Take the founders' statistics, from now on."""

    def prepared(self, packs: Sequence[Requests]) -> Ask:
        """Do what can be done for requests before there is a child."""


def open_backend(
    models: Models, statistics: Statistics | None, config: Config, device: str, cache: ParentCache | None
) -> Backend:
    """Make the backend that the configuration names."""
    if config.evaluation.backend == RESIDENT:
        from kinray.evaluation.in_memory import InMemory

        return InMemory(models, statistics, config, device, cache)
    from kinray.evaluation.exported import Exported

    return Exported(models, statistics, config, device)


def check_backend(config: EvaluationConfig, child: int) -> None:
    """Check that the backend is there and can be given children.

    Args:
        config: evaluation settings.
        child: bytes of one on the disk.

    Raises:
        ConfigError: for a name that lm-eval does not know, a package that is missing, or a class that loads no folders.
        RoomError: when there is no room for a child.
    """
    if config.backend == RESIDENT:
        return
    from kinray.evaluation.model_class import arguments, model_class
    from kinray.evaluation.scratch import place_for

    arguments(model_class(config.backend), "", config, "cpu", "float32")
    place_for(child)
