import numpy as np
import pytest
from numpy.testing import assert_array_equal

from onediff_jax.errors import InputError
from onediff_jax.ops.layout import Layout, Run, SequenceShard, Slot

TEXT, PAIR, PACKED = Slot(1, 16), Slot(2, 4), Slot(12, 4, examples=3)
LAYOUTS = [
    Layout((TEXT,)),
    Layout((TEXT, PAIR, PAIR, PACKED)),
    Layout((PAIR, TEXT, PAIR, PACKED, PACKED, PACKED, TEXT, TEXT)),
]


def test_a_row_counts_its_tokens_views_and_examples():
    row = LAYOUTS[1]
    assert (row.tokens, row.views, row.examples) == (16 + 8 + 8 + 48, 1 + 2 + 2 + 12, 1 + 1 + 1 + 3)


def test_equal_neighbours_join_and_equal_slots_apart_do_not():
    assert LAYOUTS[1].runs == (
        Run(TEXT, 1, token=0, view=0, example=0),
        Run(PAIR, 2, token=16, view=1, example=1),
        Run(PACKED, 1, token=32, view=5, example=3),
    )
    joined = [(run.slot, run.count) for run in LAYOUTS[2].runs]
    assert joined == [(PAIR, 1), (TEXT, 1), (PAIR, 1), (PACKED, 3), (TEXT, 2)]
    for one, following in zip(LAYOUTS[2].runs, LAYOUTS[2].runs[1:], strict=False):
        assert one.slot != following.slot


def test_slots_that_differ_in_examples_alone_stay_apart():
    plain, packed = Slot(4, 4), Slot(4, 4, examples=2)
    assert [run.count for run in Layout((plain, packed, packed)).runs] == [1, 2]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("unit", ["tokens", "views", "examples"])
def test_runs_cover_the_row_without_gap_or_overlap(layout, unit):
    slices = [getattr(run, unit) for run in layout.runs]
    covered = [i for one in slices for i in range(one.start, one.stop)]
    assert covered == list(range(getattr(layout, unit)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_view_owns_one_range_of_the_tokens_of_its_slot(layout):
    view_of_token = layout.view_of_token
    sizes = [slot.tokens for slot in layout.slots for _ in range(slot.views)]
    assert_array_equal(np.bincount(view_of_token), sizes)
    assert view_of_token.shape == (layout.tokens,)
    assert (np.diff(view_of_token) >= 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_tokens_of_a_run_are_those_of_its_views(layout):
    for run in layout.runs:
        views = np.unique(layout.view_of_token[run.tokens])
        assert_array_equal(views, np.arange(run.views.start, run.views.stop))


def test_layouts_of_equal_slots_are_one_static_argument():
    again = Layout((Slot(1, 16), Slot(2, 4), Slot(2, 4), Slot(12, 4, examples=3)))
    assert again == LAYOUTS[1] and hash(again) == hash(LAYOUTS[1]) and again != LAYOUTS[2]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (dict(views=0, tokens=4), "views must be at least 1, got 0"),
        (dict(views=1, tokens=0), "tokens must be at least 1, got 0"),
        (dict(views=1, tokens=4, examples=0), "examples must be at least 1, got 0"),
        (dict(views=2, tokens=4, examples=3), "2 views cannot hold 3 examples; use at most 2"),
    ],
)
def test_impossible_slots_are_refused_with_the_way_out(sizes, message):
    with pytest.raises(InputError, match=message):
        Slot(**sizes)


def test_a_row_without_slots_is_refused():
    with pytest.raises(InputError, match="at least one slot"):
        Layout(())


@pytest.mark.parametrize(
    ("slots", "parts", "expected"),
    [
        ((TEXT, PAIR), 1, (TEXT, PAIR)),
        ((TEXT, PAIR) * 4, 2, (TEXT, PAIR) * 2),
        ((TEXT, PAIR) * 4, 4, (TEXT, PAIR)),
        ((TEXT,) * 6, 3, (TEXT,) * 2),
        ((PACKED,), 4, (SequenceShard(3, 4, examples=3),)),
        ((PACKED,), 12, (SequenceShard(1, 4, examples=3),)),
        ((PACKED,), 24, (SequenceShard(1, 2, examples=3),)),
        ((TEXT,), 8, (SequenceShard(1, 2),)),
    ],
)
def test_a_part_has_whole_slots_of_a_pattern_or_a_piece_of_the_only_slot(slots, parts, expected):
    layout = Layout(slots)
    part = layout.part(parts)
    assert part.slots == expected and parts * part.tokens == layout.tokens


def test_the_parts_of_a_row_are_its_tokens_in_order():
    layout = Layout((TEXT, PAIR) * 3)
    part = layout.part(3)
    views = [part.view_of_token + i * part.views for i in range(3)]
    assert_array_equal(np.concatenate(views), layout.view_of_token)


@pytest.mark.parametrize(
    ("slots", "parts", "message"),
    [
        ((TEXT, PAIR, PAIR, PACKED), 2, "1 times the pattern of slots 1 x 16, 2 x 4, 2 x 4, 12 x"),
        ((TEXT, PAIR) * 6, 4, r"6 times the pattern of slots 1 x 16, 2 x 4 .*to 1 or 2 or 3 or 6"),
        ((PACKED,), 8, "the only slot of data.row, 12 x 4 .*divisor of 12, or .* divides 48"),
        ((TEXT,), 32, "divides 16"),
    ],
)
def test_a_row_that_cannot_be_cut_is_refused_with_its_pattern(slots, parts, message):
    with pytest.raises(InputError, match=f"mesh.sequence is {parts}.*{message}"):
        Layout(slots).part(parts)
