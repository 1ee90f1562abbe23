"""What is logged of a step: errors by task and noise level, its FLOPs by formula, and MFU."""

import math
from collections.abc import Collection
from typing import NamedTuple

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from jaxtyping import Array, Float, Int

from onediff_jax.data.batching.rows import TASK_NAMES, Batch
from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.models.vae import VAEConfig
from onediff_jax.ops.layout import Layout

SIGMA_BINS = 10
# Peak bfloat16 FLOP/s of one JAX device, by its kind.
PEAKS = {
    "TPU v2": 22.5e12,
    "TPU v3": 61.5e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def denoiser_flops(config: NextDiTConfig, layout: Layout, text_length: int, text_width: int) -> int:
    """FLOPs of one row's forward pass: two per multiplication in matmuls and attention.

    Modulation counts once a view, attention inside slots; norms and other elementwise work count
    nothing.
    """
    head = config.width // config.heads
    kv = head * config.kv_heads
    per_token = 2 * config.width**2 + 2 * config.width * kv + 3 * config.width * config.hidden
    per_text_token = 2 * text_width * kv
    per_view = 4 * config.width * config.condition
    text_tokens = layout.examples * text_length
    attention = 0
    for run in layout.runs:
        tokens = run.slot.views * run.slot.tokens
        attention += (
            run.count * 2 * tokens * (tokens + run.slot.examples * text_length) * config.width
        )
    block = (
        layout.tokens * per_token
        + text_tokens * per_text_token
        + layout.views * per_view
        + attention
    )
    ends = layout.tokens * 2 * config.features * config.width
    ends += layout.views * config.condition * (256 + config.condition + config.width)
    ends += layout.examples * text_width * config.condition
    return 2 * (config.depth * block + ends)


def text_flops(networks: Networks, tokens: int, length: int) -> int:
    """FLOPs of the text encoder's forward pass over so many tokens in prompts of `length`."""
    config = networks.text.config
    inner = config.heads * config.head_width
    layer = 4 * config.width * inner + 3 * config.width * config.hidden + 2 * length * inner
    return 2 * config.depth * tokens * layer


def codec_flops(config: VAEConfig, side: int) -> int:
    """FLOPs of the autoencoder's encoder on a square image of so many pixels along a side."""

    def convolution(channels_in: int, channels: int, size: int = 3) -> int:
        return 2 * size**2 * channels_in * channels * pixels

    def resnet(channels_in: int, channels: int) -> int:
        shortcut = convolution(channels_in, channels, 1) if channels_in != channels else 0
        return convolution(channels_in, channels) + convolution(channels, channels) + shortcut

    pixels, (first, *_, last) = side**2, config.block_out_channels
    total, before = convolution(3, first), first
    for i, width in enumerate(config.block_out_channels):
        total += resnet(before, width) + (config.layers_per_block - 1) * resnet(width, width)
        before = width
        if i < len(config.block_out_channels) - 1:
            pixels //= 4
            total += convolution(width, width)
    attention = 4 * convolution(last, last, 1) + 4 * pixels**2 * last
    moments = 2 * config.latent_channels
    total += 2 * resnet(last, last) + attention + convolution(last, moments)
    return total + config.use_quant_conv * convolution(moments, moments, 1)


class StepFlops(NamedTuple):
    """FLOPs of a training step on all devices, by network; recomputation does not count."""

    trained: dict[str, int]  # of networks that gradients pass through: three forward passes
    encoders: dict[str, int]  # of pretrained encoders inside the step: one

    @property
    def model(self) -> int:
        """FLOPs that MFU counts: those of trained networks only."""
        return sum(self.trained.values())

    @property
    def total(self) -> int:
        """With the pretrained encoders' forward passes."""
        return self.model + sum(self.encoders.values())


def step_flops(
    networks: Networks,
    layout: Layout,
    rows: int,
    text_length: int,
    inside: Collection[str] = (),
) -> StepFlops:
    """FLOPs of a step of so many rows; `inside` it are these pretrained encoders: text, codec."""
    text_width = networks.text.config.width
    denoiser = denoiser_flops(networks.denoiser.config, layout, text_length, text_width)
    found = StepFlops({"denoiser": 3 * rows * denoiser}, {})
    text = rows * text_flops(networks, layout.examples * text_length, text_length)
    if "text" not in networks.pretrained:
        found.trained["text encoder"] = 3 * text
    elif "text" in inside:
        found.encoders["text encoder"] = text
    if "codec" in inside and networks.codec:
        edge = networks.codec.factor * networks.denoiser.config.patch
        found.encoders["autoencoder"] = rows * sum(
            (views.stop - views.start)
            * codec_flops(networks.codec.config, edge * math.isqrt(tokens))
            for tokens, views in layout.equal_views
        )
    return found


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices together; None where the kind is not in the table (a CPU)."""
    peak = PEAKS.get(jax.devices()[0].device_kind)
    return peak and peak * jax.device_count()


def mean_metric(value: Float[Array, "*any"], weight: Array | float = 1.0) -> clu_metrics.Average:
    """A metric that averages, weighted, over the steps between two logs."""
    weight = jnp.broadcast_to(jnp.asarray(weight, jnp.float32), jnp.shape(value))
    return clu_metrics.Average(total=value * weight, count=weight)


def task_of_view(batch: Batch) -> Int[Array, "b v"]:
    """Every view's task as an index of TASK_NAMES; arbitrary for an empty range."""
    return jnp.take_along_axis(batch.task, jnp.maximum(batch.example_of_view, 0), 1)


def step_metrics(errors, sigmas, batch: Batch, layout: Layout) -> dict[str, clu_metrics.Average]:
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


def named_scalars(metrics: dict[str, clu_metrics.Average]) -> dict[str, float]:
    """Metrics by the names they are logged under; those without any example are left out."""
    labels = {
        "task": [f"loss/{task}" for task in TASK_NAMES],
        "sigma": [f"loss/sigma_{i / SIGMA_BINS:.1f}" for i in range(SIGMA_BINS)],
    }
    scalars = {}
    for name, metric in jax.device_get(metrics).items():
        if name in labels:
            seen = zip(labels[name], metric.total, metric.count, strict=True)
            scalars |= {label: float(t / c) for label, t, c in seen if c}
        else:
            scalars[name] = float(metric.compute())
    return scalars
