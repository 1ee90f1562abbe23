"""The loss on held-out examples.  Rows, noise levels and noise are the same every time, so only the
parameters change it.

Noise levels are uniform between 0 and 1, whatever training draws: all levels count the same, and
runs with different training distributions can be compared.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from onediff_jax.data.batching.loader import Rows, batches
from onediff_jax.data.batching.mixture import is_served
from onediff_jax.data.records import Source
from onediff_jax.data.text import Tokenizer
from onediff_jax.models.networks import Networks
from onediff_jax.ops import flow
from onediff_jax.sharding import global_batch, local_rows, replicated
from onediff_jax.train.run import Assets, RunConfig, rows_of, views_of_tasks
from onediff_jax.train.step import errors_of, mean_of, measures, named_scalars

UNIFORM = flow.FlowConfig(distribution="uniform", shift=1.0)
SEED = 0  # of noise levels and noise


class HeldOutLoss:
    """Computes the held-out loss of a run's parameters on its mesh."""

    def __init__(self, rows: Rows, config: RunConfig, networks: Networks, mesh: Mesh):
        self._mesh, self._rows, self._count = mesh, rows, config.rows
        self._steps = math.ceil(config.evaluate.rows / config.rows)
        self._batches: list[Any] = []  # of this process's rows; made once
        errors = errors_of(networks, rows.layout, UNIFORM, mesh)

        def measured(params: Any, batch: Any, numbers: Any) -> dict[str, Any]:
            found, sigmas = errors(params, batch, numbers, jax.random.key(SEED))
            valid = batch.token_mask.astype(found.dtype)
            loss = mean_of((found * valid).sum() / jax.numpy.maximum(valid.sum(), 1), valid.sum())
            by = measures(found, sigmas, batch, rows.layout)
            return {"loss": loss, "task": by["task"], "sigma": by["sigma"]}

        self._measured = jax.jit(measured, out_shardings=replicated(mesh))

    def __call__(self, params: Any) -> dict[str, float]:
        """held_out/loss, over all tokens; by task, and by noise level.

        `params` has all networks that the rows need.
        """
        if not self._batches:
            local = local_rows(self._mesh, self._count)
            self._batches = list(batches(self._rows, self._count, local, 0, self._steps))
        total = None
        for step, batch in enumerate(self._batches):
            numbers = step * self._count + jax.numpy.arange(self._count)
            found = self._measured(params, global_batch(batch, self._mesh, self._count), numbers)
            total = found if total is None else jax.tree.map(lambda a, b: a + b, total, found)
        return {f"held_out/{name}": value for name, value in named_scalars(total).items()}


def held_out_rows(
    config: RunConfig, sources: Mapping[str, Source], assets: Assets, tokenizer: Tokenizer
) -> Rows | None:
    """Rows of the validation examples of all sources that have any, with their prompts.

    Tasks that no held-out records serve are left out; None where that leaves no task.
    """
    held = {name: source for name, source in sources.items() if len(source)}
    if not (held and config.evaluate.every and config.evaluate.rows):
        return None
    if not any(is_served(*each, held) for each in views_of_tasks(config.data).items()):
        return None
    data = dataclasses.replace(config.data, prompt_dropout=0.0, caption_dropout=0.0, workers=0)
    return rows_of(dataclasses.replace(config, data=data), held, assets, tokenizer, partial=True)
