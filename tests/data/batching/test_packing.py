import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

from onediff_jax.data.batching.packing import PERIOD, Packing, recipes_of
from onediff_jax.errors import InputError

MIXES = [
    (4, {1: 1.0, 2: 1.0}),
    (4, {1: 1.0, 2: 3.0}),
    (4, {1: 0.25, 2: 0.0625, 4: 1.0}),
    (5, {2: 1.0, 3: 1.0}),
    (6, {1: 2.0, 2: 1.0, 3: 1.0}),
    (8, {8: 1.0}),
    (12, {2: 1.0, 4: 1.0, 6: 1.0, 8: 1.0, 10: 1.0, 12: 1.0}),
    (12, {2: 6.0, 4: 5.0, 6: 4.0, 8: 3.0, 10: 2.0, 12: 5.0}),
    (12, {1: 1.0, 3: 2.0, 4: 3.0, 12: 0.1}),
]
every_mix = pytest.mark.parametrize(("views", "wanted"), MIXES)


@pytest.mark.parametrize(
    ("views", "counts"), [(4, (1, 2)), (12, (2, 4, 6, 8, 10, 12)), (7, (3, 2)), (9, (1, 4, 5))]
)
def test_recipes_are_all_ways_to_fill_the_slot_each_once(views, counts):
    expected = {
        tuple(sorted(chosen, reverse=True))
        for size in range(1, views + 1)
        for chosen in itertools.combinations_with_replacement(counts, size)
        if sum(chosen) == views
    }
    found = recipes_of(views, counts)
    assert set(found) == expected and len(found) == len(expected)


@every_mix
def test_every_row_is_filled_exactly(views, wanted):
    packing = Packing(views, wanted, seed=0)
    sizes = [[count for count, _ in packing.fill(row)] for row in range(2 * PERIOD)]
    assert {sum(counts) for counts in sizes} == {views}
    assert max(map(len, sizes)) == packing.examples


@every_mix
def test_examples_of_each_count_come_once_each_and_in_order(views, wanted):
    packing = Packing(views, wanted, seed=1)
    numbers = {count: [] for count in wanted}
    for row in range(3 * PERIOD):
        for count, number in packing.fill(row):
            numbers[count].append(number)
    for found in numbers.values():
        assert found == list(range(len(found))) and found


@every_mix
def test_a_rows_filling_does_not_depend_on_what_was_asked_before(views, wanted):
    packing = Packing(views, wanted, seed=2)
    ahead = [packing.fill(row) for row in range(2 * PERIOD)]
    rows = np.random.default_rng(0).permutation(2 * PERIOD)[:300].tolist()
    fresh = Packing(views, wanted, seed=2)
    copy = pickle.loads(pickle.dumps(packing))
    for row in rows:
        assert fresh.fill(row) == copy.fill(row) == ahead[row]


@every_mix
def test_wanted_proportions_are_reached(views, wanted):
    packing = Packing(views, wanted, seed=0)
    found = Counter(count for row in range(PERIOD) for count, _ in packing.fill(row))
    for count, weight in wanted.items():
        assert found[count] / found.total() == pytest.approx(
            weight / sum(wanted.values()), abs=0.01
        )


def test_orders_differ_between_seeds_and_periods_but_not_their_contents():
    views, wanted = MIXES[0]

    def recipes(seed, period):
        rows = range(period * PERIOD, (period + 1) * PERIOD)
        packing = Packing(views, wanted, seed)
        return [tuple(count for count, _ in packing.fill(row)) for row in rows]

    first, next_period, other_seed = recipes(0, 0), recipes(0, 1), recipes(1, 0)
    assert first != next_period and first != other_seed
    assert sorted(first) == sorted(next_period) == sorted(other_seed)
    assert first != sorted(first) and first != sorted(first, reverse=True)


def test_far_rows_are_found_at_once():
    views, wanted = MIXES[0]
    packing = Packing(views, wanted, seed=0)
    held = Counter(count for row in range(PERIOD) for count, _ in packing.fill(row))
    for period in (1, 10**6):
        first = dict(reversed(packing.fill(period * PERIOD)))  # of each count in the row
        assert first == {count: period * held[count] for count in first}


def test_proportions_out_of_reach_are_refused_with_what_was_asked_and_the_nearest():
    # Every 3 of 4 views leaves a 1: threes are at most half.
    match = r"cannot hold examples of \[1, 3\] views in proportions \[0.2 0.8\]; the nearest are \["
    with pytest.raises(InputError, match=match):
        Packing(4, {1: 1.0, 3: 4.0}, seed=0)
    Packing(4, {1: 1.0, 3: 1.0}, seed=0)


@pytest.mark.parametrize(("views", "wanted"), [(5, {2: 1.0, 4: 1.0}), (3, {4: 1.0})])
def test_a_slot_that_nothing_fills_is_refused(views, wanted):
    with pytest.raises(InputError, match=f"fill a packed slot of {views} views"):
        Packing(views, wanted, seed=0)
