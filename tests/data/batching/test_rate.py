"""How many examples a second a loader gives, and what slow reads make of it."""

import dataclasses
import pickle

import numpy as np
import pytest
from loading import SOURCES, Drawn, one_kind, rows_of

from onediff_jax.data.batching.rate import Rate, measured_rate, slow_sources


def given(reads: int, latency: float, workers: int = 0) -> float:
    config = dataclasses.replace(one_kind(1, {"text2image": 1.0}, 2), reads=reads, workers=workers)
    sources = slow_sources({"drawn": Drawn("drawn", 1000)}, latency)
    found = measured_rate(rows_of(config, sources=sources), 4, range(4), 1.0)
    assert found.examples == 8 * found.steps and found.seconds >= 1
    return found.examples_per_second


def test_slow_reads_give_as_many_examples_as_there_are_at_once():
    one, eight = given(1, 0.05), given(8, 0.05)
    assert 10 < one <= 1.15 / 0.05  # less on a machine that has other work
    assert 3 * one < eight <= 1.15 * 8 / 0.05


@pytest.mark.slow  # measures time
def test_the_setting_holds_for_every_worker():
    assert 1.3 / 0.1 < given(1, 0.1, workers=2) <= 1.3 * 2 / 0.1


def test_examples_are_those_of_the_source_that_is_slowed():
    slow = slow_sources(SOURCES, 0.001)
    plain, late = rows_of(), rows_of(sources=slow)
    for one, other in zip(plain[3], pickle.loads(pickle.dumps(late))[3], strict=True):
        np.testing.assert_array_equal(one, other)
    assert slow["rooms"].weight == SOURCES["rooms"].weight
    assert slow["rooms"].caption(3) == "room 3" and slow["rooms"].where(3) == "record 3"


def test_a_rate_is_examples_over_seconds():
    assert Rate(30, 3, 1.5).examples_per_second == pytest.approx(20)
