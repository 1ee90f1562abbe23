"""The autoencoder of the release: diffusers' AutoencoderKL in the shape of Stable Diffusion 3.

An image becomes latents of 16 channels, an eighth as high and wide.  It has 83,819,683 parameters
at the default configuration and is never trained here.  Float32 islands: norms, softmax, and what
comes back.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Float

from onediff_jax.errors import InputError
from onediff_jax.models.layers import Dense, zeros
from onediff_jax.ops import attention
from onediff_jax.ops.tiles import tiled

OVERLAP = 4  # neighbouring tiles share one of so many parts of a side


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Shape of the autoencoder, by diffusers' names; the defaults are Stable Diffusion 3's."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_num_groups: int = 32
    scaling_factor: float = 1.5305
    shift_factor: float = 0.0609
    use_shift_factor: bool = False  # the released pipeline ignores it, and so its weights do
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    tile: int | None = None  # pixels along a side of a tile, 512 in diffusers; None: never cut
    dtype: str = "bfloat16"  # of activations; parameters are float32

    def __post_init__(self):
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise InputError(
                f"block_out_channels is {self.block_out_channels}, not all multiples of "
                f"norm_num_groups, {self.norm_num_groups}; both are in the weights' config.json."
            )
        unit = OVERLAP * self.factor
        if self.tile is not None and (self.tile < unit or self.tile % unit):
            raise InputError(f"tile is {self.tile}; use a multiple of {unit}, or None.")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype is {self.dtype!r}; it can be float32 or bfloat16.")

    @property
    def factor(self) -> int:
        """Pixels along each side of a latent."""
        return 2 ** (len(self.block_out_channels) - 1)


class Posterior(NamedTuple):
    """A normal distribution of every latent, before normalisation; float32."""

    mean: Float[Array, "*batch H W c"]
    log_variance: Float[Array, "*batch H W c"]

    def sample(self, key: Array) -> Float[Array, "*batch H W c"]:
        """Latents drawn from it."""
        noise = jax.random.normal(key, self.mean.shape)
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise


def group_norm(config: VAEConfig, name: str) -> nn.GroupNorm:
    """Normalisation of groups of channels over the whole image, float32 in and out."""
    ones = nn.initializers.ones_init()
    return nn.GroupNorm(
        num_groups=config.norm_num_groups,
        epsilon=1e-6,
        dtype=jnp.float32,
        use_fast_variance=False,
        scale_init=nn.with_logical_partitioning(ones, ("channels",)),
        bias_init=nn.with_logical_partitioning(zeros, ("channels",)),
        name=name,
    )


def convolution(
    config: VAEConfig, channels: int, name: str, size: int = 3, stride: int = 1
) -> nn.Conv:
    """A convolution to so many channels; a stride of 2 pads at the end only, as diffusers does."""
    kernel_init, axes = nn.initializers.lecun_normal(), (None, None, "channels_in", "channels")
    padding = (0, 1) if stride == 2 else (size // 2, size // 2)
    return nn.Conv(
        channels,
        (size, size),
        stride,
        (padding, padding),
        dtype=jnp.dtype(config.dtype),
        kernel_init=nn.with_logical_partitioning(kernel_init, axes),
        bias_init=nn.with_logical_partitioning(zeros, ("channels",)),
        name=name,
    )


class Resnet(nn.Module):
    """Two convolutions, each after norm and SiLU, around a residual."""

    config: VAEConfig
    channels: int

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        """The image of `channels` channels."""
        config, y = self.config, x
        for i in (1, 2):
            y = nn.silu(group_norm(config, f"norm{i}")(y))
            y = convolution(config, self.channels, f"conv{i}")(y)
        if x.shape[-1] != self.channels:
            x = convolution(config, self.channels, "shortcut", size=1)(x)
        return x + y


class MidAttention(nn.Module):
    """Attention of all pixels over all, with one head, after a norm and around a residual."""

    config: VAEConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The image after attention."""
        dtype, (b, h, w, c) = jnp.dtype(self.config.dtype), x.shape

        def dense(name):
            return Dense(c, ("channels_in", "channels"), True, dtype=dtype, name=name)

        y = rearrange(group_norm(self.config, "norm")(x), "b h w c -> b (h w) 1 c")
        q, k, v = (dense(name)(y) for name in "qkv")
        together = jnp.zeros((b, h * w), int)
        y = attention.attend(q, k, v, together, together)
        return x + rearrange(dense("o")(y), "b (h w) 1 c -> b h w c", h=h)


def middle(config: VAEConfig, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The narrowest part of either side."""
    x = Resnet(config, x.shape[-1], name="mid_resnet_0")(x)
    x = MidAttention(config, name="mid_attention")(x)
    return Resnet(config, x.shape[-1], name="mid_resnet_1")(x)


class Encoder(nn.Module):
    """Images to the parameters of their latents' distribution."""

    config: VAEConfig

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b H W moments"]:
        """Means, then log-variances, float32."""
        config, widths = self.config, self.config.block_out_channels
        x = convolution(config, widths[0], "conv_in")(images)
        for i, width in enumerate(widths):
            for j in range(config.layers_per_block):
                x = Resnet(config, width, name=f"down_{i}_resnet_{j}")(x)
            if i < len(widths) - 1:
                x = convolution(config, width, f"down_{i}_conv", stride=2)(x)
        x = nn.silu(group_norm(config, "norm_out")(middle(config, x)))
        x = convolution(config, 2 * config.latent_channels, "conv_out")(x)
        if config.use_quant_conv:
            x = convolution(config, 2 * config.latent_channels, "quant_conv", size=1)(x)
        return x.astype(jnp.float32)


class Decoder(nn.Module):
    """Latents to images."""

    config: VAEConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "b H W c"]) -> Float[Array, "b h w 3"]:
        """Images near [-1, 1], float32; nothing is clipped."""
        config, widths, x = self.config, self.config.block_out_channels[::-1], latents
        if config.use_post_quant_conv:
            x = convolution(config, config.latent_channels, "post_quant_conv", size=1)(x)
        x = middle(config, convolution(config, widths[0], "conv_in")(x))
        for i, width in enumerate(widths):
            for j in range(config.layers_per_block + 1):
                x = Resnet(config, width, name=f"up_{i}_resnet_{j}")(x)
            if i < len(widths) - 1:
                x = repeat(x, "b h w c -> b (h 2) (w 2) c")
                x = convolution(config, width, f"up_{i}_conv")(x)
        x = nn.silu(group_norm(config, "norm_out")(x))
        return convolution(config, 3, "conv_out")(x).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class AutoencoderKL:
    """The codec between images and latents; `params` is {"encoder": ..., "decoder": ...}."""

    config: VAEConfig

    @property
    def factor(self) -> int:
        """Pixels along each side of a latent."""
        return self.config.factor

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.config.latent_channels

    def init(self, key: Array) -> Any:
        """Fresh parameters, boxed with their axis names."""
        for_encoder, for_decoder = jax.random.split(key)
        image = jnp.zeros((1, self.factor, self.factor, 3))
        latents = jnp.zeros((1, 1, 1, self.channels))
        return {
            "encoder": Encoder(self.config).init(for_encoder, image)["params"],
            "decoder": Decoder(self.config).init(for_decoder, latents)["params"],
        }

    def encode(self, params: Any, images: Float[Array, "*batch h w 3"]) -> Posterior:
        """The distribution of the latents of images in [-1, 1], before normalisation.

        Raises InputError where the factor does not divide the sides.
        """
        *batch, height, width, _ = images.shape
        if height % self.factor or width % self.factor:
            raise InputError(
                f"An image of {height} x {width} does not cut into latents of {self.factor} x "
                f"{self.factor} pixels."
            )
        moments = self._in_tiles(Encoder(self.config), params["encoder"], images, 1)
        mean, log_variance = jnp.split(moments, 2, -1)
        return Posterior(mean, jnp.clip(log_variance, -30, 20))

    def decode(
        self, params: Any, latents: Float[Array, "*batch H W c"]
    ) -> Float[Array, "*batch h w 3"]:
        """Images near [-1, 1] of latents before normalisation: nearly the inverse of `encode`."""
        return self._in_tiles(Decoder(self.config), params["decoder"], latents, self.factor)

    def normalised(self, latents: Float[Any, "*batch H W c"]) -> Float[Any, "*batch H W c"]:
        """Latents of variance near 1, as the denoiser sees them."""
        return (latents - self._shift) * self.config.scaling_factor

    def unnormalised(self, latents: Float[Any, "*batch H W c"]) -> Float[Any, "*batch H W c"]:
        """Latents as the decoder sees them: the inverse of `normalised`."""
        return latents / self.config.scaling_factor + self._shift

    def normalised_moments(
        self, posterior: Posterior
    ) -> tuple[Float[Array, "*batch H W c"], Float[Array, "*batch H W c"]]:
        """Mean and std of the normalised latents of a posterior before normalisation."""
        std = jnp.exp(0.5 * posterior.log_variance)
        return self.normalised(posterior.mean), self.config.scaling_factor * std

    @property
    def _shift(self) -> float:
        return self.config.shift_factor if self.config.use_shift_factor else 0.0

    def _in_tiles(self, network: nn.Module, params: Any, x: Array, pixels: int) -> Array:
        """A network's output for `x`, in tiles; an element of `x` is `pixels` x `pixels` pixels."""
        *batch, height, width, channels = x.shape
        tile = self.config.tile // pixels if self.config.tile else max(height, width)
        flat = x.reshape(-1, height, width, channels)
        made = tiled(
            lambda piece: network.apply({"params": params}, piece), flat, tile, tile // OVERLAP
        )
        return made.reshape(*batch, *made.shape[1:])
