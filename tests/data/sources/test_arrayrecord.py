"""Many files, few of them open: at a limit of open files, by many threads, in object storage."""

import concurrent.futures
import contextlib
import dataclasses
import importlib
import io
import json
import pathlib
import pickle
import resource
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image
from tiny import tiny_config

from onediff_jax.data.batching import loader
from onediff_jax.data.batching.settings import DataConfig
from onediff_jax.data.example import EncodedImage, EncodedPrompt, Example, SourcedExample
from onediff_jax.data.records import Source
from onediff_jax.data.sources import arrayrecord, cache, shards
from onediff_jax.data.sources.arrayrecord import RecordFiles
from onediff_jax.errors import InputError
from onediff_jax.train import loop

FILES = 300


def written(folder: pathlib.Path, counts=(3, 0, 2, 4)) -> list[str]:
    """Files whose records say which they are."""
    names = []
    for number, count in enumerate(counts):
        names.append(str(folder / f"{number}.array_record"))
        records = (f"{number} {place}".encode() for place in range(count))
        assert arrayrecord.write_records(pathlib.Path(names[-1]), records) == count
    return names


@pytest.fixture
def few(monkeypatch):
    """A process that keeps two files open."""
    monkeypatch.setattr(arrayrecord, "READ", arrayrecord.ReadFiles())
    monkeypatch.setattr(arrayrecord, "OPEN", 2)
    return arrayrecord.READ


def opened(folder: pathlib.Path) -> list[str]:
    """The names of the files of records in a folder that this process has open."""
    names = []
    for link in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since it was listed
            names.append(link.readlink())
    return sorted(n.name for n in names if n.suffix == ".array_record" and folder in n.parents)


def test_records_are_numbered_through_all_files(tmp_path, few):
    counts = (3, 0, 2, 4)
    names = written(tmp_path, counts)
    files = RecordFiles(names, counts)
    expected = [f"{file} {place}".encode() for file in range(4) for place in range(counts[file])]
    assert list(files) == expected and len(files) == 9 and files[-1] == expected[-1]
    with pytest.raises(IndexError):
        files[9]
    parts = RecordFiles([names[0], names[3]], [2, 2], [1, 0])
    assert list(parts) == [b"0 1", b"0 2", b"3 0", b"3 1"]


def test_files_read_least_recently_are_closed(tmp_path, few):
    files = RecordFiles(written(tmp_path, [1] * 5), [1] * 5)
    for number in (0, 1, 0, 2):
        files[number]
    assert opened(tmp_path) == ["0.array_record", "2.array_record"] and len(few) == 2


def test_threads_read_what_one_reads_while_files_are_closed(tmp_path, few):
    files = RecordFiles(written(tmp_path, [5] * 20), [5] * 20)
    numbers = np.random.default_rng(0).integers(0, 100, 2000).tolist()
    most, done = 0, threading.Event()

    def watch():
        nonlocal most
        while not done.is_set():
            most = max(most, len(opened(tmp_path)))

    watching = threading.Thread(target=watch)
    watching.start()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(files.__getitem__, numbers))
    done.set()
    watching.join()
    assert found == [f"{n // 5} {n % 5}".encode() for n in numbers]
    assert 0 < most <= 2 + 8 + 1  # two, and one that each thread has in hand


def test_files_travel_to_other_processes_closed(tmp_path, few):
    files = RecordFiles(written(tmp_path), (3, 0, 2, 4))
    files[4]
    data = pickle.dumps(files)
    assert len(few) == 1 and len(data) < 2000
    assert list(pickle.loads(data)) == list(files)


def test_what_cannot_be_read_is_told_from_what_is_damaged(tmp_path, few):
    names = written(tmp_path)
    files = RecordFiles(names, (3, 0, 2, 5))
    with pytest.raises(InputError, match="3.array_record, record 4 is damaged"):
        files[9]
    data = bytearray(pathlib.Path(names[2]).read_bytes())
    pathlib.Path(names[2]).unlink()
    with pytest.raises(FileNotFoundError):
        files[3]
    pathlib.Path(names[2]).mkdir()
    with pytest.raises(OSError, match="2.array_record") as refusal:  # and is tried again
        files[3]
    assert refusal.value.filename == names[2]
    pathlib.Path(names[2]).rmdir()
    pathlib.Path(names[2]).write_bytes(data)
    assert files[3] == b"2 0"  # a failure is not kept
    files = RecordFiles(names, (3, 0, 2, 4))
    pathlib.Path(names[3]).write_bytes(bytes(len(data)))
    with pytest.raises(InputError, match="3.array_record, record 0 is damaged .*; copy it again"):
        files[5]


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = min(before[1], arrayrecord.LIMIT)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, before[1]))
        assert arrayrecord.raised_limit() == most
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_limit_is_raised_when_a_run_begins_and_in_its_workers(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(arrayrecord, "raised_limit", lambda: asked.append("run"))
    config = dataclasses.replace(tiny_config(), data=DataConfig())
    with pytest.raises(InputError, match="data.sources is empty"):
        loop.train(config, tmp_path)
    assert asked == ["run"]
    monkeypatch.setattr(loader, "raised_limit", lambda: asked.append("worker"))
    monkeypatch.setattr(loader.signal, "signal", lambda *_: None)
    loader.begin_worker(0, 1)
    assert asked == ["run", "worker"]


def test_a_listing_says_how_large_all_files_are(tmp_path, monkeypatch):
    class Bucket(MemoryFileSystem):
        protocol, store, pseudo_dirs, asked = "gs", {}, [""], []

        @classmethod
        def _strip_protocol(cls, path):
            return "/" + path.removeprefix("gs://").strip("/")

        def ls(self, path, detail=True, **more):
            self.asked.append(path)
            return super().ls(path, detail, **more)

        def info(self, path, **more):
            raise AssertionError("asked for one file")

    known = importlib.import_module("fsspec.registry")._registry
    monkeypatch.setitem(known, "gs", Bucket)
    storage, expected = Bucket(), {}
    for number in range(30):
        expected[f"{number}.array_record"] = number
        storage.pipe(f"gs://b/set/{number}.array_record", bytes(number))
        (tmp_path / f"{number}.array_record").write_bytes(bytes(number))
    storage.pipe("gs://b/set/inner/file", b"not this one")
    (tmp_path / "inner").mkdir()
    Bucket.asked.clear()
    assert arrayrecord.sizes_in(epath.Path("gs://b/set")) == expected
    assert Bucket.asked == ["/b/set"]
    assert arrayrecord.sizes_in(epath.Path(tmp_path)) == expected


# --- every source, with 300 files and 64 that may be open -----------------------------------------


class Words(Source):
    fields = frozenset({"caption"})

    def __len__(self):
        return FILES

    def __getitem__(self, index):
        return {"caption": f"words {range(FILES)[index]}"}


class Captions(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    url_infos = None  # nothing is downloaded

    def _info(self):
        features = {
            "picture": tfds.features.Image(shape=(None, None, 3), encoding_format="png"),
            "text": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        file = io.BytesIO()
        Image.new("RGB", (4, 4)).save(file, "png")
        for i in range(FILES):
            file.seek(0)
            yield i, {"picture": file, "text": f"words {i}"}


READING = """
import concurrent.futures, os, resource, sys
folder, kind = sys.argv[1:]
if kind == "cache":
    from onediff_jax.data.sources.cache import Cache, ExampleShape, encoded_example
    found = Cache(folder).open("train").examples(ExampleShape("text2image", 1, 1))
    read = lambda number: encoded_example(found[number], 0).example.prompt.text
elif kind == "shards":
    from onediff_jax.data.sources.shards import Shards
    read = Shards(folder).open("train").caption
else:
    from onediff_jax.data.sources.tfds import Tfds
    fields = dict(image="picture", caption="text")
    read = Tfds(folder, "captions", fields, validation=0).open("train").caption
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    for _ in range(2):
        assert list(pool.map(read, range(300))) == [f"words {i}" for i in range(300)]
print(len(os.listdir("/proc/self/fd")))
"""


def many_cached(folder: pathlib.Path) -> None:
    files = []
    for number in range(FILES):
        file = folder / f"text2image-1x1-{number:05}.array_record"
        image = EncodedImage(np.zeros((1, 1, 2), np.float32), None)
        prompt = EncodedPrompt(f"words {number}", np.zeros(1, np.int32))
        example = Example("text2image", (image,), prompt)
        arrayrecord.write_records(
            file, [cache.example_bytes(SourcedExample(example, 0, 0), number)]
        )
        files.append(arrayrecord.file_facts(file, 1))
    manifest = {"format": arrayrecord.FORMAT, "fields": ["image", "caption"], "least": {}}
    manifest |= {"records": FILES, "parts": {"text2image-1x1": files}}
    (folder / cache.MANIFEST).write_text(json.dumps(manifest))


def many_sharded(folder: pathlib.Path) -> None:
    source = Words()
    shards.write_shards(folder, {"train": (source, map(shards.record_bytes, source))}, size=1)


def many_of_tfds(folder: pathlib.Path) -> None:
    builder = Captions(data_dir=folder, file_format="array_record")
    settings = tfds.download.DownloadConfig(num_shards=FILES)
    builder.download_and_prepare(download_dir=folder / "nothing", download_config=settings)


@pytest.mark.parametrize(
    ("kind", "write"), [("cache", many_cached), ("shards", many_sharded), ("tfds", many_of_tfds)]
)
def test_more_files_than_may_be_open_are_read(tmp_path, kind, write):
    write(tmp_path)
    assert len(list(tmp_path.rglob("*.array_record*"))) == FILES
    command = [sys.executable, "-W", "ignore", "-c", READING, str(tmp_path), kind]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    assert 32 <= int(run.stdout) <= 64  # half of what is allowed stays open
