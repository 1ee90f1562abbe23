"""`python -m onediff_jax encode` by its former name."""

from onediff_jax.cli import run_process

if __name__ == "__main__":
    run_process("encode")
