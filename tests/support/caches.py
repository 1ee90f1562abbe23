"""Caches of encoded examples for tests: what they are made of, and runs that read them."""

import dataclasses
import pathlib

from tiny import BlobSettings, tiny_config

from onediff_jax.commands import encode as encode_dataset
from onediff_jax.data.batching.loader import DataConfig, SlotConfig
from onediff_jax.data.sources.cache import Cache
from onediff_jax.train.config import EvaluateConfig, LogConfig, RunConfig

# Tasks whose examples are functions of their record alone, so that every epoch holds the same.
DATA = DataConfig(
    sources={"blobs": BlobSettings(12, held_out=0)},
    tasks={"text2image": 1.0, "depth2image": 1.0},
    row=(SlotConfig(1, 4, count=2), SlotConfig(2, 10)),
    prompt_dropout=0.3,
)
CONFIG = tiny_config(
    steps=2,
    data=DATA,
    log=LogConfig(every=1),
    evaluate=EvaluateConfig(every=0),
)


def write_cache(folder: pathlib.Path, config=CONFIG, passes=1, shard=5) -> pathlib.Path:
    """Encodes the records of `config`; the folder of the cache."""
    encode_dataset.encode(config, folder, passes, False, shard)
    return folder / "blobs"


def config_with_cache(folder: pathlib.Path, config=CONFIG, **changes) -> RunConfig:
    """The configuration with its source replaced by the cache."""
    sources = {"blobs": Cache(str(folder))}
    return dataclasses.replace(
        config, data=dataclasses.replace(config.data, sources=sources, **changes)
    )
