import numpy as np
from tiny import Blobs

from onediff_jax.data.conditions.make import ConditionConfig
from onediff_jax.data.tasks.table import example_of
from onediff_jax.evaluate.grids import LINE, cell_size, grid, image_of_view
from onediff_jax.evaluate.held_out import CompletedExample
from onediff_jax.ops.rays import ray_latents, rays_from_latents


def completed(index: int, wanted: str) -> CompletedExample:
    record = Blobs()[index]
    rng = np.random.default_rng(0)
    example = example_of("depth2image", record, 2, lambda shape: shape, rng, ConditionConfig())
    return CompletedExample(index, example, {wanted: np.full_like(example.views[0], 77)})


def test_a_grid_shows_given_made_and_true_views_side_by_side():
    examples = [completed(0, "depth"), completed(3, "depth")]
    sheet = grid(examples)
    height, width = cell_size(examples[0].example.size)
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
    assert cell_size((512, 256)) == (128, 64)


def test_cameras_and_rays_are_shown_as_the_colors_of_their_directions():
    camera = Blobs()[0]["cameras"][0]._replace(camera_to_world=np.eye(4))
    image = image_of_view(camera, (8, 8))
    assert image.shape == (8, 8, 3)
    # In the middle the camera looks along z: x and y are near 0, z is near 1.
    assert np.abs(image[3:5, 3:5].astype(int) - [127, 127, 255]).max() < 16
    across, down = image[4, :, 0].astype(int), image[:, 4, 1].astype(int)
    assert (np.diff(across) > 0).all() and (np.diff(down) > 0).all()
    rays = rays_from_latents(ray_latents(camera, (8, 8), 2, 16))
    assert np.abs(image_of_view(rays, (8, 8)).astype(int) - image).max() < 20
