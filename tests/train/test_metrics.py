"""FLOPs by formula against XLA's own count."""

import jax
import jax.numpy as jnp
import pytest

from onediff_jax.models.networks import Networks
from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.models.t5 import T5Config, T5Encoder
from onediff_jax.models.vae import AutoencoderKL, VAEConfig
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.train.metrics import codec_flops, denoiser_flops, step_flops, text_flops

LAYOUT = Layout((Slot(1, 128), Slot(2, 64), Slot(3, 32, examples=2)))
LENGTH = 48
# Wide enough that what is not a product is lost among them; unrolled, since XLA counts a loop once.
MODEL = NextDiTConfig(
    width=384,
    depth=2,
    heads=8,
    kv_heads=2,
    multiple_of=128,
    dtype="float32",
    attention="reference",
    unroll=2,
)
TEXT = T5Config(width=256, depth=2, heads=4, head_width=64, hidden=512, dtype="float32", unroll=2)
NETWORKS = Networks(NextDiT(MODEL), T5Encoder(TEXT, 100))
ROWS = 2


def counted(function, *shapes) -> float:
    """XLA's FLOPs."""
    return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


@pytest.fixture(scope="module")
def params():
    boxed = jax.eval_shape(NETWORKS.init, jax.random.key(0))
    return jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: hasattr(x, "value"))


def inputs():
    n, v, e = LAYOUT.tokens, LAYOUT.views, LAYOUT.examples
    return (
        shape(ROWS, n, MODEL.features),
        shape(ROWS, v),
        shape(ROWS, n, 3, dtype=jnp.int32),
        shape(ROWS, v, dtype=jnp.int32),
        shape(ROWS, n, dtype=jnp.bool_),
        shape(ROWS, e, LENGTH, TEXT.width),
        shape(ROWS, e, LENGTH, dtype=jnp.bool_),
    )


def test_the_denoiser_counts_what_xla_counts(params):
    forward = counted(lambda p, *x: NETWORKS.velocity(p, *x, LAYOUT), params, *inputs())
    formula = ROWS * denoiser_flops(MODEL, LAYOUT, LENGTH, TEXT.width)
    assert formula == pytest.approx(forward, rel=0.03)


def test_the_text_encoder_counts_what_xla_counts(params):
    ids, mask = (shape(ROWS, 4, LENGTH, dtype=dtype) for dtype in (jnp.int32, jnp.bool_))
    forward = counted(NETWORKS.states, params, ids, mask)
    assert text_flops(NETWORKS, ROWS * 4 * LENGTH, LENGTH) == pytest.approx(forward, rel=0.03)


def test_a_step_counts_its_backward_pass_twice(params):
    def loss(denoiser, params, patches, *rest):
        params = params | {"denoiser": denoiser}
        return jnp.square(NETWORKS.velocity(params, patches, *rest, LAYOUT)).sum()

    step = counted(jax.grad(loss), params["denoiser"], params, *inputs())
    flops = step_flops(NETWORKS, LAYOUT, ROWS, LENGTH)
    assert flops.trained["denoiser"] == pytest.approx(step, rel=0.04)


def test_the_autoencoder_counts_what_xla_counts():
    config = VAEConfig(
        block_out_channels=(64, 128, 128), norm_num_groups=8, latent_channels=4, dtype="float32",
        use_quant_conv=True,
    )  # fmt: skip
    codec = AutoencoderKL(config)
    boxed = jax.eval_shape(codec.init, jax.random.key(0))
    params = jax.tree.map(lambda x: x.value, boxed, is_leaf=lambda x: hasattr(x, "value"))
    forward = counted(codec.encode, params, shape(1, 64, 64, 3))
    assert codec_flops(config, 64) == pytest.approx(forward, rel=0.04)


def test_mfu_counts_what_is_trained_and_frozen_encoders_are_told_apart():
    text = text_flops(NETWORKS, ROWS * LAYOUT.examples * LENGTH, LENGTH)
    trained = step_flops(NETWORKS, LAYOUT, ROWS, LENGTH)
    assert trained.trained["text encoder"] == 3 * text and not trained.encoders
    codec = AutoencoderKL(VAEConfig())
    released = NETWORKS._replace(codec=codec, pretrained=("text", "codec"))
    for inside in ((), ("text",), ("text", "codec")):
        found = step_flops(released, LAYOUT, ROWS, LENGTH, inside)
        assert found.model == trained.trained["denoiser"]
        images = [(1, 11), (2, 8), (3, 5)]  # the largest squares in views of 128, 64, 32 tokens
        expected = {
            "text encoder": text,
            "autoencoder": ROWS * sum(n * codec_flops(codec.config, 16 * s) for n, s in images),
        }
        names = {"text": "text encoder", "codec": "autoencoder"}
        assert found.encoders == {names[each]: expected[names[each]] for each in inside}
        assert found.total == found.model + sum(found.encoders.values())


def test_the_released_size_counts_as_its_parameters_say():
    # Six FLOPs for every parameter of a matrix and token, and twelve for every pair of a query and
    # a key, a channel and a block (Kaplan et al., arXiv 2001.08361, section 2.1; PaLM, appendix B).
    config, tokens, length = NextDiTConfig(), 1024, 300
    matrices = 3840 * (2 * 3840 + 2 * 960 + 3 * 10240)
    expected = 16 * 6 * tokens * matrices
    expected += 16 * 12 * 3840 * tokens * (tokens + length)
    expected += 16 * 6 * length * 2 * 2048 * 960  # text keys and values
    found = 3 * denoiser_flops(config, Layout((Slot(1, tokens),)), length, 2048)
    assert found == pytest.approx(expected, rel=0.002)
