"""Floors: what a child may lose on a task before it is refused, however good its mean."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kinray.core.scores import Scored, TaskScore, task_difference

SIGNIFICANT = 1.645
"""Standard errors by which a loss must exceed what a floor allows: a one-sided test at 95 %."""


@dataclass(frozen=True)
class Floor:
    """What a child must hold on one task.

    Args:
        task: its name.
        points: the greatest change that is allowed, zero or below, in hundredths of the task's score of 0..1.
        against: name of the model that the child is held against.
        score: that model's score on the task.
    """

    task: str
    points: float
    against: str
    score: TaskScore

    def broken_by(self, child: Scored) -> str | None:
        """Say how a child breaks this floor, None if it does not.

        It does when its loss on the same items is greater than allowed by more than ``SIGNIFICANT`` paired standard errors.
        Where a metric has no standard error, the loss alone decides.
        """
        loss = task_difference(self.score, child.tasks[self.task])
        excess = loss.mean + self.points / 100
        error = 0.0 if math.isnan(loss.stderr) else loss.stderr
        if not excess > SIGNIFICANT * error:
            return None
        lost = f"{100 * loss.mean:.1f} ± {100 * error:.1f}" if error else f"{100 * loss.mean:.1f}"
        return f"loses {lost} points on {self.task} against {self.against}, its floor is {self.points:g}"


def floors(limits: Mapping[str, float], references: Mapping[str, Scored]) -> list[Floor]:
    """Set the floors of a search: on each task against the best of the base and the founders, of equals the first.

    To lose "against the best founder or the base" is to lose against the better of them. The best of several is chosen by the
    very items that children are held against, so it stands a little too high; that is on the side of refusing.

    Args:
        limits: ``floor`` by task.
        references: scores of the base and the founders, by name.
    """
    made = []
    for task, points in limits.items():
        known = {name: one.tasks[task] for name, one in references.items() if not math.isnan(one.tasks[task].score)}
        best = max(known, key=lambda name: known[name].score)
        made.append(Floor(task, points, best, known[best]))
    return made


def refusal(floors: Sequence[Floor], child: Scored) -> str | None:
    """Say which floors a child breaks, None if it holds all."""
    return "; ".join(reason for floor in floors if (reason := floor.broken_by(child))) or None
