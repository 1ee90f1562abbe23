"""Compiles a run's step for a TPU slice that need not be here, and estimates what it takes."""
