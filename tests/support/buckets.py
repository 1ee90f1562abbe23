"""A bucket of object storage in memory."""

import base64
import hashlib
import pathlib

from fsspec.implementations.memory import MemoryFileSystem


class Bucket(MemoryFileSystem):
    """Objects in memory under names of gs://, with the checksums that Google's listings have.

    Counts what is written and read.
    """

    protocol = "gcs"
    store: dict = {}
    pseudo_dirs = [""]
    written: list[str] = []  # by opened files
    put: list[str] = []  # whole files
    read: list[tuple[str, int]] = []  # name and first byte
    breaks_at: int | None = None  # a first byte at which reading fails, as a connection does

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("gs://").strip("/")

    def _open(self, path, mode="rb", **kwargs):
        if "w" in mode:
            self.written.append(path)
        return super()._open(path, mode, **kwargs)

    def put_file(self, lpath, rpath, **kwargs):
        self.put.append(rpath)
        self.pipe_file(rpath, pathlib.Path(lpath).read_bytes())

    def ls(self, path, detail=True, **kwargs):
        entries = super().ls(path, detail=True, **kwargs)
        for entry in entries:
            if entry["type"] == "file":
                digest = hashlib.md5(self.store[entry["name"]].getvalue()).digest()
                entry["md5Hash"] = base64.b64encode(digest).decode()
        return entries if detail else [entry["name"] for entry in entries]

    def cat_file(self, path, start=None, end=None, **kwargs):
        if start is not None and start == self.breaks_at:
            raise ConnectionError("the connection is gone")
        self.read.append((path.rsplit("/", 1)[-1], start))
        return super().cat_file(path, start, end, **kwargs)
