"""Pinhole cameras and the frames that others keep them in; for NumPy and jax.numpy.

World: any right-handed frame.  Camera: OpenCV axes (x right, y down, z forward).  Pixels: x right,
y down, and the centre of the first pixel is (0.5, 0.5), so that an image's edges are 0 and its
width.  A size is (height, width).  Products of matrices are written as sums: a TPU would round the
factors of a real one to bfloat16.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Real

from onediff_jax.errors import InputError

PARALLEL = 1e-4  # mean squared sine of the angles between optical axes and their mean: 0.6 degrees
REACH = 10.0  # a rig may be this many times as wide as its distance from where its axes meet
POINT = 1e-6  # a rig this small, against one unit and against its coordinates, is a point
ORBIT_FOCAL = 1.3887  # of the released demo, in widths of the image: 39.6 degrees across


class Camera(NamedTuple):
    """Pinhole cameras; a rig has an axis of views, the last of the batch."""

    intrinsics: Float[Any, "*batch 3 3"]  # K in pixels, upper triangular
    camera_to_world: Float[Any, "*batch 4 4"]  # rigid, OpenCV axes

    @property
    def rotation(self) -> Float[Any, "*batch 3 3"]:
        """The camera's axes in the world, as columns."""
        return self.camera_to_world[..., :3, :3]

    @property
    def center(self) -> Float[Any, "*batch 3"]:
        """Where the camera stands in the world."""
        return self.camera_to_world[..., :3, 3]


class PyTorch3DCamera(NamedTuple):
    """A camera as PyTorch3D keeps it: X_camera = X_world R + T, axes x left, y up, z forward.

    Focal length and principal point are in NDC: x left, y up, zero in the middle of the image,
    and the shorter side reaches from -1 to 1 (what CO3D calls ndc_isotropic; its older
    ndc_norm_image_bounds, where both sides do, differs for images that are not square).
    """

    R: Float[Any, "*batch 3 3"]
    T: Float[Any, "*batch 3"]
    focal_length: Float[Any, "*batch 2"]
    principal_point: Float[Any, "*batch 2"]


def matrix_product(
    a: Float[Any, "*#batch m k"], b: Float[Any, "*#batch k n"]
) -> Float[Any, "... m n"]:
    """The product of small matrices in their own precision on every device."""
    return (a[..., :, :, None] * b[..., None, :, :]).sum(-2)


def transposed(matrix: Float[Any, "*batch m n"]) -> Float[Any, "*batch n m"]:
    """Matrices with rows and columns swapped."""
    return matrix.swapaxes(-1, -2)


def rotated(rotation: Float[Any, "*#batch 3 3"], vector: Float[Any, "*#batch 3"]) -> Any:
    """Vectors times matrices, R v, in their own precision on every device."""
    return (rotation * vector[..., None, :]).sum(-1)


def nearest_rotation(matrix: Float[Any, "*batch 3 3"]) -> Float[Any, "*batch 3 3"]:
    """The rotation R with the largest trace(Rᵀ M), which is the nearest in the Frobenius norm.

    With M = sum of b aᵀ it is the R that minimises the sum of |b - R a|² (Kabsch 1976).
    """
    xp = matrix.__array_namespace__()
    u, _, vh = xp.linalg.svd(matrix)
    mirrored = xp.sign(xp.linalg.det(u) * xp.linalg.det(vh))
    signs = xp.stack([xp.ones_like(mirrored), xp.ones_like(mirrored), mirrored], axis=-1)
    return matrix_product(u * signs[..., None, :], vh)


def pose_matrix(
    rotation: Float[Any, "*batch 3 3"], translation: Float[Any, "*batch 3"]
) -> Float[Any, "*batch 4 4"]:
    """The matrix of x -> R x + t on homogeneous points."""
    xp = rotation.__array_namespace__()
    top = xp.concatenate([rotation, translation[..., None]], axis=-1)
    last = xp.asarray([0.0, 0.0, 0.0, 1.0], dtype=top.dtype)
    return xp.concatenate([top, xp.broadcast_to(last, (*top.shape[:-2], 1, 4))], axis=-2)


def rigid_inverse(pose: Float[Any, "*batch 4 4"]) -> Float[Any, "*batch 4 4"]:
    """The inverse of a rotation and translation: world to camera of camera to world, and back."""
    back = transposed(pose[..., :3, :3])
    return pose_matrix(back, -rotated(back, pose[..., :3, 3]))


# Frames


def opencv_from_opengl(camera_to_world: Float[Any, "*batch 4 4"]) -> Float[Any, "*batch 4 4"]:
    """Poses with OpenCV axes of poses with OpenGL axes (x right, y up, z back): nerfstudio's."""
    xp = camera_to_world.__array_namespace__()
    return camera_to_world * xp.asarray([1.0, -1.0, -1.0, 1.0], dtype=camera_to_world.dtype)


def opengl_from_opencv(camera_to_world: Float[Any, "*batch 4 4"]) -> Float[Any, "*batch 4 4"]:
    """The inverse of `opencv_from_opengl`: the same two axes turn back."""
    return opencv_from_opengl(camera_to_world)


def colmap_world_from_nerfstudio(
    camera_to_world: Float[Any, "*batch 4 4"],
) -> Float[Any, "*batch 4 4"]:
    """Poses in the world before nerfstudio changed it: rows 0 and 1 swapped, row 2 negated.

    The released data set does this.  It is a proper rotation of the world, so nothing that is
    relative to the first camera feels it.
    """
    xp = camera_to_world.__array_namespace__()
    change = [[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, -1, 0], [0, 0, 0, 1]]
    return matrix_product(xp.asarray(change, dtype=camera_to_world.dtype), camera_to_world)


def nerfstudio_world_from_colmap(
    camera_to_world: Float[Any, "*batch 4 4"],
) -> Float[Any, "*batch 4 4"]:
    """The inverse of `colmap_world_from_nerfstudio`: the change undoes itself."""
    return colmap_world_from_nerfstudio(camera_to_world)


def _left_up(array: Any) -> Any:
    """The signs of x left, y up, z forward against OpenCV axes, in the array's type."""
    return array.__array_namespace__().asarray([-1.0, -1.0, 1.0], dtype=array.dtype)


def pytorch3d_from_camera(camera: Camera, size: tuple[int, int]) -> PyTorch3DCamera:
    """PyTorch3D's form of cameras whose images have a size (height, width).

    As `cameras_from_opencv_projection` of PyTorch3D; skew is lost, it has no place there.
    """
    xp = camera.intrinsics.__array_namespace__()
    world_to_camera = rigid_inverse(camera.camera_to_world)
    K, half = camera.intrinsics, min(size) / 2
    middle = xp.asarray([size[1] / 2, size[0] / 2], dtype=K.dtype)
    return PyTorch3DCamera(
        R=transposed(world_to_camera[..., :3, :3]) * _left_up(K),
        T=world_to_camera[..., :3, 3] * _left_up(K),
        focal_length=xp.stack([K[..., 0, 0], K[..., 1, 1]], axis=-1) / half,
        principal_point=(middle - K[..., :2, 2]) / half,
    )


def camera_from_pytorch3d(camera: PyTorch3DCamera, size: tuple[int, int]) -> Camera:
    """The inverse of `pytorch3d_from_camera`, for images of the same size (height, width)."""
    xp = camera.R.__array_namespace__()
    half = min(size) / 2
    focal = camera.focal_length * half
    middle = xp.asarray([size[1] / 2, size[0] / 2], dtype=camera.R.dtype)
    center = middle - camera.principal_point * half
    world_to_camera = pose_matrix(
        transposed(camera.R * _left_up(camera.R)), camera.T * _left_up(camera.T)
    )
    return Camera(
        intrinsics_matrix(focal[..., 0], focal[..., 1], center[..., 0], center[..., 1]),
        rigid_inverse(world_to_camera),
    )


# Intrinsics


def intrinsics_matrix(
    fl_x: Float[Any, "*batch"],
    fl_y: Float[Any, "*batch"],
    cx: Float[Any, "*batch"],
    cy: Float[Any, "*batch"],
) -> Float[Any, "*batch 3 3"]:
    """K of focal lengths and principal points in pixels."""
    xp = fl_x.__array_namespace__()
    zero, one = xp.zeros_like(fl_x), xp.ones_like(fl_x)
    rows = ([fl_x, zero, cx], [zero, fl_y, cy], [zero, zero, one])
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def focal_from_angle(angle: float, width: float | int) -> float:
    """Focal length in pixels of an image that sees an angle across, in radians."""
    return 0.5 * width / math.tan(0.5 * angle)


def angle_from_focal(focal: float, width: float | int) -> float:
    """The inverse of `focal_from_angle`: the angle in radians that an image sees across."""
    return 2 * math.atan2(0.5 * width, focal)


def cropped_intrinsics(
    intrinsics: Float[Any, "*batch 3 3"], top: float | int, left: float | int
) -> Float[Any, "*batch 3 3"]:
    """K of the part of an image that begins at a row and a column; its size does not matter."""
    xp = intrinsics.__array_namespace__()
    moved = [[0.0, 0, left], [0, 0, top], [0, 0, 0]]
    return intrinsics - xp.asarray(moved, dtype=intrinsics.dtype)


def resized_intrinsics(
    intrinsics: Float[Any, "*batch 3 3"],
    size: tuple[float | int, float | int],
    new_size: tuple[int, int],
) -> Float[Any, "*batch 3 3"]:
    """K of images resized from one (height, width) to another.

    Exact for resizing that keeps the edges in place, as every one with half-pixel centres does.
    Images in folders like `images_4` are resized ones: take the new size from the file, since a
    quarter of an odd width was rounded.
    """
    xp = intrinsics.__array_namespace__()
    scale = [[new_size[1] / size[1]], [new_size[0] / size[0]], [1.0]]
    return intrinsics * xp.asarray(scale, dtype=intrinsics.dtype)


# Rigs


def relative_cameras(cameras: Camera) -> Camera:
    """A rig (... v) in the frame of its first camera, which becomes the identity."""
    back = transposed(cameras.rotation[..., :1, :, :])
    center = rotated(back, cameras.center - cameras.center[..., :1, :])
    return cameras._replace(
        camera_to_world=pose_matrix(matrix_product(back, cameras.rotation), center)
    )


def _spread(cameras: Camera) -> Any:
    """The largest distance of a rig's camera from its first."""
    xp = cameras.camera_to_world.__array_namespace__()
    return xp.linalg.norm(cameras.center - cameras.center[..., :1, :], axis=-1).max(-1)


def optical_axes_intersection(cameras: Camera) -> Float[Any, "*batch 3"]:
    """The point p* nearest to all optical axes of a rig (... v), by least squares.

    It solves sum(I - d dᵀ) p = sum(I - d dᵀ) c over cameras at c that look along d.  Axes that are
    parallel (within PARALLEL; so is the axis of a single camera) meet nowhere: then it is the point
    that lies as far in front of the first camera as the furthest other camera is from it.
    """
    xp = cameras.camera_to_world.__array_namespace__()
    axis, first = cameras.rotation[..., 2], cameras.center[..., :1, :]
    identity = xp.eye(3, dtype=axis.dtype)
    across = identity - axis[..., :, None] * axis[..., None, :]
    matrix = across.mean(-3)
    offset = rotated(across, cameras.center - first).mean(-2)
    parallel = (xp.linalg.eigvalsh(matrix)[..., :1] < PARALLEL)[..., None]
    meeting = xp.linalg.solve(xp.where(parallel, identity, matrix), offset[..., None])[..., 0]
    ahead = _spread(cameras)[..., None] * axis[..., 0, :]
    return first[..., 0, :] + xp.where(parallel[..., 0], ahead, meeting)


def scaled_cameras(cameras: Camera, distance: float = 1.7) -> Camera:
    """A rig (... v) scaled so that its first camera is at a distance from where the axes meet.

    1.7 is what the released weights were trained with.  A rig whose first camera stands (nearly)
    where the axes meet is scaled as if that point were a tenth of the rig's width away (REACH), so
    that no coordinate grows beyond 17; one whose cameras stand in one point (POINT) is left as it
    is.
    """
    xp = cameras.camera_to_world.__array_namespace__()
    away = optical_axes_intersection(cameras) - cameras.center[..., 0, :]
    reached = xp.maximum(xp.linalg.norm(away, axis=-1), _spread(cameras) / REACH)
    coordinates = xp.maximum(xp.abs(cameras.center).max((-1, -2)), 1)
    point = reached <= POINT * coordinates
    scale = xp.where(point, 1, distance / xp.where(point, 1, reached))
    center = cameras.center * scale[..., None, None]
    return cameras._replace(camera_to_world=pose_matrix(cameras.rotation, center))


def orbit_cameras(
    azimuth: Real[np.ndarray, "v"],
    elevation: Real[np.ndarray, "v"],
    distance: Real[np.ndarray, "v"],
    size: tuple[int, int],
    focal: float = ORBIT_FOCAL,
) -> Camera:
    """Cameras on spheres around the origin that look at it, with z up.

    Azimuth and elevation are in degrees: (0, 0) stands on the x axis, a greater azimuth is to the
    camera's right, a greater elevation is higher; at the poles up is what it is just before them.
    `focal` is in widths of the image, of size (height, width).  Raises InputError for a distance
    that is not positive or an angle that is not finite.
    """
    for name, values in {"azimuth": azimuth, "elevation": elevation, "distance": distance}.items():
        for value in values:
            if not np.isfinite(value) or (name == "distance" and value <= 0):
                expected = "a positive number" if name == "distance" else "degrees"
                raise InputError(f"A camera's {name} is {value}; give {expected}.")
    a, e = np.radians(azimuth, dtype=np.float64), np.radians(elevation, dtype=np.float64)
    zero = np.zeros_like(a)
    outward = np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], axis=-1)
    right = np.stack([-np.sin(a), np.cos(a), zero], axis=-1)
    axes = np.stack([right, np.cross(-outward, right), -outward], axis=-1)
    height, width = size
    pixels = np.full_like(a, focal * width)
    K = intrinsics_matrix(pixels, pixels, zero + width / 2, zero + height / 2)
    return Camera(K, pose_matrix(axes, outward * distance[:, None]))
