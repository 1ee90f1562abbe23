"""Records at fault: counted by source in every step, and too many stop a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from clu import metrics as clu_metrics

from onediff_jax.data.batching.rows import Batch
from onediff_jax.errors import InputError
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.train.loop import Faults
from onediff_jax.train.step import measures, named_scalars


def counted(faults, records) -> clu_metrics.Average:
    return clu_metrics.Average(jnp.array(faults, jnp.float32), jnp.array(records, jnp.float32))


def test_a_run_stops_when_a_source_has_more_faults_than_allowed():
    watch = Faults(0.1, ["good", "bad"])
    watch.add(counted([3, 8], [100, 60]))  # 8 of 60 is a tenth and some, but few in number
    with pytest.raises(InputError, match="20 of 120 records of source bad are at fault; .* 10.0%"):
        watch.add(counted([3, 12], [100, 60]))


def test_faults_below_the_share_never_stop_a_run():
    watch = Faults(0.1, ["good"])
    for _ in range(1000):
        watch.add(counted([9], [100]))
    with pytest.raises(InputError, match="11000 of 102000 records of source good"):
        watch.add(counted([2000], [2000]))  # all of them counted


def test_a_step_counts_examples_and_faults_by_source():
    layout = Layout((Slot(1, 2), Slot(1, 2), Slot(1, 2)))
    batch = Batch(
        latents=np.zeros((2, 6, 1), np.float32),
        positions=np.zeros((2, 6, 3), np.int32),
        example_of_view=np.array([[0, 1, -1], [0, 1, -1]]),
        token_mask=np.ones((2, 6), bool),
        text=np.zeros((2, 3, 1), np.int32),
        text_mask=np.ones((2, 3, 1), bool),
        task=np.zeros((2, 3), np.int32),
        deviations=np.zeros((2, 6, 0), np.float32),
        pixels=np.zeros((2, 6, 0), np.uint8),
        encoded=np.ones((2, 3), bool),
        source=np.array([[0, 1, -1], [1, 1, -1]]),
        faults=np.array([[0, 2, 0], [1, 0, 0]]),
    )
    batch = jax.tree.map(jnp.asarray, batch)
    found = measures(jnp.ones((2, 6)), jnp.full((2, 3), 0.5), batch, layout, 2)["faults"]
    np.testing.assert_array_equal(found.total, [0, 3])
    np.testing.assert_array_equal(found.count, [1, 6])  # three examples and three they stand in for
    scalars = named_scalars({"faults": found}, ["scenes", "folder"])
    assert scalars == {"faults/scenes": 0.0, "faults/folder": 0.5}
