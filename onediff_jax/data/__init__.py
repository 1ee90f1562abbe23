"""Records to rows: sources, tasks, text, latents, and the loader.

Nothing here imports JAX at import time.
"""

import cv2

# The loader runs as many threads or processes as it is told to; a pool in each would fight theirs.
cv2.setNumThreads(1)
