"""One training step: noise, predict, compare, update.  A pure function of state, batch and key."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int, Key

from onediff_jax.data.rows import TASK_NAMES, Batch
from onediff_jax.models.networks import Networks
from onediff_jax.ops import flow
from onediff_jax.ops.layout import Layout
from onediff_jax.train.state import OptimizerConfig, State, moved_average
from onediff_jax.train.tune import merged

SIGMA_BINS = 10
EMPTY: dict[str, Any] = {}


def losses(
    networks: Networks,
    params: Any,
    batch: Batch,
    rows: Int[Array, " b"],
    key: Key[Array, ""],
    layout: Layout,
    config: flow.FlowConfig,
) -> tuple[Float[Array, "b n"], Float[Array, "b v"]]:
    """Every token's squared error in velocity, padding included, and every view's noise level."""
    clean = clean_latents(networks, params, batch, rows, key, layout)
    sigmas, noise = flow.draw(key, rows, layout, clean.shape[-1], config)
    noisy, velocity = flow.interpolate(clean, noise, sigmas[:, layout.view_of_token, None])
    text = batch.text
    if jnp.issubdtype(text.dtype, jnp.integer):
        text = networks.states(params, text, batch.text_mask)
    predicted = networks.velocity(
        params,
        noisy,
        sigmas,
        batch.positions,
        batch.example_of_view,
        batch.token_mask,
        text,
        batch.text_mask,
        layout,
    )
    return flow.squared_errors(predicted, velocity), sigmas


def clean_latents(
    networks: Networks,
    params: Any,
    batch: Batch,
    rows: Int[Array, " b"],
    key: Key[Array, ""],
    layout: Layout,
) -> Float[Array, "b n p"]:
    """Latents of all views, as patches: read, encoded here, or drawn from what either says."""
    means, deviations = batch.latents, batch.deviations
    if batch.pixels.shape[-1]:
        found = networks.encoded(params, batch.pixels, layout)
        here = ~batch.encoded[:, layout.view_of_token, None]
        means = jnp.where(here, found[0], means)
        if networks.sampled:
            read = deviations if deviations.shape[-1] else 0.0
            deviations = jnp.where(here, found[1], read)
    if not deviations.shape[-1]:
        return means
    return means + deviations * flow.posterior_noise(key, rows, layout, means.shape[-1])


def train_step_of(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    flow_config: flow.FlowConfig,
    config: OptimizerConfig,
    sources: int = 1,
) -> Callable[..., tuple[State, dict[str, clu_metrics.Average]]]:
    """The step of a run of so many sources: (state, batch, key, frozen) -> (state, metrics).

    `frozen` has the parameters of the released networks that work inside the step; no gradient
    passes through them.  The loss is normalised over the global batch before it is cut into parts,
    so that `accumulate` changes memory and nothing else.
    """
    parts = config.accumulate

    def train_step(state: State, batch: Batch, key: Array, frozen: Any = EMPTY):
        rows = state.step * batch.latents.shape[0] + jnp.arange(batch.latents.shape[0])
        weights = flow.token_weights(
            batch.token_mask, batch.example_of_view, layout, flow_config.balance
        )
        weights = weights / jnp.maximum(weights.sum(), 1)

        def weighted_loss(params, batch, rows, weights):
            every = {**merged(params, state.frozen), **frozen}
            errors, sigmas = losses(networks, every, batch, rows, key, layout, flow_config)
            return (errors * weights).sum(), measures(errors, sigmas, batch, layout, sources)

        def work_through(total, part):
            (loss, measured), grads = jax.value_and_grad(weighted_loss, has_aux=True)(
                state.params, *part
            )
            return jax.tree.map(jnp.add, total, (loss, grads)), measured

        # Strided parts: every device keeps the rows that it holds.
        cut = jax.tree.map(
            lambda x: x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1),
            (batch, rows, weights),
        )
        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.params))
        if parts == 1:
            (loss, grads), measured = work_through(zero, jax.tree.map(lambda x: x[0], cut))
        else:
            (loss, grads), measured = jax.lax.scan(work_through, zero, cut)
            measured = jax.tree.map(lambda x: x.sum(0), measured)

        updates, moments = optimizer.update(grads, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = moved_average(state.ema, params, state.step, config.ema)
        measured |= {"loss": mean_of(loss), "grad_norm": mean_of(optax.global_norm(grads))}
        return State(state.step + 1, params, ema, moments, state.frozen), measured

    return train_step


def mean_of(value: Float[Array, "*any"], weight: Array | float = 1.0) -> clu_metrics.Average:
    """A metric that averages, weighted, over the steps between two logs."""
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), jnp.shape(value))
    return clu_metrics.Average(total=value * weight, count=weight)


def measures(
    errors, sigmas, batch: Batch, layout: Layout, sources: int
) -> dict[str, clu_metrics.Average]:
    """Loss by task and by noise level, and faults by source, as vectors; logged apart."""
    valid = batch.token_mask.astype(jnp.float32)
    of_view = jax.nn.one_hot(layout.view_of_token, layout.views)  # n v
    summed = jnp.einsum("bn,nv->bv", errors * valid, of_view)
    tokens = jnp.einsum("bn,nv->bv", valid, of_view)
    task_of_view = jnp.take_along_axis(batch.task, jnp.maximum(batch.example_of_view, 0), 1)
    sigma_bin = jnp.minimum((sigmas * SIGMA_BINS).astype(int), SIGMA_BINS - 1)

    def by(kind: Int[Array, "b v"], kinds: int) -> clu_metrics.Average:
        belongs = jax.nn.one_hot(kind, kinds)
        totals = (jnp.einsum("bv,bvk->k", x, belongs) for x in (summed, tokens))
        return clu_metrics.Average(*totals)

    of_source = jax.nn.one_hot(batch.source, sources)
    faults = jnp.einsum("be,bes->s", batch.faults.astype(jnp.float32), of_source)
    return {
        "task": by(task_of_view, len(TASK_NAMES)),
        "sigma": by(sigma_bin, SIGMA_BINS),
        "faults": clu_metrics.Average(faults, faults + of_source.sum((0, 1))),
    }


def named_scalars(
    measured: dict[str, clu_metrics.Average], sources: Sequence[str]
) -> dict[str, float]:
    """Measures by the names they are logged under; what was not seen is left out.

    `sources` are the sources' names, in order.
    """
    labels = {
        "task": [f"loss/{task}" for task in TASK_NAMES],
        "sigma": [f"loss/sigma_{i / SIGMA_BINS:.1f}" for i in range(SIGMA_BINS)],
        "faults": [f"faults/{source}" for source in sources],
    }
    scalars = {}
    for name, metric in jax.device_get(measured).items():
        if name in labels:
            seen = zip(labels[name], metric.total, metric.count, strict=True)
            scalars |= {label: float(t / c) for label, t, c in seen if c}
        else:
            scalars[name] = float(metric.compute())
    return scalars
