"""Speed and arithmetic: a step's FLOPs by formula, and the share of the device's peak they take."""

import jax

from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.ops.layout import Layout

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
    """FLOPs of one row's forward pass: two per multiplication of a matrix product or attention.

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


def step_flops(networks: Networks, layout: Layout, rows: int, text_length: int) -> int:
    """FLOPs of a training step: the forward pass and twice as many backward.

    Rematerialisation and a released codec count nothing, a released text encoder its forward pass.
    """
    return sum(network_flops(networks, layout, rows, text_length).values())


def network_flops(
    networks: Networks, layout: Layout, rows: int, text_length: int
) -> dict[str, int]:
    """FLOPs of a training step, by network."""
    text_width = networks.text.config.width
    denoiser = denoiser_flops(networks.denoiser.config, layout, text_length, text_width)
    text = text_flops(networks, layout.examples * text_length, text_length)
    passes = 1 if "text" in networks.frozen else 3
    return {"denoiser": 3 * rows * denoiser, "text encoder": passes * rows * text}


def peak_flops() -> float | None:
    """Peak FLOP/s of all devices together; None where the kind is not in the table (a CPU)."""
    peak = PEAKS.get(jax.devices()[0].device_kind)
    return peak and peak * jax.device_count()
