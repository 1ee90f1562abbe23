import json
import pickle

import pytest

from onediff_jax.data.sources.listing import ListedFiles, listing_in
from onediff_jax.errors import InputError

ENTRIES = [{"file_name": f"{i}.png", "text": "ä☀" * i, "more": [i]} for i in range(50)]


@pytest.fixture
def listing(tmp_path):
    lines = [json.dumps(entry, ensure_ascii=i % 2 > 0) for i, entry in enumerate(ENTRIES)]
    (tmp_path / "metadata.jsonl").write_text("\n\n".join(lines), encoding="utf-8")
    listing = listing_in(tmp_path)
    assert list(listing.read()) == ENTRIES
    return listing


def test_entries_are_read_by_number_in_any_order(listing):
    assert [listing[i] for i in reversed(range(50))] == ENTRIES[::-1]
    assert listing.where(7) == f"{listing.file}, line 15"


def test_a_copy_for_a_worker_reads_the_same_and_is_small(listing):
    data = pickle.dumps(listing)
    assert len(data) < 16 * len(ENTRIES) + 600
    assert list(pickle.loads(data)) == ENTRIES


def test_a_listing_that_is_changed_underneath_is_noticed(listing):
    listing.file.write_text("short")
    with pytest.raises(InputError, match="line 3 changed while it was in use"):
        listing[1]


def test_a_folder_without_a_listing_has_none(tmp_path):
    assert listing_in(tmp_path) is None


def test_the_first_name_without_a_file_is_found(listing):
    files = ListedFiles(listing)
    for i in range(50):
        if i != 30:
            (listing.file.parent / f"{i}.png").touch()
    copy = listing_in(listing.file.parent)
    files = ListedFiles(copy)
    for entry in copy.read():
        files.add(entry["file_name"])
    with pytest.raises(InputError, match=r"line 61: there is no file '30\.png'"):
        files.refuse_missing()
    (listing.file.parent / "30.png").touch()
    files.refuse_missing()
