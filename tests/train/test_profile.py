"""Chosen steps are profiled, and no others."""

import jax
import jax.numpy as jnp
import pytest

from onediff_jax.errors import InputError
from onediff_jax.train.clock import Profile
from onediff_jax.train.config import LogConfig


def steps_recorded(workdir) -> set[int]:
    """The numbers of the steps in a recording, by JAX's own reader."""
    found = list((workdir / "tensorboard" / "plugins" / "profile").glob("*/*.xplane.pb"))
    assert len(found) <= 1
    return {
        dict(event.stats)["step_num"]
        for file in found
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes
        for line in plane.lines
        for event in line.events
        if event.name == "train"
    }


def train(workdir, chosen, first: int, last: int) -> None:
    step, value = jax.jit(lambda x: jnp.cos(x) @ x), jnp.ones((8, 8))
    with Profile(chosen, workdir) as profile:
        for number in range(first, last + 1):
            with profile.at(number, value):
                value = step(value)


@pytest.mark.parametrize(
    ("chosen", "first", "last", "recorded"),
    [
        ((4, 3), 1, 9, {4, 5, 6}),
        ((8, 3), 1, 9, {8, 9}),  # the run ends before
        ((1, 1), 1, 3, {1}),
        ((4, 3), 5, 9, set()),  # it was resumed after the first one
        ((), 1, 3, set()),
    ],
)
def test_the_chosen_steps_are_recorded_where_tensorboard_looks(
    tmp_path, chosen, first, last, recorded
):
    train(tmp_path, chosen, first, last)
    assert steps_recorded(tmp_path) == recorded


def test_wrong_steps_are_refused():
    for wrong in ((5,), (0, 3), (5, 0)):
        with pytest.raises(InputError, match="profile.* is"):
            LogConfig(profile=wrong)
