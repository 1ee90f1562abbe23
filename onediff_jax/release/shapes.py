"""Shapes and types of the released networks' parameters, as `from_released` asks for them."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import DTypeLike

from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.models.t5 import T5Config, T5Encoder
from onediff_jax.models.vae import AutoencoderKL, VAEConfig


def denoiser_shapes(
    config: NextDiTConfig, text_width: int, dtype: DTypeLike = jnp.float32
) -> dict[str, Any]:
    """Of a denoiser that reads text states of a width."""
    text = T5Encoder(T5Config(width=text_width, depth=1), 1)
    return dtyped_shapes(Networks(NextDiT(config), text).init, dtype)["denoiser"]


def autoencoder_shapes(config: VAEConfig, dtype: DTypeLike = jnp.float32) -> dict[str, Any]:
    """Of an autoencoder."""
    return dtyped_shapes(AutoencoderKL(config).init, dtype)


def encoder_shapes(
    config: T5Config, vocabulary: int, dtype: DTypeLike = jnp.float32
) -> dict[str, Any]:
    """Of a text encoder with a vocabulary of so many pieces."""
    ids = jnp.zeros((1, 1), int)
    encoder = T5Encoder(config, vocabulary)
    return dtyped_shapes(lambda key: encoder.init(key, ids, ids > 0)["params"], dtype)


def dtyped_shapes(init: Any, dtype: DTypeLike) -> dict[str, Any]:
    """Of what a function of a key initialises, unboxed."""
    found = nn.meta.unbox(jax.eval_shape(init, jax.random.key(0)))
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), found)
