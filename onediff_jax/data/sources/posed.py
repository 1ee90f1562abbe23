"""Scenes with known cameras: folders with a `transforms.json`, as nerfstudio and DL3DV keep them.

    DIR/SCENE/transforms.json    intrinsics, and for every frame its file and its camera-to-world
    DIR/SCENE/images/...         and the same images smaller in images_2, images_4, images_8
    DIR/SCENE/depth/...          PNG of 16 bits, as frames' depth_file_path says; optional
    DIR/metadata.jsonl           {"file_name": "SCENE", "text": "a caption"}, optional

Scenes may lie at any depth below DIR, and DIR may be a scene itself.  Lens distortion is not
undone: images are taken for those of a pinhole camera, as the released model took them.
"""

import dataclasses
import functools
import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from PIL import Image

from onediff_jax.data.example import RGB, Caption, Record
from onediff_jax.data.records import (
    Source,
    SourceSettings,
    StoredImage,
    StoredImages,
    StoredRecord,
    folder_at,
    numbers_of_split,
)
from onediff_jax.data.sources.listing import is_caption, listing_in
from onediff_jax.data.sources.nerfstudio import camera_of, entries_in, number
from onediff_jax.errors import BadRecord, InputError
from onediff_jax.ops.cameras import Camera, resized_intrinsics
from onediff_jax.paths import Location
from onediff_jax.settings import setting

TRANSFORMS = "transforms.json"
MILLIMETRES = 1e-3  # a unit of depth where the file says nothing, as in nerfstudio


@dataclasses.dataclass(frozen=True)
class Posed(SourceSettings):
    """Scenes of images with known cameras, in folders with a transforms.json."""

    path: Location = setting("", "of the folder of scenes, or of one scene")
    pictures: str = setting(
        "", "folder of a scene's images, such as images_4; empty: as its frames say"
    )
    depth: bool = setting(
        False, "whether records have depth of the first image, from the file that its frame names"
    )
    least: int = setting(2, "frames; scenes with fewer are left out")
    validation: int = setting(1, "scenes held out, spread evenly by name")

    def records(self, split: str) -> Source:
        """The scenes of a split."""
        return PosedScenes(self, split)


class PosedScenes(Source):
    """Scenes, whose frames are decoded when they are asked for."""

    def __init__(self, settings: Posed, split: str):
        self.folder = folder_at(settings.path, "posed")
        self._images, self._depth = settings.pictures, settings.depth
        scenes = sorted(scenes_in(self.folder))
        if not scenes:
            raise InputError(
                f"{self.folder} has no {TRANSFORMS}, nor has any folder in it; a scene is a folder "
                "with one."
            )
        captions = _captions_of(self.folder, scenes)
        enough = [s for s in scenes if frames_in(self.folder / s) >= max(settings.least, 1)]
        if not enough:
            raise InputError(
                f"None of the {len(scenes)} scenes in {self.folder} has {settings.least} frames; "
                "lower the source's least."
            )
        numbers = numbers_of_split(
            split, len(enough), settings.validation, f"scenes of enough frames in {self.folder}"
        )
        self._scenes = [enough[i] for i in numbers]
        self._captions = captions and {scene: captions[scene] for scene in self._scenes}
        self.fields = frozenset(
            {"image", "frames", "cameras"}
            | ({"caption"} if captions else set())
            | ({"depth"} if settings.depth else set())
        )
        self.least = {"frames": max(settings.least, 1)}

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Record:
        scene, where = self._scenes[index], self.where(index)
        views = views_of(self.folder / scene, self._images, where)
        if len(views) < self.least["frames"]:
            raise BadRecord(
                f"{where}: there are {len(views)} frames; the source promises "
                f"{self.least['frames']}."
            )
        frames = Frames([view[0] for view in views])
        cameras = Cameras(frames, [view[1] for view in views], where)
        record: dict[str, Any] = {"frames": frames, "cameras": cameras}
        if self._depth:
            record["depth"] = functools.partial(
                depth_of, views[0][1], self.folder / scene, f"{where}: {views[0][1]['file_path']}"
            )
        texts = {"caption": self._captions[scene]} if self._captions else {}
        return StoredRecord({"image": frames.stored[0]} | record | texts)

    def caption(self, index: int) -> Caption:
        """The caption of a scene, or its several; frames are not looked at."""
        return self._captions[self._scenes[index]] if self._captions else ""

    def where(self, index: int) -> str:
        """The scene's file of cameras."""
        return str(self.folder / self._scenes[index] / TRANSFORMS)


class Frames(StoredImages):
    """Images of a scene, and the sizes of those that were read."""

    def __init__(self, stored: Sequence[StoredImage]):
        super().__init__(stored)
        self._sizes: dict[int, tuple[int, int]] = {}

    def __getitem__(self, index: int) -> RGB:
        image = super().__getitem__(index)
        self._sizes[range(len(self))[index]] = image.shape[:2]
        return image

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of a frame, which is read where it has not been yet."""
        if index not in self._sizes:
            self[index]
        return self._sizes[index]


class Cameras(Sequence):
    """Cameras of a scene's frames, with intrinsics for the images as they are."""

    def __init__(self, frames: Frames, entries: Sequence[Mapping[str, Any]], where: str):
        self._frames, self._entries, self._where = frames, entries, where

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Camera:
        index = range(len(self))[index]
        where = f"{self._where}: {self._entries[index]['file_path']}"
        size = self._frames.size(index)
        camera, (height, width) = camera_of(self._entries[index], where, size)
        if abs(size[0] * width - size[1] * height) > width + height:  # more than a rounded pixel
            raise BadRecord(
                f"{where}: the image is {size[0]} x {size[1]}; by its cameras it is a resized "
                f"{height:g} x {width:g} (height x width)."
            )
        return camera._replace(
            intrinsics=resized_intrinsics(camera.intrinsics, (height, width), size)
        )


def depth_of(entry: Mapping[str, Any], scene: pathlib.Path, where: str) -> Float[np.ndarray, "h w"]:
    """Depth along the optical axis in a frame's PNG of 16 bits; infinite where that says 0.

    In the cameras' unit, of which a level is `depth_unit_scale_factor`.  Raises BadRecord.
    """
    unit = number(entry, "depth_unit_scale_factor", where, MILLIMETRES)
    if not isinstance(entry.get("depth_file_path"), str):
        raise BadRecord(
            f"{where}: depth_file_path is {entry.get('depth_file_path')!r}; it must name a file, "
            "or the source's depth be false."
        )
    data = (scene / entry["depth_file_path"]).read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as image:
            levels = np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadRecord(f"{where}: {entry['depth_file_path']} cannot be read: {error}") from error
    if levels.ndim != 2 or levels.dtype not in (np.uint16, np.int32):
        raise BadRecord(
            f"{where}: {entry['depth_file_path']} holds {levels.dtype} of shape {levels.shape}; "
            "depth is a grey PNG of 16 bits."
        )
    return np.where(levels > 0, levels * np.float32(unit), np.float32(np.inf))


def views_of(
    scene: pathlib.Path, images: str, where: str
) -> list[tuple[StoredImage, dict[str, Any]]]:
    """Images of a scene with their cameras' entries, ordered by file name; raises BadRecord.

    The order in the file is often that of reconstruction; names follow the camera's path.
    """
    entries = entries_in((scene / TRANSFORMS).read_bytes(), where)
    names = []
    for i, entry in enumerate(entries):
        path = entry.get("file_path")
        if not isinstance(path, str) or not pathlib.PurePosixPath(path).name:
            raise BadRecord(f"{where}: frames[{i}].file_path is {path!r}; it must name an image.")
        names.append(pathlib.PurePosixPath(path))
    views = []
    for name, entry in sorted(zip(names, entries, strict=True), key=lambda view: view[0]):
        name = name if name.suffix else name.with_suffix(".png")  # Blender's scenes
        file = scene / images / name.name if images else scene / name
        views.append((StoredImage(f"{where}: {file}", file.read_bytes), entry))
    return views


def scenes_in(folder: pathlib.Path) -> Iterator[str]:
    """Paths, inside of a folder, of the scenes in it; the folder itself is '.'."""
    for inner, folders, files in os.walk(folder, followlinks=True):
        if TRANSFORMS in files:
            folders.clear()  # images
            yield str(pathlib.PurePath(inner).relative_to(folder))


def frames_in(scene: pathlib.Path) -> int:
    """About how many frames a scene has, without understanding its file: there may be thousands."""
    return (scene / TRANSFORMS).read_bytes().count(b'"transform_matrix"')


def _captions_of(folder: pathlib.Path, scenes: Sequence[str]) -> dict[str, Caption]:
    """Captions by scene; none where there is no listing.  Raises InputError where some lack one."""
    listing = listing_in(folder)
    if listing is None:
        return {}
    captions, known = {}, set(scenes)
    for entry in listing.read():
        if entry["file_name"] not in known or not is_caption(entry.get("text")):
            raise InputError(
                f"{listing.where(-1)}: expected the name of a scene in {folder} and its text, "
                f"found {entry}."
            )
        captions[entry["file_name"]] = entry["text"]
    without = [scene for scene in scenes if scene not in captions]
    if without:
        raise InputError(
            f"{listing.file} has no caption for {len(without)} scenes, such as {without[0]!r}; "
            "write a line for every scene, or remove the file."
        )
    return captions
