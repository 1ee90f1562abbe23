"""Files that grow, such as metrics and TensorBoard's, in object storage, where files cannot grow.

Growing files are kept in a local folder and copied from time to time.  Complete files are written
directly to object storage, and appear at once.
"""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Iterator

import fsspec
from etils import epath

from onediff_jax.paths import remote

COPY_SECONDS = 60.0  # seconds between two copies


@contextlib.contextmanager
def whole_file(file: pathlib.PurePath) -> Iterator[pathlib.Path]:
    """A local file to write; it appears as `file`, complete, if no error ends the statement."""
    if not remote(file):
        unfinished = pathlib.Path(file).with_suffix(".partial")
        yield unfinished
        unfinished.rename(file)
        return
    with tempfile.TemporaryDirectory() as folder:
        unfinished = pathlib.Path(folder) / file.name
        yield unfinished
        storage, path = fsspec.core.url_to_fs(str(file))
        # Not through an opened file: interrupted, it would leave a part that looks complete.
        storage.put_file(str(unfinished), path)


class StagedFolder:
    """A local folder whose files are copied to `folder`; that folder itself where it is local."""

    def __init__(self, folder: pathlib.PurePath):
        self._folder = epath.Path(folder)
        self._temporary = tempfile.TemporaryDirectory() if remote(folder) else None
        self.local = pathlib.Path(self._temporary.name if self._temporary else folder)
        self._copied: dict[pathlib.Path, tuple[int, int]] = {}
        self._last = time.monotonic()

    def fetch(self, name: str) -> None:
        """Brings a file here that is there, to go on with it."""
        file = self._folder / name
        if self._temporary and file.exists():
            (self.local / name).write_bytes(file.read_bytes())

    def copy(self, at_once: bool = False) -> None:
        """Copies what has changed, if the last copy is a minute old or it must be `at_once`."""
        if not self._temporary or (not at_once and time.monotonic() < self._last + COPY_SECONDS):
            return
        for file in filter(pathlib.Path.is_file, self.local.rglob("*")):
            state = file.stat()
            if self._copied.get(file) != (known := (state.st_mtime_ns, state.st_size)):
                target = self._folder / file.relative_to(self.local)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
                self._copied[file] = known
        self._last = time.monotonic()

    def close(self) -> None:
        """Copies the rest."""
        self.copy(at_once=True)
        if self._temporary:
            self._temporary.cleanup()
