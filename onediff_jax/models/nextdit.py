"""Next-DiT: the denoiser of OneDiffusion, as released.

It has 2,800,389,184 parameters at the default configuration.  A row of patches goes through `depth`
equal blocks.  Every token knows its place (view, row, column) by rotary angles, its view's noise
level and its example's prompt by a modulation, and the prompt's words by attention.

Initial values.  The release names three (w1 and w3 Xavier uniform, w2 zero, text gates zero); the
rest follows Lumina's Next-DiT, except w2: with closed gates a zero w2 would receive no gradient,
and neither would its gate.

    attention, feed-forward   Xavier uniform      blocks' modulation   zero: a block is identity
    patch embedding           Xavier, bias zero   text gates           zero
    time embedding            normal(0, 0.02)     pooled text, final   zero: the prediction is 0
"""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from onediff_jax.errors import InputError
from onediff_jax.models.layers import (
    ATTENDING,
    Attention,
    Dense,
    LoraConfig,
    SwiGLU,
    gathering,
    layer_norm,
    of_tiles,
    rms_norm,
    spread,
    time_features,
    unchanged,
    zeros,
)
from onediff_jax.models.norms import STATISTICS
from onediff_jax.ops import rope
from onediff_jax.ops.attention import NAMES
from onediff_jax.ops.attention.backend import Case
from onediff_jax.ops.attention.reference import ATTENDED, LOG_TOTAL
from onediff_jax.ops.dims import (
    ExampleOfView,
    Patches,
    Positions,
    Sigmas,
    TextMask,
    TextStates,
    TokenMask,
)
from onediff_jax.ops.layout import Layout
from onediff_jax.settings import FLOATS, Section, setting
from onediff_jax.sharding import SUMMED, Parallel

TIME_SCALE = 1000.0  # the network is fed 1000 sigma
policies = jax.checkpoint_policies
_KEPT = (ATTENDED, LOG_TOTAL, STATISTICS, SUMMED)
# What a block keeps for its backward pass, by name; the rest is recomputed.
REMAT = {
    "none": None,  # everything
    "dots": policies.save_from_both_policies(  # matmuls and sums over devices, no logits
        policies.dots_with_no_batch_dims_saveable, policies.save_only_these_names(*_KEPT)
    ),
    "attention": policies.save_only_these_names(ATTENDING, *_KEPT),  # its in and outputs
    "offload": policies.save_and_offload_only_these_names(  # what `attention` keeps, on the host
        names_which_can_be_saved=[SUMMED, LOG_TOTAL, STATISTICS],
        names_which_can_be_offloaded=[ATTENDING, ATTENDED],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "attended": policies.save_only_these_names(*_KEPT),  # its results alone
    "full": policies.nothing_saveable,
}


@dataclasses.dataclass(frozen=True)
class NextDiTConfig(Section):
    """Shape of the denoiser; the defaults are the released one."""

    width: int = setting(3840, "channels of a token", binds="weights", least=1)
    depth: int = setting(16, "blocks", binds="weights", least=1)
    heads: int = setting(32, "query heads", binds="weights", least=1)
    kv_heads: int = setting(
        8, "key heads, each shared by heads / kv_heads query heads", binds="weights", least=1
    )
    channels: int = setting(16, "channels of a latent", binds="weights", least=1)
    patch: int = setting(2, "latents along each side of a token", binds="weights", least=1)
    multiple_of: int = setting(
        256,
        "the feed-forward width, 8/3 of the width, is rounded up to a multiple of it",
        binds="weights",
        least=1,
    )
    norm_eps: float = setting(1e-5, "epsilon of the norms", binds="weights", least=0)
    softcap: float | None = setting(
        30.0,
        "soft cap of self-attention's logits; None: no cap, as the released float32 path",
        binds="weights",
        above=0,
    )
    attention: str = setting(
        "auto", "implementation of attention; auto: by the device", choices=NAMES
    )
    dtype: str = setting("bfloat16", "of activations; parameters are float32", choices=FLOATS)
    unroll: int = setting(
        1,
        "blocks in an iteration of the scan; depth is best on a CPU, where its copies cost most",
        least=1,
    )
    lora: LoraConfig = LoraConfig()

    def __post_init__(self):
        super().__post_init__()
        if self.width % self.heads or self.width // self.heads % 6:
            step = 6 * self.heads
            below, above = self.width // step * step, (self.width // step + 1) * step
            raise InputError(
                f"model.width is {self.width}, which {self.heads} heads (model.heads) do not cut "
                "into heads of a "
                f"multiple of 6, as rotary positions over 3 axes need; use {below or above} or "
                f"{above}."
            )
        if self.heads % self.kv_heads:
            raise InputError(
                f"model.kv_heads is {self.kv_heads}, which does not divide model.heads, "
                f"{self.heads}; "
                f"use one of {[n for n in range(1, self.heads + 1) if self.heads % n == 0]}."
            )

    @property
    def features(self) -> int:
        """Of a patch."""
        return self.channels * self.patch**2

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward layers."""
        return -(-int(2 * 4 * self.width / 3) // self.multiple_of) * self.multiple_of

    @property
    def condition(self) -> int:
        """Width of the time and pooled text embedding."""
        return min(self.width, 1024)

    def attention_cases(self, layout: Layout, length: int) -> tuple[Case, Case]:
        """What attention is asked for within the largest slot of a row, and over its prompts of so
        many tokens each."""
        slot = max(layout.slots, key=lambda slot: slot.views * slot.tokens)
        tokens, head = slot.views * slot.tokens, self.width // self.heads
        own = Case(head, tokens, tokens, self.softcap, jnp.dtype(self.dtype))
        return own, own._replace(keys=slot.examples * length, softcap=None)


class Block(nn.Module):
    """Attention, then feed-forward, each between two norms.

    The modulation scales before each of them and gates after it.  Tokens come in tiles of one view,
    so that its factors are broadcast where they are used and are never as large as the tokens.
    """

    config: NextDiTConfig
    parallel: Parallel = Parallel()

    @nn.compact
    def __call__(self, x: Float[Array, "b t tile d"], text, turn, segments, condition, layout):
        """The row after the block, and None for `nn.scan`, which would stack it."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)

        def norm(y, name, axis="embed"):
            return rms_norm(config.norm_eps, axis, name)(y)

        with jax.named_scope("modulation"):
            adaln = Dense(4 * config.width, ("condition", "embed4"), True, zeros, name="adaln")
            modulation = of_tiles(adaln(nn.silu(condition)), layout)[:, :, None]
            scale1, gate1, scale2, gate2 = jnp.split(modulation, 4, -1)
        with jax.named_scope("attention"):
            attention = Attention(
                config.heads,
                config.kv_heads,
                config.softcap,
                config.attention,
                dtype,
                config.lora,
                self.parallel,
                name="attention",
            )
            text = norm(text, "attention_y_norm", "text")
            y = row_of(norm(x, "attention_norm1") * (1 + scale1))
            y = attention(y, text, turn, segments, layout).reshape(x.shape)
            x = x + (jnp.tanh(gate1) * norm(y, "attention_norm2")).astype(dtype)
        with jax.named_scope("feed_forward"):
            mlp = SwiGLU(config.hidden, dtype, config.lora, self.parallel, name="feed_forward")
            y = mlp(row_of(norm(x, "ffn_norm1") * (1 + scale2))).reshape(x.shape)
            x = x + (jnp.tanh(gate2) * norm(y, "ffn_norm2")).astype(dtype)
        return x, None


class NextDiT(nn.Module):
    """The denoiser.

    `gather` is applied to a block's parameters on entry, inside the rematerialised scan: the one
    place where sharded parameters are brought together.  `parallel` says what devices share of a
    block's own work.
    """

    config: NextDiTConfig
    remat: str = "none"
    gather: Callable = unchanged
    parallel: Parallel = Parallel()

    @nn.compact
    def __call__(
        self,
        patches: Patches,
        sigmas: Sigmas,
        positions: Positions,
        example_of_view: ExampleOfView,
        token_mask: TokenMask,
        text: TextStates,
        text_mask: TextMask,
        layout: Layout,
        scale_factor: float = 1.0,
        scale_watershed: float = 1.0,
    ) -> Patches:
        """Velocity eps - x of every patch, float32.

        The last two reach beyond trained positions: with a `scale_factor` above 1, rotary
        frequencies are interpolated while the highest time (1000 sigma) is below `scale_watershed`,
        and theta grows above it.
        """
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        times = TIME_SCALE * sigmas
        with jax.named_scope("embed"):
            embed = Dense(config.width, ("patch", "embed"), True, dtype=dtype, name="x_embedder")
            x = embed(patches)
            condition = self.time_condition(times) + self.text_condition(
                text, text_mask, example_of_view
            )
            interpolates = times.max() < scale_watershed
            turn = rope.angles(positions, config.width // config.heads, scale_factor, interpolates)
            turn = jnp.swapaxes(turn, 1, 2)
        segments = segments_of(example_of_view, token_mask, text_mask, layout)
        x = x.reshape(x.shape[0], -1, layout.tile, x.shape[-1])
        x, _ = self.blocks()(x, text.astype(dtype), turn, segments, condition, layout)
        with jax.named_scope("final"):
            adaln = Dense(config.width, ("condition", "embed"), True, zeros, name="final_adaln")
            x = layer_norm(1e-6, "embed", "final_norm", affine=False)(x)
            x = x * (1 + of_tiles(adaln(nn.silu(condition)), layout)[:, :, None])
            final = Dense(
                config.features, ("embed", "patch"), True, zeros, dtype=dtype, name="final_linear"
            )
            return final(row_of(x)).astype(jnp.float32)

    def blocks(self) -> nn.Module:
        """The stack: one block, gathered, rematerialised as `remat` says, scanned over depth."""
        block = gathering(Block, self.gather, self.is_initializing())
        if self.remat != "none":
            block = nn.remat(
                block, prevent_cse=False, policy=REMAT[self.remat], static_argnums=(6,)
            )
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.config.depth,
            unroll=self.config.unroll,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(self.config, self.parallel, name="layers")

    def time_condition(self, times: Float[Array, "b v"]) -> Float[Array, "b v condition"]:
        """Embedding of every view's time."""
        width, small = self.config.condition, nn.initializers.normal(0.02)
        mlp_0 = Dense(width, ("frequency", "condition"), True, small, name="t_embedder_0")
        mlp_2 = Dense(width, ("frequency", "condition"), True, small, name="t_embedder_2")
        return mlp_2(nn.silu(mlp_0(time_features(times, 256))))

    def text_condition(self, text, text_mask, example_of_view) -> Float[Array, "b v condition"]:
        """Embedding of every view's prompt: the mean of its valid states."""
        valid = text_mask.astype(jnp.float32)[..., None]
        mean = (text.astype(jnp.float32) * valid).sum(2) / jnp.maximum(valid.sum(2), 1)
        normed = layer_norm(1e-6, "text", "y_embedder_norm")(mean)
        pooled = Dense(
            self.config.condition, ("text", "condition"), True, zeros, name="y_embedder"
        )(normed)
        place = jnp.maximum(example_of_view, 0)[..., None]  # an empty range may read any prompt
        return jnp.take_along_axis(pooled, place, axis=1)


def row_of(tiles: Float[Array, "b t tile d"]) -> Float[Array, "b n d"]:
    """Tokens one after the other, of all tiles."""
    return tiles.reshape(tiles.shape[0], -1, tiles.shape[-1])


def segments_of(example_of_view, token_mask, text_mask, layout):
    """The example of every query, key and text token; -1 is padding among keys and text tokens."""
    of_query = spread(example_of_view, layout)
    of_key = jnp.where(token_mask, of_query, -1)
    of_text = jnp.where(text_mask, jnp.arange(text_mask.shape[1])[:, None], -1)
    return of_query, of_key, of_text
