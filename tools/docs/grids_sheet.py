"""The newest sample grids of workdirs, all tasks and directions on one sheet.

python tools/docs/grids_sheet.py --workdir runs/scenes_all --out docs/scenes_all.png
python tools/docs/grids_sheet.py --workdir runs/a runs/b --grids text2image_to_image --out both.png
"""

import argparse
import pathlib
import re
import sys

from PIL import Image

from onediff_jax.evaluate.grids import GAP, contact_sheet


def newest_grids(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file of the highest step, by task and direction; the demo's held-out grids have none."""
    files = sorted(workdir.glob("pictures/*.png"))
    return {re.sub(r"_\d+$", "", file.stem): file for file in files}


def rows_of(images: dict[str, Image.Image], width: int) -> list:
    """Titled images, as many side by side as the width takes."""
    rows, left = [], width
    for name, image in images.items():
        if left + image.width + GAP > width:
            rows.append(("", []))
            left = 0
        rows[-1][1].append((name.replace("_", " "), image))
        left += image.width + GAP
    return rows


def main() -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, nargs="+", required=True)
    parser.add_argument("--grids", nargs="+", help="which, such as text2image_to_image; else all")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--part", type=float, default=0.5, help="of every grid, from the top")
    parser.add_argument("--width", type=int, default=1780, help="of the sheet in pixels")
    arguments = parser.parse_args()
    several, files = len(arguments.workdir) > 1, {}
    for workdir in arguments.workdir:
        found = newest_grids(workdir)
        if missing := set(arguments.grids or ()) - set(found):
            sys.exit(f"grids_sheet: {workdir}/pictures has {sorted(found)}, not {sorted(missing)}")
        if not found:
            sys.exit(f"grids_sheet: {workdir}/pictures has no grids; train with evaluate.every")
        for name in arguments.grids or found:
            files[f"{workdir.name}: {name}" if several else name] = found[name]
    images = {name: Image.open(file).convert("RGB") for name, file in files.items()}
    for name, image in images.items():
        images[name] = image.crop((0, 0, image.width, round(arguments.part * image.height)))
    sheet = contact_sheet(rows_of(images, arguments.width), text_width=0)
    sheet.save(arguments.out, optimize=True)
    print(f"{len(files)} grids in {arguments.out}, {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    main()
