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
from onediff_jax.paths import absolute
from onediff_jax.sampling.generate import TrainedModel
from onediff_jax.train.checkpoint import saved_run, weights
from onediff_jax.train.config import RunConfig, run_config
from onediff_jax.train.prepare import prepare

NOWHERE_ELSE: Mapping[str, str] = MappingProxyType({})


class RestoredModel(NamedTuple):
    """The EMA of a run's parameters, ready to sample, and where it comes from."""

    config: RunConfig  # with paths resolved
    trained: TrainedModel
    step: int


def restore_model(
    path: pathlib.PurePath, moved: Mapping[str, str] = NOWHERE_ELSE, root: str = ""
) -> RestoredModel:
    """The model of a checkpoint.

    `moved` names the folders of pretrained networks, text or codec, that are elsewhere now; `root`
    is where relative paths of the run begin now, if not at its own.
    Raises InputError, naming `path`, where there is none or not one of ours.
    """
    found, assets, step = saved_run(path)
    if assets.partial:
        raise InputError(
            f"{path} holds a denoiser alone, without codec and text encoder; start a run from it "
            "(tune.start), or import a folder that has vae, text_encoder and tokenizer too."
        )
    config = run_config(found | ({"root": root} if root else {}))
    for part, folder in moved.items():
        # Absolute, since `root` does not apply to it.
        part_config = dataclasses.replace(getattr(config, part), path=str(absolute(folder)))
        config = dataclasses.replace(config, **{part: part_config})
    run = prepare(config, assets, f"{path}")
    shapes = nn.meta.unbox(jax.eval_shape(run.networks.init, jax.random.key(0)))
    params = jax.tree.map(np.asarray, weights(path, shapes, root=root))
    params |= run.pretrained_params()
    codec = run.codec(params)
    assert codec is not None, "a pretrained one is among the parameters"
    trained = TrainedModel(run.networks, params, codec, run.tokenizer, assets.schedule)
    return RestoredModel(run.config, trained, step)
