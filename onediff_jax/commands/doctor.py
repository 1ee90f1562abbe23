"""What can be known to go wrong before a run begins: one line for every check."""

import functools
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from onediff_jax import processes
from onediff_jax.commands import plan as planning
from onediff_jax.data.batching.mixture import sources_for
from onediff_jax.data.batching.settings import views_of_tasks
from onediff_jax.data.records import SPLITS, Source
from onediff_jax.data.sources.cache import Cache, CachedSource, ExampleShape, encoded_example
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.data.text import t5_vocabulary
from onediff_jax.errors import BadRecord, InputError, one_line
from onediff_jax.paths import absolute, access_advice, folder_is_there, opened_path, remote
from onediff_jax.sharding import check_rows, mesh_of
from onediff_jax.train import checkpoint, encoders
from onediff_jax.train.config import RunConfig, locations, resolve_paths, run_config
from onediff_jax.train.encoders import (
    fingerprints_of,
    networks_of,
    tokenizer_folder,
    tokenizer_of,
)
from onediff_jax.train.prepare import open_sources, prepare
from onediff_jax.train.state import new_state, optimizer_of

OK, WARNING, FAILED = "ok", "warning", "failed"
RECORDS = 8  # that are read of a source's split
GIB = 2**30


class CheckWarning(InputError):  # noqa: N818 - it need not be one
    """What does not keep a run from being started, and may be wrong all the same."""


class Check(NamedTuple):
    """What came of a check: its subject, ok, warning or failed, and a line with the way out."""

    subject: str
    state: str
    said: str


def run(options: flags.FlagValues) -> int:
    """Prints a line for every check; 1 where one failed.

    Of several processes the first prints all lines, the others those that failed on them.
    """
    if options.distributed:
        processes.join()
    workdir = epath.Path(options.workdir) if options.workdir else None
    status = 0
    for check in checks(options.config.to_dict(), workdir, options.topology):
        failed = check.state == FAILED
        status |= failed
        if failed or processes.is_first():
            where = f"{processes.name_of_process()}: " if failed and processes.is_joined() else ""
            print(f"{where}{check.state:8}{check.subject}: {check.said}")
    return int(status)


def checks(
    values: Mapping[str, Any], workdir: epath.Path | None = None, topology: str | None = None
) -> Iterator[Check]:
    """The checks of a run of these settings, one after the other.

    A wrong configuration is the last.  Of several processes all must make all checks.  With a
    `topology`, a TPU slice that need not be here, mesh and rows are checked for that, by a plan,
    and else for the devices that are here.
    """
    yield (first := run_check("config", lambda: f"{run_config(values).steps:,} steps"))
    if first.state == FAILED:
        return
    written = run_config(values)
    config = resolve_paths(written)
    for name, path in locations(config).items():
        if not name.startswith("config.data.sources."):  # which have checks of their own
            yield run_check(f"path {name}", functools.partial(check_path, config, name, path))
    for name in config.data.sources:
        for split in SPLITS:
            yield run_check(
                f"data {name} {split}", functools.partial(check_source, config, name, split)
            )
    yield run_check("data tasks", lambda: check_tasks(config))
    if any(isinstance(source, Cache) for source in config.data.sources.values()):
        yield run_check("data caches", lambda: check_caches(config))
    if {config.text.kind, config.codec.kind} & {"t5", "sd3_vae"}:
        yield run_check("encoders", lambda: check_encoders(config))
    yield run_check("devices", check_devices)
    if topology:
        yield run_check("plan", lambda: check_plan(values, topology))
    else:
        yield run_check("mesh", lambda: check_mesh(config))
        yield run_check("rows", lambda: check_batch(config))
    if workdir is not None:
        yield run_check("workdir", lambda: check_workdir(workdir))
        yield run_check("resuming", lambda: check_resuming(written, workdir))
    yield run_check("disk", lambda: check_disk(config, workdir))


def run_check(subject: str, check: Callable[[], str]) -> Check:
    """A check's line, or the mistake that it found."""
    try:
        return Check(subject, OK, check())
    except CheckWarning as doubt:
        return Check(subject, WARNING, one_line(doubt))
    except (InputError, OSError, ImportError, RuntimeError) as error:  # the last, of JAX
        return Check(subject, FAILED, one_line(error))


def check_path(config: RunConfig, name: str, path: str) -> str:
    """Finds what a path of the configuration names, without copying it here."""
    section = name.split(".")[1]
    if section == "tune":
        return f"{path}, step {checkpoint.saved_run(path).step:,}"
    if section in encoders.INNER and name.endswith(".path"):
        if getattr(config, section).kind not in ("t5", "sd3_vae"):
            return f"{path} is not used"
        return f"{encoders.settings_file(section, path).parent}"
    if not (opened_path(path).is_file() or folder_is_there(path)):
        raise InputError(f"{name} is {path!r}, which is not there.{access_advice(path)}")
    return path


def check_source(config: RunConfig, name: str, split: str) -> str:
    """Opens one source and reads some of its records, spread evenly, as tasks will."""
    source: Source = config.data.sources[name].open(split)
    if isinstance(source, CachedSource):
        return check_cache(source)
    if not len(source):
        raise CheckWarning("has no records; set the source's validation to hold some out.")
    wanted = {field for task in views_of_tasks(config.data) for field in fields_for(task, source)}
    numbers = np.unique(np.linspace(0, len(source) - 1, RECORDS).astype(int)).tolist()
    bad = []
    for number in numbers:
        try:
            for value in source.read(number, wanted).values():
                if isinstance(value, Sequence) and len(value):
                    value[0]  # of several images, that are read when they are asked for
        except BadRecord as error:
            bad.append(error)
    if bad:
        kind = CheckWarning if len(bad) < len(numbers) else InputError
        raise kind(
            f"{len(bad)} of {len(numbers)} records are bad: {bad[0]} `check_data` lists them all."
        )
    return f"{len(source):,} records; {len(numbers)} were read"


def check_cache(source: CachedSource) -> str:
    """Reads some examples of every part of a cache, spread evenly."""
    if not len(source):
        return "a cache has no validation examples"
    read = 0
    for name in source.manifest["parts"]:
        examples = source.examples(ExampleShape.parse(name))
        for number in np.unique(np.linspace(0, len(examples) - 1, RECORDS).astype(int)).tolist():
            encoded_example(examples[number], 0)
            read += 1
    return f"{len(source):,} records, encoded; {read} examples were read"


def fields_for(task: str, source: Source) -> frozenset[str]:
    """The fields that a task takes of a source's records; none where it cannot be served."""
    return frozenset(TASKS[task].takes(source.fields) or ())


def check_tasks(config: RunConfig) -> str:
    """Finds a source for every task."""
    sources = open_sources(config.data, "train")
    tasks = views_of_tasks(config.data)
    for task, views in tasks.items():
        sources_for(task, views, sources)
    return f"{len(tasks)} are served"


def check_caches(config: RunConfig) -> str:
    """Compares the caches with how the run would encode, and with what its slots hold."""
    run = prepare(config)
    run.rows  # noqa: B018 - refuses caches of another kind
    caches = (name for name, source in run.sources.items() if isinstance(source, CachedSource))
    return f"{', '.join(caches)} hold what the run would encode"


def check_encoders(config: RunConfig) -> str:
    """Looks into the folders of released encoders; little of their weights is read."""
    vocabulary = config.text.vocabulary
    if config.text.kind == "t5":
        vocabulary = tokenizer_of(config.text, t5_vocabulary(tokenizer_folder(config.text))).size
    networks_of(config.model, config.text, config.codec, vocabulary, config.remat)
    prints = fingerprints_of(config.text, config.codec)
    return ", ".join(f"{part} is {found}" for part, found in prints.items())


def check_devices() -> str:
    """Compiles the smallest program that all devices must take part in, and checks what it says."""
    mesh = jax.make_mesh((jax.device_count(),), ("all",))
    numbers = np.arange(mesh.size, dtype=np.float32)
    given = jax.make_array_from_callback(
        numbers.shape, NamedSharding(mesh, P("all")), lambda index: numbers[index]
    )
    total = jax.shard_map(
        lambda x: jax.lax.psum(x.sum(), "all"), mesh=mesh, in_specs=P("all"), out_specs=P()
    )
    found = float(jax.device_get(jax.jit(total)(given)))
    if found != numbers.sum():
        raise InputError(
            f"the devices' numbers add up to {found}, not {numbers.sum()}: one of them, or their "
            "network, is broken; ask for other machines."
        )
    kind = jax.devices()[0].device_kind
    return f"{mesh.size} {kind} of {jax.process_count()} processes add up rightly"


def check_mesh(config: RunConfig) -> str:
    """Lays out the devices."""
    shape = mesh_of(config.mesh).shape
    return " x ".join(f"{axis} {size}" for axis, size in shape.items())


def check_batch(config: RunConfig) -> str:
    """Divides the rows over the devices."""
    check_rows(config.rows, config.optimizer.accumulate, mesh_of(config.mesh))
    return f"{config.rows} on {jax.device_count()} devices"


def check_plan(values: Mapping[str, Any], topology: str) -> str:
    """Compiles the run's step for a slice; the plan itself is printed before."""
    if jax.default_backend() != "cpu":
        raise CheckWarning(
            "is made where there is no accelerator: plan this run on another machine."
        )
    planning.plan(values, topology)
    return f"fits {topology}"


def check_workdir(workdir: epath.Path) -> str:
    """Writes into the workdir as checkpoints and metrics do; all processes must see the same."""
    token = str(multihost_utils.broadcast_one_to_all(np.int32(uuid.uuid4().int >> 97)))
    folder = workdir / ".doctor"
    try:
        if jax.process_index() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "file").write_text("old")
            (folder / "new").write_text(token)
            if remote(workdir):  # where nothing is renamed, and a file appears whole
                (folder / "file").write_text(token)
            else:
                (folder / "new").replace(folder / "file")
        multihost_utils.sync_global_devices("written")
        there = folder / "file"
        if not there.exists() or there.read_text() != token:
            raise InputError(
                f"{workdir} is not the same folder for all processes; use one that they share."
            )
        multihost_utils.sync_global_devices("read")
    finally:
        if jax.process_index() == 0 and folder.exists():
            folder.rmtree()
    return f"{workdir} can be written"


def check_resuming(config: RunConfig, workdir: epath.Path) -> str:
    """Compares the settings with those of the newest checkpoint, if there is one."""
    if checkpoint.newest_step(workdir) is None:
        return "nothing: the run is new"
    saved, _, step = checkpoint.saved_run(workdir)
    for name, (before, now) in checkpoint.binding_changes(saved, config).items():
        raise InputError(
            f"config.{name} is {now!r}, and {before!r} in the checkpoint at step {step}; set it "
            "back or use another workdir."
        )
    return f"goes on after step {step:,}"


def check_disk(config: RunConfig, workdir: epath.Path | None) -> str:
    """Compares the free space with what checkpoints take: those that are kept, and one more."""
    each = checkpoint_bytes(config)
    kept = config.checkpoint.keep + 1
    need = f"checkpoints take {each / GIB:.2f} GiB each, {kept * each / GIB:.2f} GiB in all"
    if workdir is None or remote(workdir):
        return need
    folder = absolute(workdir)
    there = len(list((folder / checkpoint.FOLDER).glob("*")))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < max(kept - there, 1) * each:
        raise InputError(
            f"{need}, and {free / GIB:.2f} GiB are free; make room or lower checkpoint.keep."
        )
    return f"{need}; {free / GIB:.2f} GiB are free"


def checkpoint_bytes(config: RunConfig) -> int:
    """Bytes of a checkpoint of a run, without data being read: a vocabulary counts in full."""
    pieces = 0 if config.text.kind == "t5" else config.text.vocabulary
    networks = networks_of(config.model, config.text, config.codec, pieces, config.remat)
    optimizer = optimizer_of(config.optimizer, config.steps, config.tune)
    key, tune = jax.random.key(0), config.tune
    state = jax.eval_shape(lambda: new_state(networks, optimizer, key, tune, config.optimizer))
    saved = state._replace(untrained=None) if config.tune.start else state
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(saved))
