import numpy as np
from tiny import Blobs

from onediff_jax.data.conditions import ConditionConfig
from onediff_jax.data.tasks import example_of
from onediff_jax.evaluate.grids import LINE, cell_size, grid
from onediff_jax.evaluate.held_out import Completed, directions


def completed(index: int, wanted: str) -> Completed:
    record = Blobs()[index]
    rng = np.random.default_rng(0)
    example = example_of("depth2image", record, rng, ConditionConfig())
    return Completed(record, example, {wanted: np.full_like(example.views[0], 77)})


def test_a_grid_shows_given_made_and_true_views_side_by_side():
    examples = [completed(0, "depth"), completed(3, "depth")]
    sheet = grid(examples)
    height, width = cell_size(examples[0].example.views[0])
    assert (height, width) == (128, 128)
    given, made, true = (
        sheet[LINE : LINE + height, 180 + i * (width + 6) :][:, :width] for i in range(3)
    )
    image, depth = examples[0].example.views
    scale = height // image.shape[0]
    assert np.array_equal(given[::scale, ::scale], image)
    assert (made == 77).all()
    assert np.array_equal(true[::scale, ::scale], depth)
    assert (sheet[:, :170] < 128).any()  # the prompt stands on the left


def test_large_views_are_shown_smaller_and_keep_their_aspect():
    assert cell_size(np.zeros((512, 256, 3))) == (128, 64)


def test_a_task_is_completed_towards_its_picture_and_towards_every_condition():
    assert directions("text2image") == [("image",)]
    assert directions("depth2image") == [("image",), ("depth",)]
