"""Samples of a trained model: target views are generated from condition views and a prompt.

A task has no direction of its own: which views are conditions decides.  Condition views stay clean;
the network is told the schedule's smallest noise level for them (as with the released weights) or
zero (as in the paper).
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from onediff_jax.data.batching.rows import grid_positions, latents_of
from onediff_jax.data.codecs import Codec, image_of
from onediff_jax.data.example import RGB, View
from onediff_jax.data.tasks.builders import is_ray
from onediff_jax.data.tasks.table import task_named
from onediff_jax.data.text import Tokenizer
from onediff_jax.errors import InputError
from onediff_jax.models.networks import Networks
from onediff_jax.models.vae import AutoencoderKL
from onediff_jax.ops import solve
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.ops.patches import patchify, unpatchify
from onediff_jax.ops.rays import rays_from_latents
from onediff_jax.settings import Section, setting
from onediff_jax.sharding import ROWS, mesh_group

Rays = Float[np.ndarray, "H W 6"]  # at the resolution of latents
GeneratedView = RGB | Rays


class TrainedModel(NamedTuple):
    """A run's networks, parameters, codec and tokenizer, ready to sample.

    Parameters that are sharded over a mesh stay sharded; each device samples its rows of a batch.
    """

    networks: Networks
    params: Any
    codec: Codec
    tokenizer: Tokenizer
    schedule: solve.Schedule = solve.Schedule()
    mesh: Mesh | None = None  # None: parameters are whole, on the default device or the host

    @property
    def edge(self) -> int:
        """Pixels along each side of a token."""
        return self.networks.denoiser.config.patch * self.codec.factor


class ImageCodec:
    """A released autoencoder and its parameters, as a codec."""

    def __init__(self, autoencoder: AutoencoderKL, params: Any, sampled: bool):
        self._autoencoder, self._params, self._sampled = autoencoder, params, sampled
        self.factor, self.channels = autoencoder.factor, autoencoder.channels

    def moments(
        self, images: UInt8[np.ndarray, "b h w 3"]
    ) -> tuple[Float[np.ndarray, "b H W c"], Float[np.ndarray, "b H W c"]]:
        """Means and stds of the images' normalised latents."""
        mean, std = encoded_moments(self._autoencoder, self._params, images)
        return everywhere(mean), everywhere(std)

    def encode(self, image: RGB) -> Float[np.ndarray, "H W c"]:
        """Normalised latents: the mean, or a draw that depends on the image alone."""
        mean, std = (moment[0] for moment in self.moments(image[None]))
        if not self._sampled:
            return mean
        rng = np.random.default_rng(zlib.crc32(image.tobytes()))
        return mean + std * rng.standard_normal(mean.shape, np.float32)

    def decode(
        self, latents: Float[np.ndarray, "*batch H W c"]
    ) -> Float[np.ndarray, "*batch h w 3"]:
        """Pixels near [-1, 1]."""
        return everywhere(decoded_pixels(self._autoencoder, self._params, latents))


def everywhere(array: Array) -> np.ndarray:
    """The whole array, gathered in every process."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


@functools.partial(jax.jit, static_argnums=0)
def encoded_moments(
    autoencoder: AutoencoderKL, params: Any, images: UInt8[Array, "b h w 3"]
) -> tuple[Float[Array, "b H W c"], Float[Array, "b H W c"]]:
    """Means and stds of the images' normalised latents."""
    return autoencoder.normalised_moments(autoencoder.encode(params, images / 127.5 - 1))


@functools.partial(jax.jit, static_argnums=0)
def decoded_pixels(
    autoencoder: AutoencoderKL, params: Any, latents: Float[Array, "*batch H W c"]
) -> Float[Array, "*batch h w 3"]:
    """Pixels near [-1, 1] of normalised latents."""
    return autoencoder.decode(params, autoencoder.unnormalised(latents))


@dataclasses.dataclass(frozen=True)
class SampleConfig(Section):
    """How samples are made."""

    steps: int = setting(50, "of the solver", least=1)
    guidance: float = setting(4.0, "1 follows the prompt as trained, 0 ignores it")
    negative: str = setting(
        "", "prompt that guidance leads away from; used unchanged, without a task token"
    )
    method: str = setting("euler", "of the solver", choices=solve.METHODS)
    shift: float | None = setting(
        None,
        "static shift of the schedule; None: the import's schedule, else a dynamic shift by the "
        "number of target tokens",
        above=0,
    )
    noise_scale: float = setting(
        1.0, "multiplies the number of target tokens in the dynamic shift", above=0
    )
    given_time: str = setting(
        "smallest",
        "noise level told for condition views: the schedule's smallest, or zero",
        choices=("smallest", "zero"),
    )
    scale_factor: float = setting(
        1.0, "of rotary positions beyond those trained: 1.1 to 1.5 for more views", above=0
    )
    scale_watershed: float = setting(
        1.0,
        "time, 1000 sigma, below which frequencies are divided by scale_factor; above, theta grows",
    )

    def __post_init__(self):
        super().__post_init__()
        if self.negative and self.guidance == 1:
            raise InputError(
                f"negative is {self.negative!r} and guidance 1, which does not read it; set "
                "guidance above 1, or leave negative out."
            )


class Request(NamedTuple):
    """One example to complete: its whole prompt, and its condition views by name."""

    prompt: str
    conditions: Mapping[str, View]


def generate(
    trained: TrainedModel,
    task: str,
    views: int,
    requests: Sequence[Request],
    size: tuple[int, int],
    config: SampleConfig,
    seed: int,
    batch: int = 32,
) -> list[dict[str, GeneratedView]]:
    """The target views of every request: images of `size` (height, width), and rays.

    All requests, of so many views, must have the same conditions.  The sample of request i depends
    on (seed, i), not on other requests.
    """
    names = names_of(task, views)
    conditions = set(requests[0].conditions)
    targets = [name for name in names if name not in conditions]
    if unknown := conditions - set(names):
        raise InputError(
            f"Task {task!r} has no view {sorted(unknown)}; its views are {', '.join(names)}."
        )
    if any(set(request.conditions) != conditions for request in requests):
        raise InputError("All requests of one call must have the same condition views.")
    if not targets:
        raise InputError(
            f"All views of task {task!r} are conditions; leave one of {', '.join(names)} out."
        )
    edge = trained.edge
    if size[0] % edge or size[1] % edge:
        raise InputError(
            f"A size of {size[0]} x {size[1]} is not a multiple of {edge} pixels, the side of a "
            "token."
        )
    copies = math.prod(trained.mesh.shape[axis] for axis in ROWS) if trained.mesh else 1
    batch = math.ceil(min(batch, len(requests)) / copies) * copies
    found = []
    for first in range(0, len(requests), batch):
        part = list(requests[first : first + batch])
        padded = part + part[-1:] * (batch - len(part))  # one shape, one program
        latents = _target_latents(trained, names, targets, padded, size, config, seed, first)
        found += [
            {name: view_of(trained, name, latents[i, j]) for j, name in enumerate(targets)}
            for i in range(len(part))
        ]
    return found


def names_of(task: str, views: int) -> tuple[str, ...]:
    """The views of an example of a task; raises where it cannot have so many."""
    builder = task_named(task).builder
    if views not in builder.counts:
        raise InputError(
            f"An example of task {task!r} cannot have {views} views; it can have "
            f"{', '.join(map(str, builder.counts))}."
        )
    return builder.names(views)


def view_of(trained: TrainedModel, name: str, latents: Float[np.ndarray, "H W c"]) -> GeneratedView:
    """What a view's latents show: an image, or rays."""
    if is_ray(name):
        return rays_from_latents(latents)
    return image_of(trained.codec.decode(latents))


def _target_latents(
    trained, names, targets, requests, size, config, seed, first
) -> Float[np.ndarray, "b w H W c"]:
    """One batch of `generate`: the target views' latents of every request."""
    model = trained.networks.denoiser.config
    patch, features = model.patch, model.features
    rows, columns = (side // trained.edge for side in size)
    layout = Layout((Slot(len(names), rows * columns),))
    clean = np.zeros((len(requests), len(names), rows * columns, features), np.float32)
    for i, request in enumerate(requests):
        for name, view in request.conditions.items():
            latents = latents_of(view, size, trained.codec)
            clean[i, names.index(name)] = patchify(latents, patch)
    is_target = np.array([name in targets for name in names])
    prompts = [
        [trained.tokenizer(text) for text in (each.prompt, config.negative)] for each in requests
    ]
    ids, mask = (
        np.stack([[text[i] for text in each] for each in prompts])[:, :, None] for i in (0, 1)
    )
    positions = np.concatenate(
        [
            np.insert(grid_positions(columns, rows * columns), 0, view, axis=1)
            for view in range(len(names))
        ]
    )
    schedule = trained.schedule
    if config.shift:
        schedule = solve.Schedule(config.shift, use_dynamic_shifting=False)
    tokens = config.noise_scale * len(targets) * rows * columns
    # The program does not depend on these settings, so others need no compilation.
    compiled_for = dataclasses.replace(config, steps=1, negative="", shift=None, noise_scale=1.0)
    patches = sampled_patches(
        trained.networks,
        trained.mesh,
        layout,
        compiled_for,
        {name: trained.params[name] for name in ("denoiser", "text")},
        clean.reshape(len(requests), -1, features),
        ids,
        mask,
        first + np.arange(len(requests)),
        positions,
        is_target,
        schedule.levels(config.steps, tokens),
        jax.random.key(seed),
    )
    patches = everywhere(patches).reshape(clean.shape)[:, is_target]
    return unpatchify(patches, rows, patch)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def sampled_patches(
    networks: Networks,
    mesh: Mesh | None,
    layout: Layout,
    config: SampleConfig,
    params: Any,
    clean: Float[Array, "b n p"],
    ids: Int[Array, "b two 1 l"],
    mask: Bool[Array, "b two 1 l"],
    numbers: Int[Array, " b"],
    *of_all: Any,
) -> Float[Array, "b n p"]:
    """Patches of all views; each device of a mesh samples its rows.

    Arguments are those of `denoised_patches`.
    """
    of_rows = clean, ids, mask, numbers
    if mesh is None:
        return denoised_patches(networks, layout, config, params, *of_rows, *of_all)
    # Devices along `sequence` sample the same rows: nothing is kept for a backward pass, so a
    # whole row fits on one device.
    on_mesh = networks.on_mesh(mesh, (mesh_group(mesh, "tensor"),))

    def on_device(params, *rest):
        return denoised_patches(on_mesh.networks, layout, config, on_mesh.whole(params), *rest)

    specs = {name: on_mesh.specs[name] for name in params}
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(specs, *[P(ROWS)] * len(of_rows), *[P()] * len(of_all)),
        out_specs=P(ROWS),
        check_vma=False,  # kernels of attention do not say along which axes they vary
    )(params, *of_rows, *of_all)


def denoised_patches(
    networks: Networks,
    layout: Layout,
    config: SampleConfig,
    params: Any,
    clean: Float[Array, "b n p"],
    ids: Int[Array, "b two 1 l"],
    mask: Bool[Array, "b two 1 l"],
    numbers: Int[Array, " b"],
    positions: Int[Array, "n 3"],
    is_target: Bool[Array, " v"],
    sigmas: Float[Array, " steps"],
    key: Key[Array, ""],
) -> Float[Array, "b n p"]:
    """Patches of all views of requests by their numbers; `ids` has prompt and negative prompt."""
    b = clean.shape[0]
    guided = config.guidance != 1
    copies = 2 if guided else 1
    ids, mask = (jnp.concatenate([x[:, i] for i in range(copies)]) for x in (ids, mask))
    text = networks.states(params, ids, mask)
    targets = jnp.broadcast_to(is_target, (b, layout.views))
    of_tokens = targets[:, layout.view_of_token]

    def velocity(x, sigma_of_view):
        v = networks.velocity(
            params,
            jnp.tile(x, (copies, 1, 1)),
            jnp.tile(sigma_of_view, (copies, 1)),
            jnp.broadcast_to(positions, (copies * b, *positions.shape)),
            jnp.zeros((copies * b, layout.views), jnp.int32),
            jnp.ones((copies * b, layout.tokens), bool),
            text,
            mask,
            layout,
            config.scale_factor,
            config.scale_watershed,
        )
        return solve.guide(v[b:], v[:b], config.guidance) if guided else v

    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    noise = jax.vmap(lambda k: jax.random.normal(k, clean.shape[1:]))(keys)
    start = jnp.where(of_tokens[..., None], noise, clean)
    told = sigmas[-2] if config.given_time == "smallest" else 0.0  # of condition views
    held = solve.hold(velocity, targets, of_tokens, told)
    return solve.solve(held, start, sigmas, config.method)
