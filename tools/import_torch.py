"""`onediff_jax/commands/import_torch.py` as a script."""

import runpy

if __name__ == "__main__":
    runpy.run_module("onediff_jax.commands.import_torch", run_name="__main__", alter_sys=True)
