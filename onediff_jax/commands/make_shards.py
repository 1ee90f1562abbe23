"""Converts a source of a config into shards: few large files that are read at random access.

    python tools/make_shards.py --config configs/mine.py --source photos --out shards/photos

Then train with config.data.sources.photos = dict(kind="shards", path="shards/photos").  Both splits
are written; records at fault are left out and listed.  The folder appears complete or never.
"""

import collections
import concurrent.futures
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence

from absl import flags
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from onediff_jax.cli import config_flag, one_line
from onediff_jax.data.records import SPLITS, Source, retried
from onediff_jax.data.sources.shards import PICTURES, packed, write_shards
from onediff_jax.errors import BadRecord, InputError
from onediff_jax.train.config import run_config
from onediff_jax.train.locations import located

SHOWN = 10  # faults that are printed
AHEAD = 4  # records that each thread may be ahead, since all of them are held


def packed_record(source: Source, number: int) -> bytes:
    """A record as bytes, after all of it was read, decoded and checked; raises Fault."""
    record = source.taken(number, source.fields)
    for name in PICTURES:
        for _ in record.get(name, ()):
            pass  # decoded
    return packed(source[number])


def packed_records(source: Source, faults: list[str], progress: Progress) -> Iterator[bytes]:
    """The source's records in order, as bytes, made ahead by threads; adds faults to the list."""
    task = progress.add_task("", total=len(source))
    threads = os.cpu_count() or 1
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        numbers = iter(range(len(source)))
        while True:
            for number in numbers:
                waiting.append(
                    pool.submit(retried, lambda number=number: packed_record(source, number))
                )
                if len(waiting) >= AHEAD * threads:
                    break
            if not waiting:
                return
            try:
                record = waiting.popleft().result()
            except BadRecord as fault:
                faults.append(str(fault))
            else:
                yield record
            progress.advance(task)


def converted(settings: object, out: pathlib.Path) -> tuple[dict[str, int], list[str]]:
    """Writes the shards of a source; how many records each split has, and what was at fault."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"--out {out} is there already; name a new folder, or remove it.")
    faults: list[str] = []
    columns = (TextColumn("Writing records"), BarColumn(), MofNCompleteColumn())
    sources = {split: settings.open(split) for split in SPLITS}
    beside = next(parent for parent in out.absolute().parents if parent.exists())
    with (
        tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=beside) as folder,
        Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress,
    ):
        new = pathlib.Path(folder, "new")
        new.mkdir()
        splits = {
            s: (source, packed_records(source, faults, progress)) for s, source in sources.items()
        }
        counts = write_shards(new, splits)
        out.parent.mkdir(parents=True, exist_ok=True)
        new.rename(out)  # over an empty folder, or none
    return counts, faults


def main(arguments: Sequence[str]) -> int:
    """Converts; returns the status: 0, 1 where it failed, 2 where it was not understood."""
    options = flags.FlagValues()
    config_flag(options, arguments)
    flags.DEFINE_string("source", None, "its name in config.data.sources", flag_values=options)
    flags.DEFINE_string("out", None, "the folder to write", flag_values=options)
    flags.mark_flags_as_required(["config", "source", "out"], flag_values=options)
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip())
        return 0
    try:
        options(list(arguments))
        sources = located(run_config(options.config.to_dict())).data.sources
        if options.source not in sources:
            raise InputError(f"--source {options.source} can be {', '.join(sources)}.")
    except Exception as error:  # a config is a program: it can fail in any way
        print(f"make_shards: {one_line(error)}", file=sys.stderr)
        return 2
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
    out = pathlib.Path(options.out).expanduser()
    try:
        counts, faults = converted(sources[options.source], out)
    except KeyboardInterrupt:
        print("make_shards: interrupted; nothing was written.", file=sys.stderr)
        return 130
    except (InputError, OSError) as error:
        print(f"make_shards: {one_line(error)}", file=sys.stderr)
        return 1
    for fault in faults[:SHOWN]:
        print(f"left out: {fault}", file=sys.stderr)
    if len(faults) > SHOWN:
        print(
            f"and {len(faults) - SHOWN} more; tools/check_data.py lists all.",
            file=sys.stderr,
        )
    said = " and ".join(f"{count} {split}" for split, count in counts.items())
    print(f"{said} records are in {out}; {len(faults)} at fault were left out.")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing stays
    sys.exit(main(sys.argv))
