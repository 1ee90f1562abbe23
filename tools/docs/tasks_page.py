"""Writes the page of tasks: the fields and views of each, real examples, and sampling commands.

    python tools/docs/tasks_page.py --config configs/scenes_all.py --out docs

Writes OUT/tasks.md and an image of examples for every task that the config's sources serve, as the
loader makes them.
"""

import argparse
import pathlib
import runpy
import sys

import numpy as np
from PIL import Image

from onediff_jax.data.batching.examples import MakeExample
from onediff_jax.data.batching.mixture import sources_for
from onediff_jax.data.batching.settings import tokens_of, views_of_tasks
from onediff_jax.data.tasks.builders import is_ray
from onediff_jax.data.tasks.table import ALIASES, TASKS, Task
from onediff_jax.errors import InputError
from onediff_jax.evaluate.grids import Row, sheet
from onediff_jax.train.assets import edge_of
from onediff_jax.train.config import run_config
from onediff_jax.train.prepare import open_sources

EXAMPLES = 4  # of every task

HEAD = """# Tasks

`onediff_jax/data/tasks/table.py` defines the tasks. Each task is trained in all directions at
once; which views are conditions is decided only in sampling. Tokens are those of the release;
none was published for super-resolution, so that one is ours. The examples are what the loader reads
from the built-in scenes (`python tools/docs/tasks_page.py --config {config} --out docs` writes
this page).

`CHECKPOINT` is the workdir of a run that was trained on the task. Every command also takes
`--negative`, `--guidance`, `--steps`, `--shift`, `--noise_scale`, `--scale_factor` and
`--scale_watershed`; [parity.md](parity.md) compares the released pipeline's defaults with ours.
For more views than in training, use a `--scale_factor` of 1.1 to 1.5 with a `--scale_watershed`
of 100 to 400. `--focal` is the focal length of multiview's cameras; recovered poses keep it
([cameras.md](cameras.md#back-to-cameras)).
"""


def main() -> None:
    """Writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=pathlib.Path, default="configs/scenes_all.py")
    parser.add_argument("--out", type=pathlib.Path, default="docs", help="the folder for the page")
    options = parser.parse_args()
    config = run_config(runpy.run_path(str(options.config))["get_config"]())
    sources = open_sources(config.data, "train")
    served_views = views_of_tasks(config.data)
    (options.out / "tasks").mkdir(parents=True, exist_ok=True)
    parts = [HEAD.format(config=f"configs/{options.config.name}")]
    for name, task in TASKS.items():
        parts.append(section(name, task))
        if name not in served_views:
            continue
        edge = edge_of(config)
        tokens = tokens_of(config.data, name)
        views = min(max(task.builder.counts[0], 3), task.builder.counts[-1])
        number, source = next(iter(sources_for(name, views, sources).items()))
        make = MakeExample(
            name, source, number, views, tokens, edge, config.data.conditions, config.data.fitting
        )
        spread = np.linspace(0, len(source) - 1, EXAMPLES).astype(int)
        examples = [make.random_map(i, np.random.default_rng(int(i))).example for i in spread]
        names = task.builder.names(views)
        rows = [Row(e.prompt, list(zip(names, e.views, strict=True)), e.size) for e in examples]
        Image.fromarray(sheet(rows)).save(options.out / "tasks" / f"{name}.png", optimize=True)
        parts.append(f"![examples of {name}](tasks/{name}.png)\n")
    (options.out / "tasks.md").write_text("\n".join(parts))
    print(options.out / "tasks.md")


def section(name: str, task: Task) -> str:
    """The section of a task: token, fields, views and commands."""
    counts = task.builder.counts
    many = (
        f"{counts[0]} to {counts[-1]} views"
        if len(counts) > 1
        else f"{counts[0]} view" + "s" * (counts[0] > 1)
    )
    aliases = [alias for alias, real in ALIASES.items() if real == name]
    needs = " or ".join(", ".join(f"`{f}`" for f in sorted(fields)) for fields in task.needs)
    shown = ", ".join(f"`{view}`" for view in task.builder.names(counts[0]))
    lines = [
        f"## {name}\n",
        f"- token: `{task.token}`" + "".join(f" (also called `{alias}`)" for alias in aliases),
        f"- fields of a record: {needs}",
        f"- {many}: {shown}" + (", ..." if len(counts) > 1 else ""),
        "\nTo sample it:\n",
    ]
    lines += [f"    {command}" for command in commands(name, task)]
    return "\n".join(lines) + "\n"


def commands(name: str, task: Task) -> list[str]:
    """One command for every direction."""
    start = f"python -m onediff_jax sample --checkpoint CHECKPOINT --out samples --task {name}"
    views = task.builder.counts[min(1, len(task.builder.counts) - 1)]
    names, lines = task.builder.names(views), []
    for direction in task.builder.directions(views):
        given = [v for v in names if v not in direction.targets]
        options = [f"--given {view}=FILE" for view in given if not is_ray(view)]
        if name == "multiview":
            known = [f"{30 * i},{10 * i}" for i in range(views // 2)]
            places = [k if f"ray_{i}" in given else "?" for i, k in enumerate(known)]
            options += [f'--orbit "{" ".join(places)}"'] if set(places) != {"?"} else []
        if name == "subject_driven":
            options.append("--item NAME")
        if direction.name not in ("cameras", *names[1:]):
            options.append('--prompt "..."')
        lines.append(" ".join([start, *options]))
    return lines


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"tasks_page: {error}")
