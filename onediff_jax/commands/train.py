"""`python -m onediff_jax train`: a run, from its newest checkpoint where there is one."""

from absl import flags
from etils import epath

from onediff_jax import processes
from onediff_jax.train import loop
from onediff_jax.train.config import locations, resolve_paths, run_config


def run(options: flags.FlagValues) -> None:
    """Prints where the run reads and writes, and trains."""
    if options.distributed:
        processes.join()
    config = run_config(options.config.to_dict())  # a file that failed raises its error here
    if processes.is_first():
        paths = locations(resolve_paths(config)).items()
        print(*(f"{name}: {path}" for name, path in paths), sep="\n", flush=True)
    loop.train(config, epath.Path(options.workdir))
