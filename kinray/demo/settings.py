"""The sizes and the schedule of the demo, chosen so that it builds in half a minute on two CPU cores."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """How one skill is taught, first to the base and then to its founder."""

    skill: str
    # The base reads answers that are right with this probability and otherwise one of the four by chance. So it
    # learns to pick one of the four and only a little about which: the founders then need small steps, which add up.
    base_truth: float
    steps: int


@dataclass(frozen=True)
class DemoSettings:
    """Everything that determines the demo's files, next to the sources of this package."""

    lessons: tuple[Lesson, ...] = (
        Lesson("numbers", base_truth=0.05, steps=90),
        Lesson("letters", base_truth=0.03, steps=16),
        Lesson("words", base_truth=0.26, steps=90),
    )
    hidden_size: int = 160
    intermediate_size: int = 448
    layers: int = 4
    heads: int = 4
    max_length: int = 64
    base_steps: int = 260
    base_rate: float = 2e-3
    founder_rate: float = 4e-4
    base_share: float = 0.25  # of each founder's batch: the base's own text, which keeps its other skills in place
    batch: int = 128
    training_items: int = 12_000  # per skill
    test_items: int = 800  # per skill
    seed: int = 0
