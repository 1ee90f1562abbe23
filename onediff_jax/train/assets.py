"""The assets of a run: codec, vocabulary, and what released weights came with.

They are known before training, kept in every checkpoint and, with the settings that an encoded
example depends on, in every cache.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from onediff_jax.data.batching.examples import MakeExample
from onediff_jax.data.batching.loader import readers_of
from onediff_jax.data.batching.mixture import sources_for
from onediff_jax.data.batching.settings import views_of_tasks
from onediff_jax.data.codecs import DeviceCodec, LinearCodec, fit
from onediff_jax.data.example import Example, texts_of
from onediff_jax.data.records import Source
from onediff_jax.data.tasks.fitting import FULL
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.data.text import t5_vocabulary, vocabulary_of
from onediff_jax.ops.solve import Schedule
from onediff_jax.release.configs import SCHEDULER_FILE, Settings, schedule_of
from onediff_jax.train.config import RunConfig
from onediff_jax.train.encoders import autoencoder_of, fingerprints_of, tokenizer_folder

MAX_CAPTIONS = 20_000  # records of a source, at most, whose captions the vocabulary is built on


class Assets(NamedTuple):
    """What is known before training and kept in every checkpoint.

    Codec and vocabulary are fitted to the data or released; a checkpoint of a denoiser alone has
    neither.
    """

    codec: LinearCodec | DeviceCodec | None
    vocabulary: bytes
    origin: bytes = b""  # JSON: what came with released weights that training began with
    fingerprints: Mapping[str, str] = MappingProxyType({})  # of released encoders: text, codec

    @property
    def schedule(self) -> Schedule:
        """Of samples: that of the import that the weights began with, if its scheduler is known."""
        values = json.loads(self.origin or b"{}").get("scheduler")
        if values is None:
            return Schedule()
        return schedule_of(Settings(pathlib.Path(SCHEDULER_FILE), values))

    @property
    def partial(self) -> bool:
        """Whether they are of a denoiser alone, without codec and text encoder."""
        return self.codec is None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The assets as arrays, without those that are empty."""
        texts = {"vocabulary": self.vocabulary, "origin": self.origin}
        if self.fingerprints:
            texts["fingerprints"] = json.dumps(dict(self.fingerprints)).encode()
        codec = self.codec._asdict() if self.codec else {}
        found = {name: np.asarray(value) for name, value in codec.items()}
        return found | {name: np.frombuffer(text, np.uint8) for name, text in texts.items() if text}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Assets":
        """The assets whose `arrays` these are."""

        def text(name: str) -> bytes:
            return np.asarray(arrays.get(name, [])).tobytes()

        codec: LinearCodec | DeviceCodec | None = None
        if "factor" in arrays:
            codec = DeviceCodec(*(int(arrays[name]) for name in DeviceCodec._fields))
        elif "encoder" in arrays:
            codec = LinearCodec(*(np.asarray(arrays[name]) for name in LinearCodec._fields))
        fingerprints = json.loads(text("fingerprints") or b"{}")
        return cls(codec, text("vocabulary"), text("origin"), fingerprints)


def fitted_assets(config: RunConfig, sources: Mapping[str, Source]) -> Assets:
    """Codec and vocabulary of a run, as functions of the configuration and the training records."""
    codec: LinearCodec | DeviceCodec | None = device_codec(config)
    prompts: list[str] = []
    if config.codec.kind == "linear" or config.text.kind == "trained":
        examples = examples_to_fit(config, sources)
        images = [v for e in examples for v in e.views if isinstance(v, np.ndarray)]
        prompts = [example.text for example in examples] + [task.token for task in TASKS.values()]
    if codec is None:
        codec = fit(images, config.codec.factor, config.model.channels, config.codec.whitening)
    fingerprints = fingerprints_of(config.text, config.codec)
    if config.text.kind == "t5":
        vocabulary = t5_vocabulary(tokenizer_folder(config.text))
        return Assets(codec, vocabulary, fingerprints=fingerprints)
    for source in sources.values():
        step = max(len(source) // MAX_CAPTIONS, 1)
        read = readers_of(config.data.reads).map(source.caption, range(0, len(source), step))
        prompts += [text for caption in read for text in texts_of(caption)]
    vocabulary = vocabulary_of(prompts, config.text.vocabulary)
    return Assets(codec, vocabulary, fingerprints=fingerprints)


def device_codec(config: RunConfig) -> DeviceCodec | None:
    """The stand-in for a pretrained autoencoder in loaders; None where the codec is fitted."""
    if config.codec.kind == "linear":
        return None
    autoencoder = autoencoder_of(config.codec)
    return DeviceCodec(autoencoder.factor, autoencoder.channels)


def edge_of(config: RunConfig) -> int:
    """Pixels along each side of a token."""
    on_device = device_codec(config)
    return config.model.patch * (on_device.factor if on_device else config.codec.factor)


def examples_to_fit(config: RunConfig, sources: Mapping[str, Source]) -> list[Example]:
    """Examples of all tasks in equal numbers, of records spread over the sources."""
    edge = edge_of(config)
    tokens = max(slot.tokens for slot in config.data.row)
    makers = [
        MakeExample(
            task, source, number, views, tokens, edge, config.data.conditions, config.data.fitting
        )
        for task, views in views_of_tasks(config.data).items()
        for number, source in sources_for(task, views, sources).items()
    ]
    each = config.codec.pictures // max(sum(make.views for make in makers), 1) + 1
    return [
        make.random_map(int(i), np.random.default_rng([config.seed, int(i)])).example
        for make in makers
        for i in np.linspace(0, len(make.source) - 1, min(each, len(make.source))).astype(int)
    ]


def encoding_recipe(config: RunConfig, assets: Assets, states: bool) -> dict[str, Any]:
    """Everything that an encoded example depends on beside its record, for a cache's manifest.

    `states`: of a pretrained text encoder, instead of token ids.
    """
    vae = autoencoder_of(config.codec).config if config.codec.kind == "sd3_vae" else None
    linear = assets.codec if isinstance(assets.codec, LinearCodec) else ()
    fitted = short_hash(*(part.tobytes() for part in linear))
    edge = edge_of(config)
    codec = {
        "kind": config.codec.kind,
        "fingerprint": assets.fingerprints.get("codec", fitted),
        "factor": edge // config.model.patch,
        "channels": config.model.channels,
        "whitening": None if vae else config.codec.whitening,
        "scale": vae.scaling_factor if vae else 1.0,
        "shift": vae.shift_factor * vae.use_shift_factor if vae else 0.0,
        "tile": config.codec.tile,
        "deviations": vae is not None,
    }
    text = {
        "kind": config.text.kind,
        "content": "states" if states else "ids",
        "length": config.text.length,
        "tokenizer": short_hash(assets.vocabulary),
        "encoder": assets.fingerprints.get("text") if states else None,
    }
    images = {
        "token_edge": edge,
        "aspects": config.data.aspects,
        "least_full": FULL,
        "enlarge": config.data.enlarge,
        "filter": config.data.filter,
    }
    conditions = dataclasses.asdict(config.data.conditions)
    del conditions["hed"]  # where a file is, which a run that reads a cache need not have
    recipe = {"codec": codec, "text": text, "pictures": images, "conditions": conditions}
    return json.loads(json.dumps(recipe))


def short_hash(*parts: bytes) -> str:
    """16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
