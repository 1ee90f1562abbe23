"""Samples of a trained model: some views of an example are given, the others are made.

A task has no direction of its own: which views are given decides.  Given views stay clean and are
shown to the network at the schedule's smallest noise level (what the released weights see) or at
zero (the paper's).
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
from onediff_jax.sharding import ROWS, group_of

Rays = Float[np.ndarray, "H W 6"]  # at the resolution of latents
GeneratedView = RGB | Rays


class Trained(NamedTuple):
    """What sampling needs of a run.

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
        """Means and deviations of the images' normalised latents."""
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
class SampleConfig:
    """How samples are made."""

    steps: int = 50
    guidance: float = 4.0  # 1 follows the prompt as trained, 0 ignores it
    negative: str = ""  # prompt that guidance leads away from; used unchanged, without a task token
    method: str = "euler"
    shift: float | None = None
    # static shift; None: the import's schedule, else a dynamic shift by the number of target tokens
    noise_scale: float = 1.0  # multiplies the number of target tokens in the dynamic shift
    given_time: str = (
        "smallest"  # noise level of given views: "smallest" of the schedule, or "zero"
    )
    scale_factor: float = 1.0  # of rotary positions beyond those trained: 1.1 to 1.5 for more views
    scale_watershed: float = 1.0
    # time, 1000 sigma, below which frequencies are divided by scale_factor; above, theta grows

    def __post_init__(self):
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}; sampling needs at least 1.")
        if self.method not in solve.METHODS:
            raise InputError(f"method is {self.method!r}; it can be {' or '.join(solve.METHODS)}.")
        if self.given_time not in ("smallest", "zero"):
            raise InputError(f"given_time is {self.given_time!r}; it can be 'smallest' or 'zero'.")
        if self.negative and self.guidance == 1:
            raise InputError(
                f"negative is {self.negative!r} and guidance 1, which does not read it; set "
                "guidance above 1, or leave negative out."
            )
        for name in ("shift", "noise_scale", "scale_factor"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it must be positive.")


class Request(NamedTuple):
    """One example to complete: its whole prompt, and the views that are given, by name."""

    prompt: str
    given: Mapping[str, View]


def generate(
    trained: Trained,
    task: str,
    views: int,
    requests: Sequence[Request],
    size: tuple[int, int],
    config: SampleConfig,
    seed: int,
    batch: int = 32,
) -> list[dict[str, GeneratedView]]:
    """The wanted views of every request: images of `size` (height, width), and rays.

    All requests, of so many views, must give the same ones.  Request i depends on (seed, i), not on
    its neighbours.
    """
    names = names_of(task, views)
    given = [name for name in names if name in requests[0].given]
    wanted = [name for name in names if name not in given]
    if unknown := set(requests[0].given) - set(names):
        raise InputError(
            f"Task {task!r} has no view {sorted(unknown)}; its views are {', '.join(names)}."
        )
    if any(set(request.given) != set(given) for request in requests):
        raise InputError("All requests of one call must give the same views.")
    if not wanted:
        raise InputError(
            f"All views of task {task!r} are given; leave one of {', '.join(names)} out."
        )
    edge = trained.edge
    if size[0] % edge or size[1] % edge:
        raise InputError(
            f"A size of {size[0]} x {size[1]} is not a multiple of {edge} pixels, the side of a "
            "token."
        )
    copies = math.prod(trained.mesh.shape[axis] for axis in ROWS) if trained.mesh else 1
    batch = math.ceil(min(batch, len(requests)) / copies) * copies
    completed = []
    for first in range(0, len(requests), batch):
        part = list(requests[first : first + batch])
        padded = part + part[-1:] * (batch - len(part))  # one shape, one program
        latents = _completed(trained, names, wanted, padded, size, config, seed, first)
        completed += [
            {name: shown(trained, name, latents[i, j]) for j, name in enumerate(wanted)}
            for i in range(len(part))
        ]
    return completed


def names_of(task: str, views: int) -> tuple[str, ...]:
    """The views of an example of a task; raises where it cannot have so many."""
    form = task_named(task).form
    if views not in form.counts:
        raise InputError(
            f"An example of task {task!r} cannot have {views} views; it can have "
            f"{', '.join(map(str, form.counts))}."
        )
    return form.names(views)


def shown(trained: Trained, name: str, latents: Float[np.ndarray, "H W c"]) -> GeneratedView:
    """What a view's latents show: an image, or rays."""
    if is_ray(name):
        return rays_from_latents(latents)
    return image_of(trained.codec.decode(latents))


def _completed(
    trained, names, wanted, requests, size, config, seed, first
) -> Float[np.ndarray, "b w H W c"]:
    """One batch of `generate`: the wanted views' latents of every request."""
    model = trained.networks.denoiser.config
    patch, features = model.patch, model.features
    rows, columns = (side // trained.edge for side in size)
    layout = Layout((Slot(len(names), rows * columns),))
    clean = np.zeros((len(requests), len(names), rows * columns, features), np.float32)
    for i, request in enumerate(requests):
        for name, view in request.given.items():
            latents = latents_of(view, size, trained.codec)
            clean[i, names.index(name)] = patchify(latents, patch)
    is_wanted = np.array([name in wanted for name in names])
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
    tokens = config.noise_scale * len(wanted) * rows * columns
    patches = sampled_patches(
        trained.networks,
        trained.mesh,
        layout,
        config,
        {name: trained.params[name] for name in ("denoiser", "text")},
        clean.reshape(len(requests), -1, features),
        ids,
        mask,
        first + np.arange(len(requests)),
        positions,
        is_wanted,
        schedule.levels(config.steps, tokens),
        jax.random.key(seed),
    )
    patches = everywhere(patches).reshape(clean.shape)[:, is_wanted]
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
    on_mesh = networks.on_mesh(mesh, (group_of(mesh, "tensor"),))

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
    is_wanted: Bool[Array, " v"],
    sigmas: Float[Array, " steps"],
    key: Key[Array, ""],
) -> Float[Array, "b n p"]:
    """Patches of all views of requests by their numbers; `ids` has prompt and negative prompt."""
    b = clean.shape[0]
    guided = config.guidance != 1
    copies = 2 if guided else 1
    ids, mask = (jnp.concatenate([x[:, i] for i in range(copies)]) for x in (ids, mask))
    text = networks.states(params, ids, mask)
    wanted = jnp.broadcast_to(is_wanted, (b, layout.views))
    of_tokens = wanted[:, layout.view_of_token]

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
    sigma_given = sigmas[-2] if config.given_time == "smallest" else 0.0
    held = solve.hold(velocity, wanted, of_tokens, sigma_given)
    return solve.solve(held, start, sigmas, config.method)
