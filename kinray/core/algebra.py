"""Kinship of children without their weights.

A linear-family child is a row of coefficients per tensor on [θ0, δ1 … δN], so its products with every model follow from the
founders' Gram matrices; it may be a child that is not made yet. A child of any other method brings its measured products
with the base and the founders, and two such children their own product.

Shape suffixes: T tensors · M the base and the founders · P parents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from kinray.core.kinship import Metric, Moments, kinship
from kinray.core.layers import depths
from kinray.core.methods import LinearForm, Method, Params, method_named
from kinray.core.recipe import Founder, Merge, Recipe, topological
from kinray.core.statistics import Float64, Statistics


@dataclass(frozen=True)
class Products:
    """What is known of one model's delta δ = θ − θ0.

    Args:
        total: Σ δ over all elements.
        square: Σ δ².
        dots_TM: (T, M) float64, dot products with θ0 and the founders' deltas.
        row_TM: (T, M) float64 coefficients of δ on them, for the linear family; else None.
    """

    total: float
    square: float
    dots_TM: Float64
    row_TM: Float64 | None = None


class MissingProduct(LookupError):
    """A kinship was asked for that needs a product which nobody measured: those of ``recipes``, one or two."""

    def __init__(self, *recipes: Recipe) -> None:
        super().__init__(f"products not measured: {[recipe.digest[:12] for recipe in recipes]}")
        self.recipes = recipes


class KinshipMap:
    """Kinship of any two models of a search.

    Not thread-safe. Models of the linear family need no registration. For others ``between`` raises ``MissingProduct``
    until ``add_products`` or ``add_dot`` was called with what it names.

    Args:
        statistics: of the base and the founders.
    """

    def __init__(self, statistics: Statistics) -> None:
        self._statistics, self._count = statistics, float(statistics.count_T.sum())
        self._index = {digest: number for number, digest in enumerate(statistics.models)}
        self._depths = depths(statistics.tensors)
        self._known: dict[str, Products] = {}
        self._dots: dict[frozenset[str], float] = {}
        self._linear: set[str] = set()

    def add_products(self, recipe: Recipe, products: Products) -> None:
        """Keep what was measured of a child that algebra does not cover."""
        self._known[recipe.digest] = products

    def add_dot(self, a: Recipe, b: Recipe, dot: float) -> None:
        """Keep the measured dot product of two such children's deltas."""
        self._dots[frozenset((a.digest, b.digest))] = dot

    def between(self, metric: Metric, a: Recipe, b: Recipe) -> float:
        """Return the kinship of two models, NaN where it is undefined.

        Raises:
            MissingProduct: when a product must be measured first.
        """
        return float(self.with_each(metric, a, [b])[0])

    def with_each(self, metric: Metric, a: Recipe, others: Sequence[Recipe]) -> Float64:
        """Return the kinship of a model with each of several, (N,) float64, NaN where it is undefined.

        Raises:
            MissingProduct: when a product must be measured first.
        """
        left, rights = self._products(a), [self._products(b) for b in others]
        square_N = np.array([right.square for right in rights])
        dot_N = np.array([self._dot(a, left, b, right) for b, right in zip(others, rights, strict=True)])
        sum_N = np.array([right.total for right in rights])
        moments = Moments(self._count, left.total, sum_N, left.square, square_N, dot_N)
        if metric == "ed":
            pairs = zip(rights, (left.square + square_N - 2 * dot_N).tolist(), strict=True)
            moments = replace(moments, apart=np.array([self._apart(left, right, plain) for right, plain in pairs]))
        return kinship(metric, moments)

    def is_linear(self, recipe: Recipe) -> bool:
        """Tell whether algebra covers a model; what it found of ancestors is remembered."""
        unknown = topological([recipe], self._linear)
        linear = all(_is_linear(node) for node in unknown)
        if linear:
            self._linear.update(node.digest for node in unknown)
        return linear

    def row(self, recipe: Recipe) -> Float64 | None:
        """Return the (T, M) coefficients of δ on [θ0, δ1 … δN], or None for a child outside their span."""
        return self._products(recipe).row_TM

    def _dot(self, a: Recipe, left: Products, b: Recipe, right: Products) -> float:
        if a.digest == b.digest:
            return left.square
        if right.row_TM is not None:
            return float(np.vdot(left.dots_TM, right.row_TM))
        if left.row_TM is not None:
            return float(np.vdot(right.dots_TM, left.row_TM))
        pair = frozenset((a.digest, b.digest))
        if pair not in self._dots:
            raise MissingProduct(a, b)
        return self._dots[pair]

    def _apart(self, left: Products, right: Products, plain: float) -> float:
        """Measure two linear children by the difference of their rows, in which near-twins do not cancel; else ``plain``."""
        if left.row_TM is None or right.row_TM is None:
            return plain
        return float(self._statistics.square(left.row_TM - right.row_TM).sum())

    def _products(self, recipe: Recipe) -> Products:
        if recipe.digest not in self._known:
            if not self.is_linear(recipe):
                raise MissingProduct(recipe)
            rows = linear_rows(recipe, self._depths, self._statistics.gram_TMM, self._index, self._known)
            for digest, row_tm in rows.items():
                self._known[digest] = self._from_row(row_tm)
        return self._known[recipe.digest]

    def _from_row(self, row_TM: Float64) -> Products:
        dots_TM = np.einsum("tm,tmn->tn", row_TM, self._statistics.gram_TMM)
        return Products(
            total=float((row_TM * self._statistics.sums_TM).sum()),
            square=float(self._statistics.square(row_TM).sum()),
            dots_TM=dots_TM,
            row_TM=row_TM,
        )


def is_linear(recipe: Recipe) -> bool:
    """Tell whether a recipe is a weighted sum of founders, however deep it is."""
    return all(_is_linear(node) for node in topological([recipe]))


def _is_linear(node: Recipe) -> bool:
    return isinstance(node, Founder) or method_named(node.method).is_linear(node.params)


def linear_rows(
    recipe: Recipe,
    depths: Mapping[str, float],
    gram_TMM: Float64,
    index: Mapping[str, int],
    known: Mapping[str, Products],
) -> dict[str, Float64]:
    """Collapse a linear-family recipe and its ancestors to coefficients.

    Args:
        recipe: the model; ``is_linear`` holds.
        depths: of the T tensors, by name (``kinray.core.layers``).
        gram_TMM: (T, M, M) float64 of the rows [θ0, δ1 … δN].
        index: row of each founder's digest, the base's being 0.
        known: products of models whose rows need not be computed again.

    Returns:
        digest -> (T, M) coefficients of its δ, for ``recipe`` and each ancestor that is not in ``known``.
    """
    tensors, models = gram_TMM.shape[:2]
    rows: dict[str, Float64] = {}

    def theta(node: Recipe) -> Float64:
        row = rows[node.digest] if node.digest in rows else known[node.digest].row_TM
        assert row is not None, "a linear child of measured parents is measured itself"
        return row + np.eye(1, models)

    for node in topological([recipe], known):
        if isinstance(node, Founder):
            place = index[node.digest]
            rows[node.digest] = np.tile(np.eye(models)[place] if place else np.zeros(models), (tensors, 1))
        else:
            rows[node.digest] = _merge_rows(node, [theta(parent) for parent in node.parents], depths, gram_TMM)
    return rows


def _merge_rows(merge: Merge, thetas: list[Float64], depths: Mapping[str, float], gram_TMM: Float64) -> Float64:
    """Compute the (T, M) coefficients of a child's δ from its parents' θ."""
    method = method_named(merge.method)
    params_T = method.per_tensor(merge.params, len(thetas), depths)
    return child_row(method, params_T, np.stack(thetas, axis=1), gram_TMM, base_given=merge.base is not None)


def child_row(
    method: Method, params_T: Sequence[Params], theta_TPM: Float64, gram_TMM: Float64, *, base_given: bool = False
) -> Float64:
    """Compute the coefficients of a linear-family child's δ, whose parameters may differ from tensor to tensor.

    Args:
        method: of the linear family.
        params_T: hyperparameters in each tensor, plain and resolved; ``method.is_linear`` holds of them.
        theta_TPM: (T, P, M) float64 coefficients of the parents' weights θ on [θ0, δ1 … δN].
        gram_TMM: (T, M, M) float64 of these rows.
        base_given: whether the recipe names a base, for methods that may do without.

    Returns:
        (T, M) float64.
    """
    tensors, parents, models = theta_TPM.shape
    against_base = method.against_base(base_given)
    if method.needs_gram:
        vector_TPM = theta_TPM - np.eye(1, models) if against_base else theta_TPM
        gram_TPP = vector_TPM @ gram_TMM @ vector_TPM.transpose(0, 2, 1)
    else:
        gram_TPP = np.full((tensors, parents, parents), np.nan)
    forms: list[LinearForm] = []
    for params, gram_PP in zip(params_T, gram_TPP, strict=True):
        same = not method.needs_gram and bool(forms) and params is params_T[0]
        forms.append(forms[0] if same else method.form(params, gram_PP, against_base=against_base))
    coef_TP = np.array([form.parents for form in forms]).reshape(tensors, parents)
    child_TM: Float64 = np.einsum("tp,tpm->tm", coef_TP, theta_TPM)
    child_TM[:, 0] += [form.base for form in forms]
    return child_TM - np.eye(1, models)
