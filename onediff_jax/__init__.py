"""OneDiffusion in JAX: one flow-matching Next-DiT that treats every image task as a sequence of
views.
"""
