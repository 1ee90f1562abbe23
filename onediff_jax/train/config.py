"""`RunConfig`, and how it is built from an ml_collections ConfigDict and validated.

A run's file returns `base_config()`, a ConfigDict, with some values changed; the command line may
change more.  Every name, type and value is checked here, before anything is read or written, and a
mistake is answered with the way out.
"""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from onediff_jax.data.batching.settings import DataConfig, views_of_tasks
from onediff_jax.data.records import SourceSettings
from onediff_jax.data.registry import SOURCES
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import REMAT, NextDiTConfig
from onediff_jax.ops.flow import FlowConfig
from onediff_jax.paths import LOCATION, under
from onediff_jax.sampling.generate import SampleConfig
from onediff_jax.settings import Binding, Section, WrongSetting, setting
from onediff_jax.sharding import MeshConfig
from onediff_jax.train.encoders import CodecConfig, TextConfig
from onediff_jax.train.state import OptimizerConfig
from onediff_jax.train.tune import TuneConfig


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    """When the state is saved."""

    every: int = setting(1000, "steps between checkpoints; the last step is always saved", least=1)
    keep: int = setting(2, "newest ones", least=1)


@dataclasses.dataclass(frozen=True)
class LogConfig(Section):
    """When the loop waits for the device and reports."""

    every: int = setting(50, "steps between reports", least=1)
    profile: tuple[int, ...] = setting(
        (), "first step and number of steps that are profiled, such as (100, 3)", least=1
    )

    def __post_init__(self):
        super().__post_init__()
        if len(self.profile) not in (0, 2):
            raise WrongSetting("profile", self.profile, "must be two numbers, such as (100, 3)")


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    """Held-out loss and sample grids while training, from the EMA.

    The examples are validation examples; their noise is the same at every step.
    """

    every: int = setting(1000, "steps between evaluations; 0: never", least=0)
    rows: int = setting(
        64, "minimum of held-out rows for the held-out loss; 0: no held-out loss", least=0
    )
    grids: int = setting(1, "evaluations between sample grids; 0: no grids", least=0)
    examples: int = setting(4, "columns of a grid", least=1)
    sample: SampleConfig = SampleConfig()


@dataclasses.dataclass(frozen=True)
class RunConfig(Section):
    """Everything that a run depends on."""

    root: str = setting(
        "",
        "where the relative paths of this config begin, such as gs://BUCKET; empty: the current "
        "folder.  It does not apply to --workdir",
    )
    seed: int = setting(0, "of parameters, rows and noise", least=0)
    steps: int = setting(1000, "of the whole run", least=1)
    rows: int = setting(8, "of a batch, over all devices", least=1)
    remat: str = setting(
        "none",
        "what is recomputed of a block in its backward pass, from nothing to all of it",
        choices=REMAT,
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


def base_config() -> ml_collections.ConfigDict:
    """The defaults of every setting: the released model, and no data."""
    config = ml_collections.ConfigDict(as_dict(RunConfig()))
    config.data.sources.unlock()
    config.data.tasks.unlock()
    config.flow.task_weights.unlock()
    return config


def as_dict(value: Any) -> Any:
    """A dataclass as plain, JSON-ready values; a source says its kind."""
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: as_dict(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
        kinds = [kind for kind, settings in SOURCES.items() if type(value) is settings]
        return {"kind": kinds[0]} | fields if kinds else fields
    if isinstance(value, Mapping):
        return {name: as_dict(item) for name, item in value.items()}
    if isinstance(value, (tuple, list)):
        return tuple(as_dict(item) for item in value)
    return value


def run_config(values: ml_collections.ConfigDict | Mapping[str, Any]) -> RunConfig:
    """The run that the settings describe.

    Raises InputError naming the setting, its value and the way out.
    """
    plain = values.to_dict() if isinstance(values, ml_collections.ConfigDict) else values
    config = build_value(RunConfig, plain, "config")
    if not config.data.row:
        raise InputError(
            "config.data.row is empty; name at least one slot, such as dict(views=1, tokens=256)."
        )
    if not any(weight > 0 for weight in config.data.tasks.values()):
        raise InputError(
            "config.data.tasks gives no task a weight; set one, such as {'text2image': 1.0}."
        )
    for task in config.flow.task_weights:
        if task not in TASKS:
            raise InputError(f"config.flow.task_weights has {task!r}; {nearest(task, TASKS)}")
    held = views_of_tasks(config.data)
    for task, weight in config.data.tasks.items():
        if weight > 0 and task not in held:
            raise InputError(
                f"config.data.tasks.{task} is {weight}, and no slot of config.data.row holds its "
                f"{' or '.join(map(str, TASKS[task].builder.counts))} views; add one or set it "
                "to 0."
            )
    return config


def build_value(kind: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type `kind`: dataclasses from mappings, tuples from lists."""
    if kind is SourceSettings:
        return build_source(value, path)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else build_section(kind, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return build_value(next(a for a in arguments if a is not type(None)), value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{path} is {value!r}; it must be a list.")
        return tuple(
            build_value(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value)
        )
    if isinstance(kind, type) and issubclass(origin or kind, Mapping) or origin is not None:
        return {
            name: build_value(arguments[1], item, f"{path}.{name}") for name, item in value.items()
        }
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{path} is {value!r}; it must be of type {kind.__name__}.")
    return value


def build_section(kind: type, values: Any, path: str) -> Any:
    """A dataclass from a mapping with no unknown names."""
    if not isinstance(values, Mapping):
        raise InputError(
            f"{path} is {values!r}; it must hold "
            f"{', '.join(f.name for f in dataclasses.fields(kind))}."
        )
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in hints:
            raise InputError(f"{path} has no setting {name!r}; {nearest(name, hints)}")
    fields = {
        name: build_value(hints[name], value, f"{path}.{name}") for name, value in values.items()
    }
    try:
        return kind(**fields)
    except WrongSetting as error:
        raise error.within(path) from None


def build_source(values: Any, path: str) -> Any:
    """The settings of a source, by its kind."""
    if not isinstance(values, Mapping):
        return values
    kind = values.get("kind")
    if kind not in SOURCES:
        raise InputError(f"{path}.kind is {kind!r}; {nearest(str(kind), SOURCES)}")
    return build_section(SOURCES[kind], {n: v for n, v in values.items() if n != "kind"}, path)


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """Which name was probably meant, or all there are."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it can be {', '.join(names)}."


def settings_help(section: Section = RunConfig(), path: str = "config") -> list[str]:  # noqa: B008
    """A line for every setting: its name, default and meaning, and the words that it can be."""
    lines = []
    for field in dataclasses.fields(section):
        name, default = f"{path}.{field.name}", getattr(section, field.name)
        if isinstance(default, Section):
            lines += settings_help(default, name)
            continue
        choices = ", ".join(field.metadata["allowed"].choices)
        said = f"{field.metadata['help']} ({choices})" if choices else field.metadata["help"]
        lines.append(f"  {f'{name} = {default}':44} {said}")
        if name == "config.data.sources":
            lines.append(f"  {name + '.NAME.kind':44} {', '.join(SOURCES)}: docs/data.md")
            lines += settings_help(SourceSettings(), f"{name}.NAME")
    return lines


def bindings(section: Section = RunConfig(), path: str = "") -> dict[str, Binding]:  # noqa: B008
    """What binds every setting to a checkpoint, by its name without the leading "config"."""
    found = {}
    for field in dataclasses.fields(section):
        name, value = path + field.name, getattr(section, field.name)
        inner = isinstance(value, Section)
        found |= bindings(value, f"{name}.") if inner else {name: field.metadata["binds"]}
    return found


def resolve_paths(config: RunConfig) -> RunConfig:
    """The configuration with every relative path resolved against `config.root`.

    Checkpoints keep it as it was written, so `root` may change between two starts of a run.
    """
    return _replace_locations(config, lambda _, path: under(config.root, path), "config")


def locations(config: RunConfig) -> dict[str, str]:
    """The paths that a configuration names, by the names of their settings; empty ones left out."""
    found: dict[str, str] = {}

    def note(name: str, path: str) -> str:
        if path:
            found[name] = path
        return path

    _replace_locations(config, note, "config")
    return found


def _replace_locations(value: Any, change: Callable[[str, str], str], name: str) -> Any:
    """`value` with all its locations changed; `change` takes a setting's name and its path."""
    if isinstance(value, Mapping):
        return {
            key: _replace_locations(item, change, f"{name}.{key}") for key, item in value.items()
        }
    if not dataclasses.is_dataclass(type(value)):
        return value
    hints, changes = typing.get_type_hints(type(value), include_extras=True), {}
    for field in dataclasses.fields(value):
        inner, old = f"{name}.{field.name}", getattr(value, field.name)
        is_location = LOCATION in getattr(hints[field.name], "__metadata__", ())
        new = change(inner, old) if is_location else _replace_locations(old, change, inner)
        if new != old:
            changes[field.name] = new
    return dataclasses.replace(value, **changes) if changes else value
