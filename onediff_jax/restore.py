"""A trained model from a checkpoint: a workdir's newest complete one, or one step's folder."""

import pathlib
from typing import NamedTuple

import flax.linen as nn
import jax
import numpy as np

from onediff_jax.config import run_config
from onediff_jax.errors import InputError
from onediff_jax.generate import Trained
from onediff_jax.train import checkpoint, run


class Restored(NamedTuple):
    """The moving average of a run's parameters, ready to sample, and where it comes from."""

    config: run.RunConfig
    trained: Trained
    step: int


def restored(path: pathlib.Path) -> Restored:
    """The model of a checkpoint.

    Raises InputError, naming `path`, where there is none or not one of ours.
    """

    found, assets, step = checkpoint.described(path)
    if assets.partial:
        raise InputError(
            f"{path} holds a denoiser alone, without codec and text encoder; start a run from it "
            "(tune.start), or import a folder that has vae, text_encoder and tokenizer too."
        )
    config = run_config(found)
    networks, tokenizer = run.assembled(config, assets)
    shapes = nn.meta.unbox(jax.eval_shape(networks.init, jax.random.key(0)))
    params = jax.tree.map(np.asarray, checkpoint.weights(path, shapes))
    return Restored(config, Trained(networks, params, assets.codec, tokenizer), step)
