import importlib.util
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from PIL import Image
from places import ROOT

TOOLS = ROOT / "tools" / "datasets"
sys.path.insert(0, str(TOOLS))
import render_furniture  # noqa: E402
from furniture import catalog  # noqa: E402
from furniture.views import FOCAL, orbit  # noqa: E402

sys.path.remove(str(TOOLS))

ENTRY = """
id#{n}=Test#{slug}
name#{n}={name}
tags#{n}={tags}
category#{n}={category}
model#{n}=/{folder}/{slug}/{slug}.obj
creator#{n}={creator}
"""
FREE = "id=a\nname=Free\nlicense=Public domain\n"
OWNED = "id=b\nlicense=Creative Commons Attribution 3.0 license  Copyright \xa9 2003-2008 A & B\n"
ROTATED = "modelRotation#2=1 0 0 0 0 1 0 -1 0\n"


def entry(n, slug, name, folder="free", tags="", category="Office", creator="Ann"):
    return ENTRY.format(**locals())


@pytest.fixture(scope="module")
def catalogs(tmp_path_factory):
    """Two archives as the package has them; `broken` has no model file."""
    folder = tmp_path_factory.mktemp("catalogs")
    free = FREE + entry(1, "Deck_chair", "Deck chair", tags="Blend Swap, Seat, Outdoor")
    free += entry(2, "note", "Bill 10\\u20ac") + ROTATED + entry(3, "broken", "Broken")
    owned = OWNED + entry(1, "iMac", "Apple iMac", "owned", category="Bedroom")
    for name, said in {"free": free, "owned": owned}.items():
        with zipfile.ZipFile(folder / f"{name}.sh3f", "w") as archive:
            archive.writestr(catalog.CATALOG, said.encode("latin-1"))
            archive.writestr("LICENSE.TXT", f"the notes of {name}")
            for file in ("free/Deck_chair/Deck_chair.obj", "free/note/note.obj"):
                archive.writestr(file, "# a model")
            archive.writestr("owned/iMac/iMac.obj", "# a model")
            archive.writestr("owned/iMac/texture.png", "a texture")
    return folder


@pytest.fixture(scope="module")
def package(catalogs, tmp_path_factory):
    """A Debian package that holds the archives, built by dpkg-deb where there is one."""
    if subprocess.run(["which", "dpkg-deb"], capture_output=True).returncode:
        pytest.skip("dpkg-deb, which the tool needs, is not here")
    root = tmp_path_factory.mktemp("package")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN" / "control").write_text(
        "Package: furniture\nVersion: 1\nArchitecture: all\nMaintainer: t <t@t>\nDescription: t\n"
    )
    (root / "usr" / "share").mkdir(parents=True)
    for archive in catalogs.iterdir():
        (root / "usr" / "share" / archive.name).write_bytes(archive.read_bytes())
    file = root.parent / "furniture_1_all.deb"
    subprocess.run(["dpkg-deb", "-b", root, file], check=True, capture_output=True)
    return file


class FakeCaster:
    """A caster that sees grey at a depth of two units."""

    def __init__(self, mesh):
        self.mesh = mesh

    def view(self, camera, size):
        return np.full((size, size, 3), 99, np.uint8), np.full((size, size), 2.0)


class FakeMesh:
    """A mesh that knows from what it was read."""

    corners = np.array([[[-0.5, -0.5, 0], [0.5, -0.5, 0], [0.5, 0.5, 0]]])

    def __init__(self, file, rotation):
        self.file, self.rotation = file, rotation
        if not file.is_file():
            raise ValueError("it has no faces")


@pytest.fixture
def drawn(monkeypatch):
    """Lists what is read from files; nothing needs the libraries that render."""
    read = []

    def mesh_in(file, rotation):
        mesh = FakeMesh(file, rotation)
        read.append((file.name, rotation.tolist(), sorted(p.name for p in file.parent.iterdir())))
        return mesh

    monkeypatch.setattr(render_furniture, "mesh_in", mesh_in)
    monkeypatch.setattr(render_furniture, "Caster", FakeCaster)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    return read


@pytest.fixture
def place(tmp_path):
    """A folder to render into, alone in its parent so that whatever is left behind shows."""
    (tmp_path / "alone").mkdir()
    return tmp_path / "alone" / "furniture"


def run(place, *options):
    render_furniture.main(["--out", str(place), *map(str, options)])


def refusal(capsys, *arguments):
    """Exit status and the one line of a run that ends early."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        render_furniture.main([str(argument) for argument in arguments])
    if isinstance(stop.value.code, str):  # what Python prints before it exits with 1
        status, line = 1, stop.value.code
    else:
        status, line = stop.value.code, capsys.readouterr().err.strip().splitlines()[-1]
    assert "\n" not in line
    return status, line


def models(catalogs):
    found = catalog.models_in(catalogs / "free.sh3f") + catalog.models_in(catalogs / "owned.sh3f")
    return {model.slug: model for model in found}


def test_a_catalog_is_read_as_its_authors_wrote_it(catalogs):
    found = models(catalogs)
    assert list(found) == ["free-deck-chair", "free-note", "free-broken", "owned-imac"]
    chair, note, mac = found["free-deck-chair"], found["free-note"], found["owned-imac"]
    assert chair.name == "Deck chair" and chair.file == "free/Deck_chair/Deck_chair.obj"
    assert (chair.author, chair.license) == ("Ann", "CC0 1.0")
    assert note.name == "Bill 10€" and note.rotation == (1, 0, 0, 0, 0, 1, 0, -1, 0)
    assert (mac.author, mac.license) == ("A & B", "CC BY 3.0")  # the holder, not the converter
    assert mac.url == "https://creativecommons.org/licenses/by/3.0/"


@pytest.mark.parametrize(
    ("license", "known"),
    [
        ("Public domain", "CC0 1.0"),
        ("Creative Commons Attribution 3.0 Unported license", "CC BY 3.0"),
        ("Creative Commons Attribution 3.0 United States license", "CC BY 3.0 US"),
    ],
)
def test_every_licence_of_the_package_is_known(tmp_path, license, known):
    said = f"license={license}\n" + entry(1, "a", "A")
    with zipfile.ZipFile(tmp_path / "x.sh3f", "w") as archive:
        archive.writestr(catalog.CATALOG, said)
    assert catalog.models_in(tmp_path / "x.sh3f")[0].license == known


@pytest.mark.parametrize(
    ("name", "tags", "category", "text"),
    [
        ("Armchair", ("Blend Swap", "Seat"), "Office", "an armchair, seat, office"),
        ("Deck chair", ("Seat", "Outdoor"), "Exterior", "a deck chair, seat, outdoor"),
        ("Christmas tree", ("Decoration",), "Miscellaneous", "a Christmas tree, decoration"),
        ("Japanese maple", ("Tree", ""), "Exterior", "a Japanese maple, tree, outdoor"),
        ("Bed", ("Double",), "Bedroom", "a bed, double, bedroom"),
        ("Bedside table", ("Table",), "Bedroom", "a bedside table, bedroom"),
        ("Scissors", ("",), "Office", "scissors, office"),
        ("Bowl with fruits", ("Food",), "Kitchen", "a bowl with fruits, food, kitchen"),
        ("Hashtray", ("SCPTS",), "Miscellaneous", "an ashtray"),
        ("Bill 10€", ("SCPTS", "Money"), "Miscellaneous", "a 10 euro note, money"),
        ("Parking slot 45°", ("Road",), "Exterior", "a 45° parking space, road, outdoor"),
        ("Double French window 3 panes", ("3",), "", "a double French window with 3 panes"),
        ("TV 16:9", ("LCD", "Flat"), "Living room", "a widescreen TV, LCD, flat, living room"),
        (
            "Apple iMac 1998",
            ("Computer", "PC"),
            "Office",
            "an Apple iMac 1998, computer, PC, office",
        ),
        ("PlayStation", ("Xbox", "HiFi"), "Kitchen", "a PlayStation, HiFi, kitchen"),
        ("Urinal", (), "Bathroom", "a urinal, bathroom"),
    ],
)
def test_a_name_with_its_tags_becomes_a_caption(catalogs, name, tags, category, text):
    model = models(catalogs)["free-note"]._replace(name=name, tags=tags, category=category)
    assert catalog.caption(model) == text


def test_a_model_becomes_a_posed_scene(drawn, package, place, capsys):
    run(place, "--package", package, "--views", 3, "--size", 8)
    assert capsys.readouterr().out == f"3 models, 3 views each, are in {place}; 1 were skipped.\n"
    scene = json.loads((place / "owned-imac" / "transforms.json").read_text())
    assert (scene["w"], scene["h"], scene["cx"], scene["cy"]) == (8, 8, 4, 4)
    assert scene["fl_x"] == scene["fl_y"] == pytest.approx(8 * 0.5 / np.tan(np.radians(19.8)), 1e-4)
    assert [frame["file_path"] for frame in scene["frames"]] == [
        "images/000.png",
        "images/001.png",
        "images/002.png",
    ]
    for frame in scene["frames"]:
        assert np.shape(frame["transform_matrix"]) == (4, 4)
        image = Image.open(place / "owned-imac" / frame["file_path"])
        assert image.mode == "RGB" and image.size == (8, 8)
        depth = np.array(Image.open(place / "owned-imac" / frame["depth_file_path"]))
        assert depth.dtype == np.uint16
        assert depth * scene["depth_unit_scale_factor"] == pytest.approx(np.full((8, 8), 2.0))


def test_models_are_read_turned_and_with_the_files_beside_them(drawn, package, place):
    run(place, "--package", package, "--views", 1, "--size", 4)
    read = {name: (rotation, files) for name, rotation, files in drawn}
    assert read["note.obj"] == ([[1, 0, 0], [0, 0, 1], [0, -1, 0]], ["note.obj"])
    assert read["iMac.obj"] == (np.eye(3).tolist(), ["iMac.obj", "texture.png"])


def test_the_listing_and_the_licences_name_every_model(drawn, package, place):
    run(place, "--package", package, "--views", 1, "--size", 4)
    lines = [json.loads(line) for line in (place / "metadata.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "file_name": "free-deck-chair",
        "text": "a deck chair, seat, outdoor, office",
        "author": "Ann",
        "license": "CC0 1.0",
    }
    assert [line["file_name"] for line in lines] == ["free-deck-chair", "free-note", "owned-imac"]
    credits = (place / "LICENSE.txt").read_text()
    assert "the notes of free" in credits and "the notes of owned" in credits
    assert '"Apple iMac" by A & B, CC BY 3.0, https://creativecommons.org/' in credits
    assert "furniture_1_all" in credits and "Changes:" in credits


def test_a_broken_model_is_one_line_and_counted(drawn, package, place, capsys):
    run(place, "--package", package, "--views", 1, "--size", 4)
    said = capsys.readouterr()
    (line,) = (line for line in said.err.splitlines() if "Skipped" in line)
    assert "free-broken" in line and "it has no faces" in line and "1 were skipped" in said.out
    assert not (place / "free-broken").exists()
    assert [path.name for path in place.parent.iterdir()] == ["furniture"]


def test_a_second_run_does_nothing_and_more_models_are_added(drawn, package, place, capsys):
    run(place, "--package", package, "--models", 2, "--views", 1, "--size", 4)
    first = {path: path.stat().st_mtime_ns for path in place.glob("*/transforms.json")}
    drawn.clear()
    capsys.readouterr()
    run(place, "--models", 2, "--views", 1, "--size", 4)  # and nothing is fetched
    assert capsys.readouterr().out == f"2 models were rendered into {place} already.\n"
    assert drawn == []
    run(place, "--package", package, "--views", 1, "--size", 4)
    assert len(drawn) == 3 - len(first)
    assert len((place / "metadata.jsonl").read_text().splitlines()) == 3
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())


def test_an_interrupted_run_keeps_finished_models_and_goes_on(
    drawn, package, place, capsys, monkeypatch
):
    left = [1, 1, 1]

    class Interrupted(FakeCaster):
        def view(self, camera, size):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return super().view(camera, size)

    options = ("--package", package, "--views", 2, "--size", 4)
    monkeypatch.setattr(render_furniture, "Caster", Interrupted)
    assert refusal(capsys, "--out", place, *options) == (
        130,
        "Interrupted; finished models stay, the same command goes on.",
    )
    (whole,) = place.glob("*/transforms.json")  # the second model, half rendered, is not there
    assert sorted(path.name for path in place.iterdir()) == [whole.parent.name, "settings.json"]
    assert [path.name for path in place.parent.iterdir()] == ["furniture"]
    monkeypatch.setattr(render_furniture, "Caster", FakeCaster)
    run(place, *options)
    assert len(list(place.glob("*/transforms.json"))) == 3


@pytest.mark.parametrize("option", ["views", "size", "seed"])
def test_another_setting_is_refused_with_the_way_out(drawn, package, place, capsys, option):
    options = {"views": 1, "size": 4, "seed": 0}
    given = [part for name, value in options.items() for part in (f"--{name}", value)]
    run(place, "--package", package, *given)
    status, line = refusal(capsys, "--out", place, *given, f"--{option}", 7)
    assert status == 1 and f"--{option} {options[option]}" in line and "7" in line


def test_cameras_depend_on_the_seed_and_the_model_alone(drawn, package, place):
    def matrices(folder, *options):
        run(place / folder, "--package", package, "--views", 2, "--size", 4, *options)
        return {
            file.parent.name: [
                frame["transform_matrix"] for frame in json.loads(file.read_text())["frames"]
            ]
            for file in (place / folder).glob("*/transforms.json")
        }

    every, some = matrices("all"), matrices("some", "--models", 3)
    assert some and all(every[slug] == some[slug] for slug in some)
    assert every["free-note"] != every["owned-imac"]
    assert matrices("other", "--seed", 1)["free-note"] != every["free-note"]


@pytest.mark.parametrize("shape", [(0.5, 0.3, 0.2), (0.2, 0.2, 0.5)])
def test_cameras_fill_the_frame_from_orbits_around_the_model(shape):
    corners = np.random.default_rng(0).uniform(-1, 1, (50, 3, 3)) * shape
    cameras = render_furniture.orbit_cameras(corners, 8, np.random.default_rng(3))
    widest = 0.0
    for camera in cameras:
        rotation, position = camera[:3, :3], camera[:3, 3]
        assert rotation.T @ rotation == pytest.approx(np.eye(3), abs=1e-12)
        assert np.linalg.det(rotation) == pytest.approx(1)
        assert position == pytest.approx(rotation[:, 2] * np.linalg.norm(cameras[0][:3, 3]))
        assert rotation[2, 0] == pytest.approx(0) and rotation[2, 1] > 0  # upright
        assert 0 <= np.degrees(np.arcsin(rotation[2, 2])) <= 35
        seen = (corners.reshape(-1, 3) - position) @ rotation
        widest = max(widest, np.abs(seen[:, :2] / seen[:, 2:]).max() * FOCAL * 2)
    assert widest == pytest.approx(0.92)
    azimuths = np.sort([np.degrees(np.arctan2(c[0, 2], -c[1, 2])) % 360 for c in cameras])
    gaps = np.diff([*azimuths, azimuths[0] + 360])
    assert gaps.min() > 0.4 * 45 and gaps.max() < 1.6 * 45 and np.ptp(gaps) > 1


def test_the_first_orbit_is_in_front_and_azimuth_moves_to_its_right():
    front = orbit(0, 0, 2)
    assert front[:3, 3] == pytest.approx([0, -2, 0])
    assert front[:3, :3] == pytest.approx(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]))
    assert (orbit(10, 0, 2)[:3, 3] - front[:3, 3]) @ front[:3, 0] > 0
    assert orbit(0, 30, 2)[2, 3] == pytest.approx(1)


def test_a_folder_of_other_files_is_refused_and_kept(drawn, place, capsys):
    place.mkdir()
    (place / "thesis.txt").write_text("mine")
    status, line = refusal(capsys, "--out", place)
    assert status == 1 and "thesis.txt" in line and "--out" in line
    assert [path.name for path in place.iterdir()] == ["thesis.txt"]


def stand_in(folder, name, script):
    """Makes a shell script the only client of its name on the path."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return str(folder)


def test_apt_brings_the_package(drawn, package, place, tmp_path, monkeypatch):
    script = f'[ "$*" = "download sweethome3d-furniture" ] && cp {package} .'
    path = stand_in(tmp_path / "bin", "apt-get", script)
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    run(place, "--models", 1, "--views", 1, "--size", 4)
    assert (place / "metadata.jsonl").exists()
    assert [path.name for path in place.parent.iterdir()] == ["furniture"]


def test_clients_that_lack_are_one_line_with_the_way_out(
    drawn, package, place, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(tmp_path))
    status, line = refusal(capsys, "--out", place)
    assert status == 1 and line.startswith("apt-get is missing") and "--package FILE.deb" in line
    status, line = refusal(capsys, "--out", place, "--package", package)
    assert status == 1 and line.startswith("dpkg-deb is missing; install")
    assert not any(place.parent.iterdir())


def test_a_file_that_is_no_package_is_one_line(drawn, package, place, capsys):
    status, line = refusal(capsys, "--out", place, "--package", __file__)
    assert status == 1 and __file__ in line and "not the Debian package" in line
    assert not any(place.parent.iterdir())


def test_without_the_extra_one_line_names_it(place, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    status, line = refusal(capsys, "--out", place)
    assert status == 1 and line.startswith("trimesh and embreex cannot") and "render3d" in line
    assert not any(place.parent.iterdir())
