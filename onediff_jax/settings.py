"""Fields of settings: the default, what `--help` says, what binds a checkpoint, the values allowed.

Every section of a run's configuration is a frozen dataclass that inherits `Section` and whose
fields are made by `setting`.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from onediff_jax.errors import InputError

FLOATS = ("float32", "bfloat16")  # dtypes that settings of floating-point numbers can have
# Runs that use a checkpoint and must keep a setting: all that load its weights, or those alone that
# resume its state.
Binding = Literal["weights", "state"] | None


class WrongSetting(InputError):  # noqa: N818 - an InputError already
    """A setting has a value that it cannot have."""

    def __init__(self, name: str, value: Any, allowed: str):
        super().__init__(f"{name} is {value!r}; it {allowed}.")
        self._parts = name, value, allowed

    def within(self, section: str) -> "WrongSetting":
        """The same, of a setting of that section."""
        name, *others = self._parts
        return WrongSetting(f"{section}.{name}", *others)


@dataclasses.dataclass(frozen=True)
class Allowed:
    """The values that a setting can have; the items of a list and the values of a mapping, too."""

    choices: tuple[str, ...] = ()  # empty: all
    least: int | float | None = None
    above: int | float | None = None
    most: int | float | None = None
    below: int | float | None = None
    infinite: bool = False

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return not self.choices or not isinstance(value, str) or value in self.choices
        return (
            (self.infinite or math.isfinite(value))
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.choices:
            return f"can be {' or '.join(self.choices)}"
        bounds = {"at least": self.least, "above": self.above}
        bounds |= {"at most": self.most, "below": self.below}
        said = [f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None]
        return f"must be {' and '.join(said) or 'a finite number'}"


def setting(
    default: Any = dataclasses.MISSING,
    help: str = "",  # noqa: A002 - as argparse and absl call it
    *,
    binds: Binding = None,
    choices: Iterable[str] = (),
    infinite: bool = False,
    **bounds: int | float,
) -> Any:
    """A field of a `Section`.

    `bounds` are those of `Allowed`: least, above, most, below; numbers are finite, if not
    `infinite`.
    """
    allowed = Allowed(tuple(choices), infinite=infinite, **bounds)
    metadata = {"help": help, "binds": binds, "allowed": allowed}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, hash=False, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Section:
    """A section of a configuration, whose values are checked when it is made.

    Raises InputError naming the first setting with a value that is not allowed.
    """

    def __post_init__(self):
        for field in dataclasses.fields(self):
            allowed = field.metadata.get("allowed", Allowed())
            for name, value in named_values(field.name, getattr(self, field.name)):
                if value not in allowed:
                    raise WrongSetting(name, value, str(allowed))


def named_values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A setting's value; of a list and of a mapping each item with its name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from named_values(f"{name}.{key}", item)
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from named_values(f"{name}[{i}]", item)
    else:
        yield name, value
