"""From sources to batches: row r of a run is a pure function of (seed, r).

A *stream* is an endless sequence of examples that fit one kind of place: shuffled records of every
source and task that qualify, mixed by weight.  Row r takes from each stream the numbers that r and
its slots determine; step i reads rows i*B to i*B + B-1.  Nothing depends on the number of
processes, workers or threads, and no iterator has a state worth saving.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from onediff_jax.data.conditions import ConditionConfig
from onediff_jax.data.example import Example, Record
from onediff_jax.data.latents import LinearCodec
from onediff_jax.data.packing import Packing
from onediff_jax.data.pictures import grid_for, resized_record
from onediff_jax.data.rows import Batch, Writer, stack
from onediff_jax.data.sources import Source
from onediff_jax.data.tasks import TASKS, example_of, task_named
from onediff_jax.data.text import Tokenizer
from onediff_jax.errors import InputError
from onediff_jax.ops.layout import Layout, Slot


@dataclasses.dataclass(frozen=True)
class SlotConfig:
    """One slot of a row, or `count` equal ones."""

    views: int
    tokens: int  # of every view
    tasks: tuple[str, ...] = ()  # that may stand here; empty: all that fit
    packed: bool = False  # several examples whose views fill the slot
    count: int = 1

    def __post_init__(self):
        for name in self.tasks:
            task_named(name)

    def tasks_of(self, weights: Mapping[str, float]) -> dict[int, dict[str, float]]:
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
            count = len(TASKS[name].views)
            if count == self.views or (self.packed and count < self.views):
                fits.setdefault(count, {})[name] = weight
        if not fits:
            needs = {name: len(TASKS[name].views) for name in chosen}
            raise InputError(
                f"data.row has a slot of {self.views} views that no task fills; tasks need {needs} "
                "views. "
                f"Change the slot's views, its tasks, or data.tasks."
            )
        return fits


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run reads and how rows are made of it."""

    sources: Mapping[str, object] = dataclasses.field(
        default_factory=dict
    )  # name -> settings of a source
    tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)  # name -> weight
    row: tuple[SlotConfig, ...] = ()
    conditions: ConditionConfig = ConditionConfig()
    prompt_dropout: float = 0.1  # share of examples that lose their prompt, for guidance
    workers: int = 0  # processes that make rows; 0: threads of this one
    prefetch: int = 4  # batches made ahead

    def __post_init__(self):
        for name in self.tasks:
            task_named(name)
        if not 0 <= self.prompt_dropout <= 1:
            raise InputError(
                f"data.prompt_dropout is a share between 0 and 1, got {self.prompt_dropout}."
            )


class Rows(Sequence):
    """The rows of a run, by number."""

    def __init__(
        self,
        config: DataConfig,
        sources: Mapping[str, Source],
        codec: LinearCodec,
        patch: int,
        tokenizer: Tokenizer,
        seed: int,
    ):
        self.config, self.tokenizer = config, tokenizer
        self._codec, self._patch = codec, patch
        self._seed = seed
        self._places: list[tuple[SlotConfig, Packing | None, tuple, int]] = []
        slots, streams, taken = [], {}, {}
        for number, slot in enumerate(config.row):
            fits = slot.tasks_of(config.tasks)
            wanted = {count: sum(tasks.values()) for count, tasks in fits.items()}
            for copy in range(slot.count):
                packing = Packing(slot.views, wanted, seed + copy) if slot.packed else None
                slots.append(Slot(slot.views, slot.tokens, packing.examples if packing else 1))
                # Plain slots of a kind share a stream and take its examples in turn; a packed slot
                # has its own.
                key = (number, copy) if packing else (slot.views, slot.tokens, slot.tasks)
                if key not in streams:
                    edge = patch * codec.factor
                    streams[key] = {
                        count: stream(
                            config, sources, tasks, slot.tokens, edge, [seed, len(streams), count]
                        )
                        for count, tasks in fits.items()
                    }
                turn = taken[key] = taken.get(key, -1) + 1
                self._places.append((slot, packing, key, turn))
        self._streams, self._taken = streams, taken
        self.layout = Layout(tuple(slots))

    def __len__(self) -> int:
        return np.iinfo(np.int32).max

    def examples(self, row: int) -> list[tuple[int, int, Example]]:
        """The row's examples with their place and first view range."""
        found, place, view = [], 0, 0
        for slot, packing, key, turn in self._places:
            if packing:
                filled = packing.fill(row)
            else:
                filled = [(slot.views, row * (self._taken[key] + 1) + turn)]
            at = view
            for offset, (count, number) in enumerate(filled):
                found.append((place + offset, at, self._streams[key][count][number]))
                at += count
            place += packing.examples if packing else 1
            view += slot.views
        return found

    def __getitem__(self, row: int) -> Batch:
        writer = Writer(self.layout, self._codec, self._patch, self.tokenizer)
        rng = np.random.default_rng([self._seed, row])
        dropped = rng.random(self.layout.examples) < self.config.prompt_dropout
        for place, view, example in self.examples(row):
            writer.place(example, place, view, bool(dropped[place]))
        return writer.row


def stream(
    config: DataConfig,
    sources: Mapping[str, Source],
    tasks: Mapping[str, float],
    tokens: int,
    edge: int,
    seed: Sequence[int],
) -> grain.MapDataset:
    """An endless stream of examples of the given tasks.

    Their sizes fit `tokens` tokens of `edge` pixels a side.
    """
    parts, weights = [], []
    for name, weight in tasks.items():
        serving = [source for source in sources.values() if TASKS[name].needs <= source.fields]
        if not serving:
            have = {name: sorted(source.fields) for name, source in sources.items()}
            raise InputError(
                f"No source serves task {name!r}, which needs {sorted(TASKS[name].needs)}; sources "
                f"have {have}. "
                f"Set data.tasks.{name} to 0 or add a source."
            )
        for source in serving:
            number = int(np.random.default_rng([*seed, len(parts)]).integers(2**31))
            records = grain.MapDataset.source(source).seed(number).shuffle().repeat()
            parts.append(records.random_map(MakeExample(name, tokens, edge, config.conditions)))
            weights.append(weight * len(source) / sum(map(len, serving)))
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


@dataclasses.dataclass(frozen=True)
class MakeExample(grain.transforms.RandomMap):
    """A record, cut to the grid that fits, as an example of a task."""

    task: str
    tokens: int
    edge: int
    conditions: ConditionConfig

    def random_map(self, element: Record, rng: np.random.Generator) -> Example:
        """The example; `rng` is a function of the record's number in the stream."""
        rows, columns = grid_for(*element["image"].shape[:2], self.tokens)
        record = resized_record(element, rows * self.edge, columns * self.edge)
        return example_of(self.task, record, rng, self.conditions)


@dataclasses.dataclass(frozen=True)
class MakeBatch:
    """The rows of a step that this process reads."""

    rows: Rows
    batch: int
    local: tuple[int, ...]

    def __call__(self, step: int) -> Batch:
        """A batch of them."""
        return stack([self.rows[step * self.batch + place] for place in self.local])


def batches(rows: Rows, batch: int, local: Sequence[int], first_step: int, last_step: int):
    """An iterator over the local rows of every step, made ahead by threads or worker processes."""
    config = rows.config
    steps = grain.MapDataset.range(first_step, last_step).map(MakeBatch(rows, batch, tuple(local)))
    threads = 0 if config.workers else 2
    ahead = grain.ReadOptions(
        num_threads=threads, prefetch_buffer_size=config.prefetch if threads else 0
    )
    found = steps.to_iter_dataset(ahead)
    if config.workers:
        workers = grain.multiprocessing.MultiprocessingOptions(
            num_workers=config.workers, per_worker_buffer_size=config.prefetch
        )
        found = found.mp_prefetch(workers)
    return iter(found)
