"""A contact sheet of the full scenes, as their source gives them and as they are stored.

    python tools/docs/scenes_sheet.py --out docs/scenes.png

A row shows the views of a scene, its depth, normals, instances with boxes, keypoints, and the
edited image; below, groups that share a figure or an object.
"""

import argparse
import pathlib
import textwrap

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image, ImageDraw, ImageFont

from onediff_jax.data.conditions.maps import COLORS, depth_image, rgb
from onediff_jax.data.conditions.skeleton import pose_image
from onediff_jax.data.scenes.build import build
from onediff_jax.data.scenes.source import Scenes
from onediff_jax.data.scenes.worlds import WORLDS

EDGE, GAP, LINE = 150, 6, 15


def panel(image):
    """An image at the sheet's size."""
    return Image.fromarray(image).resize((EDGE, EDGE), Image.Resampling.BICUBIC)


def boxed(record):
    """Instances in colors, with their boxes and names."""
    palette = np.array([(0, 0, 0), *map(rgb, COLORS)], np.uint8)
    image = Image.fromarray(palette[record["instances"]]).resize((EDGE, EDGE), 0)
    draw, scale = ImageDraw.Draw(image), EDGE / len(record["image"])
    for box, name in zip(record["boxes"], record["names"], strict=True):
        left, top, right, bottom = (box * scale).tolist()
        draw.rectangle((left, top, right - 1, bottom - 1), outline="white")
        draw.text((left + 2, top + 1), name, fill="white", stroke_width=1, stroke_fill="black")
    return image


def skeleton(record):
    """The image under its figure's skeleton."""
    scale = EDGE / len(record["image"])
    people = np.reshape(record.get("keypoints", ()), (-1, 17, 3)) * (scale, scale, 1)
    drawn = pose_image(people, EDGE, EDGE)
    image = np.asarray(panel(record["image"]))
    return Image.fromarray(np.where(drawn.any(-1, keepdims=True), drawn, image))


def row_of(record, stored):
    """The images of a scene, each with its heading."""
    frames = [(panel(frame), f"view {i}") for i, frame in enumerate(record["frames"])]
    normals = np.round((stored["normals"] - 128.0) * (1, -1, -1) + 128).astype(np.uint8)
    return [
        *frames,
        (panel(depth_image(record["depth"])), "depth"),
        (panel(normals), "normals"),
        (boxed(record), "instances, boxes"),
        (skeleton(record), "keypoints"),
        (panel(record["edited"]), "edited"),
    ]


def main():
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default="docs/scenes.png")
    parser.add_argument("--scenes", default="artifacts/scenes_sheet", help="where they are built")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--count", type=int, default=48, help="of the scenes built")
    parser.add_argument("--rows", type=int, default=4, help="of scenes of each kind")
    arguments = parser.parse_args()
    settings = dict(
        size=arguments.size, train=arguments.count, validation=8, seed=0, content="full", views=4
    )
    name = build(pathlib.Path(arguments.scenes), **settings)
    scenes = tfds.builder(name, data_dir=arguments.scenes).as_data_source("train")
    settings["path"] = arguments.scenes
    font = ImageFont.load_default(11)
    width = 9 * (EDGE + GAP) + GAP
    bands = []
    for kind in ("figures", "objects"):
        source = Scenes(**settings, groups=kind).open("train")
        numbers = [i for i in range(len(scenes)) if WORLDS["full"].kind(i) == kind]
        for i in range(arguments.rows):
            record = source[5 * i % len(source)]
            stored = scenes[numbers[5 * i % len(source)]]
            long = stored["long_caption"].decode()
            said = (record["caption"], long, f"EDIT: {record['instruction']}")
            bands.append((row_of(record, stored), textwrap.wrap("  |  ".join(said), 215)))
    for kind, references in (("figures", "references"), ("objects", "item_references")):
        source = Scenes(**settings, groups=kind).open("train")
        for i in range(0, 8 * (arguments.rows // 2), 8):
            row, names = [], []
            for record in (source[i], source[i + 4]):
                row += [(panel(p), kind) for p in (record["image"], *record[references])]
                names.append(record["item"] if kind == "objects" else "one figure")
            bands.append((row, [f"groups: {' (first four), '.join(names)} (last four)"]))
    height = sum(EDGE + (len(text) + 1) * LINE + 2 * GAP for _, text in bands) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw, top = ImageDraw.Draw(sheet), GAP
    for row, text in bands:
        for i, (image, heading) in enumerate(row):
            left = GAP + i * (EDGE + GAP)
            draw.text((left, top), heading, fill="black", font=font)
            sheet.paste(image, (left, top + LINE))
        top += EDGE + LINE
        for line in text:
            draw.text((GAP, top), line, fill="black", font=font)
            top += LINE
        top += 2 * GAP
    sheet.save(arguments.out, optimize=True)


if __name__ == "__main__":
    main()
