"""Held-out examples, completed in every direction of their task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onediff_jax.data.conditions import ConditionConfig
from onediff_jax.data.example import Example, Picture, Record
from onediff_jax.data.pictures import grid_for, resized_record
from onediff_jax.data.sources import Source
from onediff_jax.data.tasks import TASKS, example_of
from onediff_jax.generate import Request, SampleConfig, Trained, generate


class Completed(NamedTuple):
    """A held-out example, and what was made of its other views."""

    record: Record  # at the size of its views
    example: Example
    made: Mapping[str, Picture]


def directions(task: str) -> list[tuple[str, ...]]:
    """What can be wanted of a task: picture from conditions, or one condition from the picture."""
    image, *conditions = TASKS[task].views
    return [(image,), *((condition,) for condition in conditions)]


def complete(
    trained: Trained,
    source: Source,
    indices: Sequence[int],
    task: str,
    wanted: Sequence[str],
    tokens: int,
    conditions: ConditionConfig,
    config: SampleConfig,
    seed: int,
) -> list[Completed]:
    """The `wanted` views of a source's records, made from all other views and the prompt.

    All pictures have the size of the first record's grid of `tokens` tokens.
    """
    first = source[indices[0]]["image"]
    rows, columns = grid_for(*first.shape[:2], tokens)
    size = (rows * trained.edge, columns * trained.edge)
    records = [resized_record(source[i], *size) for i in indices]
    examples = [
        example_of(task, record, np.random.default_rng([seed, i]), conditions)
        for i, record in zip(indices, records, strict=True)
    ]
    requests = []
    for example in examples:
        views = dict(zip(TASKS[task].views, example.views, strict=True))
        given = {name: view for name, view in views.items() if name not in wanted}
        requests.append(Request(example.prompt, given))
    made = generate(trained, task, requests, size, config, seed)
    return [Completed(*parts) for parts in zip(records, examples, made, strict=True)]
