"""Exceptions for input that cannot be used, and their messages in one line."""


class InputError(ValueError):
    """Its message is one line that names the setting, the value and the way out."""


class BadRecord(InputError):  # noqa: N818 - of a record, as `faults` counts them
    """One record's content cannot be used; names the field, its value and what was expected.

    In training another record takes its place.
    """


class Stopped(Exception):  # noqa: N818 - no error: what was asked for
    """A run was asked to end and has saved; says after which step."""


def one_line(error: BaseException) -> str:
    """An exception's message in one line; the name of its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
