"""`python -m onediff_jax check_data`: examples of every record and task, bad records, rates."""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import flags
from PIL import Image
from rich.console import Console

from onediff_jax.commands.progress import record_progress
from onediff_jax.data.batching.loader import Rows
from onediff_jax.data.batching.mixture import Share, mixture, sources_for, table_of
from onediff_jax.data.batching.rate import Rate, measured_rate, slow_sources
from onediff_jax.data.codecs import DeviceCodec
from onediff_jax.data.example import Example
from onediff_jax.data.records import Source
from onediff_jax.data.tasks.fitting import grid_for
from onediff_jax.data.tasks.table import TASKS, example_of
from onediff_jax.data.text import Tokenizer, t5_vocabulary, vocabulary_of
from onediff_jax.errors import BadRecord, InputError, one_line
from onediff_jax.evaluate.grids import Row, sheet
from onediff_jax.train.assets import edge_of
from onediff_jax.train.config import RunConfig, resolve_paths, run_config
from onediff_jax.train.encoders import tokenizer_folder, tokenizer_of
from onediff_jax.train.prepare import prepare, training_rows

PADDING_ROWS = 32  # of the run, of which the padding is measured
PROMPTS = 20_000  # that a vocabulary is built on, at most
SHOWN_RECORDS = 20  # bad records that are printed
SHEET = 4  # examples of a task on the sheet


def run(options: flags.FlagValues) -> int:
    """Checks, or measures the rate, and prints; 1 where a record is bad or the rate too low."""
    config = resolve_paths(run_config(options.config.to_dict()))
    if options.rate:
        found = loader_rate(config, options.rate, options.latency, options.hosts)
        print("\n".join(rate_lines(found, options.needed)))
        return int(found.examples_per_second < options.needed)
    names = [options.source] if options.source else list(config.data.sources)
    if not names or set(names) - set(config.data.sources):
        raise InputError(
            f"--source {options.source} can be {', '.join(config.data.sources) or 'nothing'}."
        )
    report = report_on(config, names, options.split, options.records)
    if options.json:
        kept = {name: getattr(report, name) for name in ("records", "sizes", "captions", "padding")}
        kept["faults"] = report.bad_records
        kept["mixture"] = [share._asdict() for share in report.mixture]
        pathlib.Path(options.json).write_text(json.dumps(kept, indent=1) + "\n")
    if options.sheet and report.shown:
        sheet_of(report.shown).save(options.sheet)
    if report.mixture:
        Console().print(table_of(report.mixture))
    print("\n".join(report_lines(report)))
    return int(bool(report.bad_records))


@dataclasses.dataclass
class Report:
    """What was found."""

    records: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    bad_records: list[dict] = dataclasses.field(default_factory=list)
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    prompts: list[str] = dataclasses.field(default_factory=list)
    shown: dict[str, list[Example]] = dataclasses.field(default_factory=dict)
    padding: list[dict] = dataclasses.field(default_factory=list)
    captions: dict[str, float] = dataclasses.field(default_factory=dict)
    mixture: list[Share] = dataclasses.field(default_factory=list)


def uses_of(config: RunConfig) -> dict[str, tuple[int, int]]:
    """The most views that a slot of a config gives every task, and the most tokens of a view."""
    found: dict[str, tuple[int, int]] = {}
    for slot in config.data.row:
        for views, tasks in slot.tasks_of(config.data.tasks, config.data.counts).items():
            for task in tasks:
                most = found.get(task, (0, 0))
                found[task] = max(most[0], views), max(most[1], slot.tokens)
    return found


def uses_by_source(config: RunConfig, sources: Mapping[str, Source]) -> Iterator[tuple]:
    """Every source's name and number, with each task that it serves, its views and tokens."""
    uses = uses_of(config)
    for name, source in sources.items():
        for task, (views, tokens) in uses.items():
            while views:  # fewer where its records hold fewer images
                if views in TASKS[task].builder.counts:
                    try:
                        sources_for(task, views, {name: source})
                        yield name, source, task, views, tokens
                        break
                    except InputError:
                        pass
                views -= 1


def read_examples(
    config: RunConfig, sources: Mapping[str, Source], records: int | None, report: Report
) -> None:
    """Makes an example of every record for every task; writes the report."""
    plan = list(uses_by_source(config, sources))
    edge, fitting = edge_of(config), config.data.fitting
    with record_progress() as progress:
        for name, source, task, views, tokens in plan:
            count = min(records or len(source), len(source))
            spread = np.linspace(0, count - 1, SHEET).astype(int)
            bar = progress.add_task(f"{name} {task}", total=count)
            numbers = np.linspace(0, len(source) - 1, count).astype(int).tolist()
            for place, number in enumerate(numbers):
                progress.advance(bar)

                def size(shape: tuple[int, int], tokens: int = tokens) -> tuple[int, int]:
                    report.sizes[f"{round_64(shape[0])} x {round_64(shape[1])}"] += 1
                    rows, columns = grid_for(*shape, tokens, fitting.square)
                    return rows * edge, columns * edge

                try:
                    rng = np.random.default_rng([config.seed, number])
                    record = source.read(number, TASKS[task].takes(source.fields))
                    ways = config.data.conditions, fitting
                    example = example_of(task, record, views, size, rng, *ways)
                except (BadRecord, OSError) as fault:
                    report.bad_records.append(
                        {
                            "source": name,
                            "task": task,
                            "record": number,
                            "place": source.where(number),
                            "reason": one_line(fault),
                        }
                    )
                    continue
                report.records[f"{name} {task}"] += 1
                report.prompts.append(example.text)
                if place in spread:
                    report.shown.setdefault(f"{name} {task}", []).append(example)


def round_64(side: int) -> int:
    """A side in steps of 64 pixels, for counting."""
    return max(64 * round(side / 64), 64) if side > 32 else side


def measure_text(config: RunConfig, report: Report) -> Tokenizer:
    """The tokenizer that the run would have; adds the lengths of prompts to the report."""
    step, tokens = len(report.prompts) // PROMPTS + 1, [task.token for task in TASKS.values()]
    if config.text.kind == "t5":
        model = t5_vocabulary(tokenizer_folder(config.text))
    else:
        model = vocabulary_of(report.prompts[::step] + tokens, config.text.vocabulary)
    long = tokenizer_of(dataclasses.replace(config.text, length=4096), model)
    lengths = np.array([long(prompt)[1].sum() for prompt in report.prompts])
    report.captions = {
        "median": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "cut": float((lengths > config.text.length).mean()),
    }
    return tokenizer_of(config.text, model)


def measure_padding(
    config: RunConfig, sources: Mapping[str, Source], tokenizer: Tokenizer, report: Report
) -> None:
    """Adds every slot's share of padded tokens, in rows of the run, to the report."""
    blank = DeviceCodec(edge_of(config) // config.model.patch, config.model.channels)
    rows = Rows(config.data, sources, blank, config.model.patch, tokenizer, config.seed)
    masks = np.stack([rows[i].token_mask for i in range(PADDING_ROWS)])
    for run in rows.layout.runs:
        slot = run.slot
        report.padding.append(
            {
                "slot": f"{run.count} of {slot.views} x {slot.tokens} tokens",
                "padding": float(1 - masks[:, run.tokens].mean()),
            }
        )


def sheet_of(shown: Mapping[str, Sequence[Example]]) -> Image.Image:
    """A row for each example of every source and task: its prompt, and its views."""
    rows = []
    for name, examples in shown.items():
        for example in examples:
            names = TASKS[example.task].builder.names(len(example.views))
            cells = list(zip(names, example.views, strict=True))
            rows.append(Row(f"{name}: {example.prompt}", cells, example.size))
    return Image.fromarray(sheet(rows))


def report_lines(report: Report) -> list[str]:
    """The report for reading."""
    faulty = collections.Counter(f"{f['source']} {f['task']}" for f in report.bad_records)
    names = dict.fromkeys([*report.records, *faulty])
    lines = ["examples (and bad records) by source and task:"]
    lines += [f"  {name:40} {report.records[name]:8} ({faulty[name]})" for name in names]
    lines += ["height x width of first images, to 64 pixels:"]
    lines += [f"  {size:40} {count:8}" for size, count in report.sizes.most_common(12)]
    if report.captions:
        found = report.captions
        lines += [
            f"prompts: median {found['median']:g} pieces of words, longest {found['longest']}; "
            f"{found['cut']:.1%} are longer than config.text.length and cut"
        ]
    for slot in report.padding:
        share = f"{slot['padding']:.1%} of " if "padding" in slot else ""
        lines += [f"padding: {share}{slot['slot']}"]
    for fault in report.bad_records[:SHOWN_RECORDS]:
        lines += [f"bad record: {fault['source']} {fault['task']}, {fault_text(fault)}"]
    if len(report.bad_records) > SHOWN_RECORDS:
        lines += [
            f"and {len(report.bad_records) - SHOWN_RECORDS} more bad records; --json FILE lists all"
        ]
    return lines


def fault_text(fault: Mapping[str, str]) -> str:
    """Place and reason of a bad record, the place once."""
    here = fault["reason"].startswith(fault["place"])
    return fault["reason"] if here else f"{fault['place']}: {fault['reason']}"


def report_on(config: RunConfig, names: Sequence[str], split: str, records: int | None) -> Report:
    """The report on some of a config's sources."""
    report = Report()
    sources = {name: config.data.sources[name].open(split) for name in names}
    whole = len(sources) == len(config.data.sources)
    for name, source in sources.items():
        for file in source.damaged() if hasattr(source, "damaged") and records is None else ():
            report.bad_records.append(
                {
                    "source": name,
                    "task": "",
                    "record": None,
                    "place": file,
                    "reason": "its content is not what was written; copy it again",
                }
            )
    read_examples(config, sources, records, report)
    if not report.prompts and not report.bad_records:
        raise InputError(f"No task of config.data.tasks can use the sources {', '.join(names)}.")
    if report.prompts:
        tokenizer = measure_text(config, report)
        try:
            if whole and split == "train":
                report.mixture = mixture(config.data, sources, config.rows)
            measure_padding(config, sources, tokenizer, report)
        except InputError as error:
            # Another source may serve the task, or all records be bad; else no run can start.
            if whole and not report.bad_records:
                raise
            report.padding = [{"slot": f"the whole row, not measured: {one_line(error)}"}]
    return report


def loader_rate(config: RunConfig, seconds: float, latency: float, hosts: int) -> Rate:
    """The rate of the run's loader for one of `hosts` hosts."""
    if config.rows % hosts:
        raise InputError(f"--hosts is {hosts}, which does not divide the {config.rows} rows.")
    run = prepare(config)
    sources = slow_sources(run.sources, latency) if latency else run.sources
    rows = training_rows(config, sources, run.assets, run.tokenizer)
    return measured_rate(rows, config.rows, range(config.rows // hosts), seconds)


def rate_lines(found: Rate, needed: float) -> list[str]:
    """A rate for reading."""
    lines = [
        f"{found.examples_per_second:,.1f} examples a second: {found.examples:,} in "
        f"{found.steps:,} batches, {found.seconds:.1f} s"
    ]
    if needed:
        share = found.examples_per_second / needed
        enough = "enough" if share >= 1 else "too few: raise data.reads or data.workers"
        lines.append(f"{share:.1f} times the {needed:g} that the step needs: {enough}")
    return lines
