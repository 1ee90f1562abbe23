"""Records to rows: sources, tasks, text, latents, and the loader.

Nothing here imports JAX at import time.
"""
