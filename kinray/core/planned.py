"""Merges that nobody made yet, added to a table of statistics as if they were models.

Shape suffixes: T tensors · M the base and the models · P parents.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from kinray.core.algebra import child_row
from kinray.core.layers import depths
from kinray.core.methods import Params, method_named
from kinray.core.recipe import MAX_PARENTS
from kinray.core.statistics import Statistics
from kinray.errors import RecipeError


@dataclass(frozen=True)
class PlannedMerge:
    """A merge of the linear family (linear, task_arithmetic, slerp) that is only thought of.

    Args:
        method: its name.
        parents: numbers of models, from 0; a number past the last model is an earlier planned merge.
        params: hyperparameters, which may differ from tensor to tensor (``kinray.core.parameters.Varied``).

    Raises:
        RecipeError: for an unknown method, or one that is not of the linear family.
    """

    method: str
    parents: tuple[int, ...]
    params: Params = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not method_named(self.method).is_linear(self.params):
            raise RecipeError(
                f"The kinship of a '{self.method}' merge does not follow from the kinship of its parents. "
                "Make it first, or plan one by a method that is a weighted sum, such as linear, task_arithmetic or slerp."
            )
        if not 1 <= len(self.parents) <= MAX_PARENTS:
            raise RecipeError(f"A planned merge has {len(self.parents)} parents. Give it between 1 and {MAX_PARENTS}.")


def with_planned(statistics: Statistics, merges: Sequence[PlannedMerge]) -> Statistics:
    """Add planned merges to the statistics of models, without any weights.

    Args:
        statistics: of the base and N models.
        merges: each may have earlier ones as parents.

    Returns:
        statistics of the base, the models, and one more model for each merge, called ``planned-1`` and so on.

    Raises:
        RecipeError: for a parent that does not exist, or parameters that the method does not take.
    """
    depth = depths(statistics.tensors)
    for number, merge in enumerate(merges, 1):
        size = len(statistics.models)
        for parent in merge.parents:
            if not 0 <= parent < size - 1:
                raise RecipeError(
                    f"Planned merge {number} names model {parent}, but there are the models 0 to {size - 2}"
                    f"{' (with the merges planned before it)' if number > 1 else ''}."
                )
        theta_PM = np.eye(size)[[parent + 1 for parent in merge.parents]] + np.eye(1, size)
        theta_TPM = np.repeat(theta_PM[None], len(statistics.tensors), axis=0)
        method = method_named(merge.method)
        params_T = method.per_tensor(merge.params, len(merge.parents), depth)
        row_TM = child_row(method, params_T, theta_TPM, statistics.gram_TMM)
        statistics = statistics.with_combination(f"planned-{number}", row_TM)
    return statistics
