"""Counts bad records by source, on the host, and stops a run that meets too many."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from onediff_jax.data.batching.rows import Batch
from onediff_jax.errors import InputError

SLACK = 5  # bad records beyond the allowed share, so that one early one does not stop a run

Counts = Int[np.ndarray, "2 sources"]  # bad records, and all records that were read


class BadRecordCounts:
    """How many records of each source a run has read, and how many of them were bad.

    A process counts the rows that it reads itself; `shares` adds what the others counted.
    """

    def __init__(self, allowed: float, sources: Sequence[str]):
        self._allowed, self._sources = allowed, sources
        self._recent = np.zeros((2, len(sources)), np.int32)  # of this process, since `shares`
        self._total = np.zeros((2, len(sources)), np.int64)  # of all processes

    def add(self, batch: Batch) -> None:
        """Counts the records of this process's rows of a batch."""
        used = batch.source >= 0
        source, bad = batch.source[used], batch.bad_records[used]
        for counts, each in zip(self._recent, (bad, bad + 1), strict=True):
            np.add.at(counts, source, each)

    def shares(self, sum_over_processes: Callable[[Counts], Counts]) -> dict[str, float]:
        """The share of bad records by source since the last call, as `faults/SOURCE`.

        All processes must call it at the same step.
        """
        recent = sum_over_processes(self._recent)
        self._recent = np.zeros_like(self._recent)
        self._total += recent
        named = zip(self._sources, *recent.tolist(), strict=True)
        return {f"faults/{source}": bad / read for source, bad, read in named if read}

    def refuse_too_many(self) -> None:
        """Raises InputError, naming the source, once a share is above `data.faults`."""
        for source, bad, read in zip(self._sources, *self._total.tolist(), strict=True):
            if bad > self._allowed * read + SLACK:
                raise InputError(
                    f"{bad} of {read} records of source {source} are bad; data.faults allows "
                    f"{self._allowed:.1%}. `check_data` lists them; mend them or raise "
                    "data.faults."
                )
