import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn_inputs, drawn_params, relative_error
from flax.traverse_util import flatten_dict

from onediff_jax.errors import InputError
from onediff_jax.models.nextdit import REMAT, NextDiT, NextDiTConfig
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.release.mapping import released_shapes
from onediff_jax.release.names import nextdit_names

SMALL = NextDiTConfig(
    width=96, depth=2, heads=8, kv_heads=2, multiple_of=32, softcap=None, dtype="float32"
)
TEXT_WIDTH = 24


def released_tensors() -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the release (arXiv 2411.16318); a matrix is (out, in)."""
    width, depth, heads, kv, mlp, text, embedding, patch = 3840, 16, 32, 960, 10240, 2048, 1024, 64

    def with_bias(name, *shape):
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = {
        **with_bias("x_embedder", width, patch),
        **with_bias("t_embedder.mlp.0", embedding, 256),
        **with_bias("t_embedder.mlp.2", embedding, embedding),
        **with_bias("y_embedder.0", text),
        **with_bias("y_embedder.1", embedding, text),
        **with_bias("final_layer.linear", patch, width),
        **with_bias("final_layer.adaLN_modulation.1", width, embedding),
    }
    for block in (f"layers.{n}" for n in range(depth)):
        attention, ffn = f"{block}.attention", f"{block}.feed_forward"
        shapes |= {
            **{f"{attention}.{w}.weight": (width, width) for w in ("wq", "wo")},
            **{f"{attention}.{w}.weight": (kv, width) for w in ("wk", "wv")},
            **{f"{attention}.{w}.weight": (kv, text) for w in ("wk_y", "wv_y")},
            **with_bias(f"{attention}.q_norm", width),
            **with_bias(f"{attention}.k_norm", kv),
            **with_bias(f"{attention}.ky_norm", kv),
            f"{attention}.gate": (heads,),
            **{f"{ffn}.{w}.weight": (mlp, width) for w in ("w1", "w3")},
            f"{ffn}.w2.weight": (width, mlp),
            **{
                f"{block}.{name}.weight": (width,)
                for name in ("attention_norm1", "attention_norm2")
            },
            **{f"{block}.{name}.weight": (width,) for name in ("ffn_norm1", "ffn_norm2")},
            f"{block}.attention_y_norm.weight": (text,),
            **with_bias(f"{block}.adaLN_modulation.1", 4 * width, embedding),
        }
    return shapes


def shapes_of(config: NextDiTConfig, text_width: int = TEXT_WIDTH):
    layout = Layout((Slot(1, 4),))
    inputs = drawn_inputs(layout, config.features, text_width, b=1)
    key = jax.random.key(0)
    boxed = jax.eval_shape(lambda: NextDiT(config).init(key, **inputs, layout=layout))
    return nn.meta.unbox(boxed)["params"]


def test_the_released_configuration_has_the_released_tensors():
    config = NextDiTConfig()
    shapes = shapes_of(config, text_width=2048)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 2_800_389_184
    expected = released_tensors()
    found = released_shapes(shapes, nextdit_names(config))
    assert found == expected and len(found) == 382


def run(config, inputs, layout, params=None, **kwargs):
    params = drawn_params(shapes_of(config)) if params is None else params
    model = NextDiT(config, **kwargs)
    return jax.jit(lambda p, x: model.apply({"params": p}, **x, layout=layout))(params, inputs)


def test_every_parameter_matters_but_the_bias_of_text_keys():
    layout = Layout((Slot(2, 6),))
    inputs = drawn_inputs(layout, SMALL.features, TEXT_WIDTH)
    params = drawn_params(shapes_of(SMALL))
    loss = lambda params: jnp.square(run(SMALL, inputs, layout, params)).mean()  # noqa: E731
    grads = flatten_dict(jax.jit(jax.grad(loss))(params), sep="/")
    # A bias of all text keys adds the same to all of a query's scores: softmax does not see it.
    silent = [path for path, grad in grads.items() if np.abs(grad).max() < 1e-7]
    assert silent == ["layers/attention/ky_norm/bias"]


SLOWLY = ("attention", "offload", "full")


def remat_loss(remat: str):
    layout = Layout((Slot(2, 6),))
    inputs = drawn_inputs(layout, SMALL.features, TEXT_WIDTH)
    return lambda params: jnp.square(run(SMALL, inputs, layout, params, remat=remat)).mean()


@functools.cache
def remat_grads(remat: str):
    return jax.jit(jax.grad(remat_loss(remat)))(drawn_params(shapes_of(SMALL)))


@pytest.mark.parametrize(
    "remat",
    ["dots", "attended", *(pytest.param(r, marks=pytest.mark.slow) for r in SLOWLY)],
)
def test_rematerialisation_changes_nothing(remat):
    errors = jax.tree.map(relative_error, remat_grads(remat), remat_grads("none"))
    errors["layers"]["attention"]["ky_norm"].pop("bias")  # whose gradient is rounding
    assert max(jax.tree.leaves(errors)) < 1e-6


def test_every_policy_keeps_less_than_the_one_before_and_offload_moves_what_attention_keeps():
    params = shapes_of(SMALL)

    def kept(remat: str) -> list[jax.ShapeDtypeStruct]:
        return jax.tree.leaves(
            jax.eval_shape(lambda params: jax.vjp(remat_loss(remat), params)[1], params)
        )

    assert list(REMAT) == ["none", "dots", "attention", "offload", "attended", "full"]
    sizes = [sum(leaf.size for leaf in kept(remat)) for remat in REMAT]
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3] > sizes[4] > sizes[5]
    program = {remat: str(jax.make_jaxpr(jax.grad(remat_loss(remat)))(params)) for remat in REMAT}
    assert [remat for remat in REMAT if "host" in program[remat]] == ["offload"]


def test_the_gather_hook_sees_every_block_parameter_on_entry():
    layout = Layout((Slot(1, 4),))
    inputs = drawn_inputs(layout, SMALL.features, TEXT_WIDTH)
    params = drawn_params(shapes_of(SMALL))
    halved = dict(params, layers=jax.tree.map(lambda x: x / 2, params["layers"]))
    doubled = run(
        SMALL, inputs, layout, halved, gather=lambda block: jax.tree.map(lambda x: 2 * x, block)
    )
    assert relative_error(doubled, run(SMALL, inputs, layout, params)) < 1e-6


def test_positions_beyond_training_interpolate_below_the_watershed_and_extrapolate_above():
    layout = Layout((Slot(1, 4),))
    inputs = drawn_inputs(layout, SMALL.features, TEXT_WIDTH) | dict(sigmas=jnp.full((2, 1), 0.2))
    params = {"params": drawn_params(shapes_of(SMALL))}
    model = NextDiT(SMALL)

    @functools.partial(jax.jit, static_argnums=(0, 1))
    def velocity(factor, watershed):
        scales = dict(scale_factor=factor, scale_watershed=watershed)
        return model.apply(params, **inputs, layout=layout, **scales)

    plain, below, above = velocity(1.0, 1.0), velocity(1.5, 400.0), velocity(1.5, 100.0)
    unit = velocity(1.0, 400.0)
    assert relative_error(unit, plain) < 1e-6
    assert (
        min(relative_error(x, y) for x, y in [(below, plain), (above, plain), (below, above)])
        > 1e-4
    )


def test_islands_stay_float32_when_activations_are_bfloat16():
    config = dataclasses.replace(SMALL, dtype="bfloat16")
    layout = Layout((Slot(2, 6),))
    inputs = drawn_inputs(layout, config.features, TEXT_WIDTH)
    jaxpr = jax.make_jaxpr(lambda params: run(config, inputs, layout, params))(
        drawn_params(shapes_of(config))
    )
    types = {}
    for equation in equations(jaxpr.jaxpr):
        types.setdefault(equation.primitive.name, set()).update(
            str(v.aval.dtype) for v in equation.outvars
        )
    for island in ("exp", "rsqrt", "cos", "sin", "tanh", "reduce_sum", "reduce_max", "pow"):
        assert types.get(island, {"float32"}) == {"float32"}, (
            island
        )  # softmax, norms, angles, gates
    assert (
        "bfloat16" in types["dot_general"]
        and "exp" in types
        and "rsqrt" in types
        and "cos" in types
    )
    found, exact = run(config, inputs, layout), run(SMALL, inputs, layout)
    assert found.dtype == jnp.float32 and relative_error(found, exact) < 2e-2


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                if hasattr(inner, "jaxpr"):
                    yield from equations(inner.jaxpr)
                elif hasattr(inner, "eqns"):
                    yield from equations(inner)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(width=100), "use 96 or 144"),
        (dict(kv_heads=3), "does not divide model.heads"),
        (dict(dtype="float16"), "float32 or bfloat16"),
    ],
)
def test_impossible_shapes_are_refused_with_the_way_out(change, message):
    with pytest.raises(InputError, match=message):
        dataclasses.replace(SMALL, **change)


def shapes_outside_of_loops(jaxpr):
    """Type and shape of everything that a program computes once, inner programs included."""
    for equation in jaxpr.eqns:
        yield from ((v.aval.dtype, v.aval.shape) for v in equation.outvars)
        if equation.primitive.name != "scan":
            for inner in jax.core.jaxprs_in_params(equation.params):
                yield from shapes_outside_of_loops(inner)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_masks_as_large_as_logits_are_not_kept_for_all_layers(remat):
    """JAX computes what no parameter changes before the loop over layers, where it can."""
    layout = Layout((Slot(4, 8, examples=2),))
    inputs = drawn_inputs(layout, SMALL.features, TEXT_WIDTH)
    words = inputs["text"].shape[2]
    network = NextDiT(dataclasses.replace(SMALL, attention="chunked"), remat)
    params = {"params": shapes_of(SMALL)}
    apply = functools.partial(network.apply, **inputs, layout=layout)
    gradient = jax.grad(lambda params: apply(params).sum())
    found = shapes_outside_of_loops(jax.make_jaxpr(gradient)(params).jaxpr)
    logits = ((32, 32), (32, 2 * words))  # queries and keys: of the row, and of its two prompts
    assert not [
        shape for dtype, shape in found if jnp.issubdtype(dtype, bool) and shape[-2:] in logits
    ]
