"""Encodes the data set of a config ahead of training: a cache of examples for every source.

    python tools/encode_dataset.py --config configs/mine.py --out caches/mine

Then train with config.data.sources.NAME = dict(kind="cache", path="caches/mine/NAME").  Every task
that a slot holds is encoded, with conditions drawn anew in each of --passes.  With --states prompts
are kept as states of a released text encoder, else as token ids.  Interrupted, the same command
goes on after the last whole file.  docs/caches.md says more.
"""

import concurrent.futures
import functools
import json
import os
import pathlib
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags
from array_record.python import array_record_module
from ml_collections import config_flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onediff_jax.cli import one_line
from onediff_jax.config import as_dict, run_config
from onediff_jax.data.cache import ASSETS, FORMAT, MANIFEST, PLAN, Part, flat, packed_example
from onediff_jax.data.example import EncodedPicture, EncodedPrompt, Placed
from onediff_jax.data.latents import Codec
from onediff_jax.data.loader import served
from onediff_jax.data.making import MakeExample
from onediff_jax.data.records import Source
from onediff_jax.data.shards import HALF, WRITING, checksum, packed_array
from onediff_jax.data.text import Tokenizer
from onediff_jax.errors import InputError
from onediff_jax.generate import PictureCodec
from onediff_jax.models.networks import Networks
from onediff_jax.train import encoders, run
from onediff_jax.train.checkpoint import arrays_of, assets_of

SHARD = 1024  # examples of a file
BATCH = 16  # examples that are encoded together


class Encoding(NamedTuple):
    """What turns examples into encoded ones."""

    codec: Codec
    tokenizer: Tokenizer
    networks: Networks
    params: Mapping[str, Any]
    states: bool

    def __call__(self, several: Sequence[Placed]) -> list[Placed]:
        """The examples with their pictures and prompts encoded."""
        pictures = [v for placed in several for v in placed.example.views if is_picture(v)]
        encoded = iter(self.pictures(pictures))
        prompts = self.prompts([placed.example.prompt for placed in several])
        made = []
        for placed, prompt in zip(several, prompts, strict=True):
            views = (next(encoded) if is_picture(v) else v for v in placed.example.views)
            example = placed.example._replace(views=tuple(views), prompt=prompt)
            made.append(placed._replace(example=example))
        return made

    def pictures(self, pictures: Sequence[np.ndarray]) -> list[EncodedPicture]:
        """Pictures encoded, those of one shape together."""
        if not isinstance(self.codec, PictureCodec):
            return [EncodedPicture(self.codec.encode(picture), None) for picture in pictures]
        found: dict[int, EncodedPicture] = {}
        for shape in {picture.shape for picture in pictures}:
            numbers = [i for i, picture in enumerate(pictures) if picture.shape == shape]
            for i in range(0, len(numbers), BATCH):
                part = numbers[i : i + BATCH]
                padded = part + part[-1:] * (BATCH - len(part))  # one shape, one program
                means, deviations = self.codec.moments(np.stack([pictures[n] for n in padded]))
                found |= dict(zip(part, map(EncodedPicture, means, deviations), strict=False))
        return [found[i] for i in range(len(pictures))]

    def prompts(self, prompts: Sequence[str]) -> list[EncodedPrompt]:
        """Prompts as ids, or as states of the text encoder, of the tokens that count."""
        ids, masks = map(np.stack, zip(*map(self.tokenizer, prompts), strict=True))
        tokens = ids
        if self.states:
            padding = [(0, BATCH - len(ids)), (0, 0)]
            padded = (np.pad(ids, padding)[:, None], np.pad(masks, padding, mode="edge")[:, None])
            states = _states(self.networks, self.params, *padded)
            tokens = np.asarray(states)[:, 0].astype(HALF)
        counted = (held[mask] for held, mask in zip(tokens, masks, strict=False))
        return list(map(EncodedPrompt, prompts, counted))


@functools.partial(jax.jit, static_argnums=0)
def _states(networks: Networks, params: Any, ids: Any, mask: Any) -> Any:
    return networks.states(params, ids, mask)


def is_picture(view: Any) -> bool:
    """Whether a view is a picture, not a camera."""
    return isinstance(view, np.ndarray)


def parts_of(config: run.RunConfig) -> list[Part]:
    """What the slots of a config hold."""
    return sorted(
        {
            Part(task, views, slot.tokens)
            for slot in config.data.row
            for views, tasks in slot.tasks_of(config.data.tasks, config.data.counts).items()
            for task in tasks
        }
    )


def serves(part: Part, name: str, source: Source) -> bool:
    """Whether a source's records have what examples of a part need."""
    try:
        return bool(served(part.task, part.views, {name: source}))
    except InputError:
        return False


def encode_source(
    config: run.RunConfig,
    name: str,
    source: Source,
    parts: Sequence[Part],
    encoding: Encoding,
    folder: pathlib.Path,
    plan: Mapping[str, Any],
    passes: int,
    shard: int,
    progress: Progress,
) -> int:
    """Writes the files of a source that are not there yet, and its manifest; how many examples."""
    total = passes * len(source)
    bar = progress.add_task(name, total=total * len(parts), speed="")
    files: dict[str, list[dict[str, Any]]] = {}
    clock = [time.perf_counter(), 0]
    for part in parts:
        square, edge = config.data.aspects == "square", run.edge_of(config)
        make = MakeExample(
            part.task, source, 0, part.views, part.tokens, edge, config.data.conditions, square
        )
        for number, first in enumerate(range(0, total, shard)):
            numbers = range(first, min(first + shard, total))
            file = folder / f"{part}-{number:05}.array_record"
            if file.is_file():
                progress.advance(bar, len(numbers))
            else:
                unfinished = file.with_suffix(".partial")
                writer = array_record_module.ArrayRecordWriter(str(unfinished), WRITING)
                for several in made(make, numbers, len(source), config.seed):
                    for placed, i in zip(encoding([p for p, _ in several]), several, strict=True):
                        writer.write(packed_example(placed, i[1]))
                    clock[1] += part.views * len(several)
                    speed = clock[1] / (time.perf_counter() - clock[0])
                    progress.update(bar, advance=len(several), speed=f"{speed:,.1f} images/s")
                writer.close()
                unfinished.rename(file)
            files.setdefault(str(part), []).append(
                {"file": file.name, "records": len(numbers), "bytes": file.stat().st_size}
                | {"sha256": checksum(file)}
            )
    empty = encoding.prompts([""])[0].tokens
    kind, shape, data = packed_array(empty)
    manifest = {
        "format": FORMAT,
        "plan": plan["plan"],
        "made_with": {key: value for key, value in plan.items() if key != "plan"},
        "fields": sorted(source.fields),
        "least": dict(source.least),
        "records": len(source),
        "empty": [kind, shape, data.hex()],
        "parts": files,
    }
    unfinished = folder / f"{MANIFEST}.partial"
    unfinished.write_text(json.dumps(manifest, indent=1) + "\n")
    unfinished.rename(folder / MANIFEST)
    return total * len(parts)


def made(
    make: MakeExample, numbers: Sequence[int], records: int, seed: int
) -> Iterator[list[tuple[Placed, int]]]:
    """Examples and their records' numbers, a few at a time, made ahead by threads.

    Example i is of record i modulo their number, drawn by (seed, i).
    """

    def one(number: int) -> tuple[Placed, int]:
        record = number % records
        return make.random_map(record, np.random.default_rng([seed, number])), record

    groups = [numbers[i : i + BATCH] for i in range(0, len(numbers), BATCH)]
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        waiting = [pool.submit(one, number) for number in groups[0]]
        for following in [*groups[1:], ()]:
            ready, waiting = waiting, [pool.submit(one, number) for number in following]
            yield [future.result() for future in ready]


def prepared(folder: pathlib.Path, plan: Mapping[str, Any], assets: run.Assets) -> None:
    """Makes a source's folder, or checks that what was begun there goes on as it began."""
    folder.mkdir(parents=True, exist_ok=True)
    file, now = folder / PLAN, json.loads(json.dumps(plan))
    if file.is_file():
        before = flat(json.loads(file.read_bytes()))
        for entry, value in flat(now).items():
            if before.get(entry) != value:
                raise InputError(
                    f"{file}: {entry} is {before.get(entry)!r}, and {value!r} now; set it back, or "
                    "write to another folder."
                )
        return
    np.savez(folder / ASSETS, **arrays_of(assets))
    file.write_text(json.dumps(now, indent=1) + "\n")


def encode(
    config: run.RunConfig, out: pathlib.Path, passes: int, states: bool, shard: int
) -> dict[str, int]:
    """Writes the caches of all sources; how many examples each has."""
    if states and config.text.kind != "t5":
        raise InputError(
            f"--states needs text.kind 't5', and it is {config.text.kind!r}: the states of an "
            "encoder that is trained change; leave --states out."
        )
    if min(passes, shard) < 1:
        raise InputError(f"--passes is {passes} and --shard {shard}; both must be at least 1.")
    sources = run.opened(config.data, "train")
    begun = next(iter(sorted(out.glob(f"*/{PLAN}"))), None)
    if begun:
        with np.load(begun.with_name(ASSETS)) as held:
            assets = assets_of(dict(held))
        encoders.refuse_others(config.text, config.codec, assets.fingerprints, str(begun.parent))
    else:
        assets = run.fitted_assets(config, sources)
    networks, tokenizer = run.assembled(config, assets)
    needed = ("codec", "text") if states else ("codec",)
    params = encoders.frozen_params(networks, config.text, config.codec, None, needed)
    params = jax.device_put(params)
    encoding = Encoding(run.codec_of(networks, params, assets), tokenizer, networks, params, states)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    columns += (TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
    done = {}
    with Progress(*columns, console=Console(stderr=True)) as progress:
        for name, source in sources.items():
            parts = [part for part in parts_of(config) if serves(part, name, source)]
            plan = {
                "plan": run.plan_of(config, assets, states),
                "source": as_dict(config.data.sources[name]),
                "parts": [str(part) for part in parts],
                "seed": config.seed,
                "passes": passes,
                "shard": shard,
            }
            prepared(out / name, plan, assets)
            done[name] = encode_source(
                config, name, source, parts, encoding, out / name, plan, passes, shard, progress
            )
    return done


def main(arguments: Sequence[str]) -> int:
    """Encodes; returns the status: 0, 1 where it failed, 2 where it was not understood."""
    options = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "the run's file", flag_values=options, sys_argv=list(arguments)
    )
    flags.DEFINE_string("out", None, "a folder for each source goes here", flag_values=options)
    flags.DEFINE_integer("passes", 1, "times that every record is encoded", flag_values=options)
    flags.DEFINE_boolean("states", False, "states of prompts, not ids", flag_values=options)
    flags.DEFINE_integer("shard", SHARD, "examples of a file", flag_values=options)
    flags.mark_flags_as_required(["config", "out"], flag_values=options)
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0
    try:
        options(list(arguments))
        config = run_config(options.config.to_dict())
    except Exception as error:  # a config is a program: it can fail in any way
        print(f"encode_dataset: {one_line(error)}", file=sys.stderr)
        return 2
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
    out = pathlib.Path(options.out).expanduser()
    try:
        done = encode(config, out, options.passes, options.states, options.shard)
    except KeyboardInterrupt:
        print("encode_dataset: interrupted; the same command goes on.", file=sys.stderr)
        return 130
    except (InputError, OSError) as error:
        print(f"encode_dataset: {one_line(error)}", file=sys.stderr)
        return 1
    for name, count in done.items():
        print(f"{count} examples are in {out / name}.")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    sys.exit(main(sys.argv))
