"""Bad records are counted by source, and too many of them stop a run."""

import numpy as np
import pytest

from onediff_jax.data.batching.bad_records import BadRecordCounts
from onediff_jax.data.batching.rows import Batch
from onediff_jax.errors import InputError


def batch(source, bad_records) -> Batch:
    others = dict.fromkeys(set(Batch._fields) - {"source", "bad_records"})
    return Batch(source=np.array(source), bad_records=np.array(bad_records), **others)


def test_examples_and_the_bad_records_that_they_stand_in_for_are_counted_by_source():
    counts = BadRecordCounts(1.0, ["scenes", "folder", "idle"])
    counts.add(batch([[0, 1, -1], [1, 1, -1]], [[0, 2, 0], [1, 0, 0]]))
    assert counts.shares(lambda x: x) == {"faults/scenes": 0.0, "faults/folder": 0.5}
    counts.add(batch([[1]], [[3]]))
    assert counts.shares(lambda x: x) == {"faults/folder": 0.75}  # since the last call


def test_a_run_stops_when_the_share_of_all_processes_exceeds_what_is_allowed():
    others = np.array([[0, 9], [100, 50]])
    counts = BadRecordCounts(0.1, ["good", "bad"])
    counts.add(batch([[0] * 90 + [1]], [[0] * 90 + [1]]))
    counts.shares(lambda own: own + others)  # 10 of 52 is above a tenth, but few in number
    counts.refuse_too_many()
    counts.shares(lambda own: own + others)
    with pytest.raises(InputError, match="19 of 102 records of source bad .*10.0%"):
        counts.refuse_too_many()
