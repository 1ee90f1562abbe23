import numpy as np
import pytest
from einops import rearrange
from loading import EDGE, FACTOR, PATCH, decoded, full_codec, small_tokenizer
from tiny import orbit

from onediff_jax.data.batching.rows import TASK_NAMES, Batch, Writer, grid_positions, stack
from onediff_jax.data.example import Example, SourcedExample
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.ops.cameras import Camera
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.ops.patches import patchify, unpatchify
from onediff_jax.ops.rays import ray_latents

LAYOUT = Layout((Slot(1, 12), Slot(2, 6), Slot(2, 6), Slot(4, 6, examples=3)))


def drawn(task: str, rows: int, columns: int, seed: int = 0) -> Example:
    """An example of random views of rows x columns tokens."""
    rng = np.random.default_rng(seed)
    shape = (rows * EDGE, columns * EDGE, 3)
    count = TASKS[task].builder.counts[0]
    views = tuple(rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(count))
    return Example(task, views, f"{TASKS[task].token} a thing numbered {seed}")


# (example, place, first view range); the second slot and the packed slot's end are left empty.
PLACED = [
    (drawn("text2image", 3, 4, 1), 0, 0),
    (drawn("depth2image", 2, 2, 2), 2, 3),
    (drawn("text2image", 1, 5, 3), 3, 5),
    (drawn("image_inpainting", 3, 2, 4), 4, 6),
]


def written(drop: int | None = None) -> Batch:
    writer = Writer(LAYOUT, full_codec(), PATCH, small_tokenizer())
    for example, place, view in PLACED:
        sourced = SourcedExample(example, source=place % 2, bad_records=place)
        writer.place(sourced, place, view, drop_prompt=place == drop)
    return writer.row


def test_an_empty_row_is_marked_empty_and_its_places_hold_the_empty_prompt():
    row = Writer(LAYOUT, full_codec(), PATCH, small_tokenizer()).row
    assert row.latents.shape == (LAYOUT.tokens, full_codec().channels * PATCH**2)
    assert not row.latents.any() and not row.token_mask.any()
    assert (row.example_of_view == -1).all() and (row.task == -1).all()
    ids, mask = small_tokenizer()("")
    assert row.text.shape == row.text_mask.shape == (LAYOUT.examples, 40)
    assert (row.text == ids).all() and (row.text_mask == mask).all()


def test_every_view_stands_in_its_range_and_decodes_to_its_image():
    row = written()
    for example, _, view in PLACED:
        for index, image in enumerate(example.views):
            found = decoded(row, view + index, LAYOUT, image.shape[0] // EDGE)
            np.testing.assert_array_equal(found, image)


def test_ranges_are_filled_from_their_beginning_and_padded_at_their_end():
    row = written()
    counts = {
        view + i: v.size // (3 * EDGE**2) for e, _, view in PLACED for i, v in enumerate(e.views)
    }
    for view in range(LAYOUT.views):
        mask = row.token_mask[LAYOUT.view_of_token == view]
        assert mask.sum() == counts.get(view, 0) and mask[: mask.sum()].all()
    assert not row.latents[~row.token_mask].any() and not row.positions[~row.token_mask].any()
    assert (row.latents[row.token_mask] != 0).all()


def test_ranges_name_their_example_and_places_their_task_and_prompt():
    row = written()
    assert row.example_of_view.tolist() == [0, -1, -1, 2, 2, 3, 4, 4, -1]
    assert [TASK_NAMES[t] if t >= 0 else None for t in row.task] == [
        "text2image", None, "depth2image", "text2image", "image_inpainting", None,
    ]  # fmt: skip
    prompts = {place: example.prompt for example, place, _ in PLACED}
    for place in range(LAYOUT.examples):
        ids, mask = small_tokenizer()(prompts.get(place, ""))
        np.testing.assert_array_equal(row.text[place], ids)
        np.testing.assert_array_equal(row.text_mask[place], mask)


def test_places_name_their_source_and_the_faults_before_it():
    row = written()
    assert row.source.tolist() == [0, -1, 0, 1, 0, -1]
    assert row.bad_records.tolist() == [0, 0, 2, 3, 4, 0]


def test_a_camera_is_written_as_its_rays():
    rig = [Camera(*map(np.asarray, camera)) for camera in orbit(8, 8, np.random.default_rng(0))]
    images = [np.full((8, 8, 3), i, np.uint8) for i in range(2)]
    example = Example("multiview", (images[0], rig[0], images[1], rig[1]), "[[multiview]]")
    layout = Layout((Slot(4, 5),))
    writer = Writer(layout, full_codec(), PATCH, small_tokenizer())
    writer.place(SourcedExample(example, 0, 0), 0, 0)
    for view, camera in ((1, rig[0]), (3, rig[1])):
        tokens = (layout.view_of_token == view) & writer.row.token_mask
        found = unpatchify(writer.row.latents[tokens], 2, PATCH)
        expected = ray_latents(camera, (8, 8), FACTOR, full_codec().channels)
        np.testing.assert_allclose(found, expected, atol=1e-6)
    assert writer.row.positions[:, 0].tolist() == [0] * 4 + [0] + [1] * 4 + [0] + [2] * 4 + [0] + [
        3
    ] * 4 + [0]


def test_positions_count_views_from_each_examples_first_and_rows_and_columns_from_each_views():
    row = written()
    for example, _, view in PLACED:
        for index, image in enumerate(example.views):
            rows, columns = (side // EDGE for side in image.shape[:2])
            tokens = (LAYOUT.view_of_token == view + index) & row.token_mask
            expected = [[index, y, x] for y in range(rows) for x in range(columns)]
            assert row.positions[tokens].tolist() == expected


def test_a_dropped_prompt_is_the_empty_one_and_nothing_else_changes():
    kept, dropped = written(), written(drop=2)
    for name in set(Batch._fields) - {"text", "text_mask"}:
        np.testing.assert_array_equal(getattr(dropped, name), getattr(kept, name))
    ids, mask = small_tokenizer()("")
    for place in range(LAYOUT.examples):
        expected = (ids, mask) if place == 2 else (kept.text[place], kept.text_mask[place])
        np.testing.assert_array_equal(dropped.text[place], expected[0])
        np.testing.assert_array_equal(dropped.text_mask[place], expected[1])


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 5), (7, 3)])
def test_grid_positions_follow_the_order_of_patches(rows, columns):
    grid = np.stack(np.mgrid[:rows, :columns], -1)
    latents = grid.repeat(PATCH, 0).repeat(PATCH, 1).astype(np.float32)
    patches = rearrange(patchify(latents, PATCH), "n (p c) -> n p c", c=2)
    np.testing.assert_array_equal(grid_positions(columns, rows * columns), patches[:, 0])
    np.testing.assert_array_equal(patches, patches[:, :1].repeat(PATCH**2, 1))


def test_a_batch_stacks_every_field_of_its_rows():
    rows = [written(), written(drop=0), Writer(LAYOUT, full_codec(), PATCH, small_tokenizer()).row]
    batch = stack(rows)
    for name in Batch._fields:
        found = getattr(batch, name)
        assert found.shape == (3, *getattr(rows[0], name).shape)
        assert found.dtype == getattr(rows[0], name).dtype
        for place, row in enumerate(rows):
            np.testing.assert_array_equal(found[place], getattr(row, name))
