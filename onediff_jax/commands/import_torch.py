"""`python -m onediff_jax import_torch`: a checkpoint made of a folder in the released layout."""

import contextlib
import dataclasses
import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from etils import epath

from onediff_jax.copies import local_copy, local_path
from onediff_jax.data.batching.loader import DataConfig, SlotConfig
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import NextDiTConfig
from onediff_jax.models.t5 import T5Config
from onediff_jax.paths import folder_is_there, remote
from onediff_jax.release.configs import nextdit_config, schedule_in, t5_config, vae_config
from onediff_jax.release.folders import CARD, PRETRAINED, bring_pretrained, licence_in, new_folder
from onediff_jax.release.mapping import from_released, sources_of
from onediff_jax.release.names import T5_NAMES, VAE_NAMES, nextdit_names
from onediff_jax.release.shapes import autoencoder_shapes, denoiser_shapes, encoder_shapes
from onediff_jax.release.tensors import json_in, read_tensors
from onediff_jax.train.assets import Assets, fitted_assets
from onediff_jax.train.checkpoint import FOLDER, save_weights
from onediff_jax.train.config import RunConfig
from onediff_jax.train.encoders import CodecConfig, TextConfig
from onediff_jax.train.prepare import prepare

RELEASED_LICENCE = "cc-by-nc-4.0"  # of OneDiffusion's weights
ENCODERS = ("vae", "text_encoder", "tokenizer")
SIDE = 32  # patches along a side of a view, but of text2image: 512 pixels


def run(options: flags.FlagValues) -> None:
    """Imports the folder, without an accelerator."""
    jax.config.update("jax_platforms", "cpu")
    source, out = epath.Path(options.source), Path(options.out)
    print(import_torch(source, out, options.link, options.licence, options.force))


def import_torch(
    source: epath.Path, out: Path, link: bool, licence: str | None, force: bool
) -> str:
    """Writes `out`; returns what was done, in a line."""
    source = on_this_disk(source)
    transformer = source / "transformer" if (source / "transformer").is_dir() else source
    model, text_width = nextdit_config(transformer)
    tensors, kept = read_tensors(transformer), json_in(transformer / "config.json")
    dtype = functools.reduce(jnp.promote_types, {tensor.dtype for tensor in tensors.values()})
    names, shapes = nextdit_names(model), denoiser_shapes(model, text_width, dtype)
    with naming(transformer):  # whatever is wrong is said before anything is written
        sources_of(tensors, names, shapes)
    refuse_pretrained(source, model, text_width)
    origin = {
        "licence": licence or licence_in(source) or licence_of(model),
        "dtype": str(dtype),
        "config": {key: value for key, value in kept.items() if key != "_name_or_path"},
    }
    if (source / "scheduler").is_dir():
        _, origin["scheduler"] = schedule_in(source / "scheduler")
    config, assets = run_config_of(model, text_width, kept), Assets(None, b"")
    if all((source / part).is_dir() for part in ENCODERS):
        config = dataclasses.replace(config, **encoders_in(source))
        assets = fitted_assets(config, {})
        prepare(config, assets).networks  # noqa: B018 - refuses what does not fit together
        config = dataclasses.replace(config, **encoders_in(out.absolute()))
    assets = assets._replace(origin=json.dumps(origin).encode())
    with new_folder(out, force) as folder:
        parts = bring_pretrained(source, folder, link)
        params = {"denoiser": from_released(tensors, names, shapes)}
        save_weights(folder / FOLDER / "0", params, assets, config)
    count = sum(math.prod(tensor.shape) for tensor in tensors.values())
    return (
        f"{out}: {len(tensors)} tensors of {dtype}, {count:,} parameters; with "
        f"{', '.join(parts) or 'no other parts'}; licence of the weights: {origin['licence']}"
    )


def on_this_disk(source: epath.Path) -> Path:
    """A released folder, or the copy of one that is in object storage."""
    if remote(source):
        for part in ("transformer", *PRETRAINED):
            if folder_is_there(source / part):
                local_copy(source / part)
        if not folder_is_there(source / "transformer") or (source / CARD).is_file():
            local_copy(source)
    return local_path(source)


@contextlib.contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Errors inside are told with the folder's name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def refuse_pretrained(source: Path, model: NextDiTConfig, text_width: int) -> None:
    """Raises InputError where a part that is never trained does not fit itself or the denoiser."""
    if (folder := source / "vae").is_dir():
        config = vae_config(folder)
        if config.latent_channels != model.channels:
            raise InputError(
                f"{folder}/config.json: latent_channels: expected {model.channels}, the "
                f"transformer's in_channels, found {config.latent_channels}."
            )
        with naming(folder):
            sources_of(read_tensors(folder), VAE_NAMES, autoencoder_shapes(config))
    if (folder := source / "text_encoder").is_dir():
        encoder, vocabulary = t5_config(folder)
        if encoder.width != text_width:
            raise InputError(
                f"{folder}/config.json: d_model: expected {text_width}, the transformer's "
                f"caption_channels, found {encoder.width}."
            )
        with naming(folder):
            sources_of(read_tensors(folder), T5_NAMES, encoder_shapes(encoder, vocabulary))


def encoders_in(folder: Path) -> dict[str, Any]:
    """The sections of a configuration for the released text encoder and autoencoder of a folder."""
    text = TextConfig(kind="t5", path=str(folder))
    return {"text": text, "codec": CodecConfig(kind="sd3_vae", path=str(folder))}


def licence_of(model: NextDiTConfig) -> str:
    """What holds where a source does not say: the release's for whatever has its shape."""
    return RELEASED_LICENCE if model == NextDiTConfig() else "unknown"


def run_config_of(model: NextDiTConfig, text_width: int, released: Mapping[str, Any]) -> RunConfig:
    """The settings that the checkpoint holds: the model's, and sizes to sample at."""
    _, height, width = released.get("input_size") or (1, 96, 96)
    row = [SlotConfig(1, height * width // model.patch**2)]
    row += [SlotConfig(2, SIDE**2), SlotConfig(12, SIDE**2, packed=True)]
    return RunConfig(
        model=model,
        text=TextConfig(length=300, encoder=T5Config(width=text_width)),
        data=DataConfig(tasks=dict.fromkeys(TASKS, 1.0), row=tuple(row)),
    )
