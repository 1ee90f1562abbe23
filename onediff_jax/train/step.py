"""One training step: noise, predict, compare, update.  A pure function of state, batch and key.

The held-out loss is computed by the same forward pass.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from clu import metrics as clu_metrics
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, DTypeLike, Float, Int, Key, Shaped

from onediff_jax.data.batching.loader import Rows, batches
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
    global_batch,
    letters_of,
    local_rows,
    mesh_group,
    replicated,
    sum_gradients,
)
from onediff_jax.train.config import RunConfig
from onediff_jax.train.metrics import mean_metric, named_scalars, step_metrics, task_of_view
from onediff_jax.train.state import OptimizerConfig, State, updated_ema
from onediff_jax.train.tune import merge_params

EMPTY: dict[str, Any] = {}
HELD_OUT_FLOW = flow.FlowConfig(distribution="uniform", shift=1.0)
HELD_OUT_SEED = 0  # of noise levels and noise


class DeviceShare(NamedTuple):
    """This device's shard of each row along the `sequence` axis: whole views, or a piece of one."""

    layout: Layout
    group: Group = ALONE  # the devices that share rows

    def tokens(self, of_row: Float[Array, "b n p"]) -> Float[Array, "b n2 p"]:
        """The shard of an array of tokens."""
        return self._cut(of_row, self.layout.tokens)

    def views(self, of_row: Shaped[Array, "b v"]) -> Shaped[Array, "b v2"]:
        """The shard of an array of views."""
        return self._cut(of_row, self.layout.views)

    def of(self, batch: Batch) -> Batch:
        """The shard of a batch, which has this device's tokens already.

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
    part: DeviceShare | None = None,
) -> tuple[Float[Array, "b n"], Float[Array, "b v"]]:
    """Every token's squared error in velocity, padding and clean views included, and every view's
    noise level as the network is told.

    `layout` is that of rows; of a `part` of them, the batch has its tokens, and errors are theirs.
    """
    part = part or DeviceShare(layout)
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
    """A function of (params, untrained, pretrained, batch, rows, weights, key) that returns
    gradients, errors and sigmas.

    `specs` are those of trained and untrained parameters; the networks' own table has those of
    `pretrained`.  Every device works on its share by the table of
    `sharding.py`, in `config.accumulate` parts, one after the other.
    """
    share, on_mesh = device_share(networks, layout, mesh, config.gradient_dtype)
    tensor = mesh_group(mesh, "tensor")

    def weighted_loss(params, untrained, pretrained, batch, rows, weights, key):
        every = on_mesh.whole({**merge_params(params, untrained), **pretrained})
        errors, sigmas = losses(
            on_mesh.networks, every, batch, rows, key, layout, flow_config, share
        )
        # The loss is summed over all devices, and those along `tensor` return equal values.
        return (errors * weights).sum() / tensor.size, (errors, sigmas)

    def gradients(params, untrained, pretrained, batch, rows, weights, key):
        gradient = jax.grad(weighted_loss, has_aux=True)

        def work_through(total, part):
            grads, found = gradient(params, untrained, pretrained, *part, key)
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
        return sum_gradients(total, specs[0], mesh), *found

    def on_all_devices(params, untrained, pretrained, *of_batch):
        of_rows, of_tokens = P(ROWS), P(ROWS, "sequence")
        mine = {name: on_mesh.specs[name] for name in pretrained}
        return jax.shard_map(
            gradients,
            mesh=mesh,
            in_specs=(*specs, mine, batch_specs(Batch), of_rows, of_tokens, P()),
            out_specs=(specs[0], of_tokens, of_rows),
            check_vma=False,  # attention kernels do not declare the axes they vary along
        )(params, untrained, pretrained, *of_batch)

    return on_all_devices


def device_share(
    networks: Networks, layout: Layout, mesh: Mesh, gradient_dtype: DTypeLike | None = None
) -> tuple[DeviceShare, OnMesh]:
    """Each device's shard of a row, and the networks as they run inside `jax.shard_map`."""
    share = DeviceShare(layout.part(mesh.shape["sequence"]), mesh_group(mesh, "sequence"))
    tensor = mesh_group(mesh, "tensor")
    split_slot = isinstance(share.layout.slots[0], SequenceShard)
    groups = (tensor, share.group) if split_slot else (tensor,)
    return share, networks.on_mesh(mesh, groups, gradient_dtype)


def errors_of(
    networks: Networks, layout: Layout, config: flow.FlowConfig, mesh: Mesh
) -> Callable[..., tuple[Float[Array, "b n"], Float[Array, "b v"]]]:
    """A function (params, batch, rows, key) -> (errors, sigmas), as `losses`, of whole networks'
    parameters on a mesh."""
    share, on_mesh = device_share(networks, layout, mesh)

    def errors(params, batch, rows, key):
        params = on_mesh.whole(params)
        return losses(on_mesh.networks, params, batch, rows, key, layout, config, share)

    def on_all_devices(params, batch, rows, key):
        return jax.shard_map(
            errors,
            mesh=mesh,
            in_specs=({n: on_mesh.specs[n] for n in params}, batch_specs(Batch), P(ROWS), P()),
            out_specs=(P(ROWS, "sequence"), P(ROWS)),
            check_vma=False,  # attention kernels do not declare the axes they vary along
        )(params, batch, rows, key)

    return on_all_devices


def clean_latents(
    networks: Networks,
    params: Any,
    batch: Batch,
    rows: Int[Array, " b"],
    key: Key[Array, ""],
    layout: Layout,
    part: DeviceShare | None = None,
) -> Float[Array, "b n p"]:
    """Clean latents of a shard's views, as patches: from the batch, or encoded from its pixels.

    `batch` is that of the part, `layout` that of whole rows.  Raises InputError where images
    would have to be encoded in pieces.
    """
    part = part or DeviceShare(layout)
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
    """The step of a run: (state, batch, key, pretrained) -> (state, metrics).

    `pretrained` has the parameters of the pretrained networks that work inside the step; no
    gradient passes through them.  The loss is normalised over the global batch before it is cut
    into parts, so that neither `accumulate` nor the mesh of `shardings` changes it.  Raises
    InputError where the mesh does not cut rows of this layout.
    """
    specs = jax.tree.map(lambda s: s.spec, (shardings.params, shardings.untrained))
    mesh = shardings.step.mesh  # type: ignore[attr-defined]  # a sharding, not an array
    gradients = gradients_of(networks, layout, flow_config, config, specs, mesh)

    def train_step(state: State, batch: Batch, key: Array, pretrained: Any = EMPTY):
        rows = state.step * batch.latents.shape[0] + jnp.arange(batch.latents.shape[0])
        is_clean, _ = flow.clean_views(key, rows, batch.example_of_view, layout, flow_config)
        counted = batch.token_mask & ~is_clean[:, layout.view_of_token]
        weights = flow.token_weights(counted, batch.example_of_view, layout, flow_config.balance)
        if flow_config.task_weights:
            factors = jnp.array([flow_config.task_weights.get(task, 1.0) for task in TASK_NAMES])
            weights *= factors[task_of_view(batch)][:, layout.view_of_token]
        total = weights.sum()
        weights = weights / jnp.where(total > 0, total, 1)
        grads, errors, sigmas = gradients(
            state.params, state.untrained, pretrained, batch, rows, weights, key
        )

        updates, moments = optimizer.update(grads, state.moments, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = updated_ema(state.ema, params, state.step, config.ema) if config.ema else {}
        metrics = step_metrics(errors, sigmas, batch._replace(token_mask=counted), layout)
        loss = (errors * weights).sum()
        norm = optax.global_norm(grads)
        metrics |= {"loss": mean_metric(loss), "grad_norm": mean_metric(norm)}
        return State(state.step + 1, params, ema, moments, state.untrained), metrics

    return train_step


class HeldOutLoss:
    """Computes the held-out loss of a run's parameters on its mesh.

    Rows, noise levels and noise are the same every time, so that only the parameters change it.
    Noise levels are uniform between 0 and 1, whatever training draws: all levels count the same,
    and runs with different training distributions can be compared.
    """

    def __init__(self, rows: Rows, config: RunConfig, networks: Networks, mesh: Mesh):
        self._mesh, self._rows, self._count = mesh, rows, config.rows
        self._steps = math.ceil(config.evaluate.rows / config.rows)
        self._batches: list[Any] = []  # of this process's rows; made once
        errors = errors_of(networks, rows.layout, HELD_OUT_FLOW, mesh)

        def of_batch(params: Any, batch: Any, numbers: Any) -> dict[str, Any]:
            found, sigmas = errors(params, batch, numbers, jax.random.key(HELD_OUT_SEED))
            valid = batch.token_mask.astype(found.dtype)
            loss = mean_metric((found * valid).sum() / jnp.maximum(valid.sum(), 1), valid.sum())
            by = step_metrics(found, sigmas, batch, rows.layout)
            return {"loss": loss, "task": by["task"], "sigma": by["sigma"]}

        self._of_batch = jax.jit(of_batch, out_shardings=replicated(mesh))

    def __call__(self, params: Any) -> dict[str, float]:
        """held_out/loss, over all tokens; by task, and by noise level.

        `params` has all networks that the rows need.
        """
        if not self._batches:
            local = local_rows(self._mesh, self._count)
            self._batches = list(batches(self._rows, self._count, local, 0, self._steps))
        total = None
        for step, batch in enumerate(self._batches):
            numbers = step * self._count + jnp.arange(self._count)
            found = self._of_batch(params, global_batch(batch, self._mesh, self._count), numbers)
            total = found if total is None else jax.tree.map(lambda a, b: a + b, total, found)
        assert total is not None, "there is at least one batch"
        return {f"held_out/{name}": value for name, value in named_scalars(total).items()}
