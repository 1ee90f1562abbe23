"""How fast rows are made, beside PyTorch's DataLoader doing the same decoding and resizing.

    python tools/benchmarks/loader.py [--folder DIR] [--pictures 400] [--size 256]
    python tools/benchmarks/loader.py --cache caches/mine/NAME
    python tools/benchmarks/loader.py --stage configs/stage2_multitask.py [--hosts 32]
    python tools/benchmarks/loader.py --memory 100000

Reads captioned images of a folder (or, without one, JPEG images of 640 x 480 that it makes) on
one core: whole rows of ours with latents and token ids, our images alone, and a DataLoader with
Pillow (needs torch).  Rates are medians of several runs that take turns, since machines are noisy.
With --cache it reads rows of what encode has encoded, of every task apart.
With --stage it measures the run's own loader on caches of random examples for the rows of a config,
as one of --hosts, with --latency added to each read as for object storage.
With --memory it reads so many examples and prints how much memory the process holds on the way.
"""

import argparse
import json
import os
import pathlib
import runpy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
from absl import flags
from PIL import Image, ImageOps

from onediff_jax.data.batching.loader import Rows
from onediff_jax.data.batching.rate import measured_rate, slow_sources
from onediff_jax.data.batching.settings import DataConfig, SlotConfig
from onediff_jax.data.codecs import DeviceCodec, fit
from onediff_jax.data.example import EncodedImage, EncodedPrompt, Example, SourcedExample, texts_of
from onediff_jax.data.records import Source
from onediff_jax.data.sources.arrayrecord import FORMAT, array_parts, file_facts, write_records
from onediff_jax.data.sources.cache import MANIFEST, Cache, ExampleShape, example_bytes
from onediff_jax.data.tasks.fitting import fit_record, grid_for
from onediff_jax.data.tasks.table import TASKS
from onediff_jax.data.text import T5Tokenizer, Tokenizer, vocabulary_of
from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import Camera
from onediff_jax.train.assets import Assets
from onediff_jax.train.config import RunConfig, run_config

RUNS = 5
FACTOR, PATCH, CHANNELS = 8, 2, 16
EXAMPLES, DRAWN = 4096, 32  # of a part of a drawn cache; those that differ in their place in a file


def folder_of_jpegs(folder: pathlib.Path, count: int) -> None:
    """Writes smooth noise of 640 x 480 as JPEG, with captions."""
    rng = np.random.default_rng(0)
    with (folder / "metadata.jsonl").open("w") as listing:
        for i in range(count):
            coarse = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            image = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
            image.save(folder / f"{i:05d}.jpg", quality=92)
            listing.write(json.dumps({"file_name": f"{i:05d}.jpg", "text": f"noise {i}"}) + "\n")


def rows_of(source: Source, size: int) -> Rows:
    """Rows of one image with its caption."""
    tokens = (size // (FACTOR * PATCH)) ** 2
    codec = fit([source[i]["image"][:256, :256] for i in range(4)], FACTOR, CHANNELS, 0.0)
    several = (source.caption(i) for i in range(min(len(source), 2000)))
    captions = [text for caption in several for text in texts_of(caption)]
    tokenizer = Tokenizer(vocabulary_of(captions, 500), 64)
    config = DataConfig(tasks={"text2image": 1.0}, row=(SlotConfig(1, tokens),))
    return Rows(config, {"folder": source}, codec, PATCH, tokenizer, 0)


def cached_rows(folder: pathlib.Path) -> dict[str, tuple[Rows, float]]:
    """Rows of every part of a cache, an example each, and megabytes of an example in its files."""
    cache = Cache(str(folder)).open("train")
    assets, plan, found = Assets.from_arrays(cache.assets()), cache.manifest["plan"], {}
    patch = plan["pictures"]["token_edge"] // assets.codec.factor
    kind = T5Tokenizer if plan["text"]["kind"] == "t5" else Tokenizer
    tokenizer = kind(assets.vocabulary, plan["text"]["length"])
    for name, shards in cache.manifest["parts"].items():
        part = ExampleShape.parse(name)
        slot = SlotConfig(part.views, part.tokens)
        config = DataConfig(tasks={part.task: 1.0}, row=(slot,), prompt_dropout=0.0)
        rows = Rows(config, {"cache": cache}, assets.codec, patch, tokenizer, 0)
        examples = sum(shard["records"] for shard in shards)
        found[name] = rows, sum(shard["bytes"] for shard in shards) / examples / 1e6
    return found


def drawn_rows(config: RunConfig, folder: pathlib.Path, latency: float) -> Rows:
    """Rows of a config, read from a cache of drawn examples of all its parts."""
    rng, edge = np.random.default_rng(0), config.model.patch
    parts, empty = {}, array_parts(np.ones(1, np.int32))
    for slot in config.data.row:
        for views, tasks in slot.tasks_of(config.data.tasks, config.data.counts).items():
            for task in tasks:
                part = ExampleShape(task, views, slot.tokens)
                rows, columns = grid_for(512, 512, slot.tokens)
                size = (rows * edge, columns * edge, CHANNELS)

                def drawn(size: tuple[int, ...] = size) -> np.ndarray:
                    return rng.normal(size=size).astype(np.float32)

                cameras = views // 2 if task == "multiview" else 0
                images = [EncodedImage(drawn(), np.exp(drawn())) for _ in range(views - cameras)]
                scene = [Camera(np.diag([9.0, 9.0, 1.0]), np.eye(4)) for _ in range(cameras)]
                prompt = EncodedPrompt("", np.ones(60, np.int32))
                example = SourcedExample(Example(task, (*images, *scene), prompt), 0, 0)
                file = folder / f"{part}-00000.array_record"
                write_records(file, (example_bytes(example, number) for number in range(DRAWN)))
                parts[str(part)] = [file_facts(file, DRAWN)] * (EXAMPLES // DRAWN)
    tasks = [TASKS[name] for name in config.data.tasks]
    manifest = {
        "format": FORMAT,
        "plan": {"text": {"content": "ids"}, "codec": {"deviations": True}},
        "fields": sorted(frozenset().union(*(needs for task in tasks for needs in task.needs))),
        "least": {task.builder.several: 100 for task in tasks if task.builder.several},
        "records": EXAMPLES,
        "empty": [*empty[:2], empty[2].hex()],
        "parts": parts,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    sources = slow_sources({"drawn": Cache(str(folder)).open("train")}, latency)
    tokenizer = Tokenizer(vocabulary_of(["one", "two"] * 50, 100), config.text.length)
    codec = DeviceCodec(FACTOR, CHANNELS)
    return Rows(config.data, sources, codec, config.model.patch, tokenizer, config.seed)


def batches_of_torch(folder: pathlib.Path, source: Source, size: int) -> Iterator:
    """Batches of a PyTorch DataLoader: Pillow decodes, cuts and resizes as we do."""
    try:
        import torch.utils.data
    except ImportError:
        raise InputError(
            "The peer is PyTorch's DataLoader, and torch is not installed: pip install torch, or "
            "leave it out with --alone."
        ) from None
    torch.set_num_threads(1)
    names = [json.loads(line)["file_name"] for line in (folder / "metadata.jsonl").open()]
    tokens = (size // (FACTOR * PATCH)) ** 2

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(names)

        def __getitem__(self, index: int):
            with Image.open(folder / names[index]) as image:
                image = ImageOps.exif_transpose(image).convert("RGB")
            rows, columns = grid_for(image.height, image.width, tokens)
            height, width = (side * FACTOR * PATCH for side in (rows, columns))
            image = ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)
            return torch.from_numpy(np.asarray(image).astype(np.float32) / 127.5 - 1)

    return iter(torch.utils.data.DataLoader(Images(), batch_size=1, shuffle=True))


def seconds(work: Callable[[int], object], count: int) -> float:
    """Seconds of `count` calls."""
    began = time.perf_counter()
    for i in range(count):
        work(i)
    return time.perf_counter() - began


def resident() -> float:
    """MiB of memory that this process holds."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=pathlib.Path, help="captioned images; else made")
    parser.add_argument("--pictures", type=int, default=400, help="read in a run")
    parser.add_argument("--size", type=int, default=256, help="pixels along a square view's sides")
    parser.add_argument("--alone", action="store_true", help="without the peer")
    parser.add_argument("--memory", type=int, default=0, help="examples to read for their memory")
    parser.add_argument("--stage", type=pathlib.Path, help="a config whose rows are drawn and read")
    parser.add_argument("--hosts", type=int, default=32, help="that share the rows of --stage")
    parser.add_argument("--latency", type=float, default=0.04, help="seconds a read of --stage")
    parser.add_argument("--seconds", type=float, default=10, help="of a measurement of --stage")
    parser.add_argument("--cache", type=pathlib.Path, help="encoded examples to read instead")
    options = parser.parse_args()
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
    if options.stage:
        config = run_config(runpy.run_path(str(options.stage))["get_config"]().to_dict())
        with tempfile.TemporaryDirectory() as made:
            rows = drawn_rows(config, pathlib.Path(made), options.latency)
            local = range(config.rows // options.hosts)
            found = measured_rate(rows, config.rows, local, options.seconds)
        print(
            f"{options.stage.stem}: {found.examples_per_second:.1f} examples/s, {len(local)} rows "
            f"a step, {config.data.reads} reads of {1000 * options.latency:g} ms at once"
        )
        return
    if options.cache:
        for name, (rows, megabytes) in cached_rows(options.cache).items():
            seconds(rows.__getitem__, options.pictures)  # warms up
            times = [seconds(rows.__getitem__, options.pictures) for _ in range(RUNS)]
            rate = options.pictures / statistics.median(times)
            print(
                f"{name:36} {rate:8.1f} rows/s {rate * rows.layout.views:8.1f} views/s "
                f"{rate * megabytes:8.2f} MB/s a core; {megabytes:.3f} MB an example"
            )
        return
    from onediff_jax.data.registry import Folder

    with tempfile.TemporaryDirectory() as made:
        folder = options.folder or pathlib.Path(made)
        if not options.folder:
            folder_of_jpegs(folder, options.pictures)
        source = Folder(str(folder), validation=0).open("train")
        rows = rows_of(source, options.size)
        if options.memory:
            for i in range(options.memory):
                rows[i]
                if (i + 1) % max(options.memory // 10, 1) == 0:
                    print(f"{i + 1:,} examples: {resident():.0f} MiB", flush=True)
            return
        count = min(options.pictures, len(source))
        listed = [json.loads(line)["file_name"] for line in (folder / "metadata.jsonl").open()]
        megabytes = sum((folder / name).stat().st_size for name in listed) / len(listed) / 1e6

        def image(index: int) -> object:
            record = source[index]
            grid = grid_for(*record["image"].shape[:2], rows.config.row[0].tokens)
            return fit_record(record, *(side * FACTOR * PATCH for side in grid))

        contenders: dict[str, Callable[[int], object]] = {
            "rows, with latents and token ids": rows.__getitem__,
            "pictures, decoded and resized": image,
        }
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        if not options.alone:
            taken["PyTorch DataLoader, the same"] = []
        for _ in range(RUNS + 1):  # the first run warms up
            for name, work in contenders.items():
                taken[name].append(seconds(work, count))
            if not options.alone:
                batches = batches_of_torch(folder, source, options.size)
                taken["PyTorch DataLoader, the same"].append(
                    seconds(lambda _, batches=batches: next(batches), count)
                )
        for name, times in taken.items():
            rate = count / statistics.median(times[1:])
            print(f"{name:36} {rate:8.1f} pictures/s {rate * megabytes:8.2f} MB/s a core")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"bench_loader: {error}")
