"""Paths on this machine and in object storage, such as gs://BUCKET/FOLDER.

Settings that name a file or a folder are of type `Location`.  Relative ones begin at the run's
`root`, such as a bucket on a pod; if `root` is empty, at the current folder.
"""

import importlib.util
import pathlib
import posixpath
from typing import Annotated

import fsspec
from etils import epath

from onediff_jax.errors import InputError

LOCATION = "location"
Location = Annotated[str, LOCATION]  # a path that `root` applies to; empty: none


def remote(path: pathlib.PurePath | str) -> bool:
    """Whether a path lies in object storage."""
    return "://" in str(path)


def under(root: str, path: str) -> str:
    """`path` below `root` if it is relative; empty and absolute paths are unchanged."""
    if not root or not path or remote(path) or path.startswith(("/", "~")):
        return path
    scheme, separator, rest = root.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(rest, path))


def opened_path(path: pathlib.PurePath | str) -> epath.Path:
    """The path, ready to be read; raises InputError where nothing here reads such paths."""
    if not remote(path):
        return epath.Path(path).expanduser()
    scheme = str(path).split("://")[0]
    try:
        fsspec.get_filesystem_class(scheme)
    except (ImportError, ValueError):
        gcs = scheme in ("gs", "gcs") and not importlib.util.find_spec("gcsfs")
        way = (
            "gcsfs reads it and is not installed: pip install 'onediff_jax[gcs]'."
            if gcs
            else "object storage is read from gs://BUCKET/... alone."
        )
        raise InputError(f"{path} cannot be read: {way}") from None
    return epath.Path(path)


def absolute(path: pathlib.PurePath | str) -> epath.Path:
    """A path from the root of the file system or of its bucket, ready to be read."""
    return opened_path(path if remote(path) else pathlib.Path(path).expanduser().resolve())


def folder_is_there(path: pathlib.PurePath | str) -> bool:
    """Whether a folder can be seen; raises InputError where object storage refuses to answer."""
    folder = opened_path(path)
    try:
        return folder.is_dir()
    except Exception as error:  # gcsfs, its transport and its credentials raise many kinds
        if not remote(path):
            raise
        raise InputError(f"{path} cannot be read: {error_line(error)}; {ACCESS}") from error


ACCESS = (
    "check the name by `gcloud storage ls`, and that this machine may read it (gcloud auth "
    "application-default login here; on a pod, its service account)."
)


def access_advice(path: pathlib.PurePath | str) -> str:
    """The advice to add to a message about a missing path; empty for local paths."""
    return f"  It was looked for in object storage: {ACCESS}" if remote(path) else ""


def error_line(error: BaseException) -> str:
    """What an exception says, in one line that is not too long."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
