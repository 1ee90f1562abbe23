"""Which sources serve a task and how often each is drawn; the table of a run's mixture."""

import collections
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from onediff_jax.data.batching.settings import DataConfig, packed_slots
from onediff_jax.data.records import Source
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.errors import InputError


class Ingredient(NamedTuple):
    """A task and a source of one stream, with their weight in the stream."""

    task: str
    number: int  # of the source among all
    source: Source
    weight: float


def ingredients(
    tasks: Mapping[str, float], views: int, sources: Mapping[str, Source]
) -> list[Ingredient]:
    """The tasks and sources that a stream of examples with `views` views mixes.

    A task's weight is divided among the sources that serve it, in proportion to their weights.
    """
    found = []
    for task, weight in tasks.items():
        serving = {
            n: source for n, source in sources_for(task, views, sources).items() if len(source)
        }
        if not serving:
            raise InputError(
                f"No source that serves task {task!r} has a record in this split; set "
                f"data.tasks.{task} to 0, or change how many records a source holds out."
            )
        total = sum(source.weight for source in serving.values())
        found += [
            Ingredient(task, number, source, weight * source.weight / total)
            for number, source in serving.items()
        ]
    return found


def sources_for(task: str, views: int, sources: Mapping[str, Source]) -> dict[int, Source]:
    """The sources, by their number, whose records have what examples of so many views need."""
    builder, needs = TASKS[task].builder, TASKS[task].needs
    able = {
        number: source
        for number, source in enumerate(sources.values())
        if TASKS[task].takes(source.fields) is not None
    }
    if not able:
        wanted = " or ".join(" ".join(sorted(fields)) for fields in needs)
        have = {name: sorted(source.fields) for name, source in sources.items()}
        raise InputError(
            f"No source serves task {task!r}, whose records need {wanted}; sources have {have}. "
            f"Set data.tasks.{task} to 0 or add a source."
        )
    if not any(source.serves(task) for source in able.values()):
        names = list(sources)
        raise InputError(
            f"Sources that could serve task {task!r} leave it out of their tasks: "
            f"{', '.join(names[number] for number in able)}.  Add it to one of them, or set "
            f"data.tasks.{task} to 0."
        )
    able = {number: source for number, source in able.items() if source.serves(task)}
    needed = builder.of_them(views)
    enough = {n: s for n, s in able.items() if s.least.get(builder.several, needed) >= needed}
    if not enough:
        found = max(source.least[builder.several] for source in able.values())
        raise InputError(
            f"Task {task!r} with {views} views takes {needed} {builder.several} of a record, and "
            f"sources promise {found}; set data.counts.{task}, or leave out records with fewer."
        )
    return enough


def has_source(task: str, views: int, sources: Mapping[str, Source]) -> bool:
    """Whether any source serves a task with so many views."""
    try:
        return bool(sources_for(task, views, sources))
    except InputError:
        return False


class Share(NamedTuple):
    """How much of a run's examples a source gives for a task; `task` is empty where it serves none.

    An epoch is as many examples as the source has records.
    """

    task: str
    source: str
    share: float  # of all examples
    records: int
    epochs: float  # in 1,000 steps


def mixture(config: DataConfig, sources: Mapping[str, Source], rows: int) -> list[Share]:
    """The share of each task and source in steps of `rows` rows, and sources that serve nothing.

    Computed from the same ingredients as the run's streams.
    """
    often: dict[tuple[str, int], float] = collections.defaultdict(float)  # examples of a row
    for _, _, slot, packing in packed_slots(config, seed=0):
        filled = packing.mean_counts if packing else {slot.views: 1.0}
        for views, tasks in slot.tasks_of(config.tasks, config.counts).items():
            parts = ingredients(tasks, views, sources)
            total = sum(part.weight for part in parts)
            for part in parts:
                often[part.task, part.number] += filled[views] * part.weight / total
    found = []
    for number, (name, source) in enumerate(sources.items()):
        served = [task for task in config.tasks if (task, number) in often] or [""]
        for task in served:
            examples, records = often[task, number], len(source)
            share, epochs = examples / sum(often.values()), examples * rows * 1000 / max(records, 1)
            found.append(Share(task, name, share, records, epochs))
    order = list(config.tasks)
    return sorted(found, key=lambda line: order.index(line.task) if line.task else len(order))


def table_of(shares: Sequence[Share]) -> "rich.table.Table":
    """A mixture for reading."""
    import rich.table  # not in every loader worker

    table = rich.table.Table(title="mixture", title_justify="left")
    for name in ("task", "source", "share", "records", "epochs in 1,000 steps"):
        table.add_column(name, justify="left" if name in ("task", "source") else "right")
    for line in shares:
        epochs = f"{line.epochs:,.0f}" if line.epochs >= 100 else f"{line.epochs:.3g}"
        numbers = f"{line.share:.1%}", f"{line.records:,}", epochs
        table.add_row(line.task or "none that the run trains", line.source, *numbers)
    return table
