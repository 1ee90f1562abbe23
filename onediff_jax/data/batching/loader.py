"""From sources to batches: row r of a run is a pure function of (seed, r).

A *stream* is an endless sequence of examples that fit one kind of place: shuffled records of every
source and task that qualify, mixed by weight as `mixture.py` says.  Row r takes from each stream
the numbers that r and its slots determine; step i reads rows i*B to i*B + B-1.  Nothing depends on
the number of processes, workers or threads, and no iterator has a state worth saving.
"""

import concurrent.futures
import dataclasses
import functools
import signal
from collections.abc import Mapping, Sequence

import grain
import numpy as np

from onediff_jax.data.batching.examples import MakeExample, ReadExample
from onediff_jax.data.batching.mixture import has_source, ingredients
from onediff_jax.data.batching.packing import Packing
from onediff_jax.data.batching.rows import Batch, BatchFields, Writer, stack
from onediff_jax.data.batching.settings import DataConfig, SlotConfig, layout_of, packed_slots
from onediff_jax.data.codecs import Codec, DeviceCodec
from onediff_jax.data.example import EncodedPrompt, SourcedExample
from onediff_jax.data.records import Source
from onediff_jax.data.sources.arrayrecord import raised_limit
from onediff_jax.data.sources.cache import CachedSource, ExampleShape
from onediff_jax.data.text import Tokenizer
from onediff_jax.errors import InputError


class Rows(Sequence):
    """The rows of a run, by number.

    `sampled`: the step draws latents from the codec's distribution, where a cache holds it.
    `partial`: examples of tasks that no source serves are left out, their views empty; else a task
    that no source serves is refused.
    """

    def __init__(
        self,
        config: DataConfig,
        sources: Mapping[str, Source],
        codec: Codec | DeviceCodec,
        patch: int,
        tokenizer: Tokenizer,
        seed: int,
        sampled: bool = True,
        partial: bool = False,
    ):
        self.config, self.tokenizer = config, tokenizer
        self._codec, self._patch = codec, patch
        self.carried = batch_fields_of(sources, codec, sampled, config.caption_dropout)
        self._seed = seed
        self._places: list[tuple[SlotConfig, Packing | None, tuple, int]] = []
        streams, taken = {}, {}
        for number, copy, slot, packing in packed_slots(config, seed):
            fits = slot.tasks_of(config.tasks, config.counts)
            if partial:
                fits = {
                    count: {t: w for t, w in tasks.items() if has_source(t, count, sources)}
                    for count, tasks in fits.items()
                }
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
                    if tasks
                }
            turn = taken[key] = taken.get(key, -1) + 1
            self._places.append((slot, packing, key, turn))
        self._streams, self._taken = streams, taken
        self.layout = layout_of(config)

    def __len__(self) -> int:
        return np.iinfo(np.int32).max

    def examples(self, row: int) -> list[tuple[int, int, SourcedExample]]:
        """The row's examples with their place and first view range."""
        return [(place, view, stream[number]) for place, view, stream, number in self._drawn(row)]

    def _drawn(self, row: int) -> list[tuple[int, int, grain.MapDataset, int]]:
        """The row's examples as numbers of streams, with their place and first view range."""
        found, place, view = [], 0, 0
        for slot, packing, key, turn in self._places:
            if packing:
                filled = packing.fill(row)
            else:
                filled = [(slot.views, row * (self._taken[key] + 1) + turn)]
            at = view
            for offset, (count, number) in enumerate(filled):
                if count in self._streams[key]:
                    found.append((place + offset, at, self._streams[key][count], number))
                at += count
            place += packing.examples if packing else 1
            view += slot.views
        return found

    def __getitem__(self, row: int) -> Batch:
        return self._written(row, self.examples(row))

    def several(self, rows: Sequence[int]) -> list[Batch]:
        """Rows, the examples of all of them read side by side by `data.reads` threads."""
        reading = readers_of(self.config.reads)
        drawn = [
            [
                (place, view, reading.submit(stream.__getitem__, number))
                for place, view, stream, number in self._drawn(row)
            ]
            for row in rows
        ]
        return [
            self._written(row, [(place, view, read.result()) for place, view, read in examples])
            for row, examples in zip(rows, drawn, strict=True)
        ]

    def _written(self, row: int, examples: Sequence[tuple[int, int, SourcedExample]]) -> Batch:
        """A row of its examples."""
        writer = Writer(self.layout, self._codec, self._patch, self.tokenizer, self.carried)
        rng = np.random.default_rng([self._seed, row])
        drawn = rng.random(self.layout.examples)
        dropped = drawn < self.config.prompt_dropout
        bare = drawn < self.config.prompt_dropout + self.config.caption_dropout
        for place, view, example in examples:
            writer.place(example, place, view, bool(dropped[place]), bool(bare[place]))
        return writer.row


@functools.cache
def readers_of(count: int) -> concurrent.futures.ThreadPoolExecutor:
    """The threads that read examples, so many for all batches of this process."""
    return concurrent.futures.ThreadPoolExecutor(count, thread_name_prefix="reads")


def batch_fields_of(
    sources: Mapping[str, Source],
    codec: Codec | DeviceCodec,
    sampled: bool,
    caption_dropout: float,
) -> BatchFields:
    """What the rows of these sources carry.

    Raises InputError where prompts come in two ways, or as states without those of prompts that
    lose their caption.
    """
    caches = [source for source in sources.values() if isinstance(source, CachedSource)]
    states = {isinstance(s, CachedSource) and s.holds_states for s in sources.values()}
    if len(states) > 1:
        raise InputError(
            f"Of the sources {', '.join(sources)} some are caches with states of prompts, and "
            "others are not; encode all of data.sources with --states, or none."
        )
    bare: dict[str, EncodedPrompt] = {}
    if True in states and caption_dropout:
        for cache in caches:
            if not cache.bare:
                raise InputError(
                    f"data.caption_dropout is {caption_dropout}, and {cache.folder} holds no "
                    "states of prompts without a caption; run the `encode` command again that "
                    "wrote it, which adds them and keeps the rest, or set it to 0."
                )
            bare |= cache.bare
    return BatchFields(
        pixels=isinstance(codec, DeviceCodec) and len(caches) < len(sources),
        deviations=sampled and any(cache.holds_deviations for cache in caches),
        empty=caches[0].empty if True in states else None,
        bare=bare or None,
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
    for task, number, source, weight in ingredients(tasks, views, sources):
        drawn = int(np.random.default_rng([*seed, len(parts)]).integers(2**31))
        if isinstance(source, CachedSource):
            make = ReadExample(source.examples(ExampleShape(task, views, tokens)), number)
        else:
            make = MakeExample(
                task, source, number, views, tokens, edge, config.conditions, config.fitting
            )
        numbers = grain.MapDataset.range(len(make)).seed(drawn).shuffle().repeat()
        parts.append(numbers.random_map(make))
        weights.append(weight)
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, weights)


@dataclasses.dataclass(frozen=True)
class MakeBatch:
    """The rows of a step that this process reads."""

    rows: Rows
    batch: int
    local: tuple[int, ...]

    def __call__(self, step: int) -> Batch:
        """A batch of them."""
        return stack(self.rows.several([step * self.batch + place for place in self.local]))


def batches(rows: Rows, batch: int, local: Sequence[int], first_step: int, last_step: int):
    """An iterator over the local rows of every step, made ahead by threads or worker processes.

    Of `data.prefetch` batches all are under way at once, or half of them in a worker, so that
    `data.reads` threads find enough to read.
    """
    config = rows.config
    steps = grain.MapDataset.range(first_step, last_step).map(MakeBatch(rows, batch, tuple(local)))
    ahead = max(config.prefetch // 2, 1) if config.workers else config.prefetch
    found = steps.to_iter_dataset(grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead))
    if config.workers:
        workers = grain.multiprocessing.MultiprocessingOptions(
            num_workers=config.workers, per_worker_buffer_size=max(config.prefetch - ahead, 1)
        )
        found = found.mp_prefetch(workers, begin_worker)
    return iter(found)


def begin_worker(worker: int, workers: int) -> None:
    """Readies a worker process: files may be open, and signals are left to whoever reads batches.

    A terminal, systemd and Slurm send SIGINT and SIGTERM to workers too, and the reader of batches
    needs some more to end in order.
    """
    del worker, workers
    raised_limit()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
