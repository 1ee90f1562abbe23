"""The newest sample grids of a workdir, all tasks and directions on one sheet.

python tools/grids_sheet.py --workdir runs/scenes_all --out docs/scenes_all.png
"""

import argparse
import pathlib
import sys

from PIL import Image, ImageDraw, ImageFont

GAP, LINE, COLORS = 10, 18, 128


def newest_grids(workdir: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file of the highest step, by task and direction."""
    return {file.stem.rsplit("_", 1)[0]: file for file in sorted(workdir.glob("pictures/*.png"))}


def sheet_of(pictures: dict[str, Image.Image], columns: int) -> Image.Image:
    """Pictures under their names, row by row."""
    width, height = (max(p.size[axis] for p in pictures.values()) for axis in (0, 1))
    rows = -(-len(pictures) // columns)
    sheet = Image.new(
        "RGB", (columns * (width + GAP), rows * (height + LINE + GAP)), (255, 255, 255)
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (name, picture) in enumerate(pictures.items()):
        row, column = divmod(number, columns)
        left, top = column * (width + GAP), row * (height + LINE + GAP)
        draw.text((left, top), name.replace("_", " "), fill="black", font=font)
        sheet.paste(picture, (left, top + LINE))
    return sheet


def main() -> None:
    """Writes the sheet."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--part", type=float, default=0.5, help="of every grid, from the top")
    parser.add_argument("--columns", type=int, default=3)
    arguments = parser.parse_args()
    files = newest_grids(arguments.workdir)
    if not files:
        sys.exit(
            f"grids_sheet: {arguments.workdir}/pictures has no grids; train with evaluate.every"
        )
    pictures = {name: Image.open(file).convert("RGB") for name, file in files.items()}
    for name, picture in pictures.items():
        pictures[name] = picture.crop((0, 0, picture.width, round(arguments.part * picture.height)))
    sheet = sheet_of(pictures, arguments.columns)
    sheet.quantize(COLORS, dither=Image.Dither.NONE).save(arguments.out, optimize=True)
    print(f"{len(files)} grids in {arguments.out}, {sheet.width} x {sheet.height}")


if __name__ == "__main__":
    main()
