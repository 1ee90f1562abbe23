"""The command line: `python -m onediff_jax COMMAND ...`.

Thin doors; every mistake is one line and a status.  Modules that import JAX are imported inside the
doors, so that help and refusals come at once.
"""

import difflib
import os
import pathlib
import re
import sys
import traceback
from collections.abc import Callable, Sequence

from absl import flags
from ml_collections import config_flags

from onediff_jax.errors import InputError, Stopped

MISTAKES = (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError, SyntaxError)
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: to be tried again

TEXT, NUMBER, COUNT = flags.DEFINE_string, flags.DEFINE_float, flags.DEFINE_integer
# Options of `sample`: kind, default and help.
SAMPLE_OPTIONS: dict[str, tuple[Callable, object, str]] = {
    "checkpoint": (TEXT, None, "a workdir (its newest checkpoint) or one step's folder"),
    "task": (TEXT, None, "a task, such as text2image or depth2image"),
    "given": (flags.DEFINE_multi_string, [], "NAME=FILE: a condition view; may be repeated"),
    "prompt": (TEXT, "", "the caption, without the task's token"),
    "item": (TEXT, "", "subject_driven: what the references show"),
    "orbit": (TEXT, "", "multiview: AZIMUTH,ELEVATION[,DISTANCE] of every camera; ? where unknown"),
    "cameras": (TEXT, None, "multiview: nerfstudio's transforms.json with a frame for every view"),
    "views": (COUNT, None, "multiview: how many images"),
    "focal": (NUMBER, None, "multiview: of all cameras, in image widths; recovered poses keep it"),
    "out": (TEXT, None, "the folder for the images"),
    "seed": (COUNT, 0, "equal seeds give equal samples"),
    "num": (COUNT, 1, "how many samples"),
    "size": (TEXT, None, "HEIGHTxWIDTH in pixels; else that of the condition views or of training"),
    "text_path": (TEXT, None, "where text_encoder/ and tokenizer/ are now, if they have moved"),
    "codec_path": (TEXT, None, "where vae/ is now, if it has moved"),
    "root": (TEXT, "", "where the run's relative paths begin now, if not at its config.root"),
}
# Options of `sample` that are fields of generate.SampleConfig, by the same names.
SAMPLE_SETTINGS: dict[str, tuple[Callable, object, str]] = {
    "steps": (COUNT, 50, "of the solver"),
    "guidance": (NUMBER, 4.0, "how strongly the prompt is followed; 1: as trained"),
    "negative": (TEXT, "", "a prompt that guidance leads away from, used unchanged"),
    "method": (TEXT, "euler", "of the solver: euler or heun"),
    "shift": (NUMBER, None, "a static shift; else the import's, or by the target tokens"),
    "noise_scale": (NUMBER, 1.0, "factor of the target tokens by which the schedule is shifted"),
    "given_time": (TEXT, "smallest", "noise level told for condition views: smallest or zero"),
    "scale_factor": (NUMBER, 1.0, "of rotary positions beyond those trained: 1.1 to 1.5"),
    "scale_watershed": (NUMBER, 1.0, "time, 1000 sigma, below which scale_factor interpolates"),
}

USAGE = """onediff_jax: OneDiffusion in JAX, every image task as a sequence of views

  python -m onediff_jax train  --config FILE --workdir DIR [--config.a.b=VALUE ...]
  python -m onediff_jax sample --checkpoint DIR --task TASK [--given VIEW=FILE ...] --out DIR
  python -m onediff_jax plan   --config FILE --topology v3-256 [--json FILE] [--search]
  python -m onediff_jax doctor --config FILE [--workdir DIR] [--topology v3-256]

Add --help to a command for its options."""


def config_flag(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The option that names a run's file, and one for each of its settings.

    Settings that the file leaves at their defaults, such as most settings of a source, can be given
    as well; `run_config` refuses those that do not exist.
    """
    config_flags.DEFINE_config_file(
        "config",
        None,
        "the run's file, such as configs/scenes_tiny.py",
        flag_values=values,
        lock_config=False,
        accept_new_attributes=True,
        sys_argv=list(arguments),
    )


def run_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The options that say which run it is."""
    config_flag(values, arguments)
    flags.DEFINE_string(
        "workdir", None, "where checkpoints, metrics and images go", flag_values=values
    )
    flags.DEFINE_boolean(
        "distributed", False, "this is one of several processes (launch/)", flag_values=values
    )


def train_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The options of `train`."""
    run_flags(values, arguments)
    flags.mark_flags_as_required(["config", "workdir"], flag_values=values)


def train(options: flags.FlagValues) -> None:
    """Trains a configuration, from the newest checkpoint of the workdir where there is one."""
    from etils import epath

    from onediff_jax import processes
    from onediff_jax.train.config import as_dict, run_config
    from onediff_jax.train.locations import located, locations
    from onediff_jax.train.loop import train as train_run

    if options.distributed:
        processes.join()
    config = run_config(options.config.to_dict())  # a file that failed raises its error here
    there = located(config)
    if processes.first():
        print(*(f"{name}: {path}" for name, path in locations(there).items()), sep="\n", flush=True)
    train_run(there, epath.Path(options.workdir), as_dict(config))


def sample_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The options of `sample`."""
    for name, (kind, default, text) in (SAMPLE_OPTIONS | SAMPLE_SETTINGS).items():
        kind(name, default, text, flag_values=values)
    flags.mark_flags_as_required(["checkpoint", "task", "out"], flag_values=values)


def sample(options: flags.FlagValues) -> None:
    """Samples the views of a task that are not given, and writes them as PNG files."""
    from etils import epath

    from onediff_jax.commands import sample as sampling

    sampling.sample_to_folder(
        epath.Path(options.checkpoint),
        sampling.SampleRequest(
            options.task,
            dict(sampling.name_and_file(text) for text in options.given),
            options.prompt,
            options.item,
            options.orbit,
            pathlib.Path(options.cameras) if options.cameras else None,
            options.views,
            options.focal,
        ),
        pathlib.Path(options.out),
        seed=options.seed,
        num=options.num,
        size=options.size,
        settings={name: options[name].value for name in SAMPLE_SETTINGS},
        moved={
            part: folder for part in ("text", "codec") if (folder := options[f"{part}_path"].value)
        },
        root=options.root,
    )


def plan_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The options of `plan`."""
    config_flag(values, arguments)
    flags.DEFINE_string(
        "topology", None, "a TPU slice by its cloud name, such as v3-256", flag_values=values
    )
    flags.DEFINE_string("json", None, "a file for the plan's numbers", flag_values=values)
    flags.DEFINE_boolean(
        "states",
        False,
        "prompts are read as states from caches, made by tools/encode_dataset.py --states",
        flag_values=values,
    )
    flags.DEFINE_boolean(
        "search", False, "plan many meshes, remat policies and rows; rank them", flag_values=values
    )
    flags.DEFINE_multi_string(
        "over",
        [],
        "NAME=VALUE,VALUE: what --search tries for a setting, instead of its own choice",
        flag_values=values,
    )
    flags.mark_flags_as_required(["config", "topology"], flag_values=values)


def plan(options: flags.FlagValues) -> None:
    """Compiles a run's step for a TPU slice that need not be there: memory, exchanges, estimates.

    Reads no data.  The status is 1 where the step does not fit.
    """
    import jax

    jax.config.update("jax_platforms", "cpu")  # the compiler needs no device, and waits for none
    from onediff_jax.commands import plan as command

    command.plan(
        options.config.to_dict(),
        options.topology,
        pathlib.Path(options.json) if options.json else None,
        options.search,
        options.over,
        options.states,
    )


def doctor_flags(values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """The options of `doctor`."""
    run_flags(values, arguments)
    flags.DEFINE_string(
        "topology", None, "a TPU slice that is not here, such as v3-256", flag_values=values
    )
    flags.mark_flag_as_required("config", flag_values=values)


def doctor(options: flags.FlagValues) -> int:
    """Checks a run before it is started, on this machine or on all that will take part in it.

    Prints ok, warning or failed for every check, with the way out.
    """
    from etils import epath

    from onediff_jax import processes
    from onediff_jax.commands import doctor

    if options.distributed:
        processes.join()
    workdir = epath.Path(options.workdir) if options.workdir else None
    status = 0
    for check in doctor.checks(options.config.to_dict(), workdir, options.topology):
        failed = check.state == doctor.FAILED
        status |= failed
        if failed or processes.first():
            print(f"{here() if failed else ''}{check.state:8}{check.subject}: {check.said}")
    return int(status)


COMMANDS: dict[str, tuple[Callable, Callable]] = {
    "train": (train_flags, train),
    "sample": (sample_flags, sample),
    "plan": (plan_flags, plan),
    "doctor": (doctor_flags, doctor),
}


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns its status.

    0 where it is done, 1 where it failed, 2 where it was not understood, 75 where it was asked to
    end and has saved, 130 where it was interrupted at once.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if arguments else 2
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it can be {', '.join(COMMANDS)}."
        return refused(f"there is no command {command!r}; {hint}", 2)
    define, run = COMMANDS[command]
    options = flags.FlagValues()
    define(options, [command, *rest])
    if {"-h", "--help"} & set(rest):
        print(help_of(command, options))
        return 0
    try:
        left = options([command, *rest])[1:]
        if left:
            raise InputError(f"{left[0]!r} is not understood; options begin with --.")
    except MISTAKES as error:
        return refused(one_line(error), 2)
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
    try:
        return run(options) or 0
    except Stopped:
        return STOPPED
    except (InputError, FloatingPointError, OSError, ImportError) as error:
        return failed(one_line(error), 1)
    except KeyboardInterrupt:
        return failed("interrupted; the same command goes on from the last checkpoint.", 130)
    except Exception as error:
        if not here():
            raise
        traceback.print_exc()
        return failed(f"{type(error).__name__}: {one_line(error)}", 1)


def here() -> str:
    """What begins a message of one of several processes: "process 3 of 32 on HOST: "."""
    from onediff_jax import processes

    return f"{processes.here()}: " if processes.joined() else ""


def failed(message: str, status: int) -> int:
    """Says why, and of several processes which; returns `status`.

    One of several ends here: at its usual end it would wait for the others, and they for it.
    """
    where = here()
    refused(where + message, status)
    if where:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def refused(message: str, status: int) -> int:
    """Says why on standard error; returns `status`."""
    print(f"onediff_jax: {message}", file=sys.stderr)
    return status


def one_line(error: BaseException) -> str:
    """An exception's message in one line, and ml_collections' hints in the words of ours."""
    text = " ".join(str(error).replace("\\n", " ").split())
    if found := re.search(r'Did you mean "(.*?)" instead of "(.*?)"', text):
        return f"config has no setting {found[2]!r}; did you mean {found[1]!r}?"
    if found := re.search(r"path\]: (\S+) \[Errno 2\] No such .*: '\1'", text):
        return f"--config is {found[1]!r}, and there is no such file; configs/ has those we ship."
    return text


def help_of(command: str, options: flags.FlagValues) -> str:
    """A command's options, and for `train` every setting with its default and meaning."""
    lines = [f"python -m onediff_jax {command}: {COMMANDS[command][1].__doc__.strip()}", ""]
    for name in options:
        default = (
            "" if options[name].default in (None, [], "") else f" (default {options[name].default})"
        )
        lines.append(f"  --{name:12} {options[name].help}{default}")
    if command == "train":
        from onediff_jax.train.config import settings_help

        lines += ["", "Settings, changed as --config.NAME=VALUE:", *settings_help()]
    return "\n".join(lines)
