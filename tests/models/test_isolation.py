"""Examples that share a row do not know of each other: not in other slots, not packed in one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn_inputs, drawn_params, relative_error

from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.ops.layout import Layout, Slot

CONFIG = NextDiTConfig(
    width=48, depth=2, heads=4, kv_heads=2, multiple_of=16, dtype="float32", attention="reference"
)
TEXT_WIDTH, LENGTH = 12, 5
# Two equal slots (one run of the network), one of another size, and one with two examples packed.
ROW = Layout((Slot(2, 6), Slot(2, 6), Slot(1, 10), Slot(4, 4, examples=2)))
EXAMPLE_OF_VIEW = [0, 0, 1, 1, 2, 3, 3, 3, 4]  # the packed slot: three views, then one
PLACE_OF_VIEW = [0, 1, 0, 1, 0, 0, 1, 2, 0]
PADDED = [5, 11, 20, 21, 37]  # tokens at the ends of views that hold nothing


def row_inputs() -> dict:
    """A row whose five examples differ in everything."""
    inputs = drawn_inputs(ROW, CONFIG.features, TEXT_WIDTH, b=1, length=LENGTH)
    views = ROW.view_of_token
    starts = np.searchsorted(views, np.arange(ROW.views))
    place = np.arange(ROW.tokens) - starts[views]
    positions = np.stack([np.array(PLACE_OF_VIEW)[views], place // 2, place % 2], -1)
    mask = np.ones((1, ROW.tokens), bool)
    mask[:, PADDED] = False
    return inputs | dict(
        positions=jnp.asarray(positions[None], jnp.int32),
        example_of_view=jnp.asarray([EXAMPLE_OF_VIEW], jnp.int32),
        token_mask=jnp.asarray(mask),
    )


INPUTS = row_inputs()
BOXED = jax.eval_shape(lambda: NextDiT(CONFIG).init(jax.random.key(0), **INPUTS, layout=ROW))
PARAMS = drawn_params(BOXED)


def views_of(example: int) -> np.ndarray:
    return np.flatnonzero(np.array(EXAMPLE_OF_VIEW) == example)


def tokens_of(example: int, valid: bool = True) -> np.ndarray:
    mask = np.isin(ROW.view_of_token, views_of(example))
    return np.flatnonzero(mask & np.asarray(INPUTS["token_mask"][0]) if valid else mask)


def predict(inputs: dict, layout: Layout):
    return NextDiT(CONFIG).apply(PARAMS, **inputs, layout=layout)


WHOLE = np.asarray(jax.jit(lambda x: predict(x, ROW))(INPUTS))


@pytest.mark.parametrize("example", range(5))
def test_an_example_in_a_row_is_predicted_as_if_it_were_alone(example):
    views, tokens = views_of(example), tokens_of(example)
    sizes = {int((ROW.view_of_token == view).sum()) for view in views}
    alone = Layout((Slot(len(views), sizes.pop()),))
    everything = tokens_of(example, valid=False)
    inputs = {
        name: array[:, everything]
        for name, array in INPUTS.items()
        if name in ("patches", "positions", "token_mask")
    }
    inputs |= {name: INPUTS[name][:, [example]] for name in ("text", "text_mask")}
    inputs |= dict(
        sigmas=INPUTS["sigmas"][:, views],
        example_of_view=jnp.zeros((1, len(views)), jnp.int32),
    )
    found = np.asarray(jax.jit(lambda x: predict(x, alone))(inputs))
    kept = np.isin(everything, tokens)
    assert relative_error(found[:, kept], WHOLE[:, tokens]) < 1e-5


@pytest.mark.parametrize("example", [1, 2, 3, 4])
def test_an_example_depends_on_all_of_itself_and_on_nothing_of_others(example):
    tokens = tokens_of(example)

    def power(patches, sigmas, text):
        inputs = INPUTS | dict(patches=patches, sigmas=sigmas, text=text)
        return jnp.square(predict(inputs, ROW)[:, tokens]).sum()

    arguments = (INPUTS["patches"], INPUTS["sigmas"], INPUTS["text"])
    grads = jax.jit(jax.grad(power, argnums=(0, 1, 2)))(*arguments)
    of_patches, of_sigmas, of_text = (np.abs(np.asarray(grad[0])) for grad in grads)
    assert (of_patches[tokens] > 0).all()
    assert (of_sigmas[views_of(example)] > 0).all()
    read = np.asarray(INPUTS["text_mask"][0, example])
    assert (of_text[example][read] > 0).all()
    assert np.delete(of_patches, tokens, 0).max() == 0  # other examples, and padding
    assert np.delete(of_sigmas, views_of(example)).max() == 0
    assert np.delete(of_text, example, 0).max() == 0 and not of_text[example][~read].any()


def test_padding_and_empty_ranges_can_hold_anything_but_stay_finite():
    empty = INPUTS | dict(
        example_of_view=jnp.asarray([[*EXAMPLE_OF_VIEW[:-1], -1]], jnp.int32),
        token_mask=INPUTS["token_mask"].at[:, tokens_of(4, valid=False)].set(False),
    )
    noisy = empty | dict(
        patches=jnp.where(empty["token_mask"][..., None], empty["patches"], 1e3),
    )
    found = jax.jit(lambda x: predict(x, ROW))
    plain, filled = np.asarray(found(empty)), np.asarray(found(noisy))
    valid = np.asarray(empty["token_mask"][0])
    assert np.array_equal(plain[:, valid], filled[:, valid])
    assert np.isfinite(filled).all()
