"""What a merge method is: its function, how many parents it takes, and the one declaration of its hyperparameters."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kinray.core.masks import MaskSource
from kinray.core.methods.blocks import Operands, weighted_sum, write_blocks
from kinray.core.parameters import FLOAT32_MAX, ParamValue, Varied, is_finite_number
from kinray.core.recipe import MAX_PARENTS
from kinray.core.statistics import Float64
from kinray.errors import RecipeError, did_you_mean

Params = Mapping[str, ParamValue]
"""Every parameter of a method by name: one value, or for a per-model one a tuple with a number for each parent.

What merges tensors gets plain values; ``Method.per_tensor`` makes them of varied ones.
"""


@dataclass(frozen=True)
class Parameter:
    """One hyperparameter: it serves validation, search spaces, recipes and the documentation.

    Args:
        name: as mergekit calls it.
        default: the value when none is given; a bool makes it a switch.
        low, high: the values allowed, both included, for numbers.
        per_model: whether each parent has a value of its own.
        text: what it does, for a person.
    """

    name: str
    default: float | bool
    text: str
    low: float = -math.inf
    high: float = math.inf
    per_model: bool = False

    def check(self, method: str, value: Any) -> None:
        """Raise RecipeError unless ``value`` (a single one, or one that varies) may be given for this parameter."""
        if isinstance(value, Varied):
            for knot in value.values:
                self.check(method, knot)
        elif isinstance(self.default, bool):
            if not isinstance(value, bool):
                raise RecipeError(f"Parameter '{self.name}' of '{method}' is {value!r}. It must be true or false.")
        elif not is_finite_number(value):
            raise RecipeError(f"Parameter '{self.name}' of '{method}' is {value!r:.80}. It must be a finite number.")
        elif abs(value) > FLOAT32_MAX:
            raise RecipeError(f"Parameter '{self.name}' of '{method}' is {value:g}, which float32 cannot hold.")
        elif not self.low <= value <= self.high:
            raise RecipeError(
                f"Parameter '{self.name}' of '{method}' is {value:g}. It must be from {self.low:g} to {self.high:g}."
            )


@dataclass(frozen=True)
class LinearForm:
    """A child as a weighted sum: ``base``·θ0 + Σ ``parents[i]``·θi."""

    parents: tuple[float, ...]
    base: float = 0.0


Weights = Callable[[Params, int, Float64], tuple[float, ...]]
"""(params, number of parents P, gram_PP of one tensor) -> a weight for each parent.

The vectors that the Gram matrix is of, and that are summed, are the parents' δ where the base enters, else their θ.
"""

MergeBlocks = Callable[[Operands, Params, MaskSource], Iterator[torch.Tensor]]
"""(operands, params, masks) -> the child's elements in flat order, block by block, float32; a block holds until the next."""


@dataclass(frozen=True)
class Method:
    """A merge method; ``weights`` or ``blocks`` says how it is computed, or either of them as ``linear_when`` decides.

    Args:
        name: as mergekit calls it.
        parameters: its hyperparameters.
        source: the paper, for a person.
        weights: for the linear family, the coefficients per tensor; then kinship of children is algebra.
        blocks: for all others, the child's elements.
        uses_base: whether θ0 enters, so that the base belongs to the recipe.
        optional_base: whether θ0 enters if the recipe names a base, and not otherwise.
        first_is_base: whether the first parent has the part of the base; mergekit's recipes call it base_model.
        needs_gram: whether ``weights`` looks at the parents' dot products.
        linear_when: for a method with both ``weights`` and ``blocks``, the parameters with which it is a weighted sum;
            not with a switch that varies.
        check: raises RecipeError for resolved plain parameters that do not go together.
        min_parents, max_parents: how many models it merges, the base apart.
        buffers: float32 copies of a whole tensor that it holds while it works, the child apart.
        random: whether it takes random masks.
    """

    name: str
    parameters: tuple[Parameter, ...]
    source: str
    weights: Weights | None = None
    blocks: MergeBlocks | None = None
    uses_base: bool = False
    optional_base: bool = False
    first_is_base: bool = False
    needs_gram: bool = False
    linear_when: Callable[[Params], bool] | None = None
    check: Callable[[Params], None] | None = None
    min_parents: int = 1
    max_parents: int = MAX_PARENTS
    buffers: int = 0
    random: bool = False

    def __post_init__(self) -> None:
        assert self.weights or self.blocks, self.name
        assert (self.linear_when is not None) == (self.weights is not None and self.blocks is not None), self.name

    def parameter(self, name: str) -> Parameter:
        """Return the declaration of one hyperparameter, or raise RecipeError with a suggestion."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        known = did_you_mean(name, [parameter.name for parameter in self.parameters])
        raise RecipeError(f"Merge method '{self.name}' has no parameter '{name}'.{known}")

    def resolve(self, params: Params, parents: int) -> dict[str, ParamValue]:
        """Fill in defaults, spread per-model values over the parents and check everything that is known of all tensors.

        Raises:
            RecipeError: for an unknown parameter, a value out of range, a wrong number of per-model values, or a number
                of parents that the method does not take.
        """
        if not self.min_parents <= parents <= self.max_parents:
            raise RecipeError(f"Merge method '{self.name}' takes {self.takes}, not {parents}.")
        for name in params:
            self.parameter(name)
        resolved = {p.name: self._resolve_one(p, params.get(p.name, p.default), parents) for p in self.parameters}
        if self.check is not None and not _varies(resolved):
            self.check(resolved)
        return resolved

    def per_tensor(self, params: Params, parents: int, depths: Mapping[str, float]) -> list[Params]:
        """Resolve parameters for each tensor, to plain values.

        Args:
            params: as they stand in a recipe.
            parents: number of models.
            depths: of all T tensors, by name (``kinray.core.layers``).

        Returns:
            T mappings; one and the same object where nothing varies.

        Raises:
            RecipeError: as ``resolve``; values that vary are checked to go together in every tensor.
        """
        resolved = self.resolve(params, parents)
        if not _varies(resolved):
            return [resolved] * len(depths)
        return [self.resolve(self.at(resolved, name, depth), parents) for name, depth in depths.items()]

    def at(self, params: Params, name: str, depth: float) -> Params:
        """Give the parameters in one tensor: what varies becomes its value there, or the default where it has none."""

        def one(parameter: Parameter, value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(one(parameter, entry) for entry in value)
            if not isinstance(value, Varied):
                return value
            here = value.at(name, depth)
            return parameter.default if here is None else here

        return {given: one(self.parameter(given), value) for given, value in params.items()}

    @property
    def takes(self) -> str:
        """How many models it merges, in words."""
        if self.min_parents == self.max_parents:
            return f"{self.min_parents} model{'s' * (self.min_parents > 1)}"
        return f"{self.min_parents} to {self.max_parents} models"

    def is_linear(self, params: Params) -> bool:
        """Tell whether a child is a weighted sum of its parents in all tensors, with these parameters."""
        if self.linear_when is None:
            return self.weights is not None
        defaults: dict[str, ParamValue] = {p.name: p.default for p in self.parameters}
        return self.linear_when(defaults | dict(params))

    def against_base(self, given: bool) -> bool:
        """Tell whether it merges δ and not θ, in a recipe where a base is ``given`` or not."""
        return self.uses_base or (self.optional_base and given)

    def form(self, params: Params, gram_PP: Float64, *, against_base: bool) -> LinearForm:
        """Return the weights of the sum; ``is_linear`` holds, ``params`` are resolved."""
        assert self.weights is not None
        weights = self.weights(params, len(gram_PP), gram_PP)
        return LinearForm(weights, base=1.0 - math.fsum(weights) if against_base else 0.0)

    def _resolve_one(self, parameter: Parameter, value: ParamValue, parents: int) -> ParamValue:
        if isinstance(value, tuple):
            if not parameter.per_model or len(value) != parents:
                expected = f"one value or {parents} (one for each model)" if parameter.per_model else "one value"
                raise RecipeError(f"Parameter '{parameter.name}' of '{self.name}' has {len(value)} values. Give it {expected}.")
            for entry in value:
                parameter.check(self.name, entry)
            return tuple(entry if isinstance(entry, Varied) else float(entry) for entry in value)
        parameter.check(self.name, value)
        if isinstance(value, bool | str):
            return value
        one = value if isinstance(value, Varied) else float(value)
        return (one,) * parents if parameter.per_model else one

    def merge(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource
    ) -> torch.Tensor:
        """Merge one tensor, in float32 whatever the models are stored in.

        Args:
            base: θ0; looked at only by methods that use the base, and None where one is optional and not given.
            parents: tensors of its shape, of any floating dtypes.
            params: plain hyperparameters, resolved or not.
            masks: random numbers for this child and tensor.

        Returns:
            float32.
        """
        out = torch.empty(parents[0].shape, dtype=torch.float32, device=parents[0].device)
        return write_blocks(out, self.child(base, parents, params, masks))

    def child(
        self, base: torch.Tensor | None, parents: Sequence[torch.Tensor], params: Params, masks: MaskSource
    ) -> Iterator[torch.Tensor]:
        """Merge one tensor as ``merge`` does, and yield its elements in flat order, float32; a block holds until the next."""
        params = self.resolve(params, len(parents))
        base = base if self.against_base(base is not None) else None
        operands = Operands(base, parents)
        if not self.is_linear(params):
            assert self.blocks is not None
            return self.blocks(operands, params, masks)
        gram = operands.gram() if self.needs_gram else np.full((len(parents), len(parents)), math.nan)
        form = self.form(params, gram, against_base=base is not None)
        # Differences from a pivot leave equal parents unchanged to the last bit.
        pivoted = operands if base is not None else Operands(parents[0], parents)
        return weighted_sum(pivoted, form.base + sum(form.parents), form.parents)


def _varies(params: Params) -> bool:
    return any(
        isinstance(one, Varied) for value in params.values() for one in (value if isinstance(value, tuple) else (value,))
    )
