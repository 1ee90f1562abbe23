"""Canny's edges: white, one pixel wide, on black."""

import cv2
import numpy as np
from jaxtyping import UInt8

from onediff_jax.data.example import RGB


def canny_edges(image: RGB, low: float, high: float) -> RGB:
    """Pixels on a ridge of the gradient above `high`, or above `low` and connected to one such.

    The gradient is |dx| + |dy| of the grey image by Sobel's 3 x 3 filters: a step from 0 to g
    between two pixels gives 4 g to both.
    """
    return np.repeat(cv2.Canny(grey(image), low, high)[..., None], 3, axis=-1)


def automatic_thresholds(image: RGB) -> tuple[float, float]:
    """Canny's thresholds for this image: half of Otsu's threshold of its gradients, and that.

    Otsu's (1979) parts pixels into two classes whose means lie far apart: those on edges, and the
    others.
    """
    dx, dy = (cv2.Sobel(grey(image), cv2.CV_16S, *order) for order in ((1, 0), (0, 1)))
    gradient = (np.abs(dx) + np.abs(dy)).astype(np.uint16)
    high, _ = cv2.threshold(gradient, 0, 1, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return high / 2, high


def grey(image: RGB) -> UInt8[np.ndarray, "h w"]:
    """Luma, 0 to 255."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
