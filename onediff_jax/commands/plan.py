"""`python -m onediff_jax plan`: one plan, or many ranked."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import rich.console
import rich.text
from absl import flags

from onediff_jax.errors import InputError
from onediff_jax.plan.plan import plan_of
from onediff_jax.plan.report import plan_lines
from onediff_jax.plan.search import by_rate, default_choices, parsed_choices, table_lines, walk
from onediff_jax.plan.topologies import topology_of
from onediff_jax.train.config import run_config


def run(options: flags.FlagValues) -> None:
    """Plans what the options ask for."""
    jax.config.update("jax_platforms", "cpu")  # the compiler needs no device, and waits for none
    plan(
        options.config.to_dict(),
        options.topology,
        pathlib.Path(options.json) if options.json else None,
        options.search,
        options.over,
        options.states,
    )


def plan(
    values: Mapping[str, Any],
    name: str,
    json_file: pathlib.Path | None = None,
    search: bool = False,
    over: Sequence[str] = (),
    states: bool = False,
) -> None:
    """Prints what a run would be on a slice; writes its numbers to a file where one is named.

    Raises InputError where the step does not fit.
    """
    topology, console = topology_of(name), rich.console.Console(soft_wrap=True)
    if over and not search:
        raise InputError(f"--over {over[0]} is what --search tries; add --search.")
    written: list[dict[str, Any]] | dict[str, Any]
    if search:
        choices = default_choices(topology) | parsed_choices(values, over)
        found = by_rate(walk(values, topology, choices, states, console))
        console.print(rich.text.Text("\n".join(table_lines(found))))
        written = [tried.settings | (tried.plan.as_json() if tried.plan else {}) for tried in found]
    else:
        plan = plan_of(run_config(values), topology, states)
        console.print(rich.text.Text("\n".join(plan_lines(plan))))
        written = plan.as_json()
    if json_file:
        json_file.write_text(json.dumps(written, indent=2) + "\n")
    if not search and not plan.fits:
        raise InputError(
            f"the step needs {plan.compiled.bytes / 2**30:.2f} of {plan.limit / 2**30:.2f} GiB "
            f"on a device of {topology.name}; raise mesh.fsdp, set remat to 'full' or lower rows."
        )
