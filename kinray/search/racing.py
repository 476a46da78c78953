"""Racing: stop scoring a child that cannot reach the k-th best of S, with a bound on ever stopping a wrong one.

    order = item_order({"arc": 500, "gsm8k": 250}, {"arc": 1.0, "gsm8k": 2.0}, "seed 0")
    race = Race(top, order)                                        # S as it stood when the generation began
    allowed = level(0.05, spent, children=4)                       # for each child of the generation
    for n in rounds(len(order)):
        if race.look(scores_of(order.items[:n]), allowed).stop:
            break

**The question.** All items of all tasks are one finite population. Item i of task j has the weight w_i = W_j / N_j: the tasks'
weights W add up to one, and task j has N_j items. A child's score is its total over *all* items, which is what a search
without racing would give it:

    θ = Σ_i w_i c_i,   0 <= c_i <= 1.                                                                              (1)

The rival, the k-th best of S, has the known score θ_r. A child that enters S has θ > θ_r; it must not be stopped.

**The order** is random: the next item is i with probability w_i / Σ w over the items that remain. So each task's items come in
uniformly random order, and tasks take turns in proportion to their weights. It is drawn once for a search, so that all models
are asked the same items together: that decides the last bits of their answers.

**The bet.** Guess each score by some g_i in [0, 1] that looks only at the past: here a regression on what known models score on
this item, which begins as the mean of S and learns at the end of each round. Before the t-th item, let L_t be the weight that
remains, G_t the sum of w_i g_i over it, and C_t the sum of w_i c_i so far. To reach the rival, what remains must exceed the
guesses on average by

    e_t = (θ_r − C_t − G_t) / L_t.                                                                                 (2)

By the order, the next item's excess d_t = c − g has the mean (θ − C_t − G_t) / L_t given the past, which is at least e_t when
θ >= θ_r. So, for any bets λ_t that look only at the past, with the maximum over the items that remain,

    K_t = K_{t−1} · (1 + λ_t (e_t − d_t)),   K_0 = 1,   0 <= λ_t < 1 / (max(1 − g) − e_t)                          (3)

is a nonnegative supermartingale, and by Ville's inequality

    P(K_t >= 1/α for any t) <= α   when θ >= θ_r.                                                                  (4)

It may be looked at as often as one likes. λ_t grows K fastest if the future is as the past: the estimated gap e − d over its
estimated second moment. How good guesses and bets are decides how soon hopeless children stop, never whether (4) holds.

**The search.** Call a child good if it enters S: if it beats the k-th best of S as S stood when its generation began, breaks no
floor and does not fail. Each of a generation's n children gets the level

    (α − Σ levels of the good children of earlier generations) / 2n.                                               (5)

Suppose that nothing of a child that is not good, and not even whether it was stopped, has a part in what is bred, in levels or
in guesses. Then think of the search that stops no child. What it breeds does not depend on the order, so for each of its good
children (4) holds with its level, and by (5) these add up to at most α. Up to its first wrong stop, the search that stops
children makes the same good ones with the same levels. Hence it makes a wrong stop with at most the probability α, however
long it is; and without one it makes the same children, and ends with the same S, as if it had stopped none.

``TopK`` keeps to that supposition: of a raced generation only good children may be mates, and all others are told to the study
of hyperparameters alike. Nothing depends on the order in which children arrive, either.

Sources: Waudby-Smith and Ramdas, Confidence sequences for sampling without replacement, NeurIPS 2020 (arXiv 2006.04347), and
Estimating means of bounded random variables by betting, JRSS-B 2023 (arXiv 2010.09686), for (2) to (4) with equal weights and
for the bets (there: approximate GRAPA); Shekhar et al., Risk-limiting financial audits via weighted sampling without
replacement, UAI 2023 (arXiv 2305.06884), for the weighted order and for guesses as control variates. (5) hands on the level of
what need not be protected, as fallback procedures do (Tian and Ramdas, Online control of the familywise error rate, arXiv
1910.04900).

Shapes: N items of all tasks, in the order of the race; n of them seen; M known models, S first.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from kinray.core.scores import Scored
from kinray.core.statistics import Float64

PACK = 32
"""Items that are asked together, unless there is a reason for more."""

_BOLDEST = 0.9
"""Largest share of what it has that a bet may lose on one item."""
_SPREAD, _WORTH = 0.1, 8.0
"""The variance that the first bets suppose, and how many items that supposition counts for."""
_STIFFNESS = 2.0
"""How many items' worth of evidence holds a guess to the mean of S."""
_TIE = 1e-12
"""Scores as close as this are ties, whatever order floating point added them in."""

Reason = Literal["certain", "evidence"]


@dataclass(frozen=True)
class Order:
    """The order in which all models of a search are asked.

    Args:
        items: (N,) of each item: its task, and its place among the task's items.
        weights: (N,) float64, what each item contributes to the score; they add up to one.
    """

    items: tuple[tuple[str, int], ...]
    weights: Float64

    def __len__(self) -> int:
        return len(self.items)

    def gather(self, values: Mapping[str, Sequence[float]]) -> Float64:
        """Return (N,) float64 of a value for each item of each task, given them by task in the order of places."""
        return np.array([values[task][place] for task, place in self.items], np.float64)


def item_order(counts: Mapping[str, int], weights: Mapping[str, float], purpose: str) -> Order:
    """Draw the order of a search's items.

    Sorting E_i / w_i with independent standard exponentials E_i draws without replacement, each time with probabilities in the
    proportion of the weights (Efraimidis and Spirakis, Information Processing Letters 97, 2006).

    Args:
        counts: items of each task.
        weights: of each task in the score, above zero.
        purpose: what the random numbers follow from; another one for each search.
    """
    total = math.fsum(weights[task] for task in counts)
    share = {task: weights[task] / total / count for task, count in counts.items()}
    draw = random.Random(f"{purpose}/racing")
    keyed = [(draw.expovariate(share[task]), task, place) for task, count in counts.items() for place in range(count)]
    items = tuple((task, place) for _, task, place in sorted(keyed))
    return Order(items, np.array([share[task] for task, _ in items]))


def rounds(items: int, pack: int = PACK, growth: float = 1.25) -> list[int]:
    """List how many items a child has been asked at the end of each round: whole packs, growing; the last round ends it.

    Args:
        items: of all tasks.
        pack: items that are asked together.
        growth: factor by which they grow at least.
    """
    ends = [min(pack, items)]
    while ends[-1] < items:
        ends.append(min(items, pack * max(ends[-1] // pack + 1, math.ceil(ends[-1] * growth / pack))))
    return ends


def level(error_rate: float, spent: Sequence[float], children: int) -> float:
    """Return the level of each child of a generation, (5).

    Args:
        error_rate: of the whole search, above 0 and below 1.
        spent: levels of the good children of earlier generations.
        children: of this generation.
    """
    return max(0.0, error_rate - math.fsum(spent)) / (2 * children)


def can_race(scored: Scored) -> bool:
    """Tell whether a model's scores are means of items between 0 and 1, which the bounds are for."""
    return all(task.paired and _bounded(np.asarray(task.values, np.float64)) for task in scored.tasks.values())


@dataclass(frozen=True)
class Verdict:
    """What a look says.

    Args:
        reason: why the child stops: ``certain`` if it could not reach the rival with all remaining items right, ``evidence`` if
            that would be too unlikely; None while it goes on.
        estimate: of its score on all items. Of a child that was stopped it is a little too low, since bad luck stops too.
        error: its standard error; 0 when all items are seen, NaN for fewer than two.
    """

    reason: Reason | None
    estimate: float
    error: float

    @property
    def stop(self) -> bool:
        """Whether the child stops."""
        return self.reason is not None


class Race:
    """The race of a generation's children against the k-th best of S.

    Contract: it holds nothing of a child. The same values give the same verdict, and ``stop`` stays once it is given.

    Args:
        top: S, best first, when the generation began, each of its models scored on all items; the last is the rival. S must be
            full: with fewer than k models every child enters it.
        order: of the generation's items.
        known: founders and good children that are not in S, which help to guess.
        ends: how many items have been asked at the end of each round, when guesses learn; by default ``rounds``.
    """

    def __init__(
        self, top: Sequence[Scored], order: Order, known: Sequence[Scored] = (), ends: Sequence[int] | None = None
    ) -> None:
        answers = [order.gather({name: task.values for name, task in scored.tasks.items()}) for scored in (*top, *known)]
        self._order = order
        self._ends = rounds(len(order)) if ends is None else list(ends)
        self._rival = math.fsum(order.weights * answers[len(top) - 1])
        self._answers = np.column_stack([np.ones(len(order)), *answers])  # (N, 1 + M)
        self._mean_of_s = np.zeros(1 + len(answers))
        self._mean_of_s[1 : 1 + len(top)] = 1 / len(top)
        self._left = _from_here(order.weights)

    def look(self, values: Sequence[float] | Float64, allowed: float) -> Verdict:
        """Judge a child by the items that it was asked so far.

        A child with a value that is not between 0 and 1 is never stopped and has no estimate.

        Args:
            values: (n,) its scores on the first n items of the order, 1 <= n <= N.
            allowed: its level, from ``level``; 0 leaves the certain bound.
        """
        own = np.asarray(values, np.float64)
        if not _bounded(own):
            return Verdict(None, math.nan, math.nan)
        estimate, error = self._estimate(own)
        if len(own) == len(self._order):
            return Verdict(None, estimate, error)
        if self._certain(own):
            return Verdict("certain", estimate, error)
        if allowed > 0 and self.log_wealth(own).max() >= -math.log(allowed):
            return Verdict("evidence", estimate, error)
        return Verdict(None, estimate, error)

    def log_wealth(self, values: Float64) -> Float64:
        """Return (n,) float64, log K_t of (3) after each item, of a child that might still reach the rival."""
        starts = [0, *self._ends[:-1]]
        growth = [
            self._growth(values[:end], start, self._guess(values[:start]))
            for start, end in zip(starts, self._ends, strict=True)
            if start < len(values)
        ]
        wealth: Float64 = np.cumsum(np.concatenate(growth))
        return wealth

    def _guess(self, values: Float64) -> Float64:
        """Guess (N,) scores from the first ones: the ridge regression on what known models scored, drawn to the mean of S."""
        past = self._answers[: len(values)]
        stiff = past.T @ past + _STIFFNESS * np.eye(past.shape[1])
        learnt = np.linalg.solve(stiff, past.T @ (values - past @ self._mean_of_s))
        guess: Float64 = np.clip(self._answers @ (self._mean_of_s + learnt), 0.0, 1.0)
        return guess

    def _growth(self, values: Float64, start: int, guess: Float64) -> Float64:
        """Return log K_t − log K_{t−1} for the items from ``start`` on, with one guess."""
        here = slice(start, len(values))
        weights, excess = self._order.weights, values - guess[: len(values)]
        earned = _before(weights[: len(values)] * values)[here]
        needed = (self._rival - earned - _from_here(weights * guess)[here]) / self._left[here]
        count = np.arange(start, len(values)) + _WORTH
        mean = _before(excess)[here] / count
        spread = (_before(excess**2)[here] + _WORTH * _SPREAD) / count - mean**2
        gap = needed - mean
        highest = np.maximum.accumulate(1 - guess[::-1])[::-1]
        room = np.maximum(highest[here] - needed, _TIE)
        bets = np.clip(gap / (spread + gap**2), 0.0, _BOLDEST / room)
        growth: Float64 = np.log1p(bets * (needed - excess[here]))
        return growth

    def _certain(self, values: Float64) -> bool:
        seen = len(values)
        reachable = math.fsum(self._order.weights[:seen] * values) + float(self._left[seen])
        return reachable < self._rival - _TIE

    def _estimate(self, values: Float64) -> tuple[float, float]:
        """Suppose that what remains exceeds the mean of S as what was seen does (a difference estimator)."""
        seen, rest = len(values), len(self._order) - len(values)
        earned = math.fsum(self._order.weights[:seen] * values)
        if not rest:
            return earned, 0.0
        mean_of_s = self._answers @ self._mean_of_s
        excess = values - mean_of_s[:seen]
        left = float(self._left[seen])
        to_come = math.fsum(self._order.weights[seen:] * mean_of_s[seen:]) + left * float(excess.mean())
        deviation = float(excess.std(ddof=1)) if seen > 1 else math.nan
        return earned + min(left, max(0.0, to_come)), left * deviation * math.sqrt(1 / seen + 1 / rest)


def _before(values: Float64) -> Float64:
    """Add up what came before each item."""
    return np.cumsum(values) - values


def _from_here(values: Float64) -> Float64:
    """Add up each item and all that come after it."""
    return np.cumsum(values[::-1])[::-1]


def _bounded(values: Float64) -> bool:
    return bool(np.all((values >= 0) & (values <= 1)))
