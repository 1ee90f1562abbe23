"""The models of a catalog of Sweet Home 3D: what they are, who made them, and what they show."""

import functools
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from pictures.captions import with_article

CATALOG = "PluginFurnitureCatalog.properties"
LICENSES = {  # by what a catalog's `license` says, first match
    "public domain": ("CC0 1.0", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "attribution 3.0 united states": (
        "CC BY 3.0 US",
        "https://creativecommons.org/licenses/by/3.0/us/",
    ),
    "attribution 3.0": ("CC BY 3.0", "https://creativecommons.org/licenses/by/3.0/"),
}
# What the model shows where its name does not say it, in plain English.
SHOWN = """Air conditioning - External unit: external air conditioning unit | Puff: pouffe
Air conditioning - Internal unit: internal air conditioning unit | Barnum: market tent
Arrow straight ahead: arrow straight ahead on a road | Arrow turn right: right arrow on a road
Arrow turn right and ahead: arrow straight ahead and right on a road | Short: shorts
Bended coconut tree: bent coconut tree | Bill 10€: 10 euro note | Bill 20€: 20 euro note
Bill 50€: 50 euro note | Bootie: bootee | Children chair: children's chair | Puzzle: wooden puzzle
Children game: children's slide | Children table: children's table | Cup cake: cupcake
Clothes washing machine: a clothes washing machine | Convertible sofa BZ: convertible sofa
Concept Sedan 01: concept car | Concept Sedan 02: concept car | Concept Sedan 02 Sport: concept car
Female: woman | Flacon: perfume bottle | Fork lift: forklift | Gaz water heater: gas water heater
Hashtray: ashtray | Holding female: woman holding something | Holding male: man holding something
Induction cooker 2 zones: induction cooker with two zones | Car model: model car | Male: man
Induction cooker 4 zones: induction cooker with four zones | Letters box: letter box
Lip stick: lipstick | Little bank: little bench | Lying down boy: boy lying down | Milk: milk carton
Lying down female: woman lying down | Lying down male: man lying down | Mocassin: moccasin
Mannequin female: female mannequin | Mannequin male: male mannequin | Oil servers: oil cruets
Opened convertible sofa BZ: opened convertible sofa | Parking slot: parking space | Socket: sock
Parking slot 45°: 45° parking space | Parking slot 60°: 60° parking space | Trunck: trunk
Parking slot 75°: 75° parking space | Parking slot 90°: 90° parking space | Tape: roll of tape
Seat Leon: SEAT León | Sitting female: sitting woman | Sitting male: sitting man
Sofa 2 seats: sofa with two seats | Sofa 3 seats: sofa with three seats | Sugar: packet of sugar
Teck chair: teak chair | TV 16:9: widescreen TV | Urinal: a urinal | Wood bank: wooden bench
Utensils pot: a utensils pot | Wood toy: wooden toy | Woman shoes: women's shoes"""
SHOWN = dict(
    re.split(": (?=\\D|\\d\\d[° ])", entry, maxsplit=1) for entry in re.split(r" \| |\n", SHOWN)
)
PROPER = "An|Apple|Chambord|Chevrolet|Christmas|Focus|Ford|French|Hôi|Japanese|León|Osaka|Peterbilt"
PROPER += "|Peugeot|Renault|Rubik's|Scenic|Siamese|Thonet|Velux|Winchester|Yamaha"
# Tags that say nothing of the model, or nothing that is true.
NO_TAGS = {"Blend Swap", "SCPTS", "Adjustable", "Haussmann", "Three", "Four", "Xbox", "Nitendo", ""}
CATEGORIES = {  # where the catalog's word says something about what is seen
    **{room: room.lower() for room in ("Bathroom", "Bedroom", "Kitchen", "Living room", "Office")},
    "Exterior": "outdoor",
    "Lights": "lighting",
    "Vehicles": "vehicle",
}


class Model(NamedTuple):
    """A 3D model of the catalogs."""

    slug: str
    name: str
    tags: tuple[str, ...]
    category: str
    author: str
    license: str
    url: str  # of the licence
    archive: Path
    file: str  # within the archive
    rotation: tuple[float, ...]  # row by row; turns the file's model upright, y up


def properties(content: bytes) -> dict[str, str]:
    """Keys and values of a Java properties file."""
    lines = content.decode("latin-1").splitlines()
    pairs = [line.split("=", 1) for line in lines if "=" in line and not line.startswith("#")]
    unescaped = functools.partial(re.sub, r"\\u(\w{4})", lambda code: chr(int(code[1], 16)))
    return {key.strip(): unescaped(value.strip()) for key, value in pairs}


def models_in(archive: Path) -> list[Model]:
    """The models of one catalog, an archive of Sweet Home 3D."""
    with zipfile.ZipFile(archive) as file:
        said = properties(file.read(CATALOG))
    terms = said["license"].lower()
    known = [names for words, names in LICENSES.items() if words in terms]
    if not known:
        raise ValueError(f"{archive.name} is under another licence: {said['license']}")
    license, url = known[0]
    # A holder that the catalog names for all its models stands above the models' creators.
    holder = re.sub(r"^[\d\s-]+", "", said["license"].partition("©")[2].strip())
    return [
        Model(
            slug="-".join(Path(path).parts[1:-1]).lower().replace("_", "-"),
            name=said[f"name#{number}"],
            tags=tuple(tag.strip() for tag in said.get(f"tags#{number}", "").split(",")),
            category=said[f"category#{number}"],
            author=holder or said[f"creator#{number}"],
            license=license,
            url=url,
            archive=archive,
            file=path.lstrip("/"),
            rotation=tuple(
                map(float, said.get(f"modelRotation#{number}", "1 0 0 0 1 0 0 0 1").split())
            ),
        )
        for key, path in said.items()
        if (number := key.removeprefix("model#")) != key
    ]


def lowered(words: str) -> str:
    """Words as they stand within a sentence."""
    return re.sub(rf"\b(?!(?:{PROPER})\b)[A-Z][a-zà-ÿ]+\b", lambda word: word[0].lower(), words)


def caption(model: Model) -> str:
    """What is seen, as the catalog has it: name, then tags and category that add to it."""
    shown = SHOWN.get(model.name) or lowered(model.name)
    shown = re.sub(r" (\d|small) panes", r" with \1 panes", shown)
    noun, rest = re.fullmatch("(.+?)((?: (?:with|on|under) .*)?)", shown).groups()
    said = [with_article(noun) + rest]
    for word in (*model.tags, CATEGORIES.get(model.category, "")):
        word = "" if word in NO_TAGS or word.isdigit() else lowered(word)
        if word and word not in said and not re.search(rf"\b{re.escape(word)}\b", shown):
            said.append(word)
    return ", ".join(said)
