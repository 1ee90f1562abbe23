"""`python -m onediff_jax import_torch` by its former name."""

from onediff_jax.cli import run_process

if __name__ == "__main__":
    run_process("import_torch")
