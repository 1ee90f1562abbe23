"""Compiling a run's step for a machine that is not there, and reading what the compiler made."""
