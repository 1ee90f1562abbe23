"""The progress bar of commands that work through records."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)


def record_progress(*more: ProgressColumn) -> Progress:
    """Description, bar, count and time left of each task, on standard error; `more` columns."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, *more, TimeRemainingColumn(), console=Console(stderr=True))
