"""A textured 3D model as triangles in the world.

World: right-handed, z up, the model's front towards -y, its bounding box centred at the origin and
its longest side 1.

f triangles   k materials   l levels of a texture   t texels   n points
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int, UInt8

CREASE = 45.0  # faces that meet at a wider angle, in degrees, keep their edge
TEXTURE = 512  # pixels along a texture's longer side, at most
GLOSS = 0.012  # share of light that any surface reflects: black ones keep their shape
PLAIN = (200, 200, 200, 255)  # sRGB and opacity of faces without a material


class Textures(NamedTuple):
    """The materials' textures, each with its levels of half the size, as one list of texels.

    A texel is linear RGB times opacity, then opacity.  A plain color is a texture of one texel.
    """

    texels: Float32[np.ndarray, "t 4"]
    first: Int[np.ndarray, "k l"]  # where a level starts; the last one is repeated
    width: Int[np.ndarray, "k l"]
    height: Int[np.ndarray, "k l"]


class Mesh(NamedTuple):
    """A model as triangles in the world, with what each of their corners has."""

    corners: Float[np.ndarray, "f 3 3"]
    normals: Float[np.ndarray, "f 3 3"]  # unit length, outside or inside
    uv: Float[np.ndarray, "f 3 2"]  # v up; textures repeat
    material: Int[np.ndarray, "f"]
    textures: Textures


def linear_from_srgb(color: np.ndarray) -> np.ndarray:
    """Linear light of sRGB values in [0, 1] (IEC 61966-2-1)."""
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def dot(a: Float[np.ndarray, "n 3"], b: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n"]:
    """Inner products."""
    return np.einsum("nc,nc->n", a, b)


def textures_of(images: list[UInt8[np.ndarray, "_ _ 4"]]) -> Textures:
    """Textures of sRGB images with opacity."""
    levels = []
    for image in images:
        texture = image / np.float32(255)
        color = GLOSS + (1 - GLOSS) * linear_from_srgb(texture[..., :3])
        texture[..., :3] = color * texture[..., 3:]
        levels.append([texture.astype(np.float32)])
        while max(texture.shape[:2]) > 1:
            h, w = (max(side // 2, 1) for side in texture.shape[:2])
            y, x = (s // half for s, half in zip(texture.shape[:2], (h, w), strict=True))
            texture = texture[: h * y, : w * x].reshape(h, y, w, x, 4).mean((1, 3))
            levels[-1].append(texture)
    deepest = max(map(len, levels))
    numbers = np.zeros((3, len(images), deepest), np.int64)
    start = 0
    for i, pyramid in enumerate(levels):
        for j, level in enumerate(pyramid):
            numbers[:, i, j:] = np.array([start, level.shape[1], level.shape[0]])[:, None]
            start += level.shape[0] * level.shape[1]
    texels = np.concatenate([level.reshape(-1, 4) for pyramid in levels for level in pyramid])
    return Textures(texels, *numbers)


def texels_at(
    textures: Textures,
    material: Int[np.ndarray, "n"],
    uv: Float[np.ndarray, "n 2"],
    width: Float[np.ndarray, "n"],
) -> Float[np.ndarray, "n 4"]:
    """Texels, interpolated, of the level at which a ray as wide as `width` texels sees one."""
    level = np.log2(np.maximum(width, 1)).round().astype(int)
    level = np.minimum(level, textures.first.shape[1] - 1)
    first, w, h = (numbers[material, level] for numbers in textures[1:])
    x, y = uv[:, 0] * w - 0.5, (1 - uv[:, 1]) * h - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    x, y = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)

    def row(y: np.ndarray) -> np.ndarray:
        at = first + y % h * w
        a, b = textures.texels[at + left % w], textures.texels[at + (left + 1) % w]
        return a + (b - a) * x

    above, below = row(top), row(top + 1)
    return above + (below - above) * y


def corner_normals(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3 3"]:
    """Unit normals at corners: the mean over the faces that meet there without a crease.

    Faces are weighted by their area; those wound the other way count turned around.
    """
    cross = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    unit = cross / np.linalg.norm(cross, axis=1, keepdims=True)
    # Corners at one place stand side by side once they are sorted: the s-th neighbour of each is
    # compared with it, for s = 1, 2, ... until none is at the same place.
    x, y, z = (corners * 1e6).round().astype(np.int64).reshape(-1, 3).T
    place = (x << 42) + (y << 21) + z  # a number for each, since all lie in the unit box
    order = np.argsort(place, kind="stable")
    place, face = place[order], order // 3
    total = cross[face]
    first = np.arange(len(order))
    for s in range(1, len(order)):
        first = first[: np.searchsorted(first, len(order) - s)]
        first = first[place[first] == place[first + s]]
        if not len(first):
            break
        one, other = face[first], face[first + s]
        cosine = dot(unit[one], unit[other])
        smooth = np.abs(cosine) > np.cos(np.radians(CREASE))
        one, other, at = one[smooth], other[smooth], first[smooth]
        sign = np.sign(cosine[smooth])[:, None]
        total[at] += sign * cross[other]
        total[at + s] += sign * cross[one]
    normals = np.empty_like(total)
    normals[order] = total / np.linalg.norm(total, axis=1, keepdims=True)
    return normals.reshape(corners.shape)


def in_unit_box(points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Points moved and scaled so that their box is centred and its longest side is 1."""
    axes = tuple(range(points.ndim - 1))
    low, high = points.min(axes), points.max(axes)
    return (points - (low + high) / 2) / (high - low).max()


def mesh_of(scene, rotation: Float[np.ndarray, "3 3"]) -> Mesh:
    """The mesh of a trimesh scene whose y axis, once rotated, points up."""
    corners, uv, material, images = [], [], [], []
    for part in scene.geometry.values():
        if not len(getattr(part, "faces", ())):
            continue
        look = getattr(part.visual, "material", None)
        coordinates = getattr(part.visual, "uv", None)
        corners.append(np.asarray(part.vertices)[part.faces])
        material.append(np.full(len(part.faces), len(images)))
        images.append(image_of(look, coordinates is not None))
        flat = np.zeros((len(part.vertices), 2)) if coordinates is None else coordinates
        uv.append(np.asarray(flat, float)[part.faces])
    if not corners:
        raise ValueError("it has no faces")
    corners = np.concatenate(corners) @ rotation.T
    corners = in_unit_box(corners[..., [0, 2, 1]] * [1, -1, 1])
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    kept = area > 1e-12
    if not kept.any():
        raise ValueError("it has no faces of any size")
    corners, uv, material = corners[kept], np.concatenate(uv)[kept], np.concatenate(material)[kept]
    if not np.isfinite(uv).all():
        raise ValueError("it has texture coordinates that are not numbers")
    return Mesh(corners, corner_normals(corners), uv, material, textures_of(images))


def image_of(look, textured: bool) -> UInt8[np.ndarray, "_ _ 4"]:
    """The image that a trimesh material paints with, one pixel where it is a plain color."""
    image = getattr(look, "image", None) if textured else None
    if image is not None:
        image = image.convert("RGBA")
        image.thumbnail((TEXTURE, TEXTURE))
        pixels = np.array(image)
    else:
        pixels = np.array([[getattr(look, "diffuse", PLAIN)]], np.uint8)
    dissolve = (getattr(look, "kwargs", None) or {}).get("d", ["1"])
    pixels[..., 3] = (pixels[..., 3] * min(max(float(dissolve[-1]), 0), 1)).round()
    return pixels


def mesh_in(file: Path, rotation: Float[np.ndarray, "3 3"]) -> Mesh:
    """The mesh in an OBJ file, with the materials and textures beside it."""
    import trimesh

    return mesh_of(trimesh.load_scene(file, process=False), rotation)
