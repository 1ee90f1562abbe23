"""`python -m onediff_jax train`: a run, from its newest checkpoint where there is one."""

from absl import flags
from etils import epath

from onediff_jax import processes
from onediff_jax.train import loop
from onediff_jax.train.config import as_dict, run_config
from onediff_jax.train.locations import located, locations


def run(options: flags.FlagValues) -> None:
    """Prints where the run reads and writes, and trains."""
    if options.distributed:
        processes.join()
    config = run_config(options.config.to_dict())  # a file that failed raises its error here
    there = located(config)
    if processes.first():
        print(*(f"{name}: {path}" for name, path in locations(there).items()), sep="\n", flush=True)
    loop.train(there, epath.Path(options.workdir), as_dict(config))
