"""The loop: next batch, step, and every so often log, sample, save."""

import pathlib
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from onediff_jax.data.batching import loader, mixture
from onediff_jax.data.batching.bad_records import BadRecordCounts
from onediff_jax.data.sources import arrayrecord as readers
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.errors import Stopped
from onediff_jax.evaluate.grids import grid
from onediff_jax.evaluate.held_out import complete
from onediff_jax.ops import attention
from onediff_jax.processes import sum_over_processes
from onediff_jax.sampling.generate import Trained
from onediff_jax.sharding import check_rows, global_batch, local_rows, mesh_of, replicated
from onediff_jax.train import encoders, metrics, run
from onediff_jax.train.checkpoint import Checkpoints
from onediff_jax.train.clock import Clock
from onediff_jax.train.compile import placed
from onediff_jax.train.held_out import HeldOutLoss, held_out_rows
from onediff_jax.train.profile import Profile
from onediff_jax.train.start import first_assets, first_state, state_shapes
from onediff_jax.train.state import parameters
from onediff_jax.train.step import named_scalars
from onediff_jax.train.stopping import Stopping
from onediff_jax.train.tune import merged
from onediff_jax.train.writer import Writer


def train(
    config: run.RunConfig, workdir: pathlib.PurePath, as_json: dict[str, Any]
) -> pathlib.PurePath:
    """Trains to `config.steps`, from the workdir's newest complete checkpoint where there is one.

    `as_json` is the configuration as checkpoints keep it.  Raises Stopped where the run was asked
    to end, once it has saved.
    """
    clock = Clock()
    readers.raised_limit()  # of open files
    mesh = mesh_of(config.mesh)
    check_rows(config.rows, config.optimizer.accumulate, mesh)
    sources = run.opened(config.data, "train")
    held_out = run.opened(config.data, "validation")
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        done = checkpoints.newest or 0
        changes = checkpoints.changes(done, as_json) if done else {}
        assets = checkpoints.assets(done) if done else first_assets(config, sources, as_json)
        encoders.refuse_others(config.text, config.codec, assets.fingerprints, f"{workdir}")
        networks, tokenizer = run.assembled(config, assets)
        rows = run.rows_of(config, sources, assets, tokenizer)
        _, optimizer, shardings, train_step = placed(config, networks, rows.layout, mesh)
        if done:
            shapes = state_shapes(networks, optimizer, shardings, config)
            state = checkpoints.restore(done, shapes, as_json)
        else:
            state = first_state(networks, optimizer, shardings, config)
        unseen = held_out_rows(config, held_out, assets, tokenizer)
        drawn = unseen and config.evaluate.grids
        read = [each.carried for each in (rows, unseen) if each]
        parts = ("text",) * bool(drawn or any(carried.empty is None for carried in read))
        parts += ("codec",) * bool(drawn or any(carried.pixels for carried in read))
        frozen = encoders.pretrained_params(networks, config.text, config.codec, mesh, parts)
        codec = run.codec_of(networks, frozen, assets)
        whole = replicated(mesh)
        key = jax.jit(lambda: jax.random.key(config.seed + 1), out_shardings=whole)()
        local = local_rows(mesh, config.rows)
        batches = loader.batches(rows, config.rows, local, done, config.steps)

        quiet = jax.process_index() != 0
        with (
            Stopping() as stopping,
            Writer(workdir, done + 1, config.steps, quiet=quiet) as writer,
            Profile(config.log.profile, workdir) as profile,
        ):
            introduce(writer, networks, state, rows, sources, codec, config.rows, done, changes)
            flops = metrics.step_flops(
                networks, rows.layout, config.rows, config.text.length, rows.carried.encoders
            )
            clock.begin(done, views=config.rows * rows.layout.views, flops=flops)
            bad_records = BadRecordCounts(config.data.faults, list(sources))
            measured = fresh = None
            held_out_loss = unseen and HeldOutLoss(unseen, config, networks, mesh)
            last, evaluation = config.steps, config.evaluate
            for step in range(done + 1, config.steps + 1):
                with clock.waiting(fresh):
                    own_rows = next(batches)
                    batch = global_batch(own_rows, mesh, config.rows)
                bad_records.add(own_rows)
                with clock.dispatching(), profile.at(step, fresh), jax.transfer_guard("disallow"):
                    state, fresh = train_step(state, batch, key, frozen)
                    measured = fresh if measured is None else merge(measured, fresh)
                writer.advance(step)
                last = step if stopping.due(step) else config.steps
                logs, saves = (due(step, every, last) for every in intervals(config))
                evaluates = last == config.steps and evaluation.every
                evaluates = evaluates and due(step, evaluation.every, last)
                samples = evaluates and evaluation.grids
                samples = samples and due(step, evaluation.every * evaluation.grids, last)
                if logs or saves or evaluates:  # the only wait for the device
                    refuse_nonfinite(named_scalars(fresh), step)
                if logs:
                    scalars = named_scalars(measured)
                    scalars |= bad_records.shares(sum_over_processes)
                    writer.scalars(step, scalars | clock.report(step))
                    bad_records.refuse_too_many()
                    measured = None
                if saves:
                    with clock.counting("save"):
                        checkpoints.save(step, state, assets, as_json)
                if evaluates and held_out_loss:
                    with clock.counting("evaluate"):
                        writer.scalars(step, held_out_loss(state.weights | frozen))
                if samples:
                    with clock.counting("sample"):
                        weights = state.weights | frozen
                        trained = Trained(
                            networks, weights, codec, tokenizer, assets.schedule, mesh
                        )
                        sample_grids(writer, step, trained, config, held_out)
                if step == last:
                    break
            with clock.counting("save"):
                checkpoints.finish()
            writer.line(clock.summary())
            if last < config.steps:
                writer.line(f"stopped and saved after step {last:,}; the same command goes on")
                raise Stopped(last)
    return workdir


def intervals(config: run.RunConfig) -> tuple[int, int]:
    """Steps between logs, and between checkpoints."""
    return config.log.every, config.checkpoint.every


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return step % every == 0 or step == last


@jax.jit
def merge(metrics: Any, fresh: Any) -> Any:
    """Averages over the steps of both."""
    return jax.tree.map(lambda a, b: a + b, metrics, fresh)


def refuse_nonfinite(values: dict[str, float], step: int) -> None:
    """Raises where the loss or the gradient of a step is not a finite number any more."""
    if bad := [name for name in ("loss", "grad_norm") if not np.isfinite(values[name])]:
        raise FloatingPointError(
            f"{' and '.join(bad)} became {values[bad[0]]} by step {step}; lower "
            f"optimizer.learning_rate, lengthen optimizer.warmup or set model.dtype to float32. "
            f"The last checkpoint is from before."
        )


def introduce(
    writer: Writer,
    networks,
    state,
    rows,
    sources,
    codec,
    batch: int,
    done: int,
    changes: dict[str, tuple],
) -> None:
    """Says once what the run is made of."""
    table = parameter_overview.get_parameter_overview(
        merged(state.params, state.frozen), include_stats=False, max_lines=None
    )
    writer.text("parameters", table)
    shown = [view for _, _, placed in rows.examples(0) for view in placed.example.views]
    images = [view for view in shown if isinstance(view, np.ndarray)]
    frozen = f", {parameters(state.frozen):,} more are kept" if state.frozen else ""
    writer.line(
        f"{parameters(state.params):,} parameters{frozen} on {jax.device_count()} "
        f"{jax.devices()[0].device_kind}"
    )
    for name, source in sources.items():
        writer.line(
            f"source {name}: {len(source):,} records with {', '.join(sorted(source.fields))}"
        )
    writer.table("mixture", mixture.table_of(mixture.mixture(rows.config, sources, batch)))
    quality = f"{run.reconstruction_psnr(codec, images):.1f} dB" if images else "cached"
    writer.line(
        f"row: {rows.layout.views} views, {rows.layout.tokens} tokens; codec: {quality}; "
        f"vocabulary: {rows.tokenizer.size} pieces"
    )
    model = networks.denoiser.config
    cases = model.attention_cases(rows.layout, rows.tokenizer.length)
    writer.line(attention.described(model.attention, *cases))
    if done:
        writer.line(f"resumed after step {done:,}")
    for name, (before, now) in changes.items():
        writer.line(f"changed since the checkpoint: {name} was {before}, is {now}")


def sample_grids(
    writer: Writer, step: int, trained: Trained, config: run.RunConfig, held_out
) -> None:
    """Writes a grid for every task and direction: the same examples and noise at every step.

    Of tasks that no source with images serves there is none.
    """
    for task, views in run.views_of_tasks(config.data).items():
        source = next(filter(len, mixture.served(task, views, held_out).values()), None)
        if source is None:
            continue
        count = min(config.evaluate.examples, len(source))
        indices = np.linspace(0, len(source) - 1, count).astype(int).tolist()  # of all kinds
        for name, wanted in TASKS[task].form.directions(views):
            done = complete(
                trained,
                source,
                indices,
                task,
                views,
                wanted,
                run.tokens_of(config.data, task),
                config.data.conditions,
                config.evaluate.sample,
                config.seed,
                config.data.fitting,
            )
            writer.images(step, f"{task}_to_{name}", grid(done))
