"""The command line, `python -m onediff_jax COMMAND ...`: options, errors in a line, statuses."""

import difflib
import importlib
import os
import re
import signal
import sys
import textwrap
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

from absl import flags

from onediff_jax.commands import COMMANDS, CONFIG, REQUIRED, Option
from onediff_jax.errors import InputError, Stopped, one_line

FAILED, NOT_UNDERSTOOD, INTERRUPTED = 1, 2, 130
STOPPED = 75  # EX_TEMPFAIL of sysexits.h: to be tried again
MISTAKES = (flags.Error, OSError, AttributeError, KeyError, TypeError, ValueError, SyntaxError)

TITLE = "onediff_jax: OneDiffusion in JAX, every image task as a sequence of views"


def main(arguments: Sequence[str]) -> int:
    """Runs a command; returns its status.

    0 where it is done, 1 where it failed, 2 where it was not understood, 75 where it was asked to
    end and has saved, 130 where it was interrupted at once.
    """
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else NOT_UNDERSTOOD
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it can be {', '.join(COMMANDS)}."
        return failed(f"there is no command {name!r}; {hint}", NOT_UNDERSTOOD)
    if {"-h", "--help"} & set(rest):
        print_help(name)
        return 0
    rest = [underscored(argument, COMMANDS[name].options) for argument in rest]
    options = flags.FlagValues()
    define_options(name, options, rest)
    try:
        left = options([name, *rest])[1:]
        if left:
            raise InputError(f"{left[0]!r} is not understood; options begin with --.")
        refuse_missing(name, options)
    except MISTAKES as error:
        return failed(hint_of(error), NOT_UNDERSTOOD)
    flags.FLAGS.mark_as_parsed()  # grain reads flags of its own
    try:
        return importlib.import_module(f"onediff_jax.commands.{name}").run(options) or 0
    except Stopped:
        return STOPPED
    except (InputError, FloatingPointError, OSError, ImportError) as error:
        return failed(hint_of(error))
    except KeyboardInterrupt:
        return failed(f"interrupted; {COMMANDS[name].interrupted}.", INTERRUPTED)
    except Exception as error:
        if not message_start():
            raise
        traceback.print_exc()
        return failed(f"{type(error).__name__}: {one_line(error)}")


def run_process(*before: str) -> NoReturn:
    """Runs this process's command line, after the words `before`, and ends with its status.

    SIGTERM ends a command as Ctrl-C does, but `train`, which answers it by saving.
    """
    words = [*before, *sys.argv[1:]]
    if words[:1] != ["train"]:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main(words))


def define_options(name: str, values: flags.FlagValues, arguments: Sequence[str]) -> None:
    """Defines the options of a command, and for --config one for each setting.

    Settings that the file leaves at their defaults, such as most settings of a source, can be given
    as well; `run_config` refuses those that do not exist.
    """
    for option, (kind, default, text, limits) in COMMANDS[name].options.items():
        default, rest = None if default is REQUIRED else default, dict(limits)
        if kind is CONFIG:
            rest = dict(lock_config=False, accept_new_attributes=True, sys_argv=[name, *arguments])
        kind(option, default, text, flag_values=values, **rest)


def refuse_missing(name: str, values: flags.FlagValues) -> None:
    """Raises InputError where a command's required options are not given."""
    required = [o for o, option in COMMANDS[name].options.items() if option.default is REQUIRED]
    if missing := [f"--{option}" for option in required if values[option].value is None]:
        raise InputError(
            f"{name} needs {' and '.join(missing)}; "
            f"`python -m onediff_jax {name} --help` has an example."
        )


def underscored(argument: str, options: Mapping[str, Option]) -> str:
    """An argument such as --shard-gb=1 as --shard_gb=1, where that is an option."""
    name, equals, value = argument.partition("=")
    found = name[:2] + name[2:].replace("-", "_")
    return f"{found}{equals}{value}" if found[2:].removeprefix("no") in options else argument


def message_start() -> str:
    """What begins a message of one of several processes: "process 3 of 32 on HOST: "."""
    processes = sys.modules.get("onediff_jax.processes")  # which imports JAX
    return f"{processes.name_of_process()}: " if processes and processes.is_joined() else ""


def failed(message: str, status: int = FAILED) -> int:
    """Says why on standard error, and of several processes which; returns `status`.

    One of several ends here: at its usual end it would wait for the others, and they for it.
    """
    where = message_start()
    print(f"onediff_jax: {where}{message}", file=sys.stderr)
    if where:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def hint_of(error: BaseException) -> str:
    """An exception's message in one line, with ml_collections' messages reworded."""
    text = one_line(error).replace("\\n", " ")
    if found := re.search(r'Did you mean "(.*?)" instead of "(.*?)"', text):
        return f"config has no setting {found[2]!r}; did you mean {found[1]!r}?"
    if found := re.search(r"path\]: (\S+) \[Errno 2\] No such .*: '\1'", text):
        return f"--config is {found[1]!r}, and there is no such file; configs/ has those we ship."
    return text


def usage() -> str:
    """All commands, a line each."""
    lines = [TITLE, "", "python -m onediff_jax COMMAND --OPTION=VALUE ...", ""]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:13} {command.help.split('.  ')[0].removesuffix('.')}")
    return "\n".join([*lines, "", "Add --help to a command for its options and an example."])


def print_help(name: str) -> None:
    """Prints a command's options, and for `train` every setting with its default and meaning."""
    command = COMMANDS[name]
    print(f"{textwrap.fill(command.help, 100)}\n")
    print(f"    python -m onediff_jax {name} {command.example}\n")
    for option, (_, default, text, _) in command.options.items():
        if default is REQUIRED:
            text += " (required)"
        elif default not in (None, [], "") and default is not False:
            text += f" (default {default})"
        print(f"  --{option:16} {text}")
    if name == "train":
        sys.stdout.flush()
        from onediff_jax.train.config import settings_help

        print("", "Settings, changed as --config.NAME=VALUE:", *settings_help(), sep="\n")
