"""COCO's annotations of images that show one thing each: its mask is the alpha channel."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

INSTANCES, CAPTIONS = "instances.json", "captions.json"
OPAQUE = 128  # alpha from which a pixel belongs to the thing


def mask_in(file: Path) -> np.ndarray:
    """The mask [h w] of the thing that an image shows; alpha alone says what belongs to it."""
    with Image.open(file) as image:
        return np.asarray(image.convert("RGBA"))[..., 3] >= OPAQUE


def write_annotations(
    folder: Path,
    captions: dict[str, str],
    class_of: Callable[[str], str],
    advance: Callable[[], None],
) -> None:
    """Writes masks, boxes and classes, and captions, of images in a folder as COCO's two files.

    `captions` are the images' by the names of their files, `class_of` answers such a name with a
    class; `advance` is called after every image.  A image's number is its place, from 1.
    """
    classes = {name: class_of(name) for name in captions}
    categories = {name: i for i, name in enumerate(sorted(set(classes.values())), start=1)}
    images, instances, texts = [], [], []
    for number, (name, caption) in enumerate(captions.items(), start=1):
        mask = mask_in(folder / name)
        height, width = mask.shape
        images += [{"id": number, "file_name": name, "height": height, "width": width}]
        texts += [{"id": number, "image_id": number, "caption": caption}]
        if mask.any():
            runs = coco.encode(np.asfortranarray(mask, np.uint8))
            instance = {"id": number, "image_id": number, "category_id": categories[classes[name]]}
            instance |= {"bbox": coco.toBbox(runs).tolist(), "area": int(mask.sum()), "iscrowd": 0}
            segmentation = {"size": [height, width], "counts": runs["counts"].decode()}
            instances += [instance | {"segmentation": segmentation}]
        advance()
    named = [{"id": number, "name": name} for name, number in categories.items()]
    written = {
        INSTANCES: {"images": images, "annotations": instances, "categories": named},
        CAPTIONS: {"images": images, "annotations": texts},
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
