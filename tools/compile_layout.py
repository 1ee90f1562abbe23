"""What the TPU compiler makes of a parameter layout, on a pod that is not there.

    pip install -e '.[tpu]'
    python tools/compile_layout.py --variant in_out
    python tools/compile_layout.py --variant all

Every variant is the stage 2 step at the released size (forward, backward, AdamW, EMA; 3,072 tokens
a core) under explicit FSDP: parameters are gathered by the block stack's hook, inside the
rematerialised scan, and gradients leave it scattered.  What differs is which axis of a matrix is
sharded, how it is stored, and where the two parts of a rotary pair lie.  Printed for each: bytes a
core, the compiler's estimate of compute, and exchanges by kind.  Nothing runs on a TPU.
"""

import argparse
import pathlib
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from onediff_jax.models.nextdit import NextDiT, NextDiTConfig
from onediff_jax.ops import rope
from onediff_jax.ops.layout import Layout, Slot
from onediff_jax.plan.estimate import estimate_of
from onediff_jax.plan.program import program_of
from onediff_jax.plan.report import traffic_lines
from onediff_jax.plan.topologies import devices_of, topology_of

ROW = Layout((Slot(1, 1024), Slot(2, 256), Slot(2, 256), Slot(4, 256)))
TEXT, TEXT_WIDTH = 300, 2048

# Which axis of a [in, out] matrix is sharded (0 or 1), and which matrices are stored [out, in].
VARIANTS = {
    "in_out": dict(axis={}, stored_out_in=()),
    "other_axis": dict(axis={"": 1}, stored_out_in=()),
    "embed_first": dict(axis={}, stored_out_in=("wo", "w2")),
    "mlp_first": dict(axis={}, stored_out_in=("w1", "w3")),
    "mlp_axis": dict(axis={"w1": 1, "w3": 1}, stored_out_in=()),
    "mlp_qkv_first": dict(axis={}, stored_out_in=("w1", "w3", "wq", "wk", "wv", "wk_y", "wv_y")),
    "mlp_adaln_first": dict(axis={}, stored_out_in=("w1", "w3", "adaln")),
    "mlp_wo_first": dict(axis={}, stored_out_in=("w1", "w3", "wo")),
    "pairs": dict(axis={}, stored_out_in=(), pairs=True),
}


def rotate_pairs(x, turn):
    """Rotary positions with the two parts of a channel adjacent, as the release stores them."""
    cos, sin = jnp.cos(turn)[:, :, None], jnp.sin(turn)[:, :, None]
    real, imaginary = (x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)[..., i] for i in (0, 1))
    turned = jnp.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1)
    return turned.reshape(x.shape).astype(x.dtype)


def matrix_name(path) -> str:
    """The last module of a parameter's path: wq, w1, adaln, ..."""
    return path[-2].key if len(path) > 1 else ""


def stored(path, leaf, variant):
    """How a parameter is stored: transposed where the variant says so."""
    if (
        leaf.ndim >= 2
        and path[-1].key == "kernel"
        and matrix_name(path) in variant["stored_out_in"]
    ):
        return leaf.swapaxes(-1, -2) if hasattr(leaf, "swapaxes") else swapped(leaf)
    return leaf


def swapped(shape):
    """The shape struct of a transposed matrix."""
    return jax.ShapeDtypeStruct((*shape.shape[:-2], shape.shape[-1], shape.shape[-2]), shape.dtype)


def sharded_axis(path, ndim, shape, variant, shards) -> int | None:
    """The sharded axis of a block's or the top's parameter; None if it is small or indivisible."""
    axis = variant["axis"].get(matrix_name(path), variant["axis"].get("", 0)) if ndim == 2 else 0
    return axis if np.prod(shape) >= 1 << 16 and shape[axis] % shards == 0 else None


def build(variant, fsdp: int, devices):
    """The step and the shapes of what it takes, sharded over `devices`."""
    mesh = Mesh(np.asarray(devices).reshape(-1, fsdp), ("data", "fsdp"))
    config = NextDiTConfig()

    def spec_of(path, leaf):
        stacked = path[1].key == "layers"
        shape = leaf.shape[1:] if stacked else leaf.shape
        axis = sharded_axis(path, len(shape), shape, variant, fsdp)
        names = [None] * leaf.ndim
        if axis is not None:
            names[axis + stacked] = "fsdp"
        return P(*names)

    def gather(parameters):
        def bring(path, leaf):
            full = shapes_of[tuple(k.key for k in path)]
            axis = sharded_axis(path, len(full), full, variant, fsdp)
            leaf = leaf.astype(jnp.bfloat16) if leaf.ndim == 2 else leaf
            if axis is not None:
                leaf = jax.lax.all_gather(leaf, "fsdp", axis=axis, tiled=True)
            return stored(path, leaf, variant)

        return jax.tree_util.tree_map_with_path(bring, parameters)

    b = len(devices)
    model = NextDiT(config, remat="dots", gather=gather)
    plain = NextDiT(config)
    f32, bf16, i32 = jnp.float32, jnp.bfloat16, jnp.int32
    struct = jax.ShapeDtypeStruct
    batch = (
        struct((b, ROW.tokens, config.features), f32),
        struct((b, ROW.views), f32),
        struct((b, ROW.tokens, 3), i32),
        struct((b, ROW.views), i32),
        struct((b, ROW.tokens), jnp.bool_),
        struct((b, ROW.examples, TEXT, TEXT_WIDTH), bf16),
        struct((b, ROW.examples, TEXT), jnp.bool_),
    )
    init = jax.eval_shape(lambda k, *a: plain.init(k, *a, ROW), jax.random.key(0), *batch)
    init = nn.meta.unbox(init)["params"]
    params = jax.tree_util.tree_map_with_path(
        lambda p, x: swapped(x) if stored(p, x, variant) is not x else x, {"params": init}
    )
    shapes_of = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        names = tuple(k.key for k in path)[1:]
        if names[0] == "layers":
            shapes_of[names[1:]] = leaf.shape[1:]
        shapes_of[names] = leaf.shape
    specs = jax.tree_util.tree_map_with_path(spec_of, params)
    params, specs = params["params"], specs["params"]

    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(5e-4))

    def loss_of(params, patches, *rest):
        top = {k: v for k, v in params.items() if k != "layers"}
        gathered = gather(top) | {"layers": params["layers"]}
        predicted = model.apply({"params": gathered}, patches, *rest, ROW)
        return jnp.square(predicted - patches).mean() / b

    def gradients(params, *batch):
        grads = jax.grad(loss_of)(params, *batch)

        def total(grad, spec):
            over = ("data",) if "fsdp" in spec else ("data", "fsdp")
            return jax.lax.psum(grad, over)

        return jax.tree.map(total, grads, specs)

    rows = P(("data", "fsdp"))
    scattered = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(specs, *[rows] * len(batch)),
        out_specs=specs,
        check_vma=False,
    )

    def step(params, ema, moments, *batch):
        grads = scattered(params, *batch)
        updates, moments = tx.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        ema = jax.tree.map(lambda e, p: 0.9999 * e + 0.0001 * p, ema, params)
        return params, ema, moments

    moments = jax.eval_shape(tx.init, params)
    named = jax.tree.map(lambda s: NamedSharding(mesh, s), specs)
    by_shape = optax.tree_map_params(
        tx, lambda _, s: s, moments, named, transform_non_params=lambda _: NamedSharding(mesh, P())
    )
    on = lambda shape, sharding: struct(shape.shape, shape.dtype, sharding=sharding)  # noqa: E731
    arguments = (
        jax.tree.map(on, params, named),
        jax.tree.map(on, params, named),
        jax.tree.map(on, moments, by_shape),
        *[on(x, NamedSharding(mesh, rows)) for x in batch],
    )
    return jax.jit(step, donate_argnums=(0, 1, 2)), arguments


def main():
    """Compiles the chosen variants and prints a line for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--variant", default="all", choices=["all", *VARIANTS])
    parser.add_argument(
        "--fsdp", type=int, default=64, help="shards of a matrix (data takes the rest)"
    )
    parser.add_argument("--topology", default="v3-256", help="as the cloud names it")
    parser.add_argument("--dump", help="write the compiled program here")
    options = parser.parse_args()
    topology = topology_of(options.topology)
    devices = devices_of(topology)
    print(f"{'variant':14}{'fsdp':>5}{'GiB':>7}{'seconds':>9}  (estimates; exchanges apart)")
    for name in VARIANTS if options.variant == "all" else [options.variant]:
        rope.rotate = rotate_pairs if VARIANTS[name].get("pairs") else ROTATE
        began = time.time()
        step, arguments = build(VARIANTS[name], options.fsdp, devices)
        compiled = step.lower(*arguments).compile()
        hlo, memory = compiled.as_text(), compiled.memory_analysis()
        if options.dump:
            pathlib.Path(options.dump).write_text(hlo)
        held = memory.temp_size_in_bytes + memory.argument_size_in_bytes
        estimate = estimate_of(program_of(hlo), topology.generation)
        print(
            f"{name:14}{options.fsdp:5}{held / 2**30:7.2f}{estimate.compute:9.3f}"
            f"  (compiled in {time.time() - began:.0f} s)",
            *traffic_lines(estimate),
            sep="\n",
            flush=True,
        )


ROTATE = rope.rotate

if __name__ == "__main__":
    main()
