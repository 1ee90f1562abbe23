"""Measures how many examples per second a run's own loader delivers.

A read from object storage takes about 40 ms.  With this delay added to each read, any machine shows
the rate that a run would get from object storage.
"""

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from onediff_jax.data.batching.loader import Rows, batches
from onediff_jax.data.example import Caption, Record
from onediff_jax.data.records import Source
from onediff_jax.data.sources.arrayrecord import RecordFiles
from onediff_jax.data.sources.cache import CachedSource, ExampleShape

ENDLESS = 2**20  # steps, more than are ever measured


class Rate(NamedTuple):
    """What a loader gave."""

    examples: int
    steps: int
    seconds: float

    @property
    def examples_per_second(self) -> float:
        """Of this process."""
        return self.examples / self.seconds


def measured_rate(rows: Rows, batch: int, local: Sequence[int], seconds: float) -> Rate:
    """The loader's rate over `seconds`, for a run that waits for nothing else.

    `batch` and `local` are those of `batches`.  Prefetched batches come first and are not counted,
    so the result is the sustained rate.
    """
    coming = batches(rows, batch, local, 0, ENDLESS)
    for _ in range(rows.config.prefetch * max(rows.config.workers, 1) + 1):
        next(coming)
    began, examples = time.perf_counter(), 0
    for steps in itertools.count(1):
        examples += int((next(coming).task >= 0).sum())
        taken = time.perf_counter() - began
        if taken >= seconds:
            return Rate(examples, steps, taken)
    raise AssertionError("unreachable")


def slow_sources(sources: Mapping[str, Source], seconds: float) -> dict[str, Source]:
    """The sources, with `seconds` added to each read of a record or of a cached example."""
    return {
        name: SlowCache(source, seconds)
        if isinstance(source, CachedSource)
        else SlowSource(source, seconds)
        for name, source in sources.items()
    }


class SlowSource(Source):
    """A source whose reads are delayed."""

    def __init__(self, source: Source, seconds: float):
        self.source, self.seconds = source, seconds
        self.fields, self.least, self.settings = source.fields, source.least, source.settings

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        time.sleep(self.seconds)
        return self.source[index]

    def caption(self, index: int) -> Caption:
        """The caption of a record, or its several, at once: it is read before a run begins."""
        return self.source.caption(index)

    def where(self, index: int) -> str:
        """The place of a record for messages."""
        return self.source.where(index)


class SlowCache(CachedSource):
    """A cache whose reads are delayed."""

    seconds: float

    def __init__(self, cache: CachedSource, seconds: float):
        vars(self).update(vars(cache), seconds=seconds)

    def examples(self, part: ExampleShape) -> RecordFiles:
        """The examples of a part."""
        return SlowExamples(super().examples(part), self.seconds)


class SlowExamples(RecordFiles):
    """Examples of a cache, with delayed reads."""

    seconds: float

    def __init__(self, examples: RecordFiles, seconds: float):
        vars(self).update(vars(examples), seconds=seconds)

    def __getitem__(self, index: int) -> bytes:
        time.sleep(self.seconds)
        return super().__getitem__(index)
