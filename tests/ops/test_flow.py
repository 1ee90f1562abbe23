import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from numpy.testing import assert_allclose, assert_array_equal

from onediff_jax.errors import InputError
from onediff_jax.ops import flow
from onediff_jax.ops.flow import FlowConfig
from onediff_jax.ops.layout import Layout, Slot

LAYOUT = Layout((Slot(1, 3), Slot(2, 2)))
ROWS = np.arange(4000)
ROW = Layout((Slot(2, 3), Slot(1, 4), Slot(5, 2, examples=4)))  # e: 0 | 1 | 2 3 4 5
EXAMPLE_OF_VIEW = [
    [0, 0, 1, 2, 2, 3, 4, 5],
    [0, 0, 1, 2, 2, 2, 2, -1],
    [-1, -1, 1, 3, 3, 5, -1, -1],
    [-1] * 8,
]
QUICKLY = {"xla_backend_optimization_level": 0}  # compiling costs more than running
DRAW = jax.jit(flow.draw, static_argnums=(2, 3, 4), compiler_options=QUICKLY)


def draws(rows, seed=0, **config):
    """Noise levels b v and noise b n 4 of the given rows of a run."""
    rows = jnp.asarray(rows)
    return jax.device_get(DRAW(jax.random.key(seed), rows, LAYOUT, 4, FlowConfig(**config)))


def normals(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def logit(sigma):
    sigma = np.asarray(sigma, np.float64)
    return np.log(sigma / (1 - sigma))


def test_the_velocity_is_the_derivative_of_the_interpolation():
    x, noise = map(jnp.asarray, normals(2, 3, 5, 4))
    sigma = jnp.linspace(0, 1, 15).reshape(3, 5, 1)
    along = lambda sigma: flow.interpolate(x, noise, sigma)[0]  # noqa: E731
    _, slope = jax.jvp(along, (sigma,), (jnp.ones_like(sigma),))
    assert_allclose(flow.interpolate(x, noise, sigma)[1], slope, atol=1e-6)


def test_sigma_zero_is_clean_and_sigma_one_is_noise():
    x, noise = map(jnp.asarray, normals(2, 3, 4))
    assert_array_equal(flow.interpolate(x, noise, jnp.zeros((3, 1)))[0], x)
    assert_array_equal(flow.interpolate(x, noise, jnp.ones((3, 1)))[0], noise)


def test_shift_by_one_changes_nothing_and_shifts_compose_and_undo_each_other():
    sigma = jnp.linspace(0, 1, 11)
    assert_allclose(flow.shift(sigma, 1.0), sigma, atol=1e-7)
    twice = flow.shift(flow.shift(sigma, 1.5), 4.0)
    assert_allclose(twice, flow.shift(sigma, 6.0), atol=1e-6)
    assert_allclose(flow.shift(flow.shift(sigma, 3.0), 1 / 3), sigma, atol=1e-6)


def test_shift_moves_the_logit_towards_noise_and_keeps_the_ends():
    sigma = np.linspace(0.05, 0.95, 7)
    assert_allclose(logit(flow.shift(sigma, 3.0)), logit(sigma) + np.log(3), atol=1e-12)
    assert_array_equal(flow.shift(np.array([0.0, 1.0]), 3.0), [0, 1])


@pytest.mark.parametrize(
    ("config", "mean", "std"),
    [({}, np.log(3), 1), (dict(mean=-0.5, std=0.5, shift=1.0), -0.5, 0.5)],
)
def test_noise_levels_are_logit_normal_and_shifted(config, mean, std):
    sigma = draws(ROWS, **config)[0]
    for view in sigma.T:
        assert scipy.stats.kstest(logit(view), "norm", (mean, std)).pvalue > 1e-3
        levels = np.linspace(0.05, 0.95, 10)
        expected = mean + std * scipy.stats.norm.ppf(levels)
        assert_allclose(np.quantile(logit(view), levels), expected, atol=0.1 * std)


def test_noise_is_standard_normal():
    noise = draws(ROWS)[1]
    assert noise.shape == (len(ROWS), LAYOUT.tokens, 4) and noise.dtype == np.float32
    assert scipy.stats.kstest(noise.ravel(), "norm").pvalue > 1e-3


def test_views_and_tokens_and_rows_are_drawn_independently():
    sigma, noise = draws(ROWS)
    drawn = np.concatenate([logit(sigma), noise.reshape(len(ROWS), -1)], 1)
    for other in (drawn, np.roll(drawn, 1, axis=0)):  # within a row, and with the row before
        correlations = np.corrcoef(drawn.T, other.T)[: drawn.shape[1], drawn.shape[1] :]
        same = np.eye(drawn.shape[1]) * (other is drawn)
        assert np.abs(correlations - same).max() < 5 / np.sqrt(len(ROWS))


def test_a_row_draws_the_same_in_every_batch_order_and_place():
    whole = draws(ROWS)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for rows in ([30, 2, 7], ROWS[::-1], jax.device_put(ROWS[40:48], placed)):
        for found, expected in zip(draws(rows), whole, strict=True):
            assert_array_equal(found, expected[np.asarray(rows)])


def test_another_key_draws_other_numbers():
    for one, other in zip(draws(ROWS), draws(ROWS, seed=1), strict=True):
        assert (one == other).mean() < 1e-3


@pytest.fixture
def row():
    """A batch in which ranges are empty, or padded at their end, or full."""
    example_of_view = np.array(EXAMPLE_OF_VIEW)
    place = np.concatenate([np.arange(n) for n in np.bincount(ROW.view_of_token)])
    taken = np.random.default_rng(0).integers(1, 5, example_of_view.shape)
    taken = np.where(example_of_view < 0, 0, taken)
    return place < taken[:, ROW.view_of_token], example_of_view


def test_padding_weighs_nothing_and_tokens_weigh_the_same(row):
    mask, example_of_view = map(jnp.asarray, row)
    assert_array_equal(flow.token_weights(mask, example_of_view, ROW, "token"), mask)
    balanced = flow.token_weights(mask, example_of_view, ROW, "example")
    assert_array_equal(balanced > 0, mask)
    assert balanced.dtype == jnp.float32


def test_the_weights_of_every_example_sum_to_one(row):
    mask, example_of_view = row
    weights = flow.token_weights(jnp.asarray(mask), jnp.asarray(example_of_view), ROW, "example")
    weights, example_of_token = np.asarray(weights), example_of_view[:, ROW.view_of_token]
    for b in range(len(mask)):
        for example in range(ROW.examples):
            of_example = weights[b, (example_of_token[b] == example) & mask[b]]
            assert_allclose(of_example, 1 / max(len(of_example), 1), rtol=1e-6)
    assert_allclose(weights.sum(1), [6, 3, 3, 0], rtol=1e-6)


def test_an_example_of_padding_alone_weighs_nothing():
    mask = jnp.zeros((1, ROW.tokens), bool)
    weights = flow.token_weights(mask, jnp.asarray(EXAMPLE_OF_VIEW[:1]), ROW, "example")
    assert_array_equal(weights, jnp.zeros_like(weights))


def test_some_views_of_an_example_are_clean_and_never_all():
    rows = np.arange(6000)
    of_view = np.array(EXAMPLE_OF_VIEW[1:3])[rows % 2]
    config = FlowConfig(clean=0.4, clean_sigma=0.1)
    draw = jax.jit(flow.clean_views, static_argnums=(3, 4), compiler_options=QUICKLY)
    arguments = (ROW, config)
    clean, level = jax.device_get(draw(jax.random.key(0), rows, of_view, *arguments))
    counts = {}
    for row, views in ((0, 4), (0, 2), (1, 2)):  # rows with examples of so many views
        here = clean[row::2]
        first = {4: 3, 2: {0: 0, 1: 3}[row]}[views]
        of_example = here[:, first : first + views]
        number = of_example.sum(1)
        assert number.max() < views
        assert (number > 0).mean() == pytest.approx(0.4, abs=0.03)
        assert_allclose(of_example.mean(0), of_example.mean(), atol=0.03)  # any view
        counts[views] = np.bincount(number[number > 0], minlength=views)[1:]
        levels = level[row::2][:, first : first + views]
        assert (levels == levels[:, :1]).all()
        assert scipy.stats.kstest(levels[:, 0], "uniform", (0, 0.1)).pvalue > 1e-3
        assert abs(np.corrcoef(levels[:, 0], number)[0, 1]) < 0.1
    assert scipy.stats.chisquare(counts[4]).pvalue > 1e-3  # 1, 2 and 3 of 4 alike
    alone = np.ones_like(clean)
    alone[0::2, [0, 1, 3, 4, 5, 6]] = alone[1::2, 3:5] = False
    assert not clean[alone].any()  # examples of one view, and empty ranges
    again = jax.device_get(
        draw(jax.random.key(0), rows[[30, 2, 7]], of_view[[30, 2, 7]], *arguments)
    )
    assert_array_equal(again[0], clean[[30, 2, 7]])
    off, _ = flow.clean_views(
        jax.random.key(0), jnp.asarray(rows), jnp.asarray(of_view), ROW, FlowConfig()
    )
    assert not off.any()


def test_squared_errors_are_float32_means_over_features():
    predicted, velocity = (jnp.asarray(x, jnp.bfloat16) for x in normals(2, 2, 3, 16))
    found = flow.squared_errors(predicted, velocity)
    difference = np.asarray(predicted, np.float64) - np.asarray(velocity, np.float64)
    assert found.dtype == jnp.float32
    assert_allclose(found, np.square(difference).mean(-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(shift=0.0), "shift is 0.0"),
        (dict(std=-1.0), "std is -1.0"),
        (dict(clean=1.2), "clean is 1.2"),
        (dict(clean_sigma=1.0), "clean_sigma is 1.0"),
        (dict(task_weights={"depth2image": 0.0}), "task_weights.depth2image is 0.0"),
        (dict(balance="view"), "balance is 'view'"),
    ],
)
def test_impossible_settings_are_refused_by_name(config, message):
    with pytest.raises(InputError, match=message):
        FlowConfig(**config)
