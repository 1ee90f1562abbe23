"""A run and its parts: what a configuration says, assembled."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from onediff_jax.data.batching.examples import MakeExample
from onediff_jax.data.batching.loader import Rows, readers_of
from onediff_jax.data.batching.mixture import served
from onediff_jax.data.batching.settings import DataConfig
from onediff_jax.data.codecs import Codec, DeviceCodec, LinearCodec, fit, image_of, psnr
from onediff_jax.data.example import RGB, Example, texts_of
from onediff_jax.data.records import Source
from onediff_jax.data.sources.cache import CachedSource
from onediff_jax.data.tasks.fitting import FULL
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.data.text import Tokenizer, t5_vocabulary, vocabulary_of
from onediff_jax.errors import InputError
from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import REMAT, NextDiTConfig
from onediff_jax.ops.flow import FlowConfig
from onediff_jax.ops.solve import Schedule
from onediff_jax.release.configs import SCHEDULER_FILE, Settings, schedule_of
from onediff_jax.sampling.generate import ImageCodec, SampleConfig
from onediff_jax.sharding import MeshConfig
from onediff_jax.train.encoders import (
    CodecConfig,
    TextConfig,
    autoencoder_of,
    fingerprints_of,
    networks_of,
    tokenizer_folder,
    tokenizer_of,
)
from onediff_jax.train.state import OptimizerConfig
from onediff_jax.train.tune import TuneConfig

CAPTIONS = 20_000  # records of a source, at most, whose captions the vocabulary is built on


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved."""

    every: int = 1000  # steps
    keep: int = 2  # newest ones

    def __post_init__(self):
        for name in ("every", "keep"):
            if getattr(self, name) < 1:
                raise InputError(
                    f"checkpoint.{name} is {getattr(self, name)}; it must be at least 1.  The last "
                    "step is always saved."
                )


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """When the loop waits for the device and reports."""

    every: int = 50  # steps
    profile: tuple[int, ...] = ()  # first step and number of steps that are profiled

    def __post_init__(self):
        if self.every < 1:
            raise InputError(f"log.every is {self.every}; it must be at least 1.")
        if self.profile and (len(self.profile) != 2 or min(self.profile) < 1):
            raise InputError(
                f"log.profile is {self.profile}; set it to the first step and the number of steps, "
                "such as (100, 3), or to ()."
            )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Held-out loss and sample grids while training, from the EMA.

    The examples are validation examples; their noise is the same at every step.
    """

    every: int = 1000  # steps between evaluations; 0: never
    rows: int = 64  # minimum of held-out rows for the held-out loss; 0: no held-out loss
    grids: int = 1  # evaluations between sample grids; 0: no grids
    examples: int = 4  # columns of a grid
    sample: SampleConfig = SampleConfig()

    def __post_init__(self):
        for name, least in (("every", 0), ("rows", 0), ("grids", 0), ("examples", 1)):
            if getattr(self, name) < least:
                raise InputError(
                    f"evaluate.{name} is {getattr(self, name)}; it must be at least {least}."
                )


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on."""

    root: str = ""  # where the relative paths of this config begin, such as gs://BUCKET;
    # empty: the current folder.  It does not apply to --workdir
    seed: int = 0
    steps: int = 1000
    rows: int = 8  # of a batch, over all devices
    remat: str = "none"
    # kept of a block: none (all), dots, attention, offload, attended, full (nothing)
    model: NextDiTConfig = NextDiTConfig()
    flow: FlowConfig = FlowConfig()
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    codec: CodecConfig = CodecConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    tune: TuneConfig = TuneConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def __post_init__(self):
        for name in ("steps", "rows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.remat not in REMAT:
            raise InputError(f"remat is {self.remat!r}; it can be {', '.join(REMAT)}.")


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


def opened(config: DataConfig, split: str) -> dict[str, Source]:
    """The sources' records of a split, by name."""
    if not config.sources:
        raise InputError(
            "data.sources is empty; name at least one source, such as scenes or folder."
        )
    return {name: settings.open(split) for name, settings in config.sources.items()}


def fitted_assets(config: RunConfig, sources: Mapping[str, Source]) -> Assets:
    """Codec and vocabulary of a run, as functions of the configuration and the training records."""
    codec, prompts = device_codec(config), []
    if config.codec.kind == "linear" or config.text.kind == "trained":
        examples = examples_to_fit(config, sources)
        images = [v for e in examples for v in e.views if isinstance(v, np.ndarray)]
        prompts = [example.prompt for example in examples] + [task.token for task in TASKS.values()]
    if codec is None:
        codec = fit(images, config.codec.factor, config.model.channels, config.codec.whitening)
    fingerprints = fingerprints_of(config.text, config.codec)
    if config.text.kind == "t5":
        vocabulary = t5_vocabulary(tokenizer_folder(config.text))
        return Assets(codec, vocabulary, fingerprints=fingerprints)
    for source in sources.values():
        step = max(len(source) // CAPTIONS, 1)
        read = readers_of(config.data.reads).map(source.caption, range(0, len(source), step))
        prompts += [text for caption in read for text in texts_of(caption)]
    vocabulary = vocabulary_of(prompts, config.text.vocabulary)
    return Assets(codec, vocabulary, fingerprints=fingerprints)


def device_codec(config: RunConfig) -> DeviceCodec | None:
    """What stands for a released autoencoder in the data; None where the codec is fitted."""
    if config.codec.kind == "linear":
        return None
    autoencoder = autoencoder_of(config.codec)
    return DeviceCodec(autoencoder.factor, autoencoder.channels)


def edge_of(config: RunConfig) -> int:
    """Pixels along each side of a token."""
    later = device_codec(config)
    return config.model.patch * (later.factor if later else config.codec.factor)


def examples_to_fit(config: RunConfig, sources: Mapping[str, Source]) -> list[Example]:
    """Examples of all tasks in equal numbers, of records spread over the sources."""
    edge = edge_of(config)
    tokens = max(slot.tokens for slot in config.data.row)
    makers = [
        MakeExample(
            task, source, number, views, tokens, edge, config.data.conditions, config.data.fitting
        )
        for task, views in views_of_tasks(config.data).items()
        for number, source in served(task, views, sources).items()
    ]
    each = config.codec.pictures // max(sum(make.views for make in makers), 1) + 1
    return [
        make.random_map(int(i), np.random.default_rng([config.seed, int(i)])).example
        for make in makers
        for i in np.linspace(0, len(make.source) - 1, min(each, len(make.source))).astype(int)
    ]


def views_of_tasks(config: DataConfig) -> dict[str, int]:
    """The tasks of a run, and the smallest number of views that its slots give each."""
    found: dict[str, int] = {}
    for slot in config.row:
        for views, tasks in slot.tasks_of(config.tasks, config.counts).items():
            found |= {task: min(views, found.get(task, views)) for task in tasks}
    return {task: found[task] for task in config.tasks if task in found}


def tokens_of(config: DataConfig, task: str) -> int:
    """Tokens of a view of a task, in a slot that holds as few views of it as `views_of_tasks`."""
    views = views_of_tasks(config)[task]
    return next(
        slot.tokens
        for slot in config.row
        if task in slot.tasks_of(config.tasks, config.counts).get(views, ())
    )


def reconstruction_psnr(codec: Codec, images: list[RGB]) -> float:
    """Mean PSNR in dB of images that went through the codec and back."""
    return float(np.mean([psnr(p, image_of(codec.decode(codec.encode(p)))) for p in images]))


def assembled(config: RunConfig, assets: Assets) -> tuple[Networks, Tokenizer]:
    """The run's networks and tokenizer."""
    tokenizer = tokenizer_of(config.text, assets.vocabulary)
    networks = networks_of(config.model, config.text, config.codec, tokenizer.size, config.remat)
    return networks, tokenizer


def codec_of(networks: Networks, params: Mapping[str, Any], assets: Assets) -> Codec | None:
    """The codec of images, by the run's assets or the released parameters, if they are there."""
    if isinstance(assets.codec, LinearCodec):
        return assets.codec
    if "codec" not in params:
        return None
    return ImageCodec(networks.codec, params["codec"], networks.sampled)


def rows_of(
    config: RunConfig,
    sources: Mapping[str, Source],
    assets: Assets,
    tokenizer: Tokenizer,
    partial: bool = False,
) -> Rows:
    """The rows that the run reads; `partial` as in `Rows`.

    Raises InputError where a cache was encoded otherwise than the run would, and where images are
    to be encoded inside the step and need not be squares.
    """
    caches = [source for source in sources.values() if isinstance(source, CachedSource)]
    for cache in caches:
        cache.refuse_other(plan_of(config, assets, cache.holds_states))
    later = isinstance(assets.codec, DeviceCodec) and len(caches) < len(sources)
    if later and config.data.aspects != "square":
        raise InputError(
            f"codec.kind is {config.codec.kind!r} and data.aspects is {config.data.aspects!r}; "
            "inside the step all images of a slot have one shape, so set data.aspects to "
            "'square', or encode the data set ahead: `python -m onediff_jax encode`."
        )
    return Rows(
        config.data,
        sources,
        assets.codec,
        config.model.patch,
        tokenizer,
        config.seed,
        config.codec.posterior == "sample",
        partial,
    )


def plan_of(config: RunConfig, assets: Assets, states: bool) -> dict[str, Any]:
    """Everything that an encoded example depends on beside its record, for a cache's manifest.

    `states`: of a frozen text encoder, instead of token ids.
    """
    vae = autoencoder_of(config.codec).config if config.codec.kind == "sd3_vae" else None
    linear = assets.codec if isinstance(assets.codec, LinearCodec) else ()
    fitted = hashed(*(part.tobytes() for part in linear))
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
        "tokenizer": hashed(assets.vocabulary),
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
    plan = {"codec": codec, "text": text, "pictures": images, "conditions": conditions}
    return json.loads(json.dumps(plan))


def hashed(*parts: bytes) -> str:
    """A short hash."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]
