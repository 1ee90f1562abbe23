"""A trained model from a checkpoint: a workdir's newest complete one, or one step's folder."""

import dataclasses
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from onediff_jax.errors import InputError
from onediff_jax.sampling.generate import Trained
from onediff_jax.train import checkpoint, encoders, run
from onediff_jax.train.config import run_config
from onediff_jax.train.locations import located

NOWHERE_ELSE: Mapping[str, str] = MappingProxyType({})


class Restored(NamedTuple):
    """The moving average of a run's parameters, ready to sample, and where it comes from."""

    config: run.RunConfig
    trained: Trained
    step: int


def restored(
    path: pathlib.PurePath, moved: Mapping[str, str] = NOWHERE_ELSE, root: str = ""
) -> Restored:
    """The model of a checkpoint.

    `moved` names the folders of released networks, text or codec, that are elsewhere now; `root` is
    where relative paths of the run begin now, if not at its own.
    Raises InputError, naming `path`, where there is none or not one of ours.
    """
    found, assets, step = checkpoint.described(path)
    if assets.partial:
        raise InputError(
            f"{path} holds a denoiser alone, without codec and text encoder; start a run from it "
            "(tune.start), or import a folder that has vae, text_encoder and tokenizer too."
        )
    config = located(run_config(found | ({"root": root} if root else {})))
    for part, folder in moved.items():
        part_config = dataclasses.replace(getattr(config, part), path=folder)
        config = dataclasses.replace(config, **{part: part_config})
    encoders.refuse_others(config.text, config.codec, assets.fingerprints, f"{path}")
    networks, tokenizer = run.assembled(config, assets)
    shapes = nn.meta.unbox(jax.eval_shape(networks.init, jax.random.key(0)))
    params = jax.tree.map(np.asarray, checkpoint.weights(path, shapes, root=root))
    params |= encoders.pretrained_params(networks, config.text, config.codec, None)
    codec = run.codec_of(networks, params, assets)
    trained = Trained(networks, params, codec, tokenizer, assets.schedule)
    return Restored(config, trained, step)
