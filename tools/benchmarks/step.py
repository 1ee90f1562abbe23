"""Time of a training step against its floor: its FLOPs at the rate that this machine reaches.

    python tools/benchmarks/step.py --config configs/scenes_tiny.py [--config.a.b=VALUE ...]

Prints the step's FLOPs by formula, the measured rate of large matmuls and of matmuls as narrow
as the network's own, the floor that follows from each, the measured step (data at hand), what the
loader takes for a batch on one thread, and the step fed by the loader.  Medians of several runs
after warm-up.
"""

import statistics
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags
from ml_collections import config_flags

from onediff_jax.data.batching import loader
from onediff_jax.errors import InputError
from onediff_jax.sharding import global_batch, local_rows, replicated
from onediff_jax.train import metrics
from onediff_jax.train.compile import compiled_step, first_state
from onediff_jax.train.config import run_config
from onediff_jax.train.prepare import prepare

RUNS = 5


def seconds(work: Callable[[], object], times: int) -> float:
    """Median time of a call of `work` over RUNS runs of `times` calls, after one to warm up."""
    jax.block_until_ready(work())
    taken = []
    for _ in range(RUNS):
        began = time.perf_counter()
        for _ in range(times):
            made = work()
        jax.block_until_ready(made)
        taken.append((time.perf_counter() - began) / times)
    return statistics.median(taken)


def product_rate(m: int, k: int, n: int, dtype: str) -> float:
    """FLOP/s of an m x k by k x n matmul."""
    a, b = jnp.ones((m, k), dtype), jnp.ones((k, n), dtype)
    multiply = jax.jit(lambda a, b: a @ b)
    return 2 * m * k * n / seconds(lambda: multiply(a, b), max(1, int(2e10 / (2 * m * k * n))))


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return
    config_flags.DEFINE_config_file("config", "configs/scenes_tiny.py", "the run's file")
    flags.FLAGS(arguments)
    run = prepare(run_config(flags.FLAGS.config))
    config, rows, mesh = run.config, run.rows, run.mesh
    inside = rows.carried.encoders
    length = config.text.length
    flops = metrics.step_flops(run.networks, rows.layout, config.rows, length, inside).total
    model = config.model
    tokens = config.rows * rows.layout.tokens

    large = product_rate(2048, 2048, 2048, model.dtype)
    own = product_rate(tokens, model.width, model.hidden, model.dtype)
    print(
        f"step: {flops / 1e9:.2f} GFLOP; {rows.layout.views * config.rows} views, {tokens} tokens"
    )
    print(f"matmuls: large {large / 1e9:.1f} GFLOP/s, the network's own {own / 1e9:.1f} GFLOP/s")
    print(
        f"floor: {1e3 * flops / large:.1f} ms by large matmuls, "
        f"{1e3 * flops / own:.1f} ms by its own"
    )

    compiled = compiled_step(run)
    state, pretrained = first_state(compiled, config), run.pretrained_params(inside, mesh)
    began = time.perf_counter()
    local = local_rows(mesh, config.rows)
    make = loader.MakeBatch(rows, config.rows, tuple(local))
    key = jax.device_put(jax.random.key(1), replicated(mesh))
    batch = global_batch(make(0), mesh, config.rows)
    step = compiled.step.lower(state, batch, key, pretrained).compile()
    print(f"compiled in {time.perf_counter() - began:.1f} s")

    def train(batch) -> object:
        nonlocal state
        state, values = step(state, batch, key, pretrained)
        return values

    alone = seconds(lambda: train(batch), 10)
    numbers = iter(range(10**9))
    load = seconds(lambda: make(next(numbers)), 5)
    batches = loader.batches(rows, config.rows, local, 0, 10**6)
    fed = seconds(lambda: train(global_batch(next(batches), mesh, config.rows)), 10)
    print(f"step alone: {1e3 * alone:.1f} ms, {flops / alone / 1e9:.1f} GFLOP/s, ", end="")
    print(f"{100 * flops / large / alone:.0f} % of the floor by large matmuls")
    print(f"loader: {1e3 * load:.1f} ms a batch on one thread")
    views = rows.layout.views * config.rows / fed
    print(f"step fed by the loader: {1e3 * fed:.1f} ms, {views:.0f} views/s")


if __name__ == "__main__":
    try:
        main(sys.argv)
    except InputError as error:
        sys.exit(f"bench_step: {error}")
