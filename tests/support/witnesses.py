"""What diffusers and transformers make of drawn weights and inputs.

`python tests/support/witnesses.py`, where both are installed, writes it to witnesses.npz, so that
the tests compare with them wherever they run.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from drawn import drawn_tensors

from onediff_jax.models.t5 import T5Config
from onediff_jax.models.vae import VAEConfig

FILE = pathlib.Path(__file__).with_suffix(".npz")

DEEP = VAEConfig((8, 16, 16), latent_channels=4, norm_num_groups=4, dtype="float32")
SMALL = dataclasses.replace(DEEP, block_out_channels=(8, 16), layers_per_block=1)
QUANTISED = dataclasses.replace(SMALL, use_quant_conv=True, use_post_quant_conv=True)
# A channel a group, so that a faint image's variance is as small as a norm's epsilon.
FAINT = dataclasses.replace(SMALL, block_out_channels=(8, 8), norm_num_groups=8)
# The autoencoder, the shape of the images, and the size of images and first biases.
PICTURES = {
    "deep": (DEEP, (2, 24, 40, 3), 1),
    "quantised": (QUANTISED, (1, 20, 12, 3), 1),
    "faint": (FAINT, (1, 16, 16, 3), 1e-3),
    "tiled": (dataclasses.replace(SMALL, tile=16), (1, 28, 20, 3), 1),
}
SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler"}
DYNAMIC = SCHEDULER | {"use_dynamic_shifting": True}
SCHEDULERS = {
    "defaults": SCHEDULER,
    "static": SCHEDULER | {"shift": 3.0, "num_train_timesteps": 1000},
    "static, ends": SCHEDULER | {"shift": 3.0, "shift_terminal": 0.02},
    "dynamic": DYNAMIC | {"shift": 3.0, "_diffusers_version": "0.30.3"},
    "dynamic, ends": DYNAMIC | {"shift_terminal": 0.02, "base_shift": 0.7, "max_shift": 0.9},
    "dynamic, lengths": DYNAMIC | {"base_image_seq_len": 1024, "max_image_seq_len": 2048},
    "dynamic, linear": DYNAMIC | {"time_shift_type": "linear"},
    "dynamic, karras": DYNAMIC | {"use_karras_sigmas": True, "use_beta_sigmas": False},
    "static, exponential": SCHEDULER | {"shift": 2.0, "use_exponential_sigmas": True},
}
SAMPLED = ((4, 100), (20, 256), (50, 6000))  # steps and target tokens
TEXT = T5Config(width=24, depth=2, heads=3, head_width=8, hidden=40, dtype="float32")
VOCABULARY = 50
XL = T5Config(depth=1, dtype="float32")


def images_of(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Images to encode and, apart from them, latents to decode."""
    config, (b, h, w, c), size = PICTURES[case]
    rng = np.random.default_rng(1)
    images = rng.uniform(-1, 1, (b, h, w, c))
    latents = rng.standard_normal(
        (b, h // config.factor, w // config.factor, config.latent_channels)
    )
    return np.float32(size * images), np.float32(size * latents)


def prompts() -> tuple[np.ndarray, np.ndarray]:
    """Token ids, and which of them count."""
    rng = np.random.default_rng(1)
    ids = rng.integers(0, VOCABULARY, (2, 40))
    return ids, np.arange(40) < np.array([[40], [23]])


def vae_tensors(shapes: Mapping[str, tuple[int, ...]], size: float = 1) -> dict[str, np.ndarray]:
    """Drawn weights whose first biases are of that size."""
    scaled = ("encoder.conv_in.bias", "decoder.conv_in.bias")
    tensors = drawn_tensors(shapes)
    return tensors | {name: np.float32(size) * tensors[name] for name in scaled}


def released_vae(config: VAEConfig):
    """Diffusers' autoencoder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    settings = dataclasses.asdict(config)
    tile, _, _ = (settings.pop(name) for name in ("tile", "dtype", "use_shift_factor"))
    blocks = len(config.block_out_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        sample_size=tile or 512,
        **settings,
    )
    if tile:
        vae.enable_tiling()
    return vae


def released_t5(config: T5Config, vocabulary: int):
    """Transformers' encoder."""
    import transformers

    settings = transformers.T5Config(
        vocab_size=vocabulary,
        d_model=config.width,
        d_kv=config.head_width,
        d_ff=config.hidden,
        num_layers=config.depth,
        num_heads=config.heads,
        feed_forward_proj="gated-gelu",
    )
    return transformers.T5EncoderModel(settings)


def shapes_of(network) -> dict[str, tuple[int, ...]]:
    """Shapes of its parameters; tied copies count once."""
    return {name: tuple(weight.shape) for name, weight in network.named_parameters()}


def filled(network, tensors: Mapping[str, np.ndarray]):
    """The network with these weights, ready to run."""
    import torch

    torch.set_num_threads(1)
    for name, weight in network.named_parameters():
        weight.data.copy_(torch.from_numpy(tensors[name]))
    return network.eval().requires_grad_(False)


def autoencoded(vae, images: np.ndarray, latents: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, log-variance and decoded images by diffusers, channels last."""
    import torch

    first, last = (0, 3, 1, 2), (0, 2, 3, 1)
    posterior = vae.encode(torch.from_numpy(images).permute(first)).latent_dist
    decoded = vae.decode(torch.from_numpy(latents).permute(first)).sample
    made = dict(mean=posterior.mean, log_variance=posterior.logvar, pictures=decoded)
    return {name: tensor.permute(last).numpy() for name, tensor in made.items()}


def encoded(t5, ids: np.ndarray, mask: np.ndarray, **settings):
    """What transformers makes of prompts."""
    import torch

    return t5(torch.from_numpy(ids), torch.from_numpy(mask).long(), **settings)


def released_levels(settings: Mapping[str, Any], steps: int, tokens: int) -> np.ndarray:
    """Noise levels by diffusers' scheduler, as its pipelines ask for them."""
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(settings)
    config = scheduler.config
    mu = calculate_shift(
        tokens,
        config.base_image_seq_len,
        config.max_image_seq_len,
        config.base_shift,
        config.max_shift,
    )
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    assert np.allclose(scheduler.timesteps, 1000 * scheduler.sigmas[:-1])
    return scheduler.sigmas.numpy()


def kept() -> dict[str, np.ndarray]:
    """Everything that the file holds."""
    import torch

    made = {}
    for case, (config, _, size) in PICTURES.items():
        vae = released_vae(config)
        filled(vae, vae_tensors(shapes_of(vae), size))
        outcomes = autoencoded(vae, *images_of(case))
        made |= {f"{case}/{name}": array for name, array in outcomes.items()}
    t5 = released_t5(TEXT, VOCABULARY)
    states = encoded(filled(t5, drawn_tensors(shapes_of(t5))), *prompts()).last_hidden_state
    with torch.device("meta"):
        shapes = {
            "vae/shapes": shapes_of(released_vae(VAEConfig())),
            "t5/shapes": shapes_of(released_t5(T5Config(), 32128)),
        }
    made |= {name: np.array(json.dumps(values)) for name, values in shapes.items()}
    made |= {
        f"scheduler/{case}/{steps}/{tokens}": released_levels(settings, steps, tokens)
        for case, settings in SCHEDULERS.items()
        for steps, tokens in SAMPLED
    }
    return made | {"t5/states": states.numpy()}


if __name__ == "__main__":
    np.savez_compressed(FILE, **kept())
