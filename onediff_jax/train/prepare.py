"""The parts of a run: `prepare(config)` wires them for training, sampling, encoding and plans."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from onediff_jax.data.batching.loader import Rows
from onediff_jax.data.batching.mixture import has_source
from onediff_jax.data.batching.settings import DataConfig, layout_of, views_of_tasks
from onediff_jax.data.codecs import Codec, DeviceCodec, LinearCodec
from onediff_jax.data.records import Source
from onediff_jax.data.sources.cache import CachedSource
from onediff_jax.data.text import Tokenizer
from onediff_jax.errors import InputError
from onediff_jax.models.networks import Networks
from onediff_jax.ops.layout import Layout
from onediff_jax.sampling.generate import ImageCodec
from onediff_jax.sharding import check_rows, mesh_of
from onediff_jax.train import encoders
from onediff_jax.train.assets import Assets, encoding_recipe, fitted_assets
from onediff_jax.train.checkpoint import binding_changes, saved_run
from onediff_jax.train.config import RunConfig, resolve_paths


@dataclasses.dataclass(frozen=True)
class Prepared:
    """The parts of a run, each made when it is first asked for."""

    written: RunConfig  # as checkpoints keep it
    config: RunConfig  # with paths resolved
    known: Assets | None = None
    origin: str = ""  # of `known`, for messages
    devices: Sequence[jax.Device] | None = None
    absent: bool = False

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh; raises InputError where it does not suit the devices or the rows."""
        mesh = mesh_of(self.config.mesh, self.devices)
        check_rows(self.config.rows, self.config.optimizer.accumulate, mesh)
        return mesh

    @functools.cached_property
    def layout(self) -> Layout:
        """The slots of a row."""
        return layout_of(self.config.data)

    @functools.cached_property
    def sources(self) -> dict[str, Source]:
        """The records to train on."""
        return open_sources(self.config.data, "train")

    @functools.cached_property
    def held_out_sources(self) -> dict[str, Source]:
        """The records to validate on."""
        return open_sources(self.config.data, "validation")

    @functools.cached_property
    def assets(self) -> Assets:
        """Codec and vocabulary; raises InputError where pretrained networks are not theirs."""
        assets = self.known or first_assets(self.config, self.sources)
        where = self.origin or self.config.tune.start
        text, codec = self.config.text, self.config.codec
        encoders.refuse_others(text, codec, assets.fingerprints, where)
        return assets

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """Prompts to token ids."""
        return encoders.tokenizer_of(self.config.text, self.assets.vocabulary)

    @functools.cached_property
    def networks(self) -> Networks:
        """The modules, without parameters."""
        config = self.config
        if self.absent:
            pieces = 0 if config.text.kind == "t5" else config.text.vocabulary
        else:
            pieces = self.tokenizer.size
        return encoders.networks_of(
            config.model, config.text, config.codec, pieces, config.remat, self.absent
        )

    @functools.cached_property
    def rows(self) -> Rows:
        """The rows to train on."""
        return training_rows(self.config, self.sources, self.assets, self.tokenizer)

    @functools.cached_property
    def held_out_rows(self) -> Rows | None:
        """The rows of the held-out loss; None where it is not computed."""
        return held_out_rows(self.config, self.held_out_sources, self.assets, self.tokenizer)

    @property
    def parts_in_training(self) -> tuple[str, ...]:
        """The networks, text and codec, that work in steps, for the held-out loss or for grids."""
        held_out = self.held_out_rows
        if held_out and self.config.evaluate.grids:
            return ("text", "codec")
        return self.rows.carried.encoders + (held_out.carried.encoders if held_out else ())

    def pretrained_params(
        self, parts: Sequence[str] = ("text", "codec"), mesh: Mesh | None = None
    ) -> dict[str, Any]:
        """Parameters of the pretrained networks among `parts`, sharded where there is a mesh."""
        text, codec = self.config.text, self.config.codec
        return encoders.pretrained_params(self.networks, text, codec, mesh, tuple(parts))

    def codec(self, params: Mapping[str, Any]) -> Codec | None:
        """The codec of images; None where it is a pretrained one that `params` lacks."""
        if isinstance(self.assets.codec, LinearCodec):
            return self.assets.codec
        if self.networks.codec is None or "codec" not in params:
            return None
        return ImageCodec(self.networks.codec, params["codec"], self.networks.sampled)


def prepare(
    config: RunConfig,
    assets: Assets | None = None,
    origin: str = "",
    *,
    devices: Sequence[jax.Device] | None = None,
    absent: bool = False,
) -> Prepared:
    """The parts of a run.

    `assets` are those of a checkpoint or a cache, and `origin` is its path; else they are fitted or
    those that the config names.  `devices`: all by default.  If pretrained networks may be
    `absent`, those that are have the released shapes, and a vocabulary has all pieces that it may
    have.
    """
    return Prepared(config, resolve_paths(config), assets, origin, devices, absent)


def open_sources(config: DataConfig, split: str) -> dict[str, Source]:
    """The sources' records of a split, by name."""
    if not config.sources:
        raise InputError(
            "data.sources is empty; name at least one source, such as scenes or folder."
        )
    return {name: settings.open(split) for name, settings in config.sources.items()}


def first_assets(config: RunConfig, sources: Mapping[str, Source]) -> Assets:
    """Codec and vocabulary: of the checkpoint that a run starts from, of its cache, or fitted.

    Raises InputError where that checkpoint's model, text or codec settings are others; a denoiser
    alone has no text or codec.
    """
    if not config.tune.start:
        return own_assets(config, sources)
    before, assets, _ = saved_run(config.tune.start)
    for name, (was, now) in binding_changes(before, config, "weights").items():
        if not (assets.partial and name.startswith(("text.", "codec."))):
            raise InputError(
                f"config.{name} is {now!r}, and {was!r} in {config.tune.start}, which tune.start "
                "names; set it to that."
            )
    if assets.partial:
        return own_assets(config, sources)._replace(origin=assets.origin)
    return assets


def own_assets(config: RunConfig, sources: Mapping[str, Source]) -> Assets:
    """Codec and vocabulary of a run's cache, or fitted where its sources have none."""
    caches = [source for source in sources.values() if isinstance(source, CachedSource)]
    if not caches:
        return fitted_assets(config, sources)
    fingerprints = encoders.fingerprints_of(config.text, config.codec)
    return Assets.from_arrays(caches[0].assets())._replace(fingerprints=fingerprints)


def training_rows(
    config: RunConfig,
    sources: Mapping[str, Source],
    assets: Assets,
    tokenizer: Tokenizer,
    partial: bool = False,
) -> Rows:
    """The rows that a run reads from sources; `partial` as in `Rows`.

    Raises InputError where a cache was encoded otherwise than the run would, and where images are
    to be encoded inside the step and need not be squares.
    """
    caches = [source for source in sources.values() if isinstance(source, CachedSource)]
    for cache in caches:
        cache.refuse_other(encoding_recipe(config, assets, cache.holds_states))
    on_device = isinstance(assets.codec, DeviceCodec) and len(caches) < len(sources)
    if on_device and config.data.aspects != "square":
        raise InputError(
            f"codec.kind is {config.codec.kind!r} and data.aspects is {config.data.aspects!r}; "
            "inside the step all images of a slot have one shape, so set data.aspects to "
            "'square', or encode the data set ahead: `python -m onediff_jax encode`."
        )
    assert assets.codec is not None, "only a released denoiser comes without one"
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


def held_out_rows(
    config: RunConfig, sources: Mapping[str, Source], assets: Assets, tokenizer: Tokenizer
) -> Rows | None:
    """Rows of the validation examples of all sources that have any, with their prompts.

    Tasks that no held-out records serve are left out; None where that leaves no task.
    """
    held = {name: source for name, source in sources.items() if len(source)}
    if not (held and config.evaluate.every and config.evaluate.rows):
        return None
    if not any(has_source(*each, held) for each in views_of_tasks(config.data).items()):
        return None
    data = dataclasses.replace(config.data, prompt_dropout=0.0, caption_dropout=0.0, workers=0)
    config = dataclasses.replace(config, data=data)
    return training_rows(config, held, assets, tokenizer, partial=True)
