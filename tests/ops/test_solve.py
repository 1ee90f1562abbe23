import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from witnesses import FILE, SAMPLED, SCHEDULERS

from onediff_jax.errors import InputError
from onediff_jax.ops import solve
from onediff_jax.release.configs import Settings, schedule_of

MEAN, STD = np.float32([1.5, -0.5, 0.2]), np.float32([0.3, 0.7, 1.2])


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gaussian_velocity(x, sigma):
    """E[eps - x_0 | x_sigma = x] where x_0 is normal with MEAN and STD.

    x_sigma = (1 - sigma) x_0 + sigma eps is normal with variance D = (1 - sigma)^2 STD^2 + sigma^2,
    so E[x_0 | x] = MEAN + (1 - sigma) STD^2 / D u and E[eps | x] = sigma / D u, u = x - E[x_sigma].
    Along its flow u / sqrt(D) stays what it is: noise x ends at MEAN + STD x.
    """
    variance = jnp.square((1 - sigma) * STD) + jnp.square(sigma)
    std = x - (1 - sigma) * MEAN
    return (sigma - (1 - sigma) * jnp.square(STD)) / variance * std - MEAN


def solved(velocity, x, steps, method="euler", factor=1.0):
    sigmas = jnp.asarray(solve.schedule(steps, factor))
    return np.asarray(jax.jit(lambda x: solve.solve(velocity, x, sigmas, method))(x))


@pytest.mark.parametrize("factor", [1.0, 3.0])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_the_error_falls_with_the_order_of_the_method(method, order, factor):
    noise = drawn(64, 3)
    exact = MEAN + STD * noise
    errors = [
        np.linalg.norm(solved(gaussian_velocity, noise, steps, method, factor) - exact)
        for steps in (16, 32, 64)
    ]
    slopes = np.log2(np.divide(errors[:-1], errors[1:]))
    assert_allclose(slopes, order, atol=0.25)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_true_velocity_of_a_gaussian_ends_at_its_samples(method):
    noise = drawn(4000, 3)
    samples = solved(gaussian_velocity, noise, 200, method)
    assert_allclose(samples, MEAN + STD * noise, atol=0.05)
    assert_allclose(samples.mean(0), MEAN, atol=0.06)
    assert_allclose(samples.std(0), STD, rtol=0.04)


@pytest.mark.parametrize("method", ["euler", "heun"])
@pytest.mark.parametrize("steps", [1, 7])
def test_a_straight_line_is_walked_exactly(method, steps):
    clean, noise = drawn(2, 5, 3)
    ended = solved(lambda x, sigma: jnp.asarray(noise - clean), noise, steps, method, 3.0)
    assert_allclose(ended, clean, atol=2e-6)


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_the_network_is_never_asked_at_sigma_zero(method):
    velocity = lambda x, sigma: jnp.where(sigma > 0, x, jnp.nan)  # noqa: E731
    assert np.isfinite(solved(velocity, jnp.ones(3), 4, method)).all()


def test_the_schedule_falls_from_noise_to_clean_by_its_formula():
    assert_array_equal(solve.schedule(4), np.float32([1, 0.75, 0.5, 0.25, 0]))
    assert_array_equal(solve.schedule(1, 3.0), [1, 0])
    for steps, factor in [(5, 1.0), (50, 3.0), (20, 0.5)]:
        even = [1 - i / steps for i in range(steps)]
        expected = [factor * s / (1 + (factor - 1) * s) for s in even] + [0]
        found = solve.schedule(steps, factor)
        assert found.dtype == np.float32 and found.shape == (steps + 1,)
        assert_allclose(found, expected, rtol=1e-6)
        assert (np.diff(found) < 0).all()


@pytest.mark.parametrize(
    ("tokens", "last_of_50", "last_of_100"),
    [
        (256, 32.55, 16.38),  # 256^2, 1 view
        (1024, 36.90, 18.61),  # 512^2, 1 view
        (3 * 1024, 51.41, 26.12),  # 512^2, 3 views
        (4096, 60.55, 30.91),  # 1024^2, 1 view
        (None, 57.69, 29.41),  # static shift 3
    ],
)
def test_the_last_times_are_those_of_the_released_pipeline(tokens, last_of_50, last_of_100):
    schedule = solve.Schedule(use_dynamic_shifting=tokens is not None)
    assert_allclose(1000 * schedule.levels(50, tokens or 1)[-2], last_of_50, atol=0.006)
    assert_allclose(1000 * schedule.levels(100, tokens or 1)[-2], last_of_100, atol=0.006)


@pytest.mark.parametrize(
    ("tokens", "mu"), [(256, 0.5), (1024, 0.63), (3072, 0.9766), (4096, 1.15), (12 * 1024, 2.5367)]
)
def test_more_tokens_shift_more_and_without_a_clip(tokens, mu):
    assert_allclose(np.log(solve.Schedule().factor(tokens)), mu, atol=1e-4)


@pytest.mark.parametrize("case", SCHEDULERS)
def test_noise_levels_are_those_of_diffusers(case):
    settings = Settings(pathlib.Path("scheduler_config.json"), SCHEDULERS[case])
    schedule, expected = schedule_of(settings), np.load(FILE)
    for steps, tokens in SAMPLED:
        found = schedule.levels(steps, tokens)
        assert found.dtype == np.float32 and found[0] == 1 and found[-1] == 0
        assert (np.diff(found) < 0).all()
        assert_allclose(found, expected[f"scheduler/{case}/{steps}/{tokens}"], rtol=1e-6, atol=1e-7)


def test_a_schedule_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="the second must be larger"):
        solve.Schedule(max_image_seq_len=256)
    with pytest.raises(InputError, match="linear shift is -0.0.* for 16 tokens.*--shift"):
        solve.Schedule(base_shift=0.02, time_shift_type="linear").levels(4, 16)


def test_no_steps_are_refused():
    with pytest.raises(InputError, match="at least 1 step, got 0"):
        solve.schedule(0)


def test_guidance_leads_from_the_unconditional_through_the_conditional():
    unconditional, conditional = map(jnp.asarray, drawn(2, 4, 3))
    assert_array_equal(solve.guide(unconditional, conditional, 0.0), unconditional)
    assert_allclose(solve.guide(unconditional, conditional, 1.0), conditional, atol=1e-6)
    expected = -3 * unconditional + 4 * conditional
    assert_allclose(solve.guide(unconditional, conditional, 4.0), expected, atol=1e-5)


WANTED_VIEWS = jnp.array([[True, False, True], [False, True, True]])
WANTED_TOKENS = jnp.repeat(WANTED_VIEWS, jnp.array([2, 3, 1]), axis=1)


def mixing_velocity(x, sigmas):
    """A velocity of every token that depends on all tokens and all noise levels."""
    return jnp.sin(x) + x.mean((1, 2), keepdims=True) + sigmas.sum(1)[:, None, None]


@pytest.mark.parametrize("method", ["euler", "heun"])
def test_given_views_come_back_bit_by_bit_and_wanted_ones_move(method):
    x = drawn(2, 6, 4)
    held = solve.hold(mixing_velocity, WANTED_VIEWS, WANTED_TOKENS, 0.03)
    ended = np.asarray(solved(held, x, 5, method, 3.0))
    given = ~np.asarray(WANTED_TOKENS)
    assert ended[given].tobytes() == np.asarray(x)[given].tobytes()
    assert not np.isclose(ended[~given], x[~given]).any()


def test_wanted_views_have_the_velocity_of_the_network():
    x = drawn(2, 6, 4)
    held = solve.hold(mixing_velocity, WANTED_VIEWS, WANTED_TOKENS, 0.03)(x, jnp.float32(0.8))
    shown = jnp.where(WANTED_VIEWS, 0.8, 0.03)
    assert_array_equal(held[WANTED_TOKENS], mixing_velocity(x, shown)[WANTED_TOKENS])


@pytest.mark.parametrize("sigma_given", [0.0, 0.03, jnp.float32(0.5)])
def test_the_network_sees_given_views_at_their_own_noise_level(sigma_given):
    shown = []

    def velocity(x, sigmas):
        shown.append(sigmas)
        return x

    held = solve.hold(velocity, WANTED_VIEWS, WANTED_TOKENS, sigma_given)
    held(jnp.zeros((2, 6, 4)), jnp.float32(0.8))
    g = float(sigma_given)
    assert_allclose(shown[0], [[0.8, g, 0.8], [g, 0.8, 0.8]], rtol=1e-6)
