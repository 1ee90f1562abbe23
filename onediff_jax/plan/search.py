"""Plans of one run under many settings, ranked by samples a second."""

import copy
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import rich.console
import rich.progress

from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import REMAT
from onediff_jax.plan.plan import Plan, plan_of
from onediff_jax.plan.topologies import Topology
from onediff_jax.train.config import run_config

Choices = dict[str, list[Any]]  # values to try, by the setting's name


class Tried(NamedTuple):
    """A plan under some settings, or why there is none."""

    settings: dict[str, Any]
    plan: Plan | None
    failure: str

    @property
    def samples_per_second(self) -> float:
        """Estimated; 0 where the step cannot run."""
        return self.plan.samples_per_second if self.plan and self.plan.fits else 0.0


def default_choices(topology: Topology) -> Choices:
    """What is tried where nothing else is asked for: shards, remat policies, rows a device."""
    devices = topology.devices
    return {
        "mesh.fsdp": sorted({max(devices // 16, 1), max(devices // 4, 1), devices}),
        "remat": list(REMAT),
        "rows": [devices, 2 * devices, 4 * devices],
    }


def parsed_choices(values: Mapping[str, Any], over: Sequence[str]) -> Choices:
    """Settings and values of texts such as mesh.fsdp=16,64, in the types that the settings have.

    Raises InputError where a setting is not known or a value of another type.
    """
    found: Choices = {}
    for text in over:
        name, _, listed = text.partition("=")
        held: Any = values
        for part in name.split("."):
            if not isinstance(held, Mapping) or part not in held:
                raise InputError(f"--over {text}: config has no setting {name!r}.")
            held = held[part]
        try:
            found[name] = [type(held)(value) for value in listed.split(",")]
        except ValueError:
            raise InputError(
                f"--over {text}: {name} is of type {type(held).__name__}; list such values after "
                "'=', with commas."
            ) from None
    return found


def with_settings(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with some settings, by their dotted names, set."""
    found = copy.deepcopy(dict(values))
    for name, value in settings.items():
        *path, last = name.split(".")
        held = found
        for part in path:
            held = held[part]
        held[last] = value
    return found


def walk(
    values: Mapping[str, Any],
    topology: Topology,
    choices: Choices,
    states: bool,
    console: rich.console.Console,
) -> Iterator[Tried]:
    """A plan for every combination, the last setting changing fastest; shows how far it is."""
    every = [
        dict(zip(choices, chosen, strict=True)) for chosen in itertools.product(*choices.values())
    ]
    for settings in rich.progress.track(every, "plans", console=console):
        try:
            plan = plan_of(run_config(with_settings(values, settings)), topology, states)
        except InputError as error:
            yield Tried(settings, None, str(error))
        else:
            yield Tried(settings, plan, plan.compiled.refusal)


def by_rate(tried: Iterator[Tried]) -> list[Tried]:
    """Most samples a second first, what fails last."""
    return sorted(tried, key=lambda each: -each.samples_per_second)


def table_lines(tried: Sequence[Tried]) -> list[str]:
    """A table with a row for every combination; all times are estimates."""
    names = list(tried[0].settings)
    widths = [max(len(name), *(len(str(t.settings[name])) for t in tried)) + 2 for name in names]
    titles = ("samples/s", "step s", "MFU", "with comm.", "GiB")

    def row(left: Sequence[Any], right: Sequence[str]) -> str:
        cells = "".join(f"{value!s:{width}}" for value, width in zip(left, widths, strict=True))
        return cells + "".join(f"{value:>12}" for value in right)

    lines = [row(names, titles)]
    for each in tried:
        chosen, plan = [each.settings[name] for name in names], each.plan
        if plan is None or not plan.fits:
            lines.append(f"{row(chosen, ())}  {each.failure[:120]}")
            continue
        seconds = (plan.estimate.compute, plan.estimate.seconds)
        mfus = [f"{plan.mfu(each):.1%}" for each in seconds]
        numbers = (f"{plan.samples_per_second:.1f}", f"{seconds[1]:.3f}", *mfus)
        lines.append(row(chosen, (*numbers, f"{plan.compiled.bytes / 2**30:.2f}")))
    return lines
