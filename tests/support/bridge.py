"""The tools that import and export, and a tiny folder in the released layout."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from drawn import drawn_params, drawn_tensors
from einops import rearrange
from places import TOOLS as TOOLS
from released_configs import RELEASED as RELEASED
from released_configs import TINY
from safetensors.numpy import load_file, save_file
from tiny import tiny_config

from onediff_jax import cli
from onediff_jax.commands import export_torch as export_torch
from onediff_jax.commands import import_torch as import_torch
from onediff_jax.models.layers import LoraConfig
from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.release.mapping import released_shapes
from onediff_jax.release.names import nextdit_names
from onediff_jax.release.shapes import denoiser_shapes
from onediff_jax.train.assets import Assets
from onediff_jax.train.checkpoint import save_weights

WEIGHTS = "diffusion_pytorch_model.safetensors"
MODEL = NextDiTConfig(width=24, depth=2, heads=4, kv_heads=2, channels=8, multiple_of=8)
NONE = LoraConfig()


def tiny_tensors(dtype=np.float32) -> dict[str, np.ndarray]:
    """Weights of such a denoiser, by released names."""
    shapes = released_shapes(denoiser_shapes(MODEL, TINY["caption_channels"]), nextdit_names(MODEL))
    return {name: tensor.astype(dtype) for name, tensor in drawn_tensors(shapes).items()}


def write_transformer(folder: Path, tensors=None, config=TINY) -> Path:
    """Such a folder, with its sub-folder `transformer`."""
    inside = folder / "transformer"
    inside.mkdir(parents=True, exist_ok=True)
    (inside / "config.json").write_text(json.dumps(config))
    save_file(tiny_tensors() if tensors is None else tensors, inside / WEIGHTS, {"format": "pt"})
    return folder


def run(module, **options) -> int:
    """A command's status, called as on the command line; an option without value is a switch."""
    arguments = [module.__name__.rsplit(".", 1)[1]]
    for name, value in options.items():
        if value is not False:
            arguments += [f"--{name}".replace("_", "-"), *([] if value is True else [str(value)])]
    return cli.main(arguments)


def tensors_in(folder: Path) -> dict[str, np.ndarray]:
    """What the files of an exported folder hold, as the library reads them."""
    files = sorted((folder / "transformer").glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def equal(found, expected) -> bool:
    """Whether two sets of tensors have the same names, types and bytes."""
    return found.keys() == expected.keys() and all(
        found[name].dtype == expected[name].dtype
        and found[name].shape == expected[name].shape
        and found[name].tobytes() == expected[name].tobytes()
        for name in found
    )


def save(folder, params, config, step=7, origin=b""):
    """A workdir with a checkpoint of a denoiser's weights."""
    assets = Assets(None, b"a vocabulary", origin)
    step_folder = folder / "checkpoints" / str(step)
    save_weights(step_folder, {"denoiser": params}, assets, config)
    return folder


def made(folder, config=None, lora=NONE, **known):
    """Drawn weights, in a checkpoint."""
    shapes = denoiser_shapes(dataclasses.replace(MODEL, lora=lora), 16)
    params = jax.tree.map(np.float32, drawn_params(shapes))
    save(folder, params, config or tiny_config(), **known)
    return params


# What our denoiser and PyTorch's make of the same inputs: a view of 4 x 4 latents is enough.

LAYOUT = Layout((Slot(2, 4),))


def inputs():
    """Latents (b, v, c, h, w) of an example of two views, times and states, as PyTorch has them."""
    draw = np.random.default_rng(0)
    latents = draw.standard_normal((1, 2, 8, 4, 4)).astype(np.float32)
    times = np.float32([[100, 700]])
    return latents, times, draw.standard_normal((1, 5, 16)).astype(np.float32)


def velocity(params, model=MODEL):
    """What our denoiser makes of the inputs."""
    latents, times, states = inputs()
    places = np.stack(np.meshgrid(np.arange(2), np.arange(2), np.arange(2), indexing="ij"), -1)
    arrays = (
        rearrange(latents, "b v c (h p) (w q) -> b (v h w) (p q c)", p=2, q=2),
        times / 1000,
        places.reshape(1, 8, 3),
        np.zeros((1, 2), int),
        np.ones((1, 8), bool),
        states[:, None],
        np.ones((1, 1, 5), bool),
    )
    denoiser = NextDiT(dataclasses.replace(model, dtype="float32"))
    found = denoiser.apply({"params": params}, *map(jnp.asarray, arrays), LAYOUT)
    return rearrange(found, "b (v h w) (p q c) -> b v c (h p) (w q)", v=2, h=2, p=2, q=2)


def torch_velocity(module):
    """What a module of PyTorch makes of them."""
    import torch

    latents, times, states = map(torch.from_numpy, inputs())
    with torch.no_grad():
        return module(latents, times, states, torch.ones(1, 5)).numpy()
