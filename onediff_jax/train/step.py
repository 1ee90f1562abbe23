"""One training step: noise, predict, compare, update.  A pure function of state, batch and key."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int, Key, Shaped

from onediff_jax.data.batching.rows import TASK_NAMES, Batch
from onediff_jax.errors import InputError
from onediff_jax.models.networks import Networks, OnMesh
from onediff_jax.ops import flow
from onediff_jax.ops.layout import Layout, SequenceShard
from onediff_jax.sharding import (
    ALONE,
    ROWS,
    Group,
    batch_specs,
    group_of,
    letters_of,
    summed,
)
from onediff_jax.train.state import OptimizerConfig, State, updated_ema
from onediff_jax.train.tune import merged

SIGMA_BINS = 10
EMPTY: dict[str, Any] = {}


class Part(NamedTuple):
    """What a device works on of every row: the tokens of some views, or of a piece of a view."""

    layout: Layout
    group: Group = ALONE  # the devices that share rows

    def tokens(self, of_row: Float[Array, "b n p"]) -> Float[Array, "b n2 p"]:
        """Those of the part, of all tokens."""
        return self._cut(of_row, self.layout.tokens)

    def views(self, of_row: Shaped[Array, "b v"]) -> Shaped[Array, "b v2"]:
        """Those of the part, of all views."""
        return self._cut(of_row, self.layout.views)

    def of(self, batch: Batch) -> Batch:
        """A batch that has the part's tokens, with its views and examples alone.

        All devices that share a slot have all its examples.
        """
        sizes = {"v": self.layout.views, "e": self.layout.examples}
        before = self.group.index * sizes["e"] if batch.task.shape[1] > sizes["e"] else 0
        here = batch.example_of_view
        batch = batch._replace(example_of_view=jnp.where(here < 0, here, here - before))
        letters = letters_of(Batch)
        return Batch(
            *(
                self._cut(field, sizes[axis]) if axis in sizes else field
                for field, (_, axis, *_) in zip(batch, letters, strict=True)
            )
        )

    def _cut(self, of_row: Array, size: int) -> Array:
        whole = of_row.shape[1]
        if whole == size:
            return of_row
        first = self.group.index * whole // self.group.size  # pieces of one view share it
        return jax.lax.dynamic_slice_in_dim(of_row, first, size, 1)


def losses(
    networks: Networks,
    params: Any,
    batch: Batch,
    rows: Int[Array, " b"],
    key: Key[Array, ""],
    layout: Layout,
    config: flow.FlowConfig,
    part: Part | None = None,
) -> tuple[Float[Array, "b n"], Float[Array, "b v"]]:
    """Every token's squared error in velocity, padding and clean views included, and every view's
    noise level as the network is told.

    `layout` is that of rows; of a `part` of them, the batch has its tokens, and errors are theirs.
    """
    part = part or Part(layout)
    all_sigmas, noise = flow.draw(key, rows, layout, batch.latents.shape[-1], config)
    is_clean, shown = flow.clean_views(key, rows, batch.example_of_view, layout, config)
    all_sigmas = jnp.where(is_clean, shown, all_sigmas)
    levels = part.views(jnp.where(is_clean, 0, all_sigmas))
    batch, sigmas = part.of(batch), part.views(all_sigmas)
    clean = clean_latents(networks, params, batch, rows, key, layout, part)
    noisy, velocity = flow.interpolate(
        clean, part.tokens(noise), levels[:, part.layout.view_of_token, None]
    )
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
        part.layout,
    )
    return flow.squared_errors(predicted, velocity), all_sigmas


def gradients_of(
    networks: Networks,
    layout: Layout,
    flow_config: flow.FlowConfig,
    config: OptimizerConfig,
    specs: tuple[Any, ...],
    mesh: Mesh,
) -> Callable[..., tuple[Any, Float[Array, "b n"], Float[Array, "b v"]]]:
    """A function (params, kept, frozen, batch, rows, weights, key) -> (gradients, errors, sigmas).

    `specs` are those of the parameters that are trained, and of those that are kept; the networks'
    own table has those of `frozen`.  Every device works on its share by the table of
    `sharding.py`, in `config.accumulate` parts, one after the other.
    """
    share, on_mesh = divided(networks, layout, mesh, config.gradient_dtype)
    tensor = group_of(mesh, "tensor")

    def weighted_loss(params, kept, frozen, batch, rows, weights, key):
        every = on_mesh.whole({**merged(params, kept), **frozen})
        errors, sigmas = losses(
            on_mesh.networks, every, batch, rows, key, layout, flow_config, share
        )
        # The loss is the sum of what all devices return, and those along tensor return the same.
        return (errors * weights).sum() / tensor.size, (errors, sigmas)

    def gradients(params, kept, frozen, batch, rows, weights, key):
        def work_through(total, part):
            grads, found = jax.grad(weighted_loss, has_aux=True)(params, kept, frozen, *part, key)
            return jax.tree.map(jnp.add, total, grads), found

        parts = config.accumulate
        cut = jax.tree.map(
            lambda x: x.reshape(parts, len(x) // parts, *x.shape[1:]), (batch, rows, weights)
        )
        zero = jax.tree.map(jnp.zeros_like, params)
        if parts == 1:
            total, found = work_through(zero, jax.tree.map(lambda x: x[0], cut))
        else:
            total, found = jax.lax.scan(work_through, zero, cut)
            found = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), found)
        return summed(total, specs[0], mesh), *found

    def on_all_devices(params, kept, frozen, *of_batch):
        of_rows, of_tokens = P(ROWS), P(ROWS, "sequence")
        mine = {name: on_mesh.specs[name] for name in frozen}
        return jax.shard_map(
            gradients,
            mesh=mesh,
            in_specs=(*specs, mine, batch_specs(Batch), of_rows, of_tokens, P()),
            out_specs=(specs[0], of_tokens, of_rows),
            check_vma=False,  # kernels of attention do not say along which axes they vary
        )(params, kept, frozen, *of_batch)

    return on_all_devices


def divided(
    networks: Networks, layout: Layout, mesh: Mesh, gradient_dtype: DTypeLike | None = None
) -> tuple[Part, OnMesh]:
    """What each device of a mesh has of every row, and the networks as it has them."""
    share = Part(layout.part(mesh.shape["sequence"]), group_of(mesh, "sequence"))
    tensor = group_of(mesh, "tensor")
    split_slot = isinstance(share.layout.slots[0], SequenceShard)
    groups = (tensor, share.group) if split_slot else (tensor,)
    return share, networks.on_mesh(mesh, groups, gradient_dtype)


def errors_of(
    networks: Networks, layout: Layout, config: flow.FlowConfig, mesh: Mesh
) -> Callable[..., tuple[Float[Array, "b n"], Float[Array, "b v"]]]:
    """A function (params, batch, rows, key) -> (errors, sigmas), as `losses`, of whole networks'
    parameters on a mesh."""
    share, on_mesh = divided(networks, layout, mesh)

    def errors(params, batch, rows, key):
        params = on_mesh.whole(params)
        return losses(on_mesh.networks, params, batch, rows, key, layout, config, share)

    def on_all_devices(params, batch, rows, key):
        return jax.shard_map(
            errors,
            mesh=mesh,
            in_specs=({n: on_mesh.specs[n] for n in params}, batch_specs(Batch), P(ROWS), P()),
            out_specs=(P(ROWS, "sequence"), P(ROWS)),
            check_vma=False,  # kernels of attention do not say along which axes they vary
        )(params, batch, rows, key)

    return on_all_devices


def clean_latents(
    networks: Networks,
    params: Any,
    batch: Batch,
    rows: Int[Array, " b"],
    key: Key[Array, ""],
    layout: Layout,
    part: Part | None = None,
) -> Float[Array, "b n p"]:
    """Latents of a part's views, as patches: read, encoded here, or drawn from what either says.

    `batch` is that of the part, `layout` that of whole rows.  Raises InputError where images
    would have to be encoded in pieces.
    """
    part = part or Part(layout)
    means, deviations = batch.latents, batch.deviations
    if batch.pixels.shape[-1]:
        if part.layout.slots[0].tokens != layout.slots[0].tokens:
            raise InputError(
                "mesh.sequence cuts views into pieces, and images are encoded whole inside the "
                "step; encode the data set ahead, by `python -m onediff_jax encode`."
            )
        found = networks.encoded(params, batch.pixels, part.layout)
        here = ~batch.encoded[:, part.layout.view_of_token, None]
        means = jnp.where(here, found[0], means)
        if networks.sampled:
            read = deviations if deviations.shape[-1] else 0.0
            deviations = jnp.where(here, found[1], read)
    if not deviations.shape[-1]:
        return means
    noise = flow.posterior_noise(key, rows, layout, means.shape[-1])
    return means + deviations * part.tokens(noise)


def train_step_of(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    layout: Layout,
    flow_config: flow.FlowConfig,
    config: OptimizerConfig,
    shardings: State,
) -> Callable[..., tuple[State, dict[str, clu_metrics.Average]]]:
    """The step of a run of so many sources: (state, batch, key, frozen) -> (state, metrics).

    `frozen` has the parameters of the released networks that work inside the step; no gradient
    passes through them.  The loss is normalised over the global batch before it is cut into parts,
    so that neither `accumulate` nor the mesh of `shardings` changes it.  Raises InputError where
    the mesh does not cut rows of this layout.
    """
    specs = jax.tree.map(lambda s: s.spec, (shardings.params, shardings.frozen))
    mesh = shardings.step.mesh
    gradients = gradients_of(networks, layout, flow_config, config, specs, mesh)

    def train_step(state: State, batch: Batch, key: Array, frozen: Any = EMPTY):
        rows = state.step * batch.latents.shape[0] + jnp.arange(batch.latents.shape[0])
        is_clean, _ = flow.clean_views(key, rows, batch.example_of_view, layout, flow_config)
        counted = batch.token_mask & ~is_clean[:, layout.view_of_token]
        weights = flow.token_weights(counted, batch.example_of_view, layout, flow_config.balance)
        if flow_config.task_weights:
            factors = jnp.array([flow_config.task_weights.get(task, 1.0) for task in TASK_NAMES])
            weights *= factors[task_of_view(batch)][:, layout.view_of_token]
        total = weights.sum()
        weights = weights / jnp.where(total > 0, total, 1)
        kept = state.frozen
        grads, errors, sigmas = gradients(state.params, kept, frozen, batch, rows, weights, key)

        updates, moments = optimizer.update(grads, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = updated_ema(state.ema, params, state.step, config.ema) if config.ema else {}
        measured = measures(errors, sigmas, batch._replace(token_mask=counted), layout)
        loss = (errors * weights).sum()
        measured |= {"loss": mean_of(loss), "grad_norm": mean_of(optax.global_norm(grads))}
        return State(state.step + 1, params, ema, moments, state.frozen), measured

    return train_step


def mean_of(value: Float[Array, "*any"], weight: Array | float = 1.0) -> clu_metrics.Average:
    """A metric that averages, weighted, over the steps between two logs."""
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), jnp.shape(value))
    return clu_metrics.Average(total=value * weight, count=weight)


def task_of_view(batch: Batch) -> Int[Array, "b v"]:
    """Every view's task, a place in TASK_NAMES; of an empty range any."""
    return jnp.take_along_axis(batch.task, jnp.maximum(batch.example_of_view, 0), 1)


def measures(errors, sigmas, batch: Batch, layout: Layout) -> dict[str, clu_metrics.Average]:
    """Loss by task and by noise level, as vectors; logged apart."""
    valid = batch.token_mask.astype(jnp.float32)
    of_view = jax.nn.one_hot(layout.view_of_token, layout.views)  # n v
    summed = jnp.einsum("bn,nv->bv", errors * valid, of_view)
    tokens = jnp.einsum("bn,nv->bv", valid, of_view)
    sigma_bin = jnp.minimum((sigmas * SIGMA_BINS).astype(int), SIGMA_BINS - 1)

    def by(kind: Int[Array, "b v"], kinds: int) -> clu_metrics.Average:
        belongs = jax.nn.one_hot(kind, kinds)
        totals = (jnp.einsum("bv,bvk->k", x, belongs) for x in (summed, tokens))
        return clu_metrics.Average(*totals)

    return {
        "task": by(task_of_view(batch), len(TASK_NAMES)),
        "sigma": by(sigma_bin, SIGMA_BINS),
    }


def named_scalars(measured: dict[str, clu_metrics.Average]) -> dict[str, float]:
    """Measures by the names they are logged under; what was not seen is left out."""
    labels = {
        "task": [f"loss/{task}" for task in TASK_NAMES],
        "sigma": [f"loss/sigma_{i / SIGMA_BINS:.1f}" for i in range(SIGMA_BINS)],
    }
    scalars = {}
    for name, metric in jax.device_get(measured).items():
        if name in labels:
            seen = zip(labels[name], metric.total, metric.count, strict=True)
            scalars |= {label: float(t / c) for label, t, c in seen if c}
        else:
            scalars[name] = float(metric.compute())
    return scalars
