"""Render the digits of the fonts in fonts.txt as MNIST-like images.

Run as a program, this writes the bundled held-out digits as two IDX files.
"""

import argparse
import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).resolve().parent
SYSTEM_FONTS = "/usr/share/fonts"

# Large enough that only the reduction to 20 pixels smooths the digits.
POINTS = 240
BOX = 20
SIDE = 28


def read_list(path=HERE / "fonts.txt"):
    """Rows (role, family, package, license, file), in the order of the file."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            rows.append(tuple(line.split("\t")))
    return rows


def digit(font, d):
    """One digit as a 28x28 array of u8, white on black."""
    # The canvas is wide because some italics and swashes extend far beyond
    # their advance box.
    big = Image.new("L", (4 * POINTS, 4 * POINTS), 0)
    ImageDraw.Draw(big).text((1.5 * POINTS, 1.5 * POINTS), str(d), font=font, fill=255)
    bounds = big.getbbox()
    if bounds is None:
        raise ValueError(f"blank glyph for {d}")
    big = big.crop(bounds)
    scale = BOX / max(big.size)
    size = tuple(max(1, round(n * scale)) for n in big.size)
    small = np.asarray(big.resize(size, Image.Resampling.BOX), dtype=np.float64)

    # MNIST puts the center of mass, not the box, in the middle.
    h, w = small.shape
    mass = small.sum()
    row = (small.sum(axis=1) * (np.arange(h) + 0.5)).sum() / mass
    col = (small.sum(axis=0) * (np.arange(w) + 0.5)).sum() / mass
    # The clip keeps every pixel of a very lopsided glyph.
    top = int(np.clip(np.floor(SIDE / 2 - row + 0.5), 0, SIDE - h))
    left = int(np.clip(np.floor(SIDE / 2 - col + 0.5), 0, SIDE - w))
    out = np.zeros((SIDE, SIDE), dtype=np.uint8)
    out[top : top + h, left : left + w] = small.astype(np.uint8)
    return out


def font_digits(path):
    """The digits 0 to 9 of one font, shape (10, 28, 28)."""
    # Use the basic layout, so that the result does not depend on an optional
    # shaping library.
    font = ImageFont.truetype(str(path), POINTS, layout_engine=ImageFont.Layout.BASIC)
    return np.stack([digit(font, d) for d in range(10)])


def render_role(role, fonts_dir=SYSTEM_FONTS, rows=None):
    """Images, labels and family names of all fonts of a role."""
    rows = [r for r in (rows or read_list()) if r[0] == role]
    images = np.concatenate([font_digits(Path(fonts_dir) / r[4]) for r in rows])
    labels = np.tile(np.arange(10, dtype=np.uint8), len(rows))
    families = [r[1] for r in rows for _ in range(10)]
    return images, labels, families


def distances(a, b):
    """The distance between every image of `a` and every image of `b`: the summed
    absolute difference divided by the summed ink of both, minimized over shifts
    of at most one pixel. 0 means the same image, 1 means no common pixel."""
    a = a.reshape(len(a), -1).astype(np.float32)
    ink = a.sum(axis=1)[:, None] + b.reshape(len(b), -1).sum(axis=1)[None].astype(np.float32)
    best = np.ones((len(a), len(b)), dtype=np.float32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            moved = np.roll(b, (dy, dx), axis=(1, 2)).reshape(len(b), -1).astype(np.float32)
            d = np.stack([np.abs(moved - x).sum(axis=1) for x in a])
            best = np.minimum(best, d / ink)
    return best


def check(fonts_dir):
    """Fail unless the split is the one fonts.txt describes."""
    for role, family, *_ in read_list():
        first = hashlib.sha256(family.encode()).digest()[0]
        if role != ("held-out" if first < 0x60 else "train"):
            raise SystemExit(f"{family}: wrong role")
    held, held_labels, _ = render_role("held-out", fonts_dir)
    train, train_labels, _ = render_role("train", fonts_dir)
    nearest = min(
        distances(held[held_labels == d], train[train_labels == d]).min() for d in range(10)
    )
    print(f"the nearest held-out and training digits are {nearest:.3f} apart")
    if nearest < 0.05:
        raise SystemExit("too near")


def write_gz(path, data):
    # Write no name and no time into the header, so the same pixels give the
    # same file.
    with open(path, "wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as gz:
            gz.write(data)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fonts", default=SYSTEM_FONTS, help="folder with the installed fonts")
    parser.add_argument("--out", default=HERE.parent, type=Path, help="folder for the IDX files")
    parser.add_argument("--check", action="store_true", help="check the split, write nothing")
    args = parser.parse_args()
    if args.check:
        check(args.fonts)
        return
    images, labels, _ = render_role("held-out", args.fonts)
    n = len(images)
    write_gz(
        args.out / "digits-images-idx3-ubyte.gz",
        struct.pack(">4I", 0x00000803, n, SIDE, SIDE) + images.tobytes(),
    )
    write_gz(
        args.out / "digits-labels-idx1-ubyte.gz",
        struct.pack(">2I", 0x00000801, n) + labels.tobytes(),
    )
    print(f"{n} digits of {n // 10} fonts")


if __name__ == "__main__":
    main()
