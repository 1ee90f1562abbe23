"""Held-out examples, completed in every direction of their task."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onediff_jax.data.codecs import image_of
from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.example import EncodedImage, Example, View
from onediff_jax.data.records import Source
from onediff_jax.data.sources.cache import CachedSource, ExampleShape, encoded_example
from onediff_jax.data.tasks.fitting import USUAL, Fitting, grid_for
from onediff_jax.data.tasks.table import TASKS, example_of
from onediff_jax.sampling.generate import (
    GeneratedView,
    Request,
    SampleConfig,
    TrainedModel,
    generate,
)


class CompletedExample(NamedTuple):
    """A held-out example, and its target views as they were generated."""

    number: int  # of the record
    example: Example
    generated: Mapping[str, GeneratedView]

    @property
    def views(self) -> dict[str, View]:
        """The true views by name."""
        names = TASKS[self.example.task].builder.names(len(self.example.views))
        return dict(zip(names, self.example.views, strict=True))


def complete(
    trained: TrainedModel,
    source: Source,
    indices: Sequence[int],
    task: str,
    views: int,
    targets: Sequence[str],
    tokens: int,
    conditions: ConditionConfig,
    config: SampleConfig,
    seed: int,
    fitting: Fitting = USUAL,
) -> list[CompletedExample]:
    """The `targets` among the views of a source's records, from all other views and the prompt.

    All images have the size of the first one's grid of `tokens` tokens, or of the largest square.
    Of a cache, those examples among `indices` are completed that have the size of the first.
    """
    if isinstance(source, CachedSource):
        examples = cached_examples(source, indices, ExampleShape(task, views, tokens))
        sizes = [example.latent_size for example in examples]
        kept = [i for i, size in enumerate(sizes) if size == sizes[0]]
        indices, examples = [indices[i] for i in kept], [examples[i] for i in kept]
        height, width = (trained.codec.factor * side for side in sizes[0])
        requests = [Request(e.text, condition_views(e, targets)) for e in examples]
        generated = generate(trained, task, views, requests, (height, width), config, seed)
        examples = [decoded_example(trained, example) for example in examples]
        return [
            CompletedExample(*parts) for parts in zip(indices, examples, generated, strict=True)
        ]
    fields = TASKS[task].takes(source.fields)
    assert fields is not None, "the source was chosen because it serves the task"
    grid: list[tuple[int, int]] = []

    def size(shape: tuple[int, int]) -> tuple[int, int]:
        if not grid:
            grid.append(grid_for(*shape, tokens, fitting.square))
        return grid[0][0] * trained.edge, grid[0][1] * trained.edge

    examples = [
        example_of(
            task,
            source.read(i, fields),
            views,
            size,
            np.random.default_rng([seed, i]),
            conditions,
            fitting,
        )
        for i in indices
    ]
    requests = [Request(example.text, condition_views(example, targets)) for example in examples]
    generated = generate(trained, task, views, requests, examples[0].size, config, seed)
    return list(map(CompletedExample, indices, examples, generated))


def condition_views(example: Example, targets: Sequence[str]) -> dict[str, View]:
    """The condition views of an example by name: all that are not targets."""
    views = CompletedExample(0, example, {}).views
    return {name: view for name, view in views.items() if name not in targets}


def cached_examples(
    source: CachedSource, indices: Sequence[int], part: ExampleShape
) -> list[Example]:
    """Examples of a part of a cache, with encoded images and prompts."""
    held = source.examples(part)
    return [encoded_example(held[i % len(held)], 0).example for i in indices]


def decoded_example(trained: TrainedModel, example: Example) -> Example:
    """The example with images in the place of their latents, and its prompt as text."""
    views = tuple(
        image_of(trained.codec.decode(view.mean)) if isinstance(view, EncodedImage) else view
        for view in example.views
    )
    return Example(example.task, views, example.text)
