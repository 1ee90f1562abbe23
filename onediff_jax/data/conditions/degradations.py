"""What conditions take from an image: blur, compression, loss of resolution, holes, Canny's edges.

All but the holes are plain functions; the holes are drawn.  Beyond its border an image is mirrored.
"""

import math

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from onediff_jax.data.example import RGB

Hole = Bool[np.ndarray, "h w"]  # true where the image is gone


def gaussian_blur(image: RGB, sigma: float) -> RGB:
    """The image under a Gaussian of standard deviation `sigma` pixels."""
    return cv2.GaussianBlur(image, (0, 0), sigma)


def motion_kernel(length: float, angle: float) -> Float[np.ndarray, "k k"]:
    """Weights, of sum 1, of a camera that moves `length` pixels in a straight line.

    `angle` is in radians from the x axis towards the y axis (down).  Points of the line, evenly
    spaced, are shared among the four pixels around each.
    """
    reach = math.ceil(length / 2) + 1
    points = max(2, math.ceil(8 * length))
    along = length * ((np.arange(points) + 0.5) / points - 0.5)
    x, y = reach + along * math.cos(angle), reach + along * math.sin(angle)
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1))
    for down, right in ((0, 0), (0, 1), (1, 0), (1, 1)):
        share = np.abs(1 - right - (x - column)) * np.abs(1 - down - (y - row))
        np.add.at(kernel, (row + down, column + right), share)
    return kernel / kernel.sum()


def motion_blur(image: RGB, length: float, angle: float) -> RGB:
    """The image as taken by a camera that moves `length` pixels; the angle as in the kernel."""
    return cv2.filter2D(image, -1, motion_kernel(length, angle))


def jpeg(image: RGB, quality: int) -> RGB:
    """The image after JPEG of a quality from 1 to 100, color at half resolution."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    return cv2.cvtColor(cv2.imdecode(encoded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def downscale(image: RGB, factor: float) -> RGB:
    """The image with both sides divided by `factor`; pixels are means over their area."""
    height, width = (max(1, round(side / factor)) for side in image.shape[:2])
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def upscale(image: RGB, height: int, width: int) -> RGB:
    """The image enlarged to a size, cubically."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)


def rectangular_hole(height: int, width: int, rng: np.random.Generator) -> Hole:
    """A rectangle of a quarter to three quarters of each side, anywhere in the image."""
    inside = np.zeros((height, width), bool)
    sides = [max(1, round(side * rng.uniform(0.25, 0.75))) for side in (height, width)]
    top, left = (
        rng.integers(full - side + 1) for full, side in zip((height, width), sides, strict=True)
    )
    inside[top : top + sides[0], left : left + sides[1]] = True
    return inside


def free_form_hole(height: int, width: int, rng: np.random.Generator) -> Hole:
    """One to four strokes of a round brush that zigzag across the image.

    After algorithm 1 of Yu et al., Free-Form Image Inpainting with Gated Convolution (2019), in
    proportion to the image: a stroke starts anywhere, has 4 to 12 straight pieces at 72 +- 24
    degrees to its direction, left and right in turn, and a brush of 5 to 15 % of the shorter side.
    Lengths are normally distributed around an eighth of the diagonal (deviation a sixteenth).
    """
    inside = np.zeros((height, width), np.uint8)
    side, diagonal = min(height, width), math.hypot(height, width)
    for _ in range(rng.integers(1, 5)):
        brush, direction = max(1, round(side * rng.uniform(0.05, 0.15))), rng.uniform(0, math.tau)
        points = [rng.uniform(0, 1, 2) * (width, height)]
        for piece in range(rng.integers(4, 13)):
            angle = direction + math.radians(rng.uniform(48, 96)) * (-1) ** piece
            length = np.clip(rng.normal(diagonal / 8, diagonal / 16), 0, diagonal / 4)
            step = length * np.array([math.cos(angle), math.sin(angle)])
            points.append(np.clip(points[-1] + step, 0, (width - 1, height - 1)))
        stroke = np.array(points).astype(np.int32)
        cv2.polylines(inside, [stroke], False, 1, brush)  # OpenCV's thick lines have round ends
    return inside.astype(bool)


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
