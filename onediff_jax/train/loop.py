"""The loop: next batch, step, and every so often log, sample, save."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from clu import parameter_overview

from onediff_jax.data.batching import loader, mixture
from onediff_jax.data.batching.bad_records import BadRecordCounts
from onediff_jax.data.batching.settings import tokens_of, views_of_tasks
from onediff_jax.data.codecs import Codec, image_of, psnr
from onediff_jax.data.sources import arrayrecord
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.errors import Stopped
from onediff_jax.evaluate.grids import grid
from onediff_jax.evaluate.held_out import complete
from onediff_jax.ops import attention
from onediff_jax.processes import sum_over_processes
from onediff_jax.sampling.generate import TrainedModel
from onediff_jax.sharding import global_batch, local_rows, replicated
from onediff_jax.train import metrics
from onediff_jax.train.checkpoint import Checkpoints, newest_step, saved_run
from onediff_jax.train.clock import Clock, Profile
from onediff_jax.train.compile import compiled_step, first_state, state_shapes
from onediff_jax.train.config import RunConfig
from onediff_jax.train.prepare import Prepared, prepare
from onediff_jax.train.state import State, parameter_count
from onediff_jax.train.step import HeldOutLoss
from onediff_jax.train.stopping import Stopping
from onediff_jax.train.tune import merge_params
from onediff_jax.train.writer import RunWriter


def train(config: RunConfig, workdir: pathlib.PurePath) -> pathlib.PurePath:
    """Trains to `config.steps`, from the workdir's newest complete checkpoint where there is one.

    Raises Stopped where the run was asked to end, once it has saved.
    """
    clock = Clock()
    arrayrecord.raised_limit()  # of open files
    done = newest_step(workdir) or 0
    run = prepare(config, saved_run(workdir).assets if done else None, f"{workdir}")
    mesh, _ = run.mesh, run.sources  # refused before anything is written
    with Checkpoints(workdir, config.checkpoint) as checkpoints:
        changes = checkpoints.changes(done, config) if done else {}
        rows = run.rows
        compiled = compiled_step(run)
        if done:
            state = checkpoints.restore(done, state_shapes(compiled, run.config), config)
        else:
            state = first_state(compiled, run.config)
        pretrained = run.pretrained_params(run.parts_in_training, mesh)
        codec, whole = run.codec(pretrained), replicated(mesh)
        key = jax.jit(lambda: jax.random.key(config.seed + 1), out_shardings=whole)()
        batches = loader.batches(
            rows, config.rows, local_rows(mesh, config.rows), done, config.steps
        )

        quiet = jax.process_index() != 0
        with (
            Stopping() as stopping,
            RunWriter(workdir, done + 1, config.steps, quiet=quiet) as writer,
            Profile(config.log.profile, workdir) as profile,
        ):
            introduce(writer, run, state, codec, done, changes)
            flops = metrics.step_flops(
                run.networks, run.layout, config.rows, config.text.length, rows.carried.encoders
            )
            clock.begin(done, views=config.rows * run.layout.views, flops=flops)
            bad_records = BadRecordCounts(config.data.faults, list(run.sources))
            total = fresh = None
            held_out = run.held_out_rows
            held_out_loss = held_out and HeldOutLoss(held_out, run.config, run.networks, mesh)
            last, evaluation = config.steps, config.evaluate
            for step in range(done + 1, config.steps + 1):
                with clock.waiting(fresh):
                    own_rows = next(batches)
                    batch = global_batch(own_rows, mesh, config.rows)
                bad_records.add(own_rows)
                with clock.dispatching(), profile.at(step, fresh), jax.transfer_guard("disallow"):
                    state, fresh = compiled.step(state, batch, key, pretrained)
                    total = fresh if total is None else add_metrics(total, fresh)
                writer.advance(step)
                last = step if stopping.due(step) else config.steps
                logs, saves = (due(step, every, last) for every in intervals(config))
                evaluates = last == config.steps and evaluation.every
                evaluates = evaluates and due(step, evaluation.every, last)
                samples = evaluates and evaluation.grids
                samples = samples and due(step, evaluation.every * evaluation.grids, last)
                if logs or saves or evaluates:  # the only wait for the device
                    refuse_nonfinite(metrics.named_scalars(fresh), step)
                if logs:
                    scalars = metrics.named_scalars(total)
                    scalars |= bad_records.shares(sum_over_processes)
                    writer.scalars(step, scalars | clock.report(step))
                    bad_records.refuse_too_many()
                    total = None
                if saves:
                    with clock.counting("save"):
                        checkpoints.save(step, state, run.assets, config)
                if evaluates and held_out_loss:
                    with clock.counting("evaluate"):
                        writer.scalars(step, held_out_loss(state.weights | pretrained))
                if samples:
                    with clock.counting("sample"):
                        sample_grids(writer, step, run, state.weights | pretrained, codec)
                if step == last:
                    break
            with clock.counting("save"):
                checkpoints.finish()
            writer.line(clock.summary())
            if last < config.steps:
                writer.line(f"stopped and saved after step {last:,}; the same command goes on")
                raise Stopped(last)
    return workdir


def intervals(config: RunConfig) -> tuple[int, int]:
    """Steps between logs, and between checkpoints."""
    return config.log.every, config.checkpoint.every


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return step % every == 0 or step == last


@jax.jit
def add_metrics(total: Any, fresh: Any) -> Any:
    """Metrics averaged over the steps of both."""
    return jax.tree.map(lambda a, b: a + b, total, fresh)


def refuse_nonfinite(values: dict[str, float], step: int) -> None:
    """Raises where the loss or the gradient of a step is not a finite number any more."""
    if bad := [name for name in ("loss", "grad_norm") if not np.isfinite(values[name])]:
        raise FloatingPointError(
            f"{' and '.join(bad)} became {values[bad[0]]} by step {step}; lower "
            f"optimizer.learning_rate, lengthen optimizer.warmup or set model.dtype to float32. "
            f"The last checkpoint is from before."
        )


def introduce(
    writer: RunWriter,
    run: Prepared,
    state: State,
    codec: Codec | None,
    done: int,
    changes: Mapping[str, tuple[Any, Any]],
) -> None:
    """Writes once what the run is made of."""
    table = parameter_overview.get_parameter_overview(
        merge_params(state.params, state.untrained), include_stats=False, max_lines=None
    )
    writer.text("parameters", table)
    rows, tokenizer, model = run.rows, run.tokenizer, run.config.model
    shown = [view for _, _, each in rows.examples(0) for view in each.example.views]
    images = [view for view in shown if isinstance(view, np.ndarray)]
    untrained = parameter_count(state.untrained)
    more = f", {untrained:,} more are kept" if untrained else ""
    writer.line(
        f"{parameter_count(state.params):,} parameters{more} on {jax.device_count()} "
        f"{jax.devices()[0].device_kind}"
    )
    for name, source in run.sources.items():
        writer.line(
            f"source {name}: {len(source):,} records with {', '.join(sorted(source.fields))}"
        )
    found = mixture.mixture(rows.config, run.sources, run.config.rows)
    writer.table("mixture", mixture.table_of(found))
    quality = "cached"
    if images:
        assert codec is not None, "rows of images need one"
        decoded = [image_of(codec.decode(codec.encode(image))) for image in images]
        quality = f"{np.mean(list(map(psnr, images, decoded))):.1f} dB"
    writer.line(
        f"row: {rows.layout.views} views, {rows.layout.tokens} tokens; codec: {quality}; "
        f"vocabulary: {tokenizer.size} pieces"
    )
    cases = model.attention_cases(rows.layout, tokenizer.length)
    writer.line(attention.described(model.attention, *cases))
    if done:
        writer.line(f"resumed after step {done:,}")
    for name, (before, now) in changes.items():
        writer.line(f"changed since the checkpoint: {name} was {before}, is {now}")


def sample_grids(
    writer: RunWriter, step: int, run: Prepared, params: Any, codec: Codec | None
) -> None:
    """Writes a grid for every task and direction: the same examples and noise at every step.

    Tasks that no source with images serves are left out.
    """
    config, data = run.config, run.config.data
    assert codec is not None, "a run with grids has its codec's parameters"
    trained = TrainedModel(
        run.networks, params, codec, run.tokenizer, run.assets.schedule, run.mesh
    )
    for task, views in views_of_tasks(data).items():
        served = mixture.sources_for(task, views, run.held_out_sources).values()
        source = next(filter(len, served), None)
        if source is None:
            continue
        count = min(config.evaluate.examples, len(source))
        indices = np.linspace(0, len(source) - 1, count).astype(int).tolist()  # of all kinds
        for name, targets in TASKS[task].builder.directions(views):
            examples = complete(
                trained,
                source,
                indices,
                task,
                views,
                targets,
                tokens_of(data, task),
                data.conditions,
                config.evaluate.sample,
                config.seed,
                data.fitting,
            )
            writer.images(step, f"{task}_to_{name}", grid(examples))
