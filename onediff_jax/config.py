"""`base_config`, for the files that describe runs."""

from onediff_jax.train.config import base_config

__all__ = ["base_config"]
