"""Every mesh, and every way to work through a batch, gives the step of one device."""

import dataclasses
import functools
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import drawn_params, relative_error
from stepping import ONE_SLOT, OPTIMIZER, ROWS, drawn_batch, networks_of

from onediff_jax.models.networks import Networks
from onediff_jax.ops.flow import FlowConfig
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.sharding import MeshConfig, global_batch, mesh_of
from onediff_jax.train.state import State, optimizer_of, state_shardings
from onediff_jax.train.step import named_scalars, train_step_of
from onediff_jax.train.tune import EVERYTHING, TuneConfig

STEPS = 3
REPEATED = Layout((Slot(1, 6), Slot(3, 4, examples=2)) * 2)


PARAMS = drawn_params(jax.eval_shape(networks_of().init, jax.random.key(0)))


def trained(
    layout: Layout = ONE_SLOT,
    networks: Networks | None = None,
    accumulate: int = 1,
    balance: str = "example",
    tune: TuneConfig = EVERYTHING,
    **mesh: int,
) -> dict:
    """Measures and gradients of the first step, and parameters after the last.

    Gradients are read off Adam's first moments.
    """
    networks = networks or networks_of()
    mesh = mesh_of(
        MeshConfig(**{"data": 1} | mesh), jax.devices()[: int(np.prod([*mesh.values()]))]
    )
    settings = dataclasses.replace(OPTIMIZER, accumulate=accumulate)
    optimizer = optimizer_of(settings, STEPS)
    shardings = state_shardings(networks, optimizer, mesh)
    flow_config = FlowConfig(balance=balance, clean=0.5)
    step = train_step_of(networks, optimizer, layout, flow_config, settings, shardings)
    step = jax.jit(step, out_shardings=(shardings, None))
    state = State(jnp.zeros((), jnp.int32), PARAMS, PARAMS, optimizer.init(PARAMS), {})
    state = jax.device_put(state, shardings)
    batch, key = global_batch(drawn_batch(layout), mesh, ROWS), jax.random.key(7)
    found = {}
    for _ in range(STEPS):
        state, measured = step(state, batch, key)
        if not found:
            found["measured"] = named_scalars(measured)
            found["gradients"] = jax.device_get(state.moments[1][0].mu)
    return found | {"params": jax.device_get(state.params), "ema": jax.device_get(state.ema)}


expected = functools.cache(trained)


def worst(found, true) -> float:
    """The largest relative error of any tensor.

    The bias of the text keys is left out: no loss depends on it, so that its gradient is rounding.
    """
    errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(relative_error, found, true))
    return max(e for path, e in errors if "['ky_norm']['bias']" not in jax.tree_util.keystr(path))


CASES = {
    "data over slices": dict(slices=2, data=4),
    "fsdp": dict(fsdp=8),
    "tensor, some text heads read": dict(data=2, tensor=4),
    "tensor, all text heads read; views of one slot": dict(data=2, sequence=2, tensor=2),
    "pieces of views of one slot": dict(fsdp=2, sequence=4),
    "whole slots": dict(layout=REPEATED, data=4, sequence=2),
    "all at once, in parts, remade": dict(
        layout=REPEATED, networks=networks_of("dots"), accumulate=2, fsdp=2, sequence=2, tensor=2
    ),
    "in parts": dict(accumulate=4),
    "unrolled, chunked attention": dict(networks=networks_of(unroll=2, attention="chunked")),
}


SLOWLY = ("data over slices", "in parts", "unrolled, chunked attention")  # part of other cases


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.slow] if name in SLOWLY else [])
        for name, case in CASES.items()
    ],
)
def test_the_step_is_that_of_one_device(case):
    found, true = trained(**case), expected(case.get("layout", ONE_SLOT))
    assert found["measured"] == pytest.approx(true["measured"], rel=1e-5)
    for part in ("gradients", "params", "ema"):
        assert worst(found[part], true[part]) < 1e-5, part


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_gradients_of_blocks_are_summed_over_shards_in_the_type_that_is_asked_for(dtype):
    networks, mesh = networks_of(dtype="bfloat16"), mesh_of(MeshConfig(data=1, fsdp=8))
    settings = dataclasses.replace(OPTIMIZER, gradient_dtype=dtype)
    optimizer = optimizer_of(settings, STEPS)
    shardings = state_shardings(networks, optimizer, mesh)
    step = train_step_of(networks, optimizer, ONE_SLOT, FlowConfig(), settings, shardings)
    state = State(jnp.zeros((), jnp.int32), PARAMS, PARAMS, optimizer.init(PARAMS), {})
    lowered = jax.jit(step).lower(
        jax.device_put(state, shardings), drawn_batch(ONE_SLOT), jax.random.key(7)
    )
    scatters = r'"stablehlo.reduce_scatter"\(.*?\}\) : \(tensor<[\dx]+x(\w+)>\)'
    types = Counter(re.findall(scatters, lowered.as_text(), re.DOTALL))
    # What is outside of blocks, and the text encoder, is float32 here in either case.
    assert types["f32"] > 0 and (types["bf16"] > 0) == (dtype == "bfloat16"), types
