"""From sources to batches: row r of a run is a pure function of (seed, r).

A *stream* is an endless sequence of examples that fit one kind of place: shuffled records of every
source and task that qualify, mixed by weight.  Row r takes from each stream the numbers that r and
its slots determine; step i reads rows i*B to i*B + B-1.  Nothing depends on the number of
processes, workers or threads, and no iterator has a state worth saving.
"""

import dataclasses
import itertools
import signal
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from onediff_jax.data.cache import CachedSource, Part
from onediff_jax.data.conditions import ConditionConfig
from onediff_jax.data.example import Placed
from onediff_jax.data.latents import Codec, LaterCodec
from onediff_jax.data.making import MakeExample, ReadExample
from onediff_jax.data.packing import Packing
from onediff_jax.data.records import Source
from onediff_jax.data.rows import Batch, Carried, Writer, stack
from onediff_jax.data.tasks import TASKS, canonical
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
            needs = {name: TASKS[name].form.counts for name in chosen}
            raise InputError(
                f"data.row has a slot of {self.views} views that no task fills; tasks need {needs} "
                "views. "
                f"Change the slot's views, its tasks, or data.tasks."
            )
        return fits


def shares_of(task: str, counts: Mapping[str, Sequence[float]]) -> dict[int, float]:
    """Which share of a task's examples has how many views, before slots choose what fits."""
    possible = TASKS[task].form.counts
    shares = counts.get(task, (1.0,) * len(possible))
    return dict(itertools.zip_longest(possible, shares, fillvalue=0.0))


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What a run reads and how rows are made of it."""

    sources: Mapping[str, object] = dataclasses.field(
        default_factory=dict
    )  # name -> settings of a source
    tasks: Mapping[str, float] = dataclasses.field(default_factory=dict)  # name -> weight
    counts: Mapping[str, tuple[float, ...]] = dataclasses.field(
        default_factory=dict
    )  # name of a task -> shares of its numbers of views, where they are not equal; 0 of the rest
    row: tuple[SlotConfig, ...] = ()
    aspects: str = "any"  # of pictures: the slot's grid nearest to each, or "square"
    conditions: ConditionConfig = ConditionConfig()
    prompt_dropout: float = 0.1  # share of examples that lose their prompt, for guidance
    workers: int = 0  # processes that make rows; 0: threads of this one
    prefetch: int = 4  # batches made ahead
    faults: float = 0.01  # share of a source's records that may be at fault before the run stops

    def __post_init__(self):
        for field in ("tasks", "counts"):
            named = {canonical(name): value for name, value in getattr(self, field).items()}
            object.__setattr__(self, field, named)
        for name, shares in self.counts.items():
            possible = TASKS[name].form.counts
            if len(shares) > len(possible) or min(shares) < 0 or not sum(shares):
                raise InputError(
                    f"data.counts.{name} is {shares}; it gives shares to {possible} views, in this "
                    "order."
                )
        if self.aspects not in ("any", "square"):
            raise InputError(f"data.aspects is {self.aspects!r}; it can be any or square.")
        for name in ("prompt_dropout", "faults"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(
                    f"data.{name} is a share between 0 and 1, got {getattr(self, name)}."
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
    return sum(packing.mean_examples if packing else 1.0 for packing in packings)


class Rows(Sequence):
    """The rows of a run, by number.

    `sampled`: the step draws latents from the codec's distribution, where a cache holds it.
    """

    def __init__(
        self,
        config: DataConfig,
        sources: Mapping[str, Source],
        codec: Codec | LaterCodec,
        patch: int,
        tokenizer: Tokenizer,
        seed: int,
        sampled: bool = True,
    ):
        self.config, self.tokenizer = config, tokenizer
        self._codec, self._patch = codec, patch
        self.carried = carried_by(sources, codec, sampled)
        self._seed = seed
        self._places: list[tuple[SlotConfig, Packing | None, tuple, int]] = []
        streams, taken = {}, {}
        for number, copy, slot, packing in packed_slots(config, seed):
            fits = slot.tasks_of(config.tasks, config.counts)
            # Plain slots of a kind share a stream and take its examples in turn; a packed slot
            # has its own.
            key = (number, copy) if packing else (slot.views, slot.tokens, slot.tasks)
            if key not in streams:
                edge = patch * codec.factor
                streams[key] = {
                    count: stream(
                        config,
                        sources,
                        tasks,
                        count,
                        slot.tokens,
                        edge,
                        [seed, len(streams), count],
                    )
                    for count, tasks in fits.items()
                }
            turn = taken[key] = taken.get(key, -1) + 1
            self._places.append((slot, packing, key, turn))
        self._streams, self._taken = streams, taken
        self.layout = layout_of(config)

    def __len__(self) -> int:
        return np.iinfo(np.int32).max

    def examples(self, row: int) -> list[tuple[int, int, Placed]]:
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
        writer = Writer(self.layout, self._codec, self._patch, self.tokenizer, self.carried)
        rng = np.random.default_rng([self._seed, row])
        dropped = rng.random(self.layout.examples) < self.config.prompt_dropout
        for place, view, example in self.examples(row):
            writer.place(example, place, view, bool(dropped[place]))
        return writer.row


def carried_by(sources: Mapping[str, Source], codec: Codec | LaterCodec, sampled: bool) -> Carried:
    """What the rows of these sources carry; raises InputError where prompts come in two ways."""
    caches = [source for source in sources.values() if isinstance(source, CachedSource)]
    states = {isinstance(s, CachedSource) and s.holds_states for s in sources.values()}
    if len(states) > 1:
        raise InputError(
            f"Of the sources {', '.join(sources)} some are caches with states of prompts, and "
            "others are not; encode all of data.sources with --states, or none."
        )
    return Carried(
        pixels=isinstance(codec, LaterCodec) and len(caches) < len(sources),
        deviations=sampled and any(cache.holds_deviations for cache in caches),
        empty=caches[0].empty if True in states else None,
    )


def stream(
    config: DataConfig,
    sources: Mapping[str, Source],
    tasks: Mapping[str, float],
    views: int,
    tokens: int,
    edge: int,
    seed: Sequence[int],
) -> grain.MapDataset:
    """An endless stream of examples of the given tasks, each of so many views.

    Their sizes fit `tokens` tokens of `edge` pixels a side.
    """
    parts, weights = [], []
    for name, weight in tasks.items():
        serving = served(name, views, sources)
        for number, source in serving.items():
            drawn = int(np.random.default_rng([*seed, len(parts)]).integers(2**31))
            if isinstance(source, CachedSource):
                make = ReadExample(source.examples(Part(name, views, tokens)), number)
            else:
                square = config.aspects == "square"
                make = MakeExample(
                    name, source, number, views, tokens, edge, config.conditions, square
                )
            numbers = grain.MapDataset.range(len(make)).seed(drawn).shuffle().repeat()
            parts.append(numbers.random_map(make))
            weights.append(weight * len(source) / sum(map(len, serving.values())))
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


def served(task: str, views: int, sources: Mapping[str, Source]) -> dict[int, Source]:
    """The sources, by their number, whose records have what examples of so many views need."""
    form, needs = TASKS[task].form, TASKS[task].needs
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
    needed = form.of_them(views)
    enough = {n: s for n, s in able.items() if s.least.get(form.several, needed) >= needed}
    if not enough:
        found = max(source.least[form.several] for source in able.values())
        raise InputError(
            f"Task {task!r} with {views} views takes {needed} {form.several} of a record, and "
            f"sources promise {found}; set data.counts.{task}, or leave out records with fewer."
        )
    return enough


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
        found = found.mp_prefetch(workers, ignore_requests_to_end)
    return iter(found)


def ignore_requests_to_end(worker: int, workers: int) -> None:
    """Leaves signals to the process that reads the batches, which needs some more to end in order.

    A terminal, systemd and Slurm send them to its workers too.
    """
    del worker, workers
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
