"""The fixed list of slots that cuts every row; the config alone says which token is in which view.

    row = [1 view x 1024: text2image]  [2 x 256]  [2 x 256]  [12 x 256, packed: multiview]

A plain slot holds one example with exactly its number of views.  A packed slot holds several
examples whose views fill it.  Everything here is static: sizes, offsets, index tables.
"""

import dataclasses
import functools
import itertools
import math

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


@dataclasses.dataclass(frozen=True)
class SequenceShard(Slot):
    """The part of a slot that one of several devices has: some of its tokens, all its examples."""

    def __post_init__(self):
        pass


@dataclasses.dataclass(frozen=True)
class Run:
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

    def part(self, parts: int) -> "Layout":
        """The layout of each of `parts` equal parts of a row's tokens, one after the other.

        Parts have whole slots where the list of slots repeats one pattern once per part; of a
        row's only slot they have whole views, or equal pieces of one view.  Raises InputError
        where neither is so.
        """
        slots = self.slots
        repeats = max(n for n in range(1, len(slots) + 1) if slots == slots[: len(slots) // n] * n)
        if repeats % parts == 0:
            return Layout(slots[: len(slots) // parts])
        said = [f"{slot.views} x {slot.tokens}" for slot in slots[: len(slots) // repeats]]
        if len(slots) > 1:
            fits = " or ".join(str(n) for n in range(1, repeats + 1) if repeats % n == 0)
            raise InputError(
                f"mesh.sequence is {parts}, and data.row has {repeats} times the pattern of slots "
                f"{', '.join(said)} (views x tokens); repeat it a multiple of {parts} times, or "
                f"set mesh.sequence to {fits}."
            )
        (slot,) = slots
        tokens = slot.views * slot.tokens
        if tokens % parts or (slot.views % parts and parts % slot.views):
            raise InputError(
                f"mesh.sequence is {parts}, which cuts the only slot of data.row, {said[0]} (views "
                "x tokens), neither between views nor each view into equal pieces; use a divisor "
                f"of {slot.views}, or a multiple of it that divides {tokens}."
            )
        views = max(slot.views // parts, 1)
        return Layout((SequenceShard(views, tokens // parts // views, slot.examples),))

    @functools.cached_property
    def runs(self) -> tuple[Run, ...]:
        """Equal neighbouring slots joined, so that the network handles each run as one batch."""
        runs: list[Run] = []
        token = view = example = 0
        for slot in self.slots:
            if runs and runs[-1].slot == slot:
                runs[-1] = dataclasses.replace(runs[-1], count=runs[-1].count + 1)
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

    @property
    def tile(self) -> int:
        """The most tokens that all views are whole multiples of."""
        return math.gcd(*(slot.tokens for slot in self.slots))

    @functools.cached_property
    def view_of_token(self) -> Int[np.ndarray, " n"]:
        """The view range that every token lies in."""
        sizes = [slot.tokens for slot in self.slots for _ in range(slot.views)]
        return np.repeat(np.arange(self.views), sizes)
