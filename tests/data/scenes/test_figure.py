"""A figure stands, bends and is left and right as people are."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from onediff_jax.data.scenes import figure
from onediff_jax.data.scenes.objects import NAMED_COLORS

PAIRS = [(name, name.replace("left", "right")) for name in figure.JOINTS if "left" in name]


def rng(seed=0):
    return np.random.default_rng(seed)


def people(number=12):
    return [figure.draw_identity(rng(i), list(NAMED_COLORS)) for i in range(number)]


def joints(who, pose):
    return dict(zip(figure.JOINTS, figure.keypoints(who, pose), strict=True))


@pytest.mark.parametrize("pose", figure.POSES)
def test_left_is_left_of_right_and_the_face_looks_ahead(pose):
    for i, who in enumerate(people()):
        at = joints(who, figure.draw_pose(rng(i), pose))
        for left, right in PAIRS[:3] + [("left_hip", "right_hip")]:
            assert at[left][1] > 0 > at[right][1]  # y points to the figure's left, x ahead
        assert at["nose"][0] > at["left_eye"][0] > at["left_ear"][0]
        assert at["left_eye"][2] > at["nose"][2]


@pytest.mark.parametrize("pose", figure.POSES)
def test_every_figure_touches_the_ground_and_does_not_sink(pose):
    for i, who in enumerate(people()):
        bent = figure.draw_pose(rng(i), pose)
        low = [
            min(p.first[2], p.last[2]) - p.shape if p.family == 2 else p.first[2] - p.last[2]
            for p in figure.primitives(who, bent, NAMED_COLORS)
        ]
        assert abs(min(low)) < 0.05 * who.height


def test_a_standing_figure_has_human_proportions():
    for i, who in enumerate(people()):
        at = joints(who, figure.draw_pose(rng(i), "standing"))
        heights = [at[f"left_{joint}"][2] for joint in ("ankle", "knee", "hip", "shoulder", "ear")]
        assert heights == sorted(heights)
        assert 0.4 < heights[2] / who.height < 0.56
        assert 0.75 < heights[3] / who.height < 0.86
        assert heights[1] > at["left_wrist"][2] - 0.35 * who.height > 0  # hands reach the thighs
        body = figure.primitives(who, figure.draw_pose(rng(i), "standing"), NAMED_COLORS)
        skin = [part for part in body if part.color == who.skin]
        top = max(part.first[2] + part.shape for part in skin)
        assert_allclose(top, who.height, rtol=0.05)


def test_bones_keep_their_lengths_in_every_pose():
    bones = [("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")]
    for who in people(4):
        lengths = []
        for i, pose in enumerate(figure.POSES):
            at = joints(who, figure.draw_pose(rng(i), pose))
            lengths.append(
                [
                    np.linalg.norm(at[f"{side}_{a}"] - at[f"{side}_{b}"])
                    for a, b in bones
                    for side in ("left", "right")
                ]
            )
        assert_allclose(lengths, np.broadcast_to(lengths[0], np.shape(lengths)), rtol=1e-6)


def test_poses_are_what_they_are_called():
    for i, who in enumerate(people()):
        named = {pose: joints(who, figure.draw_pose(rng(i), pose)) for pose in figure.POSES}
        for hand, other in (("left", "right"), ("right", "left")):
            at = named[f"waving with the {hand} hand"]
            assert at[f"{hand}_wrist"][2] > at[f"{hand}_shoulder"][2] + 0.08 * who.height
            assert at[f"{other}_wrist"][2] < at[f"{other}_shoulder"][2]
        at = named["with both arms raised"]
        assert min(at["left_wrist"][2], at["right_wrist"][2]) > at["nose"][2]
        at = named["with both arms stretched out"]
        assert at["left_wrist"][1] - at["right_wrist"][1] > 0.75 * who.height
        at = named["walking"]
        assert abs(at["left_ankle"][0] - at["right_ankle"][0]) > 0.25 * who.height
        ahead = np.sign(at["left_ankle"][0] - at["right_ankle"][0])
        swings = [(at[f"{side}_wrist"] - at[f"{side}_shoulder"])[0] for side in ("left", "right")]
        assert ahead * swings[0] < 0 < ahead * swings[1]  # arms swing across
        at = named["sitting on the ground"]
        assert at["left_hip"][2] < 0.15 * who.height and at["left_ankle"][2] < 0.15 * who.height
        at = named["with both hands on the hips"]
        assert at["left_elbow"][1] > at["left_wrist"][1] + 0.03 * who.height


def test_knees_and_elbows_bend_the_right_way():
    for i, who in enumerate(people()):
        for pose in figure.POSES:
            at = joints(who, figure.draw_pose(rng(i), pose))
            for side in ("left", "right"):
                thigh = at[f"{side}_knee"] - at[f"{side}_hip"]
                shin = at[f"{side}_ankle"] - at[f"{side}_knee"]
                # The lower leg never points further ahead than the upper one does.
                assert np.cross(thigh, shin)[1] > 0


def ending_at(parts, first, last):
    """The one part between two points."""
    [found] = [p for p in parts if np.allclose(p.first, first) and np.allclose(p.last, last)]
    return found


def test_every_limb_wears_what_the_identity_says():
    for i, who in enumerate(people(20)):
        pose = figure.draw_pose(rng(i), "walking")
        at, parts = joints(who, pose), figure.primitives(who, pose, NAMED_COLORS)
        shin = who.skin if who.shorts else NAMED_COLORS[who.trousers]
        for side in ("left", "right"):
            for a, b, color in (
                ("elbow", "wrist", who.skin),
                ("knee", "ankle", shin),
            ):
                limb = ending_at(parts, at[f"{side}_{a}"], at[f"{side}_{b}"])
                assert limb.color == color
            [thigh] = [p for p in parts if np.allclose(p.last, at[f"{side}_knee"])]
            [arm] = [p for p in parts if np.allclose(p.last, at[f"{side}_elbow"])]
            [foot] = [p for p in parts if np.allclose(p.first, at[f"{side}_ankle"])]
            expected = [NAMED_COLORS[c] for c in (who.trousers, who.shirt, who.shoes)]
            assert [thigh.color, arm.color, foot.color] == expected
            assert foot.last[0] > foot.first[0]  # toes point ahead
            eye = ending_at(parts, at[f"{side}_eye"], at[f"{side}_eye"])
            assert eye.color == figure.EYES


def test_hair_is_behind_the_face_and_hats_are_above_it_in_their_shapes():
    shapes = {"cap": [2, 2], "bobble hat": [2, 2], "top hat": [1, 1], "pointed hat": [1]}
    for i, who in enumerate(people(30)):
        pose = figure.draw_pose(rng(i), "standing")
        at, parts = joints(who, pose), figure.primitives(who, pose, NAMED_COLORS)
        head = (at["left_ear"] + at["right_ear"]) / 2
        hair = next(p for p in parts if p.color == who.hair)
        assert hair.first[0] < head[0] and hair.first[2] > head[2]
        hat = [p for p in parts if p.first[2] > at["left_eye"][2] and p.color not in
               (who.hair, who.skin, figure.EYES)]  # fmt: skip
        assert [p.family for p in hat] == shapes.get(who.hat, [])
        if who.hat == "cap":
            assert max(p.first[0] for p in hat) > at["nose"][0] - 0.02 * who.height  # its brim
        if who.hat in ("top hat", "pointed hat"):
            assert {p.shape for p in hat} == {float(who.hat == "top hat")}
    assert {who.hat for who in people(30)} == {"none", *shapes}


def test_clothes_have_different_colors():
    for who in people(40):
        clothes = [who.shirt, who.trousers, who.shoes, *filter(None, (who.stripes, who.hat_color))]
        assert len(set(clothes)) == len(clothes)
        assert (who.hat == "none") == (who.hat_color == "")
    assert {who.hat for who in people(40)} == set(figure.HATS)
