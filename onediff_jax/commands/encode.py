"""`python -m onediff_jax encode`: a cache of encoded examples for every source of a run."""

import concurrent.futures
import dataclasses
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from rich.progress import Progress, TextColumn

from onediff_jax.commands.progress import record_progress
from onediff_jax.data.batching.examples import MakeExample
from onediff_jax.data.batching.mixture import sources_for
from onediff_jax.data.example import EncodedPrompt, SourcedExample, texts_of
from onediff_jax.data.records import Source, SourceSettings
from onediff_jax.data.sources.arrayrecord import (
    BFLOAT16,
    FORMAT,
    SHARD,
    array_parts,
    checksum,
    file_facts,
    write_records,
)
from onediff_jax.data.sources.cache import (
    ASSETS,
    MANIFEST,
    PLAN,
    UNSAID,
    VALIDATION,
    ExampleShape,
    cache_manifest,
    example_bytes,
    flat,
)
from onediff_jax.data.tasks.table import bare_prompt
from onediff_jax.errors import InputError
from onediff_jax.paths import opened_path
from onediff_jax.train.assets import Assets, edge_of, encoding_recipe
from onediff_jax.train.config import RunConfig, as_dict, run_config
from onediff_jax.train.encoders import Encoding, is_image
from onediff_jax.train.prepare import prepare
from onediff_jax.train.storage import whole_file

SAMPLED_CAPTIONS = 64  # of a source, from which the mean prompt length is estimated
BATCH = 16  # images, or prompts, that are encoded together
BATCHES_AHEAD = 8  # that are made together, so that images of one shape fill their batches


def run(options: flags.FlagValues) -> None:
    """Encodes every source, and says how many examples each cache has."""
    out = epath.Path(options.out)
    config = run_config(options.config.to_dict())
    done = encode(config, out, options.passes, options.states, options.shard, options.batch)
    for name, count in done.items():
        print(f"{count} examples are in {out / name}.")


def cache_parts(config: RunConfig) -> list[ExampleShape]:
    """What the slots of a config hold."""
    return sorted(
        {
            ExampleShape(task, views, slot.tokens)
            for slot in config.data.row
            for views, tasks in slot.tasks_of(config.data.tasks, config.data.counts).items()
            for task in tasks
        }
    )


def serves(part: ExampleShape, name: str, source: Source) -> bool:
    """Whether a source's records have what examples of a part need."""
    try:
        return bool(sources_for(part.task, part.views, {name: source}))
    except InputError:
        return False


def own_settings(settings: SourceSettings) -> dict[str, Any]:
    """The settings of a source, without those that only affect the mixture."""
    common = {field.name for field in dataclasses.fields(SourceSettings)}
    return {name: value for name, value in as_dict(settings).items() if name not in common}


def examples_of_file(
    part: ExampleShape, source: Source, encoding: Encoding, codec: Mapping[str, Any], patch: int
) -> int:
    """How many examples of a part fill a file, if all of their views are images."""
    image = part.tokens * patch**2 * codec["channels"] * BFLOAT16.itemsize
    spread = np.linspace(0, len(source) - 1, min(SAMPLED_CAPTIONS, len(source))).astype(int)
    with concurrent.futures.ThreadPoolExecutor(len(spread)) as pool:
        captions = list(pool.map(source.caption, spread.tolist()))
    texts = [text for caption in captions for text in texts_of(caption)]
    tokens = np.mean([encoding.tokenizer(text)[1].sum() for text in texts])
    token = encoding.prompts([""])[0].tokens[0].nbytes
    example = part.views * image * (1 + codec["deviations"]) + tokens * token
    return max(int(SHARD // example), 1)


class Meter:
    """A source's progress, and how many images a second are encoded."""

    def __init__(self, progress: Progress, name: str, total: int):
        self._progress, self._task = progress, progress.add_task(name, total=total, speed="")
        self._began, self._images = time.perf_counter(), 0

    def add(self, examples: int, images: int = 0) -> None:
        """Counts examples with so many images; without, they were there already."""
        self._images += images
        speed = self._images / (time.perf_counter() - self._began)
        self._progress.update(self._task, advance=examples, speed=f"{speed:,.1f} images/s")


def encode_source(
    config: RunConfig,
    name: str,
    source: Source,
    parts: Sequence[ExampleShape],
    encoding: Encoding,
    folder: epath.Path,
    plan: Mapping[str, Any],
    progress: Progress,
) -> int:
    """Writes the files of a source that are not there yet, and its manifest; how many examples."""
    total = plan["passes"] * len(source)
    files: dict[str, list[dict[str, Any]]] = {}
    known = checksums_in(folder)
    meter = Meter(progress, name, total * len(parts))
    edge, fitting = edge_of(config), config.data.fitting
    for part in parts:
        make = MakeExample(
            part.task, source, 0, part.views, part.tokens, edge, config.data.conditions, fitting
        )
        files[str(part)] = []
        shard = plan["shard"] if isinstance(plan["shard"], int) else plan["shard"][str(part)]
        for number, first in enumerate(range(0, total, shard)):
            numbers = range(first, min(first + shard, total))
            file = folder / f"{part}-{number:05}.array_record"
            if file.is_file():
                meter.add(len(numbers))
                digest = checksum(file)
            else:
                known.pop(file.name, None)
                ahead = BATCHES_AHEAD * encoding.batch
                threads = max(os.cpu_count() or 1, config.data.reads)
                groups = example_groups(make, numbers, len(source), config.seed, ahead, threads)
                digest = write_file(file, groups, encoding, meter)
            if known.get(file.name, digest) != digest:
                raise InputError(
                    f"{file} is not what {MANIFEST} says (SHA-256 {known[file.name]}); delete it, "
                    "and the same command encodes it again."
                )
            files[str(part)].append(file_facts(file, len(numbers), digest))
    bare = dict.fromkeys(bare_prompt(part.task, part.views) for part in parts)
    empty, *others = (json_prompt(prompt) for prompt in encoding.prompts(["", *bare]))
    manifest = {
        "format": FORMAT,
        "plan": plan["plan"],
        "made_with": {key: value for key, value in plan.items() if key != "plan"},
        "fields": sorted(source.fields),
        "least": dict(source.least),
        "records": len(source),
        "empty": empty,
        **({"bare": dict(zip(bare, others, strict=True))} if encoding.states else {}),
        "parts": files,
    }
    write_whole_json(folder / MANIFEST, manifest)
    return total * len(parts)


def json_prompt(prompt: EncodedPrompt) -> list[Any]:
    """An encoded prompt for JSON: type, shape and bytes in hexadecimal."""
    kind, shape, data = array_parts(prompt.tokens)
    return [kind, shape, data.hex()]


def checksums_in(folder: epath.Path) -> dict[str, str]:
    """SHA-256 of a finished cache's files, by their names; of another none."""
    if not (folder / MANIFEST).is_file():
        return {}
    parts = cache_manifest(folder)["parts"].values()
    return {file["file"]: file["sha256"] for files in parts for file in files}


def write_file(
    file: epath.Path,
    groups: Iterable[list[tuple[SourcedExample, int]]],
    encoding: Encoding,
    meter: Meter,
) -> str:
    """Writes a file of examples, encoded group by group, whole or not at all; its SHA-256."""

    def encoded_examples() -> Iterator[bytes]:
        for group in groups:
            examples, records = zip(*group, strict=True)
            yield from map(example_bytes, encoding(examples), records)
            images = sum(is_image(view) for sourced in examples for view in sourced.example.views)
            meter.add(len(group), images)

    with whole_file(file) as unfinished:
        write_records(unfinished, encoded_examples())
        return checksum(unfinished)


def write_whole_json(file: epath.Path, values: Mapping[str, Any]) -> None:
    """Writes a file that appears when it is whole."""
    with whole_file(file) as unfinished:
        unfinished.write_text(json.dumps(values, indent=1) + "\n")


def example_groups(
    make: MakeExample, numbers: Sequence[int], records: int, seed: int, ahead: int, threads: int
) -> Iterator[list[tuple[SourcedExample, int]]]:
    """Examples and their records' numbers, `ahead` at a time, made ahead by threads.

    Example i is of record i modulo their number, drawn by (seed, i).
    """

    def one(number: int) -> tuple[SourcedExample, int]:
        record = number % records
        return make.random_map(record, np.random.default_rng([seed, number])), record

    groups = [numbers[i : i + ahead] for i in range(0, len(numbers), ahead)]
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting = [pool.submit(one, number) for number in groups[0]]
        try:
            for following in [*groups[1:], ()]:
                ready, waiting = waiting, [pool.submit(one, number) for number in following]
                yield [future.result() for future in ready]
        finally:
            pool.shutdown(cancel_futures=True)  # an interruption does not wait for them


def begin_cache(folder: epath.Path, plan: Mapping[str, Any], assets: Assets) -> None:
    """Makes a source's folder, or checks that what was begun there goes on as it began."""
    folder.mkdir(parents=True, exist_ok=True)
    file, now = folder / PLAN, json.loads(json.dumps(plan))
    if file.is_file():
        before = flat({"plan": UNSAID}) | flat(json.loads(file.read_bytes()))
        for entry, value in flat(now).items():
            if before.get(entry) != value:
                raise InputError(
                    f"{file}: {entry} is {before.get(entry)!r}, and {value!r} now; set it back, or "
                    "write to another folder."
                )
        return
    with whole_file(folder / ASSETS) as unfinished, unfinished.open("wb") as archive:
        np.savez(archive, **assets.arrays)
    write_whole_json(file, now)  # last: it says that the folder was begun


def encode(
    written: RunConfig,
    out: PurePath,
    passes: int = 1,
    states: bool = False,
    shard: int = 0,
    batch: int = BATCH,
) -> dict[str, int]:
    """Writes the caches of all sources of a configuration; how many examples each has.

    Held-out records, where a source has any, are encoded once, into a folder of their own.
    """
    folder = opened_path(out)
    if states and written.text.kind != "t5":
        raise InputError(
            f"--states needs text.kind 't5', and it is {written.text.kind!r}: the states of an "
            "encoder that is trained change; leave --states out."
        )
    begun = next(iter(sorted(folder.glob(f"*/{PLAN}"))), None)
    if begun:
        with (begun.parent / ASSETS).open("rb") as file, np.load(file) as held:
            run = prepare(written, Assets.from_arrays(held), str(begun.parent))
    else:
        run = prepare(written)
    config, sources, assets = run.config, run.sources, run.assets
    params = jax.device_put(run.pretrained_params(("codec", "text") if states else ("codec",)))
    codec = run.codec(params)
    assert codec is not None, "its parameters were loaded"
    encoding = Encoding(codec, run.tokenizer, run.networks, params, states, batch)
    done = {}
    with record_progress(TextColumn("{task.fields[speed]}")) as progress:
        held_out = {name: each for name, each in run.held_out_sources.items() if len(each)}
        splits = sources | {f"{name}/{VALIDATION}": each for name, each in held_out.items()}
        for name, source in splits.items():
            parts = [part for part in cache_parts(config) if serves(part, name, source)]
            recipe = encoding_recipe(config, assets, states)
            sizes = {
                str(part): examples_of_file(
                    part, source, encoding, recipe["codec"], config.model.patch
                )
                for part in (() if shard else parts)
            }
            plan = {
                "plan": recipe,
                "source": own_settings(written.data.sources[name.removesuffix(f"/{VALIDATION}")]),
                "parts": [str(part) for part in parts],
                "seed": config.seed,
                "passes": passes if name in sources else 1,
                "shard": shard or sizes,
            }
            begin_cache(folder / name, plan, assets)
            done[name] = encode_source(
                config, name, source, parts, encoding, folder / name, plan, progress
            )
    return done
