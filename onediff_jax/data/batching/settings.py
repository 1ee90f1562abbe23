"""What a run reads, and the slots of its rows: the settings `data`."""

import dataclasses
from collections.abc import Mapping, Sequence

from onediff_jax.data.batching.packing import Packing
from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.records import SourceSettings
from onediff_jax.data.tasks.fitting import FILTERS, Fitting
from onediff_jax.data.tasks.table import TASKS, canonical
from onediff_jax.errors import InputError
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.settings import Section, setting


@dataclasses.dataclass(frozen=True)
class SlotConfig(Section):
    """One slot of a row, or `count` equal ones."""

    views: int = setting(help="of the slot", least=1)
    tokens: int = setting(help="of every view", least=1)
    tasks: tuple[str, ...] = setting((), "that may stand here; empty: all that fit")
    packed: bool = setting(False, "whether several examples, whose views fill it, share it")
    count: int = setting(1, "equal slots", least=1)

    def __post_init__(self):
        super().__post_init__()
        object.__setattr__(self, "tasks", tuple(map(canonical, self.tasks)))

    def tasks_of(
        self, weights: Mapping[str, float], counts: Mapping[str, Sequence[float]]
    ) -> dict[int, dict[str, float]]:
        """Tasks that fit, with their weights, by number of views.

        Raises InputError where none fits.
        """
        chosen = {
            name: w
            for name, w in weights.items()
            if w > 0 and (not self.tasks or name in self.tasks)
        }
        fits: dict[int, dict[str, float]] = {}
        for name, weight in chosen.items():
            shares = {
                count: share
                for count, share in shares_of(name, counts).items()
                if share and (count == self.views or (self.packed and count < self.views))
            }
            for count, share in shares.items():
                fits.setdefault(count, {})[name] = weight * share / sum(shares.values())
        if not fits:
            needs = {name: TASKS[name].builder.counts for name in chosen}
            raise InputError(
                f"data.row has a slot of {self.views} views that no task fills; tasks need {needs} "
                "views. "
                f"Change the slot's views, its tasks, or data.tasks."
            )
        return fits


def shares_of(task: str, counts: Mapping[str, Sequence[float]]) -> dict[int, float]:
    """Which share of a task's examples has how many views, before slots choose what fits."""
    possible = TASKS[task].builder.counts
    shares = counts.get(task, (1.0,) * len(possible))
    return dict.fromkeys(possible, 0.0) | dict(zip(possible, shares, strict=False))


@dataclasses.dataclass(frozen=True)
class DataConfig(Section):
    """What a run reads and how rows are made of it."""

    sources: Mapping[str, SourceSettings] = setting({}, "name -> settings of a source")
    tasks: Mapping[str, float] = setting({}, "name -> weight", least=0)
    counts: Mapping[str, tuple[float, ...]] = setting(
        {},
        "name of a task -> shares of its numbers of views, where they are not equal; 0 of the rest",
        least=0,
    )
    row: tuple[SlotConfig, ...] = setting((), "slots, in order")
    aspects: str = setting(
        "any",
        "of images: any, where each has the slot's grid nearest to its aspect ratio, or square",
        choices=("any", "square"),
    )
    enlarge: float = setting(
        2.0, "largest factor of images; those that need more count as bad records", above=0
    )
    filter: str = setting("lanczos", "for resizing images", choices=FILTERS)
    conditions: ConditionConfig = ConditionConfig()
    prompt_dropout: float = setting(
        0.1, "share of examples without a prompt, for guidance", least=0, most=1
    )
    caption_dropout: float = setting(
        0.0, "share without a caption; the task's token stays", least=0, most=1
    )
    workers: int = setting(0, "processes that make rows; 0: threads of this one", least=0)
    reads: int = setting(16, "examples read at once by each process that assembles rows", least=1)
    prefetch: int = setting(4, "batches prefetched", least=0)
    faults: float = setting(
        0.01, "share of a source's records that may be bad before the run stops", least=0, most=1
    )

    def __post_init__(self):
        super().__post_init__()
        for field in ("tasks", "counts"):
            named = {canonical(name): value for name, value in getattr(self, field).items()}
            object.__setattr__(self, field, named)
        for name, shares in self.counts.items():
            possible = TASKS[name].builder.counts
            if len(shares) > len(possible) or not sum(shares):
                raise InputError(
                    f"data.counts.{name} is {shares}; it gives shares to {possible} views, in this "
                    "order."
                )
        if self.prompt_dropout + self.caption_dropout > 1:
            raise InputError(
                f"data.prompt_dropout is {self.prompt_dropout} and data.caption_dropout "
                f"{self.caption_dropout}; an example loses one or the other: the sum is at most 1."
            )

    @property
    def fitting(self) -> Fitting:
        """How images are cropped and resized to a slot."""
        return Fitting(self.aspects == "square", self.enlarge, self.filter)


def views_of_tasks(config: DataConfig) -> dict[str, int]:
    """The tasks of a run, and the smallest number of views that its slots give each."""
    found: dict[str, int] = {}
    for slot in config.row:
        for views, tasks in slot.tasks_of(config.tasks, config.counts).items():
            found |= {task: min(views, found.get(task, views)) for task in tasks}
    return {task: found[task] for task in config.tasks if task in found}


def tokens_of(config: DataConfig, task: str) -> int:
    """Tokens of a view of a task, in a slot that holds as few views of it as `views_of_tasks`."""
    views = views_of_tasks(config)[task]
    return next(
        slot.tokens
        for slot in config.row
        if task in slot.tasks_of(config.tasks, config.counts).get(views, ())
    )


def packed_slots(
    config: DataConfig, seed: int
) -> list[tuple[int, int, SlotConfig, Packing | None]]:
    """Every slot of a row: its number in the configuration, its copy, and how it is filled."""

    def packing(slot: SlotConfig, copy: int) -> Packing:
        fits = slot.tasks_of(config.tasks, config.counts)
        wanted = {count: sum(tasks.values()) for count, tasks in fits.items()}
        return Packing(slot.views, wanted, seed + copy)

    return [
        (number, copy, slot, packing(slot, copy) if slot.packed else None)
        for number, slot in enumerate(config.row)
        for copy in range(slot.count)
    ]


def layout_of(config: DataConfig) -> Layout:
    """The slots of the rows of a run, whatever it reads."""
    return Layout(
        tuple(
            Slot(slot.views, slot.tokens, packing.examples if packing else 1)
            for _, _, slot, packing in packed_slots(config, seed=0)
        )
    )


def examples_per_row(config: DataConfig) -> float:
    """Examples that a row of a run holds on average."""
    packings = [packing for _, _, _, packing in packed_slots(config, seed=0)]
    return sum(sum(packing.mean_counts.values()) if packing else 1.0 for packing in packings)
