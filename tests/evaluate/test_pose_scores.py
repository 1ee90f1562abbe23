"""Scores of cameras: what they ignore, what they count, and where they are not defined."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from rigs import random_cameras, random_pose
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from onediff_jax.evaluate import pose_scores as s
from onediff_jax.ops.cameras import pose_matrix


@pytest.fixture
def rng():
    return np.random.default_rng(4)


def elsewhere(cameras, rng, scale=3.7):
    """The same rig in another world, of another scale."""
    motion = random_pose(rng)
    moved = motion @ cameras.camera_to_world
    return cameras._replace(
        camera_to_world=pose_matrix(moved[..., :3, :3], scale * moved[..., :3, 3])
    )


def test_the_similarity_is_the_one_that_was_applied(rng):
    points, turn = rng.normal(size=(7, 3)), Rotation.random(rng=rng).as_matrix()
    found = s.umeyama(points, 0.3 * points @ turn.T + [1, -2, 5])
    assert_allclose(found.scale, 0.3)
    assert_allclose(found.rotation, turn, atol=1e-12)
    assert_allclose(found.translation, [1, -2, 5], atol=1e-12)


def test_no_similarity_is_nearer_than_umeyamas(rng):
    """SciPy's minimiser over scale, turn and translation, of points that do not fit."""
    source, target = rng.normal(size=(2, 6, 3))

    def squares(p):
        turn = Rotation.from_rotvec(p[1:4]).as_matrix()
        return ((np.exp(p[0]) * source @ turn.T + p[4:] - target) ** 2).sum()

    starts = [
        np.concatenate([[0], t, np.zeros(3)]) for t in Rotation.random(8, rng=rng).as_rotvec()
    ]
    best = min(minimize(squares, start).fun for start in starts)
    found = s.umeyama(source, target)
    assert_allclose(((found(source) - target) ** 2).sum(), best, rtol=1e-5)


def test_a_mirrored_rig_is_not_made_to_fit(rng):
    points = rng.normal(size=(6, 3))
    found = s.umeyama(points * [1, 1, -1], points)
    assert_allclose(np.linalg.det(found.rotation), 1)
    assert s.center_errors(points * [1, 1, -1], points).max() > 0.2


def test_a_rig_in_another_world_of_another_scale_has_full_marks(rng):
    true = random_cameras(rng, 6)
    assert s.pose_score(elsewhere(true, rng), true) == (1, 1, 1, 1)
    assert_allclose(s.center_errors(elsewhere(true, rng).center, true.center), 0, atol=1e-12)


def test_scores_of_wrong_cameras_are_the_same_in_any_world(rng):
    true = random_cameras(rng, 12)
    turn = Rotation.from_rotvec(0.15 * rng.normal(size=(12, 3))).as_matrix()
    wrong = pose_matrix(turn @ true.rotation, true.center + 0.4 * rng.normal(size=(12, 3)))
    predicted = true._replace(camera_to_world=wrong)
    score = s.pose_score(predicted, true)
    assert all(0 < share < 1 for share in score)
    assert s.pose_score(elsewhere(predicted, rng), elsewhere(true, rng, 0.2)) == score


def test_errors_are_measured_by_the_furthest_true_camera():
    """A square of centres, two of them up and two down by the same: no similarity undoes it."""
    square = np.array([[1.0, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]])
    twisted = square + 0.2 * np.array([[0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, -1]])
    # The best scale is sum |true|² over sum |predicted|²: 8 / (8 + 4 * 0.04).
    scale = 8 / 8.16
    expected = np.hypot(np.sqrt(2) * (1 - scale), 0.2 * scale) / np.sqrt(2)
    assert_allclose(s.center_errors(twisted, square), expected)


def test_shares_are_counted_below_both_thresholds(rng):
    true = random_cameras(rng, 40)
    error = np.linspace(0, 0.8, 40)
    offset = rng.normal(size=(40, 3))
    offset *= (error / np.linalg.norm(offset, axis=-1))[:, None]
    scale = np.linalg.norm(true.center - true.center.mean(0), axis=-1).max()
    predicted = true._replace(
        camera_to_world=pose_matrix(true.rotation, true.center + scale * offset)
    )
    errors = s.center_errors(predicted.center, true.center)
    score = s.pose_score(predicted, true)
    assert_allclose(score.centers_within_30_percent, (errors < 0.3).mean())
    assert_allclose(score.centers_within_10_percent, (errors < 0.1).mean())
    assert score.centers_within_10_percent < score.centers_within_30_percent < 1


def test_one_camera_turned_spoils_its_pairs(rng):
    true = random_cameras(rng, 5)
    for degrees, at_15, at_30 in ((14, 1, 1), (16, 0.6, 1), (31, 0.6, 0.6), (180, 0.6, 0.6)):
        turn = np.broadcast_to(np.eye(3), (5, 3, 3)).copy()
        axis = rng.normal(size=3)
        axis *= np.radians(degrees) / np.linalg.norm(axis)
        turn[2] = Rotation.from_rotvec(axis).as_matrix()
        rotation = turn @ true.rotation
        errors = s.relative_rotation_errors(rotation, true.rotation)
        assert_allclose(np.sort(errors), [0] * 6 + [degrees] * 4, atol=1e-4)
        predicted = true._replace(camera_to_world=pose_matrix(rotation, true.center))
        score = s.pose_score(predicted, true)
        assert_allclose(score.rotations_within_15_degrees, at_15)
        assert_allclose(score.rotations_within_30_degrees, at_30)


def test_relative_rotations_are_scipys_over_all_pairs(rng):
    predicted, true = (Rotation.random(4, rng=rng) for _ in range(2))
    expected = [
        np.degrees(
            ((predicted[j].inv() * predicted[i]).inv() * true[j].inv() * true[i]).magnitude()
        )
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    assert_allclose(s.relative_rotation_errors(predicted.as_matrix(), true.as_matrix()), expected)


def test_two_cameras_fit_wherever_they_are_unless_in_one_point(rng):
    true, predicted = rng.normal(size=(2, 2, 3))
    assert_allclose(s.center_errors(predicted, true), 0, atol=1e-12)
    assert_allclose(s.center_errors(np.ones((2, 3)), true), 1)


def test_cameras_on_a_line_are_aligned(rng):
    along = rng.normal(size=(5, 1))
    true, predicted = along * rng.normal(size=3), 2 * along * rng.normal(size=3) + [3, 4, 5]
    assert_allclose(s.center_errors(predicted, true), 0, atol=1e-7)
    assert_allclose(np.linalg.det(s.umeyama(predicted, true).rotation), 1)


def test_predicted_cameras_in_one_point_are_put_in_the_middle(rng):
    true = rng.normal(size=(5, 3))
    distance = np.linalg.norm(true - true.mean(0), axis=-1)
    point = np.full((5, 3), 7.0) + 1e-12 * rng.normal(size=(5, 3))
    assert_allclose(s.center_errors(point, true), distance / distance.max())


def test_scores_that_are_not_defined_are_nan(rng):
    one = random_cameras(rng, 1)
    assert_array_equal(s.pose_score(one, one), [np.nan] * 4)
    still = random_cameras(rng, 3)
    panorama = still._replace(camera_to_world=pose_matrix(still.rotation, np.ones((3, 3))))
    assert_array_equal(s.pose_score(still, panorama), [np.nan, np.nan, 1, 1])
