import numpy as np
import pytest

from onediff_jax.data.images import png
from onediff_jax.data.records import (
    NamedImages,
    Source,
    StoredImage,
    StoredImages,
    StoredRecord,
    numbers_of_split,
    retry,
)
from onediff_jax.errors import BadRecord, InputError


def stored(value: int, reads: list) -> StoredImage:
    def encoded():
        reads.append(value)
        return png(np.full((2, 3, 3), value, np.uint8))

    return StoredImage(f"picture {value}", encoded)


class Three(Source):
    fields = frozenset({"image", "caption", "frames", "pictures.depth", "depth"})

    def __init__(self):
        self.reads = []

    def __len__(self):
        return 3

    def __getitem__(self, index):
        views = {"depth": stored(10 + index, self.reads), "hed": stored(20 + index, self.reads)}
        return StoredRecord(
            {
                "image": stored(index, self.reads),
                "caption": "" if index == 2 else f"number {index}",
                "pictures": NamedImages(views),
                "frames": StoredImages([stored(30 + i, self.reads) for i in range(4)]),
                "depth": lambda: np.full((2, 3), index, np.float32),
            }
        )


def test_fields_are_read_when_they_are_asked_for_and_once():
    source = Three()
    record = source[1]
    assert len(record) == 5 and "image" in record and "edited" not in record
    assert record["caption"] == source.caption(1) == "number 1" and source.reads == []
    assert (record["image"] == 1).all() and record["image"] is record["image"]
    assert source.reads == [1]
    assert record["frames"][2][0, 0, 0] == 32 and source.reads == [1, 32]
    assert [image[0, 0, 0] for image in record["frames"]] == [30, 31, 32, 33]


def test_only_the_fields_that_are_taken_are_read():
    source = Three()
    taken = source.read(1, ["caption", "frames", "pictures.depth", "image"])
    assert set(taken) == {"caption", "frames", "pictures", "image"}
    assert sorted(source.reads) == [1, 11] and set(taken["pictures"]) == {"depth"}


def test_what_is_taken_is_checked_and_the_fault_says_where():
    assert (Three().read(1, ["image", "depth"])["depth"] == 1).all()
    with pytest.raises(BadRecord, match="^record 0: depth is 0.0 in 6 pixels"):
        Three().read(0, ["image", "depth"])


def test_reading_is_tried_again_with_longer_waits_and_then_stops_the_run():
    waits, failures = [], [OSError(5, "gone", "a.png"), OSError(5, "gone", "a.png")]

    def read():
        if failures:
            raise failures.pop()
        return "read"

    assert retry(read, waits.append) == "read" and waits == [0.5, 2.0]
    waits.clear()
    failures += [OSError(5, "Input/output error", "/disk/a.png")] * 4
    with pytest.raises(InputError, match=r"/disk/a\.png cannot be read: Input/output error \(4 tr"):
        retry(read, waits.append)
    assert waits == [0.5, 2.0, 8.0] and not failures


@pytest.mark.parametrize("error", [BadRecord("content"), KeyError("x")])
def test_what_is_no_input_output_error_is_raised_at_once(error):
    def read():
        raise error

    with pytest.raises(type(error)) as raised:
        retry(read, lambda wait: pytest.fail("waited"))
    assert raised.value is error


@pytest.mark.parametrize(("count", "validation"), [(10, 0), (10, 3), (7, 6), (100, 1)])
def test_splits_are_disjoint_complete_spread_and_of_the_asked_size(count, validation):
    train = numbers_of_split("train", count, validation, "x")
    held_out = numbers_of_split("validation", count, validation, "x")
    assert len(held_out) == validation
    assert sorted([*train, *held_out]) == list(range(count))
    assert set(np.diff(held_out)) <= {count // max(validation, 1)}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("test", 10, 1, "x"), "There is no split 'test'; it can be train or validation"),
        (("train", 10, 10, "scenes in d"), "scenes in d: there are 10, .* 10; set it below 10"),
        (("train", 10, -1, "x"), "holds out -1; set it below 10"),
    ],
)
def test_impossible_splits_are_refused(arguments, match):
    with pytest.raises(InputError, match=match):
        numbers_of_split(*arguments)
