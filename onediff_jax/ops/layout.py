"""The fixed list of slots that cuts every row; the config alone says which token is in which view.

    row = [1 view x 1024: text2image]  [2 x 256]  [2 x 256]  [12 x 256, packed: multiview]

A plain slot holds one example with exactly its number of views.  A packed slot holds several
examples whose views fill it.  Everything here is static: sizes, offsets, index tables.
"""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from onediff_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Slot:
    """`views` ranges of `tokens` tokens each, for at most `examples` examples (1: a plain slot)."""

    views: int
    tokens: int
    examples: int = 1

    def __post_init__(self):
        for name in ("views", "tokens", "examples"):
            if getattr(self, name) < 1:
                raise InputError(f"A slot's {name} must be at least 1, got {getattr(self, name)}.")
        if self.examples > self.views:
            raise InputError(
                f"A slot of {self.views} views cannot hold {self.examples} examples; use at most "
                f"{self.views}."
            )


class Run(NamedTuple):
    """`count` equal slots in a row, and where their tokens, views and examples begin."""

    slot: Slot
    count: int
    token: int
    view: int
    example: int

    @property
    def tokens(self) -> slice:
        """The run's tokens in the row."""
        return slice(self.token, self.token + self.count * self.slot.views * self.slot.tokens)

    @property
    def views(self) -> slice:
        """The run's view ranges in the row."""
        return slice(self.view, self.view + self.count * self.slot.views)

    @property
    def examples(self) -> slice:
        """The run's places for examples in the row."""
        return slice(self.example, self.example + self.count * self.slot.examples)


@dataclasses.dataclass(frozen=True)
class Layout:
    """The slots of a row."""

    slots: tuple[Slot, ...]

    def __post_init__(self):
        if not self.slots:
            raise InputError("A row needs at least one slot.")

    @property
    def tokens(self) -> int:
        """Tokens of a row."""
        return sum(slot.views * slot.tokens for slot in self.slots)

    @property
    def views(self) -> int:
        """View ranges of a row."""
        return sum(slot.views for slot in self.slots)

    @property
    def examples(self) -> int:
        """Examples a row can hold."""
        return sum(slot.examples for slot in self.slots)

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """Equal neighbouring slots joined, so that the network handles each run as one batch."""
        runs: list[Run] = []
        token = view = example = 0
        for slot in self.slots:
            if runs and runs[-1].slot == slot:
                runs[-1] = runs[-1]._replace(count=runs[-1].count + 1)
            else:
                runs.append(Run(slot, 1, token, view, example))
            token += slot.views * slot.tokens
            view += slot.views
            example += slot.examples
        return tuple(runs)

    @functools.cached_property
    def equal_views(self) -> tuple[tuple[int, slice], ...]:
        """Neighbouring view ranges of equal size: their tokens, and which they are."""
        groups, view = [], 0
        for tokens, slots in itertools.groupby(self.slots, key=lambda slot: slot.tokens):
            views = sum(slot.views for slot in slots)
            groups.append((tokens, slice(view, view + views)))
            view += views
        return tuple(groups)

    @functools.cached_property
    def view_of_token(self) -> Int[np.ndarray, " n"]:
        """The view range that every token lies in."""
        sizes = [slot.tokens for slot in self.slots for _ in range(slot.views)]
        return np.repeat(np.arange(self.views), sizes)
