"""Subjects that appear in several looks: images whose captions differ in skin, gender or hair."""

import json
import re
from pathlib import Path

FOLDER, LISTING = "subjects", "metadata.jsonl"
LEAST = 3  # images of a subject

# What is done to a caption, in this order, until only the subject is left.
LOOKS = {
    r", \S+ skin tone$": "",
    r"^(a|an|the) ": "",
    r"\b(male|female) ": "",
    r"\bold (man|woman)\b": "older person",
    r"\bmermaid\b|\bmerman\b": "merperson",
    r"^(prince|princess)$": "person with a crown",
    r"\b(man|woman)\b": "person",
    r"\b(men|women)\b": "people",
    r"^(boy|girl)$": "child",
    r"^family of .*": "family",
    r"^person and (a )?person": "two people",
    r"^bald person$|^person with (a beard|(red|curly|white|blond) hair)$": "person",
}


def subject(caption: str) -> str:
    """What an image of this caption shows, whatever its skin, gender and hair."""
    for look, words in LOOKS.items():
        caption = re.sub(look, words, caption)
    return caption


def write_subjects(folder: Path, captions: dict[str, str]) -> None:
    """Writes folders of links to the images of every subject that has enough, and a listing.

    `captions` are those of the images in `folder`, by the names of their files.
    """
    looks: dict[str, list[str]] = {}
    for name, caption in captions.items():
        looks.setdefault(subject(caption), []).append(name)
    (subjects := folder / FOLDER).mkdir()
    with (subjects / LISTING).open("w", encoding="utf-8") as listing:
        for item, names in sorted(looks.items()):
            if len(names) < LEAST:
                continue
            (one := subjects / re.sub(r"\W+", "_", item)).mkdir()
            for name in names:
                (one / name).symlink_to(Path("..", "..", name))
                line = {"file_name": f"{one.name}/{name}", "text": captions[name], "item": item}
                listing.write(json.dumps(line, ensure_ascii=False) + "\n")


def files_under(folder: Path) -> set[str]:
    """Names of all that the subjects of a folder of images consist of, from that folder."""
    listing = folder / FOLDER / LISTING
    if not listing.is_file():
        return set()
    entries = map(json.loads, listing.read_text(encoding="utf-8").splitlines())
    files = {f"{FOLDER}/{entry['file_name']}" for entry in entries}
    return files | {file.rpartition("/")[0] for file in files} | {f"{FOLDER}/{LISTING}"}
