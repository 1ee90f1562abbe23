"""The files and folders that a configuration names, with relative paths resolved against its root.

Checkpoints keep the configuration as it is written and compare relative paths, so `root` may change
between two starts of a run.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import Any

from onediff_jax.paths import LOCATION, under
from onediff_jax.train.run import RunConfig


def located(config: RunConfig) -> RunConfig:
    """The configuration with every relative path resolved against `config.root`."""
    return _replaced(config, lambda _, path: under(config.root, path), "config")


def locations(config: RunConfig) -> dict[str, str]:
    """The paths that a configuration names, by the names of their settings; empty ones left out."""
    found: dict[str, str] = {}

    def note(name: str, path: str) -> str:
        if path:
            found[name] = path
        return path

    _replaced(config, note, "config")
    return found


def start_of(config: Mapping[str, Any], root: str = "") -> str:
    """Where the checkpoint is that a saved configuration starts from; empty where it has none.

    `root` stands for the configuration's own, where that has moved.
    """
    return under(root or config.get("root", ""), config.get("tune", {}).get("start", ""))


def _replaced(value: Any, change: Callable[[str, str], str], name: str) -> Any:
    """`value` with all its locations changed; `change` takes a setting's name and its path."""
    if isinstance(value, Mapping):
        return {key: _replaced(item, change, f"{name}.{key}") for key, item in value.items()}
    if not dataclasses.is_dataclass(value):
        return value
    hints, changes = typing.get_type_hints(type(value), include_extras=True), {}
    for field in dataclasses.fields(value):
        inner, old = f"{name}.{field.name}", getattr(value, field.name)
        is_location = LOCATION in getattr(hints[field.name], "__metadata__", ())
        new = change(inner, old) if is_location else _replaced(old, change, inner)
        if new != old:
            changes[field.name] = new
    return dataclasses.replace(value, **changes) if changes else value
