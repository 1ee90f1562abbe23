"""Held-out examples, completed in every direction of their task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onediff_jax.data.conditions import ConditionConfig
from onediff_jax.data.example import Example, View
from onediff_jax.data.fitting import grid_for
from onediff_jax.data.records import Source
from onediff_jax.data.tasks import TASKS, example_of
from onediff_jax.generate import Made, Request, SampleConfig, Trained, generate


class Completed(NamedTuple):
    """A held-out example, and what was made of its other views."""

    number: int  # of the record
    example: Example
    made: Mapping[str, Made]

    @property
    def views(self) -> dict[str, View]:
        """The true views by name."""
        names = TASKS[self.example.task].form.names(len(self.example.views))
        return dict(zip(names, self.example.views, strict=True))


def complete(
    trained: Trained,
    source: Source,
    indices: Sequence[int],
    task: str,
    views: int,
    wanted: Sequence[str],
    tokens: int,
    conditions: ConditionConfig,
    config: SampleConfig,
    seed: int,
    square: bool = False,
) -> list[Completed]:
    """The `wanted` views of a source's records, made from all other views and the prompt.

    All pictures have the size of the first one's grid of `tokens` tokens, or of the largest square.
    """
    fields = TASKS[task].takes(source.fields)
    grid: list[tuple[int, int]] = []

    def size(shape: tuple[int, int]) -> tuple[int, int]:
        if not grid:
            grid.append(grid_for(*shape, tokens, square))
        return grid[0][0] * trained.edge, grid[0][1] * trained.edge

    examples = [
        example_of(
            task, source.taken(i, fields), views, size, np.random.default_rng([seed, i]), conditions
        )
        for i in indices
    ]
    requests = []
    for example in examples:
        shown = Completed(0, example, {}).views
        given = {name: view for name, view in shown.items() if name not in wanted}
        requests.append(Request(example.prompt, given))
    made = generate(trained, task, views, requests, examples[0].size, config, seed)
    return [Completed(*parts) for parts in zip(indices, examples, made, strict=True)]
