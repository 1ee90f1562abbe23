"""Images and depth of a mesh from cameras around it, by casting rays.

Cameras: OpenGL axes (x right, y up, z back), matrices camera-to-world.

f triangles   n rays that hit   h w image
"""

import numpy as np
from furniture.meshes import Mesh, dot, texels_at
from jaxtyping import Bool, Float, Int, UInt8

FOCAL = 1.3887  # focal length over the image's width: a field of view of 39.6 degrees
FILLED = 0.92  # share of the image's width that the model may take
ACROSS = 3  # rays along each side of a pixel; odd, so that one passes through its centre
LAYERS = 12  # surfaces that a ray may pass
STEP = 1e-3  # how far a ray starts from the surface that it leaves, a quarter of a pixel at 256
KEY, DOME = (
    0.58,
    0.58,
)  # irradiance over pi of the key light and of the dome, where nothing hides it
HORIZON, RISE = 0.75, 0.25  # the dome's radiance is HORIZON + RISE z
BOUNCED = 0.2  # share of the dome's light that reaches hidden places off other surfaces
SUN, SUN_RADIUS = (-0.45, -0.6, 0.75), 0.07  # towards the key light; radius of its disc in radians


def srgb_from_linear(light: np.ndarray) -> np.ndarray:
    """The sRGB values in [0, 1] of linear light (IEC 61966-2-1)."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)


def orbit(azimuth: float, elevation: float, distance: float) -> Float[np.ndarray, "4 4"]:
    """The camera-to-world matrix of a camera that looks at the origin; angles in degrees.

    At (0, 0) it is in front of the model; positive azimuth moves it to its right.
    """
    a, e = np.radians((azimuth, elevation))
    right = [np.cos(a), np.sin(a), 0]
    back = np.array([np.sin(a) * np.cos(e), -np.cos(a) * np.cos(e), np.sin(e)])
    matrix = np.eye(4)
    matrix[:3] = np.stack([right, np.cross(back, right), back, distance * back], axis=1)
    return matrix


def orbit_cameras(
    corners: Float[np.ndarray, "f 3 3"], views: int, rng: np.random.Generator
) -> list[Float[np.ndarray, "4 4"]]:
    """Cameras spread around a model, all at the distance where it fills the widest of its views."""
    start, jitter = rng.uniform(0, 360), rng.uniform(-0.3, 0.3, views)
    azimuths = start + (np.arange(views) + jitter) * 360 / views
    elevations = rng.uniform(0, 35, views)
    points = corners.reshape(-1, 3)
    distance = 0.0
    for azimuth, elevation in zip(azimuths, elevations, strict=True):
        x, y, z = (points @ orbit(azimuth, elevation, 0)[:3, :3]).T
        # A point's place in the image is FOCAL x / (distance - z) widths from its centre.
        needed = np.maximum(np.abs(x), np.abs(y)) * FOCAL / (FILLED / 2) + z
        distance = max(distance, needed.max())
    return [orbit(a, e, distance) for a, e in zip(azimuths, elevations, strict=True)]


def spread(count: int) -> Float[np.ndarray, "count 3"]:
    """Unit vectors spread evenly over the sphere (a Fibonacci lattice)."""
    i = np.arange(count)
    z, turn = 1 - (2 * i + 1) / count, i * np.pi * (3 - 5**0.5)
    radius = np.sqrt(1 - z**2)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)


def disc(count: int) -> Float[np.ndarray, "count 3"]:
    """Unit vectors towards places spread over the key light's disc (Vogel's spiral)."""
    sun = np.array(SUN) / np.linalg.norm(SUN)
    right = np.cross(sun, [0, 0, 1])
    right /= np.linalg.norm(right)
    radius, turn = np.sqrt((np.arange(count) + 0.5) / count), np.arange(count) * 2.39996
    x, y = SUN_RADIUS * radius * np.cos(turn), SUN_RADIUS * radius * np.sin(turn)
    towards = sun + x[:, None] * right + y[:, None] * np.cross(sun, right)
    return towards / np.linalg.norm(towards, axis=1, keepdims=True)


class Caster:
    """Casts rays at one mesh.

    Light is fixed to the world and surfaces are matt, so that a place has one color in all views.
    The rays of a pixel are lit from different places of the lights, the same ones in every pixel:
    shadows are soft and free of noise.
    """

    def __init__(self, mesh: Mesh):
        from embreex import rtcore_scene
        from embreex.mesh_construction import TriangleMesh

        self.mesh = mesh
        edges = mesh.corners[:, 1:] - mesh.corners[:, :1]
        cross = np.cross(edges[:, 0], edges[:, 1])
        area = np.linalg.norm(cross, axis=1)
        self.normal = (cross / area[:, None]).astype(np.float32)
        self.normals, self.uv = mesh.normals.astype(np.float32), mesh.uv.astype(np.float32)
        sides = mesh.uv[:, 1:] - mesh.uv[:, :1]
        wide, high = mesh.textures.width[mesh.material, 0], mesh.textures.height[mesh.material, 0]
        texels = np.abs(sides[:, 0, 0] * sides[:, 1, 1] - sides[:, 0, 1] * sides[:, 1, 0])
        self.density = np.sqrt(texels * wide * high / area)  # texels along a unit of length
        corners = mesh.corners.astype(np.float32)
        self.surfaces = rtcore_scene.EmbreeScene()
        TriangleMesh(self.surfaces, corners)
        # What lets half of the light through, such as panes and the cards that leaves are painted
        # on, throws no shadow.
        opacity = mesh.textures.texels[mesh.textures.first[:, -1], 3]
        self.shades = rtcore_scene.EmbreeScene()
        if (opaque := opacity[mesh.material] > 0.5).any():
            TriangleMesh(self.shades, corners[opaque])

    def lit(
        self,
        place: Float[np.ndarray, "n 3"],
        normal: Float[np.ndarray, "n 3"],
        ray: Int[np.ndarray, "n"],
    ) -> Float[np.ndarray, "n"]:
        """Irradiance over pi at places just off the surface; `ray` is its number in its pixel."""
        count = ACROSS**2
        light = KEY * self.seen(place, normal, disc(count)[ray])
        open_sky, sky = np.zeros(len(place)), np.full(len(place), 1e-6)
        for towards in spread(4 * count).reshape(4, count, 3):
            towards = towards[ray]
            radiance = HORIZON + RISE * towards[:, 2]
            open_sky += radiance * self.seen(place, normal, towards)
            sky += radiance * np.maximum(dot(normal, towards), 0)
        share = BOUNCED + (1 - BOUNCED) * open_sky / sky
        # The integral over the hemisphere of (HORIZON + RISE z) cos, over pi.
        return light + DOME * (HORIZON + RISE * normal[:, 2] * 2 / 3) * share

    def seen(
        self,
        place: Float[np.ndarray, "n 3"],
        normal: Float[np.ndarray, "n 3"],
        towards: Float[np.ndarray, "n 3"],
    ) -> Float[np.ndarray, "n"]:
        """Cosine between normals and directions, 0 where a surface is in the way."""
        towards = towards.astype(np.float32)
        cosine = np.maximum(dot(normal, towards), 0)
        facing = np.flatnonzero(cosine)
        hidden = self.shades.run(place[facing], towards[facing], query="OCCLUDED") >= 0
        cosine[facing[hidden]] = 0
        return cosine

    def near(
        self, camera: Float[np.ndarray, "4 4"], x: Float[np.ndarray, "n"], y: Float[np.ndarray, "n"]
    ) -> Bool[np.ndarray, "n"]:
        """Which of the rays (x, y, -1) in the camera's frame pass the mesh's box in the image."""
        points = (self.mesh.corners.reshape(-1, 3) - camera[:3, 3]) @ camera[:3, :3]
        right, up = (points[:, :2] / -points[:, 2:]).T
        wide = (x > right.min() - 1e-6) & (x < right.max() + 1e-6)
        return wide & (y > up.min() - 1e-6) & (y < up.max() + 1e-6)

    def view(
        self, camera: Float[np.ndarray, "4 4"], size: int
    ) -> tuple[UInt8[np.ndarray, "h w 3"], Float[np.ndarray, "h w"]]:
        """The sRGB image on white, and the depth along the optical axis at pixel centres.

        Depth is that of the surface that completes half of the opacity, 0 where there is none.
        """
        at = ((np.arange(size * ACROSS) + 0.5) / (size * ACROSS) - 0.5) / FOCAL
        x, y = (axis.ravel() for axis in np.meshgrid(at, -at))
        length = np.sqrt(1 + x**2 + y**2)
        rays = np.stack([x, y, np.full_like(x, -1)]) / length
        towards = np.ascontiguousarray((camera[:3, :3] @ rays).T, np.float32)
        row = np.arange(size * ACROSS) % ACROSS
        number = (row[:, None] * ACROSS + row).ravel()
        color = np.zeros((len(towards), 3), np.float32)
        clear = np.ones(len(towards), np.float32)
        depth, passed = np.zeros((2, len(towards)), np.float32)
        active = np.flatnonzero(self.near(camera, x, y))
        origin = np.broadcast_to(camera[:3, 3].astype(np.float32), (len(active), 3))
        for _ in range(LAYERS):
            hit = self.surfaces.run(np.ascontiguousarray(origin), towards[active], output=True)
            found = hit["primID"] >= 0
            active, face = active[found], hit["primID"][found]
            if not len(active):
                break
            passed[active] += hit["tfar"][found]
            place = camera[:3, 3].astype(np.float32) + towards[active] * passed[active, None]
            u, v = hit["u"][found], hit["v"][found]
            weights = np.stack([1 - u - v, u, v], axis=1)
            side = -np.sign(dot(self.normal[face], towards[active]))[:, None]
            front = self.normal[face] * side
            normal = np.einsum("nc,ncd->nd", weights, self.normals[face])
            normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
            normal *= np.sign(dot(normal, front))[:, None]
            slope = np.maximum(-dot(front, towards[active]), 0.1) ** 0.5
            width = self.density[face] * passed[active] / (FOCAL * size * ACROSS * slope)
            uv = np.einsum("nc,ncd->nd", weights, self.uv[face])
            texel = texels_at(self.mesh.textures, self.mesh.material[face], uv, width)
            light = self.lit(place + STEP * front, normal, number[active])
            color[active] += clear[active, None] * texel[:, :3] * light[:, None]
            before = clear[active]
            clear[active] *= 1 - texel[:, 3]
            half = (before > 0.5) & (clear[active] <= 0.5)
            depth[active[half]] = passed[active[half]] / length[active[half]]
            going = clear[active] > 0.02
            active = active[going]
            passed[active] += STEP / 10
            origin = place[going] + STEP / 10 * towards[active]
        pixels = (color + clear[:, None]).reshape(size, ACROSS, size, ACROSS, 3).mean((1, 3))
        middle = ACROSS // 2
        return (
            (srgb_from_linear(np.clip(pixels, 0, 1)) * 255).round().astype(np.uint8),
            depth.reshape(size, ACROSS, size, ACROSS)[:, middle, :, middle].astype(float),
        )
