"""The `sample` command: files in, files out."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from jaxtyping import Float
from PIL import Image

from onediff_jax.data.batching.settings import tokens_of, views_of_tasks
from onediff_jax.data.example import View
from onediff_jax.data.images import image_in
from onediff_jax.data.sources.nerfstudio import camera_of, entries_in, intrinsics_of
from onediff_jax.data.tasks.builders import is_ray, subject_words
from onediff_jax.data.tasks.fitting import FILTERS, crop_and_resize, crop_camera, grid_for
from onediff_jax.data.tasks.table import TASKS, canonical, prompt_of
from onediff_jax.errors import InputError
from onediff_jax.ops.cameras import (
    ORBIT_FOCAL,
    Camera,
    intrinsics_matrix,
    orbit_cameras,
    relative_cameras,
    scaled_cameras,
)
from onediff_jax.ops.poses import cameras_from_rays, uncalibrated_camera_from_rays
from onediff_jax.sampling.generate import GeneratedView, Request, SampleConfig, generate, names_of
from onediff_jax.train.restore import NOWHERE_ELSE, restore_model

Intrinsics = Mapping[str, Float[np.ndarray, "3 3"]]  # K of cameras, by their views' names

DISTANCE = 1.5  # of an orbit's cameras where none is said, as in the released demonstration


def run(options: flags.FlagValues) -> None:
    """Samples what the options ask for."""
    sample_to_folder(
        epath.Path(options.checkpoint),
        SampleRequest(
            options.task,
            dict(name_and_file(text) for text in options.given),
            options.prompt,
            options.item,
            options.orbit,
            pathlib.Path(options.cameras) if options.cameras else None,
            options.views,
            options.focal,
        ),
        pathlib.Path(options.out),
        seed=options.seed,
        num=options.num,
        size=options.size,
        settings={
            field.name: options[field.name].value for field in dataclasses.fields(SampleConfig)
        },
        moved={
            part: folder for part in ("text", "codec") if (folder := options[f"{part}_path"].value)
        },
        root=options.root,
    )


@dataclasses.dataclass(frozen=True)
class SampleRequest:
    """What the command line says of an example."""

    task: str
    given: Mapping[str, pathlib.Path]  # images, by their views' names
    prompt: str = ""
    item: str = ""  # name of the thing that the references show
    orbit: str = ""  # azimuth,elevation[,distance] of every camera, or ? for an unknown one
    cameras: pathlib.Path | None = None  # nerfstudio's transforms.json, a frame for every view
    views: int | None = None  # images of a scene
    focal: float | None = None  # of all cameras, in widths of the image as it is sampled

    def __post_init__(self):
        object.__setattr__(self, "task", canonical(self.task))
        for name in ("orbit", "cameras", "views", "focal"):
            if (
                getattr(self, name) is not None
                and getattr(self, name) != ""
                and self.task != "multiview"
            ):
                raise InputError(f"--{name} is for multiview; --task is {self.task!r}.")
        if self.orbit and self.cameras:
            raise InputError("--orbit and --cameras both say where cameras stand; give one.")
        if self.focal is not None and self.cameras:
            raise InputError("--focal and --cameras both say focal lengths; give one.")
        if self.focal is not None and not self.focal > 0:
            raise InputError(f"--focal is {self.focal}; it must be positive, in image widths.")

    @property
    def count(self) -> int:
        """How many views the example has."""
        counts = TASKS[self.task].builder.counts
        if len(counts) == 1:
            return counts[0]
        numbers = [int(found[1]) for name in self.given if (found := re.search(r"_(\d+)$", name))]
        if self.task != "multiview":
            return 1 + max([*numbers, 1])
        known = len(camera_entries(self.cameras)) if self.cameras else len(self.orbit.split())
        return 2 * max(self.views or 0, known, 1 + max([*numbers, -1]))


def name_and_file(text: str) -> tuple[str, pathlib.Path]:
    """View and file of a --given option."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise InputError(f"--given is {text!r}; it must be NAME=FILE, such as depth=room.png.")
    return name, pathlib.Path(file)


def size_of(text: str) -> tuple[int, int]:
    """Height and width of a --size option."""
    if not (found := re.fullmatch(r"(\d+)x(\d+)", text)):
        raise InputError(f"--size is {text!r}; it must be HEIGHTxWIDTH, such as 256x256.")
    return int(found[1]), int(found[2])


def orbit_of(text: str, size: tuple[int, int], focal: float = ORBIT_FOCAL) -> dict[str, Camera]:
    """The known cameras of an --orbit option, relative to the first, by their views' names."""
    places, known = text.split(), {}
    for i, place in enumerate(places):
        numbers = place.split(",")
        if place == "?":
            continue
        try:
            azimuth, elevation, *rest = map(float, numbers)
            (distance,) = rest or [DISTANCE]
        except ValueError:
            raise InputError(
                f"--orbit has {place!r}; every camera is AZIMUTH,ELEVATION in degrees, with "
                "DISTANCE where it is not 1.5, or ? where it is unknown."
            ) from None
        known[f"ray_{i}"] = (azimuth, elevation, distance)
    if known and "ray_0" not in known:
        raise InputError("--orbit begins with ?; the first camera is the world, so say it.")
    azimuths, elevations, distances = np.array(list(known.values()), float).reshape(-1, 3).T
    rig = orbit_cameras(azimuths, elevations, distances, size, focal)
    return dict(zip(known, map(Camera, *relative_cameras(rig)), strict=True)) if known else {}


def camera_entries(file: pathlib.Path) -> list[dict[str, Any]]:
    """The frames of a transforms.json; raises InputError where it is none."""
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(
            f"--cameras {file} cannot be read: {error.strerror}; give a transforms.json."
        ) from None
    return entries_in(data, f"--cameras {file}")


def cameras_in(file: pathlib.Path, size: tuple[int, int]) -> tuple[dict[str, Camera], Intrinsics]:
    """The cameras of a transforms.json for images of `size`, and all intrinsics, by views' names.

    Scaled as in training: the first camera is 1.7 from what all look at, and is the world.  A frame
    without transform_matrix has intrinsics alone.
    """
    cameras, known = [], []
    for i, entry in enumerate(camera_entries(file)):
        where = f"--cameras {file}, frames[{i}] ({entry.get('file_path', 'no file_path')})"
        if entry.get("transform_matrix") is None:
            K, own_size = intrinsics_of(entry, where)
            camera = Camera(K, np.eye(4))
        else:
            camera, own_size = camera_of(entry, where)
            known.append(i)
        cameras.append(crop_camera(camera, own_size, size))
    intrinsics = {f"ray_{i}": camera.intrinsics for i, camera in enumerate(cameras)}
    if not known:
        return {}, intrinsics
    if known[0]:
        raise InputError(
            f"--cameras {file} has no transform_matrix in frames[0] and one in frames[{known[0]}]; "
            "the first camera is the world, so begin with a known one."
        )
    rig = Camera(*map(np.stack, zip(*(cameras[i] for i in known), strict=True)))
    relative = map(Camera, *relative_cameras(scaled_cameras(rig)))
    return {f"ray_{i}": camera for i, camera in zip(known, relative, strict=True)}, intrinsics


def given_cameras(
    asked: SampleRequest, size: tuple[int, int]
) -> tuple[dict[str, Camera], Intrinsics]:
    """The cameras that are condition views, and the intrinsics that are known, by views' names."""
    if asked.cameras:
        return cameras_in(asked.cameras, size)
    if asked.focal is None:
        return orbit_of(asked.orbit, size), {}
    height, width = size
    numbers = (asked.focal * width, asked.focal * width, width / 2, height / 2)
    K = intrinsics_matrix(*map(np.float64, numbers))
    rays = filter(is_ray, names_of(asked.task, asked.count))
    return orbit_of(asked.orbit, size, asked.focal), dict.fromkeys(rays, K)


def prompt_for(asked: SampleRequest) -> str:
    """The whole prompt; one that begins with a token is left as it is."""
    if asked.prompt.startswith("[[") and not asked.prompt.startswith("[[img0]]"):
        return asked.prompt
    if asked.task in ("faceid", "subject_driven") and "[[img0]]" not in asked.prompt:
        texts = [asked.prompt, *[""] * (asked.count - 1)]
        return prompt_of(asked.task, subject_words(asked.item, texts))
    return prompt_of(asked.task, (f"<item: {asked.item}>" if asked.item else "", asked.prompt))


def sample_to_folder(
    checkpoint: pathlib.PurePath,
    asked: SampleRequest,
    out: pathlib.Path,
    *,
    seed: int,
    num: int,
    size: str | None,
    settings: Mapping[str, Any],
    moved: Mapping[str, str] = NOWHERE_ELSE,
    root: str = "",
) -> list[pathlib.Path]:
    """The files of `num` samples of what is not given: PNG images, and cameras as JSON.

    `moved` and `root` as `restore_model` takes them.
    """
    config = SampleConfig(**settings)
    names = names_of(asked.task, asked.count)
    for name in asked.given:
        if name not in names or is_ray(name):
            allowed = ", ".join(name for name in names if not is_ray(name))
            raise InputError(
                f"--given names {name!r}; the images of task {asked.task!r} are {allowed}."
            )
    images = {name: image_in(file) for name, file in asked.given.items()}
    model, trained, step = restore_model(checkpoint, moved, root)
    trainable = views_of_tasks(model.data)
    if asked.task not in trainable:
        raise InputError(
            f"--task is {asked.task!r}, which this checkpoint was not trained on; it knows "
            f"{', '.join(trainable)}."
        )
    fitting = model.data.fitting
    if size:
        height, width = size_of(size)
    else:
        tall, wide = next(iter(images.values())).shape[:2] if images else (1, 1)
        tokens = tokens_of(model.data, asked.task)
        grid = grid_for(tall, wide, tokens, fitting.square)
        height, width = (trained.edge * side for side in grid)
    given: dict[str, View] = {
        name: crop_and_resize(image, height, width, FILTERS[fitting.filter])
        for name, image in images.items()
    }
    cameras, intrinsics = given_cameras(asked, (height, width))
    given |= cameras
    request = Request(prompt_for(asked), given)
    samples = generate(
        trained, asked.task, asked.count, [request] * num, (height, width), config, seed
    )
    pattern = f"{asked.task}_{{name}}_{seed}_{{number:03d}}"
    files = write_samples(samples, out, pattern, trained.codec.factor, intrinsics)
    print(
        f"{len(files)} files of {height} x {width} from step {step:,}: {files[0]}"
        + (" ..." if files[1:] else "")
    )
    return files


def write_samples(
    samples: Sequence[Mapping[str, GeneratedView]],
    out: pathlib.Path,
    pattern: str,
    factor: int,
    intrinsics: Intrinsics,
) -> list[pathlib.Path]:
    """The files of samples: a PNG for every image, one JSON for the cameras of an example."""
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for number, sample in enumerate(samples):
        rays = {name: view for name, view in sample.items() if is_ray(name)}
        for name, view in sample.items():
            if name not in rays:
                file = out / (pattern.format(name=name, number=number) + ".png")
                unfinished = file.with_suffix(".part")
                Image.fromarray(view).save(unfinished, "png")
                files.append(unfinished.rename(file))
        if rays:
            file = out / (pattern.format(name="cameras", number=number) + ".json")
            unfinished = file.with_suffix(".part")
            unfinished.write_text(json.dumps(camera_values(rays, factor, intrinsics), indent=1))
            files.append(unfinished.rename(file))
    return files


def camera_values(
    rays: Mapping[str, GeneratedView], factor: int, intrinsics: Intrinsics
) -> dict[str, dict[str, Any]]:
    """Recovered cameras by their views' names: OpenCV axes, pixels, the first camera's world.

    Where intrinsics are known they are kept, and the pose alone is found: a shift of the principal
    point looks much like a turn.
    """
    values = {}
    for name, view in rays.items():
        if name in intrinsics:
            camera = cameras_from_rays(view.astype(np.float64), intrinsics[name], factor)
        else:
            camera = uncalibrated_camera_from_rays(view, factor)
        values[name] = {
            "intrinsics": camera.intrinsics.tolist(),
            "camera_to_world": camera.camera_to_world.tolist(),
        }
    return values
