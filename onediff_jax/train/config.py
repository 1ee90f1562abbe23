"""The roof: settings as a ConfigDict, checked and built into the dataclasses that the pieces own.

A run's file returns `base_config()`, an ml_collections ConfigDict, with some values changed; the
command line may change more.  Every name, type and value is checked here, before anything is read
or written, and a mistake is answered with the way out.
"""

import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

import ml_collections

from onediff_jax.data.records import SourceSettings
from onediff_jax.data.registry import SOURCES
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.errors import InputError
from onediff_jax.train.run import RunConfig, views_of_tasks


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
    config = built(RunConfig, plain, "config")
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
    placed = views_of_tasks(config.data)
    for task, weight in config.data.tasks.items():
        if weight > 0 and task not in placed:
            raise InputError(
                f"config.data.tasks.{task} is {weight}, and no slot of config.data.row holds its "
                f"{' or '.join(map(str, TASKS[task].form.counts))} views; add one or set it to 0."
            )
    return config


def built(kind: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type `kind`: dataclasses from mappings, tuples from lists."""
    if dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else built_dataclass(kind, value, path)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        return built(next(a for a in arguments if a is not type(None)), value, path)
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{path} is {value!r}; it must be a list.")
        return tuple(built(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if isinstance(kind, type) and issubclass(origin or kind, Mapping) or origin is not None:
        return {name: built(arguments[1], item, f"{path}.{name}") for name, item in value.items()}
    if kind is object:
        return built_source(value, path)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{path} is {value!r}; it must be of type {kind.__name__}.")
    return value


def built_dataclass(kind: type, values: Any, path: str) -> Any:
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
    return kind(
        **{name: built(hints[name], value, f"{path}.{name}") for name, value in values.items()}
    )


def built_source(values: Any, path: str) -> Any:
    """The settings of a source, by its kind."""
    if not isinstance(values, Mapping):
        return values
    kind = values.get("kind")
    if kind not in SOURCES:
        raise InputError(f"{path}.kind is {kind!r}; {nearest(str(kind), SOURCES)}")
    return built_dataclass(SOURCES[kind], {n: v for n, v in values.items() if n != "kind"}, path)


def nearest(name: str, names: typing.Iterable[str]) -> str:
    """Which name was probably meant, or all there are."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"it can be {', '.join(names)}."


def settings_help(kind: type = RunConfig, path: str = "config") -> list[str]:
    """A line for every setting: its name, its default, and what its dataclass says of it."""
    hints, lines = typing.get_type_hints(kind), []
    source = "".join(map(inspect.getsource, kind.__mro__[:-1]))  # of what it inherits, too
    for field in dataclasses.fields(kind):
        name = f"{path}.{field.name}"
        if dataclasses.is_dataclass(hints[field.name]):
            lines += settings_help(hints[field.name], name)
            continue
        own = rf"^    {field.name}:(.*?)(?=^    \w|\Z)"  # up to the next field or method
        said = re.findall("# (.*)", re.search(own, source, re.MULTILINE | re.DOTALL)[1])
        default = "" if field.default is dataclasses.MISSING else f" = {field.default}"
        lines.append(f"  {name + default:44} {' '.join(said)}".rstrip())
        if typing.get_args(hints[field.name])[1:] == (object,):  # sources by their names
            lines.append(f"  {name + '.NAME.kind':44} {', '.join(SOURCES)}: docs/data.md")
            lines += settings_help(SourceSettings, f"{name}.NAME")
    return lines
