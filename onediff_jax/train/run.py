"""A run and its parts: what a configuration says, assembled."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from onediff_jax.data.example import Example, Picture
from onediff_jax.data.latents import LinearCodec, fit, picture_of, psnr
from onediff_jax.data.loader import DataConfig, MakeExample, Rows, served
from onediff_jax.data.records import Source
from onediff_jax.data.tasks import TASKS
from onediff_jax.data.text import Tokenizer, vocabulary_of
from onediff_jax.errors import InputError
from onediff_jax.generate import SampleConfig
from onediff_jax.models.networks import Networks, networks_of
from onediff_jax.models.nextdit import REMAT, NextDiTConfig
from onediff_jax.models.t5 import T5Config
from onediff_jax.ops.flow import FlowConfig
from onediff_jax.sharding import MeshConfig
from onediff_jax.train.state import OptimizerConfig
from onediff_jax.train.tune import TuneConfig

CAPTIONS = 20_000  # of a source, at most, that the vocabulary is built on


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Prompts: the vocabulary built on the data set, and the encoder trained jointly."""

    vocabulary: int = 1024  # pieces, at most
    length: int = 64  # tokens of a prompt, end token included; longer ones are cut
    encoder: T5Config = T5Config(
        width=128, depth=2, heads=4, head_width=32, hidden=256, dtype="float32"
    )


@dataclasses.dataclass(frozen=True)
class CodecConfig:
    """The codec between pictures and latents."""

    kind: str = "linear"  # principal components, fitted on the data set
    factor: int = 4  # pixels along each side of a latent
    whitening: float = 0.0  # 0: channels keep their proportions; 1: all have variance 1
    pictures: int = 2000  # views that the components are fitted to

    def __post_init__(self):
        if self.kind != "linear":
            raise InputError(f"codec.kind is {self.kind!r}; it can be 'linear'.")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved."""

    every: int = 1000  # steps
    keep: int = 2  # newest ones


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """When the loop waits for the device and reports."""

    every: int = 50  # steps
    profile: tuple[int, ...] = ()  # first step and number of steps that are profiled

    def __post_init__(self):
        if self.profile and (len(self.profile) != 2 or min(self.profile) < 1):
            raise InputError(
                f"log.profile is {self.profile}; set it to the first step and the number of steps, "
                "such as (100, 3), or to ()."
            )


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Sample grids while training, from the moving average.

    The examples are validation examples, and their seeds are fixed.
    """

    every: int = 1000  # steps; 0: never
    examples: int = 4  # columns of a grid
    sample: SampleConfig = SampleConfig()


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on."""

    seed: int = 0
    steps: int = 1000
    rows: int = 8  # of a batch, over all devices
    remat: str = (
        "none"  # of a block: none (keep everything), dots (keep products), full (keep nothing)
    )
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

    Codec and vocabulary are fitted to the data; a checkpoint of a denoiser alone has neither.
    """

    codec: LinearCodec | None
    vocabulary: bytes
    origin: bytes = b""  # JSON: what came with released weights that training began with

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
    examples = examples_to_fit(config, sources)
    pictures = [v for e in examples for v in e.views if isinstance(v, np.ndarray)]
    prompts = [example.prompt for example in examples] + [task.token for task in TASKS.values()]
    for source in sources.values():
        step = max(len(source) // CAPTIONS, 1)
        prompts += [source.caption(i) for i in range(0, len(source), step)]
    codec = fit(pictures, config.codec.factor, config.model.channels, config.codec.whitening)
    return Assets(codec, vocabulary_of(prompts, config.text.vocabulary))


def examples_to_fit(config: RunConfig, sources: Mapping[str, Source]) -> list[Example]:
    """Examples of all tasks in equal numbers, of records spread over the sources."""
    edge = config.model.patch * config.codec.factor
    tokens = max(slot.tokens for slot in config.data.row)
    makers = [
        MakeExample(task, source, number, views, tokens, edge, config.data.conditions)
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
    """Tokens of a view of a task that the run's slots hold."""
    return next(
        slot.tokens
        for slot in config.row
        if any(task in tasks for tasks in slot.tasks_of(config.tasks, config.counts).values())
    )


def reconstruction_psnr(codec: LinearCodec, pictures: list[Picture]) -> float:
    """Mean PSNR in dB of pictures that went through the codec and back."""
    return float(np.mean([psnr(p, picture_of(codec.decode(codec.encode(p)))) for p in pictures]))


def assembled(config: RunConfig, assets: Assets) -> tuple[Networks, Tokenizer]:
    """The run's networks and tokenizer."""
    tokenizer = Tokenizer(assets.vocabulary, config.text.length)
    return networks_of(config.model, config.text.encoder, tokenizer.size, config.remat), tokenizer


def rows_of(
    config: RunConfig, sources: Mapping[str, Source], assets: Assets, tokenizer: Tokenizer
) -> Rows:
    """The rows that the run reads."""
    return Rows(config.data, sources, assets.codec, config.model.patch, tokenizer, config.seed)
