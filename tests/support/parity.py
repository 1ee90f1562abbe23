"""One Next-DiT twice: this project's, in JAX, and the PyTorch module of tools/released.

Both have the same drawn weights and inputs, in the released frame.  Only what is the module's needs
torch.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from drawn import drawn_tensors, relative_error
from einops import rearrange

from onediff_jax.data.batching.rows import Batch
from onediff_jax.data.codecs import LinearCodec
from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.ops import flow
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.ops.patches import patchify, unpatchify
from onediff_jax.release.mapping import from_released, released, released_shapes
from onediff_jax.release.names import nextdit_names
from onediff_jax.sampling import generate
from onediff_jax.train.step import losses

SMALL = NextDiTConfig(
    width=96, depth=2, heads=8, kv_heads=2, channels=4, multiple_of=32, dtype="float32"
)
UNCAPPED = dataclasses.replace(SMALL, softcap=None)
TEXT_WIDTH, WORDS = 20, 7
GUIDANCE, SEED = 4.0, 5  # of trajectories
CODEC = LinearCodec(  # blocks of 2 x 2 pixels, 4 channels
    *(np.random.default_rng(0).standard_normal(s, np.float32) for s in ((12,), (12, 4), (4, 12)))
)

FORWARD, GRADIENT, SAMPLED = 2e-5, 1e-4, 1e-3  # relative errors that are rounding


class Inputs(NamedTuple):
    """What both networks are given: examples of equally many views."""

    latents: np.ndarray  # (B, F, C, H, W)
    sigmas: np.ndarray  # (B, F)
    states: np.ndarray  # (B, L, D)
    mask: np.ndarray  # (B, L)


class Trajectory(NamedTuple):
    """What is sampled: two requests of a task, some of whose views are given."""

    task: str
    views: int
    given: tuple[str, ...]
    steps: int = 20


class SampleRequest(NamedTuple):
    """What a trajectory starts from, in the released frame."""

    noise: np.ndarray  # (B, F, C, H, W)
    given: dict[int, np.ndarray]  # latents (B, C, H, W), by number of view
    pictures: np.ndarray  # (B, given, 2 H, 2 W, 3): what these show
    prompts: tuple[np.ndarray, np.ndarray]  # states (B, L, D) and mask (B, L)
    empty: tuple[np.ndarray, np.ndarray]


# --- weights and inputs ---------------------------------------------------------------------------


def drawn_inputs(
    shape: Sequence[int], channels: int = 4, width: int = TEXT_WIDTH, seed: int = 1
) -> Inputs:
    """Inputs of shape (examples, views, height, width), with prompts of unequal length.

    Every view has a noise level of its own; the first is noise and the last is clean.
    """
    (b, f, h, w), rng = shape, np.random.default_rng(seed)
    latents = rng.standard_normal((b, f, channels, h, w), np.float32)
    sigmas = rng.uniform(0.01, 1, (b, f)).astype(np.float32)
    sigmas[0, 0], sigmas[-1, -1] = 1, 0
    states = rng.standard_normal((b, WORDS, width), np.float32)
    lengths = WORDS - 3 * np.arange(b)[:, None] % 5  # 7, 4, 6
    return Inputs(latents, sigmas, states, np.arange(WORDS) < lengths)


def shapes_of(config: NextDiTConfig, width: int = TEXT_WIDTH):
    """Shapes of our parameters."""
    row, layout = row_of(config, drawn_inputs((1, 1, 8, 8), config.channels, width))
    init = functools.partial(NextDiT(config).init, layout=layout)
    return nn.meta.unbox(jax.eval_shape(init, jax.random.key(0), **row))["params"]


def tensors_of(config: NextDiTConfig, width: int = TEXT_WIDTH) -> dict[str, np.ndarray]:
    """Drawn weights under released names."""
    return drawn_tensors(released_shapes(shapes_of(config, width), nextdit_names(config)))


# --- ours -----------------------------------------------------------------------------------------


def params_of(config: NextDiTConfig, tensors):
    """Released tensors as our parameters."""
    width = len(tensors["y_embedder.0.weight"])
    return from_released(tensors, nextdit_names(config), shapes_of(config, width))


def row_of(config: NextDiTConfig, inputs: Inputs) -> tuple[dict, Layout]:
    """An example a row."""
    b, f, _, h, w = inputs.latents.shape
    grid = (f, h // config.patch, w // config.patch)
    positions = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1).reshape(-1, 3)
    row = dict(
        patches=patches_of(config, inputs.latents),
        sigmas=inputs.sigmas,
        positions=np.repeat(positions[None].astype(np.int32), b, 0),
        example_of_view=np.zeros((b, f), np.int32),
        token_mask=np.ones((b, len(positions)), bool),
        text=inputs.states[:, None],
        text_mask=inputs.mask[:, None],
    )
    return jax.tree.map(jnp.asarray, row), Layout((Slot(f, grid[1] * grid[2]),))


def patches_of(config: NextDiTConfig, latents: np.ndarray) -> np.ndarray:
    """Rows of patches (B, N, P) of latents (B, F, C, H, W)."""
    patches = patchify(rearrange(latents, "b f c h w -> b f h w c"), config.patch)
    return rearrange(patches, "b f n p -> b (f n) p")


def latents_of(config: NextDiTConfig, patches, shape: Sequence[int]) -> np.ndarray:
    """Latents of that shape: the inverse of `patches_of`."""
    patches = rearrange(np.asarray(patches), "b (f n) p -> b f n p", f=shape[1])
    latents = unpatchify(patches, shape[3] // config.patch, config.patch)
    return rearrange(latents, "b f h w c -> b f c h w")


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def applied(config, params, row, layout, scaling=()):
    """Our network, compiled once for equal shapes."""
    return NextDiT(config).apply({"params": params}, **row, layout=layout, **dict(scaling))


def velocity(config: NextDiTConfig, tensors, inputs: Inputs, **scaling: float) -> np.ndarray:
    """Our velocity (B, F, C, H, W)."""
    row, layout = row_of(config, inputs)
    patches = applied(config, params_of(config, tensors), row, layout, tuple(scaling.items()))
    return latents_of(config, patches, inputs.latents.shape)


class Told(Networks):
    """A denoiser that reads its text from a table of states, in which ids are places."""

    def states(self, params, ids, mask):
        """States (b, e, l, c) of ids (b, e, l)."""
        return params["text"][ids]


def drawn_flow(config: NextDiTConfig, inputs: Inputs) -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """The key of the loss, and what is drawn from it: noise levels (B, F), noise as latents."""
    row, layout = row_of(config, inputs)
    key, rows = jax.random.key(3), jnp.arange(len(inputs.latents))
    sigmas, noise = flow.draw(key, rows, layout, config.features, flow.FlowConfig())
    return key, np.asarray(sigmas), latents_of(config, noise, inputs.latents.shape)


def gradients(config: NextDiTConfig, tensors, inputs: Inputs) -> dict[str, np.ndarray]:
    """Our gradients of the training loss by all parameters, released, and by the text's states."""
    row, layout = row_of(config, inputs)
    b, words = inputs.mask.shape
    none, patches = jnp.zeros((b, 1), int), row.pop("patches")
    batch = Batch(
        latents=patches,
        deviations=patches[..., :0],
        pixels=jnp.zeros((*patches.shape[:2], 0), jnp.uint8),
        encoded=jnp.ones(row["example_of_view"].shape, bool),
        text=jnp.arange(b * words).reshape(b, 1, words),
        task=none,
        source=none,
        bad_records=none,
        **{name: array for name, array in row.items() if name not in ("sigmas", "text")},
    )
    key, _, _ = drawn_flow(config, inputs)
    table = inputs.states.reshape(b * words, -1)
    params = {"denoiser": params_of(config, tensors), "text": jnp.asarray(table)}

    def loss(params, batch):
        told = Told(NextDiT(config), None)
        errors, _ = losses(told, params, batch, jnp.arange(b), key, layout, flow.FlowConfig())
        weights = flow.token_weights(batch.token_mask, batch.example_of_view, layout, "token")
        return (errors * weights).sum() / weights.sum()

    found = jax.jit(jax.grad(loss))(params, batch)
    of_states = np.asarray(found["text"]).reshape(inputs.states.shape)
    return released(found["denoiser"], nextdit_names(config)) | {"states": of_states}


def asked_of(config: NextDiTConfig, wanted: Trajectory) -> SampleRequest:
    """Two requests that differ in everything, and the noise that `generate` draws for them."""
    (h, w), rng = (6, 8), np.random.default_rng(2)
    tokens = wanted.views * h * w // config.patch**2
    noise = [
        jax.random.normal(jax.random.fold_in(jax.random.key(SEED), i), (tokens, config.features))
        for i in range(2)
    ]
    images = rng.integers(0, 256, (2, len(wanted.given), 2 * h, 2 * w, 3), np.uint8)
    names = generate.names_of(wanted.task, wanted.views)
    given = {
        names.index(name): np.stack([channels_first(CODEC.encode(x)) for x in images[:, i]])
        for i, name in enumerate(wanted.given)
    }
    states = rng.standard_normal((3, WORDS, TEXT_WIDTH), np.float32)
    mask = np.arange(WORDS) < np.array([[WORDS], [4], [2]])
    noise = latents_of(config, np.stack(noise), (2, wanted.views, config.channels, h, w))
    texts = (states[:2], mask[:2]), (states[[2, 2]], mask[[2, 2]])
    return SampleRequest(noise, given, images, *texts)


def sampled(
    config: NextDiTConfig, tensors, wanted: Trajectory, asked: SampleRequest, **scaling: float
) -> np.ndarray:
    """The latents (B, w, C, H, W) of the views that `generate` makes."""
    table, mask = (np.append(a, b[:1], 0) for a, b in zip(asked.prompts, asked.empty, strict=True))
    prompts = ("first", "second", "")

    def tokenizer(prompt):
        place = prompts.index(prompt)
        return place * WORDS + np.arange(WORDS), mask[place]

    made, (*_, h, w) = [], asked.noise.shape

    def view_of(trained, name, latents):
        made.append(channels_first(latents))
        return np.zeros((2 * h, 2 * w, 3), np.uint8)

    states = jnp.asarray(table.reshape(-1, TEXT_WIDTH))
    params = {"denoiser": params_of(config, tensors), "text": states}
    trained = generate.TrainedModel(Told(NextDiT(config), None), params, CODEC, tokenizer)
    requests = [
        generate.Request(prompt, dict(zip(wanted.given, given, strict=True)))
        for prompt, given in zip(prompts, asked.pictures, strict=False)
    ]
    settings = generate.SampleConfig(steps=wanted.steps, guidance=GUIDANCE, **scaling)
    with mock.patch.object(generate, "view_of", view_of):  # latents, before they are images
        generate.generate(
            trained, wanted.task, wanted.views, requests, (2 * h, 2 * w), settings, SEED
        )
    return np.stack(made).reshape(2, -1, config.channels, h, w)


def channels_first(latents: np.ndarray) -> np.ndarray:
    """Latents (C, H, W) of (H, W, C)."""
    return rearrange(latents, "h w c -> c h w")


# --- the module's ---------------------------------------------------------------------------------


def module_of(config: NextDiTConfig, tensors):
    """The PyTorch module with these weights, float32."""
    from released import RELEASED, modeling, torch

    torch.set_num_threads(1)
    settings = dict(
        hidden_size=config.width,
        depth=config.depth,
        num_heads=config.heads,
        num_kv_heads=config.kv_heads,
        caption_channels=len(tensors["y_embedder.0.weight"]),
        in_channels=config.channels,
        patch_size=(1, config.patch, config.patch),
        multiple_of=config.multiple_of,
        softcap=config.softcap,
    )
    with torch.device("meta"):
        module = modeling.NextDiT(**RELEASED | settings)
    weights = {name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}
    module.load_state_dict(weights, assign=True)
    return module


def module_velocity(module, inputs: Inputs, **scaling: float) -> np.ndarray:
    """The module's velocity (B, F, C, H, W)."""
    from released import torch

    latents, sigmas, states, mask = map(torch.from_numpy, inputs)
    with torch.no_grad():
        return module(latents, 1000 * sigmas, states, mask, **scaling).numpy()


def module_gradients(module, inputs: Inputs, sigmas, noise) -> dict[str, np.ndarray]:
    """The module's gradients of the mean squared error of velocity, over all views."""
    from released import torch

    clean, _, states, mask = map(torch.from_numpy, inputs)
    noise, sigmas = torch.tensor(noise), torch.tensor(sigmas)
    part = sigmas[:, :, None, None, None]
    states.requires_grad_()
    predicted = module((1 - part) * clean + part * noise, 1000 * sigmas, states, mask)
    weights = {**dict(module.named_parameters()), "states": states}
    found = torch.autograd.grad((predicted - (noise - clean)).square().mean(), weights.values())
    return {name: grad.numpy() for name, grad in zip(weights, found, strict=True)}


def module_sampled(module, asked: SampleRequest, steps: int, **scaling: float) -> np.ndarray:
    """The latents (B, w, C, H, W) of the views that the module's sampler makes."""
    from released import modeling, torch

    prompts, empty = (tuple(map(torch.from_numpy, text)) for text in (asked.prompts, asked.empty))
    given = {view: torch.from_numpy(latents.copy()) for view, latents in asked.given.items()}
    noise = torch.from_numpy(asked.noise)
    views = modeling.sample(
        module, noise, prompts, empty, given, steps=steps, guidance=GUIDANCE, **scaling
    )
    return np.delete(views.numpy(), list(given), 1)


def worst(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest relative error of any tensor.

    No loss depends on the bias of text keys, since softmax does not see what all scores share: its
    gradient is rounding, to be found on both sides.
    """
    assert found.keys() == expected.keys()
    silent = {name for name in found if "ky_norm.bias" in name}
    assert all(np.abs([found[n], expected[n]]).max() < 1e-6 for n in silent)
    return max(relative_error(found[name], expected[name]) for name in found.keys() - silent)
