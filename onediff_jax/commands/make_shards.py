"""`python -m onediff_jax make_shards`: a source's records in few large files."""

import collections
import concurrent.futures
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator

from absl import flags
from rich.progress import Progress

from onediff_jax.commands.progress import record_progress
from onediff_jax.data.example import FIELDS
from onediff_jax.data.records import SPLITS, Source, SourceSettings, retry
from onediff_jax.data.sources.shards import record_bytes, write_shards
from onediff_jax.errors import BadRecord, InputError
from onediff_jax.train.config import resolve_paths, run_config

LISTED = 10  # bad records that are printed
RECORDS_AHEAD = 4  # records that each thread may be ahead, since all of them are held


def run(options: flags.FlagValues) -> None:
    """Converts a source, and lists what was left out."""
    sources = resolve_paths(run_config(options.config.to_dict())).data.sources
    if options.source not in sources:
        raise InputError(f"--source {options.source} can be {', '.join(sources)}.")
    out = pathlib.Path(options.out).expanduser()
    counts, bad_records = convert(sources[options.source], out)
    for bad_record in bad_records[:LISTED]:
        print(f"left out: {bad_record}", file=sys.stderr)
    if len(bad_records) > LISTED:
        print(f"and {len(bad_records) - LISTED} more; `check_data` lists all.", file=sys.stderr)
    said = " and ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{said} records are in {out}; {len(bad_records)} bad records were left out.")


def checked_record_bytes(source: Source, number: int) -> bytes:
    """A record as bytes, after all of it was read, decoded and checked; raises BadRecord."""
    record = source.read(number, source.fields)
    for name in record:
        if FIELDS[name].kind == "images":
            for _ in record[name]:
                pass  # decoded
    return record_bytes(source[number])


def bytes_of_records(source: Source, bad_records: list[str], progress: Progress) -> Iterator[bytes]:
    """The source's records in order, as bytes, read ahead by threads; adds to `bad_records`."""
    task = progress.add_task("Writing records", total=len(source))
    threads = os.cpu_count() or 1
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        numbers = iter(range(len(source)))
        while True:
            for number in numbers:
                waiting.append(
                    pool.submit(retry, lambda number=number: checked_record_bytes(source, number))
                )
                if len(waiting) >= RECORDS_AHEAD * threads:
                    break
            if not waiting:
                return
            try:
                record = waiting.popleft().result()
            except BadRecord as bad_record:
                bad_records.append(str(bad_record))
            else:
                yield record
            progress.advance(task)


def convert(settings: SourceSettings, out: pathlib.Path) -> tuple[dict[str, int], list[str]]:
    """Writes the shards of a source; records of each split, and messages of bad records."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} is there already; name a new folder, or remove it.")
    bad_records: list[str] = []
    sources = {split: settings.open(split) for split in SPLITS}
    beside = next(parent for parent in out.absolute().parents if parent.exists())
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=beside) as folder,
        record_progress() as progress,
    ):
        new = pathlib.Path(folder, "new")
        new.mkdir()
        splits = {
            split: (source, bytes_of_records(source, bad_records, progress))
            for split, source in sources.items()
        }
        counts = write_shards(new, splits)
        out.parent.mkdir(parents=True, exist_ok=True)
        new.rename(out)  # over an empty folder, or none
    return counts, bad_records
