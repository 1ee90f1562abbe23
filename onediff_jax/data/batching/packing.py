"""How a packed slot is filled: recipes, their weights, and which example of a stream stands where.

A recipe names the view counts of the examples that fill a slot of V views exactly, such as (4, 2,
2) for 8.  Every period of rows holds each recipe a fixed number of times, in an order drawn from
(seed, period), so that the place of an example in its stream is known for any row without looking
at the rows before it.
"""

import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import nnls

from onediff_jax.errors import InputError

PERIOD = 1024  # rows


def recipes_of(views: int, counts: tuple[int, ...]) -> list[tuple[int, ...]]:
    """All ways to fill `views` with examples of the given view counts, larger ones first."""
    if views == 0:
        return [()]
    return [
        (count, *rest)
        for i, count in enumerate(sorted(counts, reverse=True))
        if count <= views
        for rest in recipes_of(views - count, tuple(sorted(counts, reverse=True)[i:]))
    ]


def recipe_weights(
    recipes: list[tuple[int, ...]], wanted: Mapping[int, float]
) -> Float[np.ndarray, " recipes"]:
    """Shares of the recipes that bring examples of each view count in the wanted proportions.

    Non-negative least squares; raises InputError where no mixture of recipes comes within one
    percent.
    """
    counts = sorted(wanted)
    share = np.array([wanted[count] for count in counts]) / sum(wanted.values())
    found = np.array([[recipe.count(count) for recipe in recipes] for count in counts], float)
    balance = found - share[:, None] * found.sum(0)  # zero when the proportions are the wanted ones
    weights, _ = nnls(
        np.vstack([balance, np.ones(len(recipes))]), np.append(np.zeros(len(counts)), 1)
    )
    weights /= weights.sum()
    reached = found @ weights / (found @ weights).sum()
    if np.abs(reached - share).max() > 0.01:
        raise InputError(
            f"A packed slot cannot hold examples of {counts} views in proportions "
            f"{np.round(share, 3)}; "
            f"the nearest are {np.round(reached, 3)}. Change data.tasks or the slot's number of "
            "views."
        )
    return weights


class Packing:
    """The recipes of one packed slot, by row."""

    def __init__(self, views: int, wanted: Mapping[int, float], seed: int):
        self.recipes = recipes_of(views, tuple(wanted))
        if not self.recipes:
            raise InputError(
                f"No examples of {sorted(wanted)} views fill a packed slot of {views} views."
            )
        weights = recipe_weights(self.recipes, wanted)
        times = np.floor(weights * PERIOD).astype(int)
        most_cut = np.argsort(times - weights * PERIOD, kind="stable")
        times[most_cut[: PERIOD - times.sum()]] += 1
        self._recipe_numbers = np.repeat(np.arange(len(self.recipes)), times)
        self._views = views
        self._counts = tuple(sorted(wanted))
        self._seed = seed
        self._held = np.array(
            [[recipe.count(count) for count in self._counts] for recipe in self.recipes]
        )

    @property
    def examples(self) -> int:
        """The most examples that a recipe in use holds."""
        return max(len(self.recipes[i]) for i in np.unique(self._recipe_numbers))

    @property
    def mean_counts(self) -> dict[int, float]:
        """Examples of each view count that a recipe holds on average."""
        return dict(
            zip(self._counts, self._held[self._recipe_numbers].mean(0).tolist(), strict=True)
        )

    def fill(self, row: int) -> list[tuple[int, int]]:
        """The row's examples in order: view count, and number in the stream of that count."""
        period, place = divmod(row, PERIOD)
        order, before = _shuffled(self, period)
        following = dict(zip(self._counts, before[place] + period * before[-1], strict=True))
        filled = []
        for count in self.recipes[order[place]]:
            filled.append((count, int(following[count])))
            following[count] += 1
        return filled


@functools.lru_cache(maxsize=64)
def _shuffled(
    packing: Packing, period: int
) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "rows+1 counts"]]:
    """The period's recipes in order, and how many examples of each view count precede each row."""
    rng = np.random.default_rng([packing._seed, packing._views, period])
    order = rng.permutation(packing._recipe_numbers)
    held = packing._held[order]
    return order, np.concatenate([np.zeros_like(held[:1]), np.cumsum(held, 0)])
