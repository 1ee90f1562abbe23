"""`python -m onediff_jax`."""

import sys

from onediff_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
