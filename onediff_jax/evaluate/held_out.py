"""Held-out examples, completed in every direction of their task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onediff_jax.data.codecs import image_of
from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.example import EncodedImage, Example, View
from onediff_jax.data.records import Source
from onediff_jax.data.sources.cache import CachedSource, Part, unpacked_example
from onediff_jax.data.tasks.fitting import USUAL, Fitting, grid_for
from onediff_jax.data.tasks.table import TASKS, example_of
from onediff_jax.sampling.generate import GeneratedView, Request, SampleConfig, Trained, generate


class Completed(NamedTuple):
    """A held-out example, and what was made of its other views."""

    number: int  # of the record
    example: Example
    made: Mapping[str, GeneratedView]

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
    fitting: Fitting = USUAL,
) -> list[Completed]:
    """The `wanted` views of a source's records, made from all other views and the prompt.

    All images have the size of the first one's grid of `tokens` tokens, or of the largest square.
    Of a cache, those examples among `indices` are completed that have the size of the first.
    """
    if isinstance(source, CachedSource):
        examples = cached_examples(source, indices, Part(task, views, tokens))
        sizes = [example.views[0].mean.shape[:2] for example in examples]
        kept = [i for i, size in enumerate(sizes) if size == sizes[0]]
        indices, examples = [indices[i] for i in kept], [examples[i] for i in kept]
        height, width = (trained.codec.factor * side for side in sizes[0])
        requests = [Request(e.prompt.text, given_views(e, wanted)) for e in examples]
        made = generate(trained, task, views, requests, (height, width), config, seed)
        examples = [decoded_example(trained, example) for example in examples]
        return [Completed(*parts) for parts in zip(indices, examples, made, strict=True)]
    fields = TASKS[task].takes(source.fields)
    grid: list[tuple[int, int]] = []

    def size(shape: tuple[int, int]) -> tuple[int, int]:
        if not grid:
            grid.append(grid_for(*shape, tokens, fitting.square))
        return grid[0][0] * trained.edge, grid[0][1] * trained.edge

    examples = [
        example_of(
            task,
            source.taken(i, fields),
            views,
            size,
            np.random.default_rng([seed, i]),
            conditions,
            fitting,
        )
        for i in indices
    ]
    requests = [Request(example.prompt, given_views(example, wanted)) for example in examples]
    made = generate(trained, task, views, requests, examples[0].size, config, seed)
    return [Completed(*parts) for parts in zip(indices, examples, made, strict=True)]


def given_views(example: Example, wanted: Sequence[str]) -> dict[str, View]:
    """The condition views of an example by name: all that are not wanted."""
    views = Completed(0, example, {}).views
    return {name: view for name, view in views.items() if name not in wanted}


def cached_examples(source: CachedSource, indices: Sequence[int], part: Part) -> list[Example]:
    """Examples of a part of a cache, with encoded images and prompts."""
    held = source.examples(part)
    return [unpacked_example(held[i % len(held)], 0).example for i in indices]


def decoded_example(trained: Trained, example: Example) -> Example:
    """The example with images in the place of their latents, and its prompt as text."""
    views = tuple(
        image_of(trained.codec.decode(view.mean)) if isinstance(view, EncodedImage) else view
        for view in example.views
    )
    return Example(example.task, views, example.prompt.text)
