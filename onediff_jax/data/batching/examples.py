"""Examples by number: made of records, or read from a cache."""

import dataclasses
import functools
from collections.abc import Sequence

import grain
import numpy as np

from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.example import Example, SourcedExample
from onediff_jax.data.records import Source, retry
from onediff_jax.data.sources.arrayrecord import RecordFiles
from onediff_jax.data.sources.cache import encoded_example
from onediff_jax.data.tasks.fitting import Fitting, grid_for
from onediff_jax.data.tasks.table import TASKS, example_of
from onediff_jax.errors import BadRecord, InputError

TRIES = 100  # records in a row that may be bad


@dataclasses.dataclass(frozen=True)
class MakeExample(grain.transforms.RandomMap):
    """A record's number, as an example of a task at the size that fits a slot."""

    task: str
    source: Source
    source_number: int
    views: int
    tokens: int
    edge: int
    conditions: ConditionConfig
    fitting: Fitting = Fitting()

    def __len__(self) -> int:
        return len(self.source)

    def random_map(self, element: int, rng: np.random.Generator) -> SourcedExample:
        """The example; `rng` is a function of the record's place in the stream.

        Where a record's content is bad, the next one of the source takes its place.
        """
        seed = int(rng.integers(2**63))
        for bad_records in range(TRIES):
            number = (int(element) + bad_records) % len(self.source)
            try:
                example = retry(functools.partial(self.example, number, (seed, bad_records)))
                return SourcedExample(example, self.source_number, bad_records)
            except BadRecord as error:
                last = error
        raise InputError(
            f"{TRIES} records of a source in a row are bad; the last, number {number}, "
            f"for task {self.task!r}: {last} `python -m onediff_jax check_data` lists all."
        )

    def example(self, number: int, seed: Sequence[int]) -> Example:
        """The example of one record; raises BadRecord where its content cannot be used."""
        fields = TASKS[self.task].takes(self.source.fields)
        assert fields is not None, "the source was chosen because it serves the task"
        record = self.source.read(number, fields)

        def size(shape: tuple[int, int]) -> tuple[int, int]:
            rows, columns = grid_for(*shape, self.tokens, self.fitting.square)
            return rows * self.edge, columns * self.edge

        rng = np.random.default_rng(seed)
        return example_of(self.task, record, self.views, size, rng, self.conditions, self.fitting)


@dataclasses.dataclass(frozen=True)
class ReadExample(grain.transforms.RandomMap):
    """An example of a cache by its number; nothing is left to chance."""

    examples: RecordFiles
    source_number: int

    def __len__(self) -> int:
        return len(self.examples)

    def random_map(self, element: int, rng: np.random.Generator) -> SourcedExample:
        """The example."""
        del rng
        data = retry(functools.partial(self.examples.__getitem__, int(element)))
        return encoded_example(data, self.source_number)
