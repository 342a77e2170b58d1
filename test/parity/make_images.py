"""Records what Pillow 13.0.0 reads from image files of every kind that is accepted, into test/parity/data/images.json, and the numbers
of palette and grey PNGs into indices.json. Run from anywhere:

    python make_images.py

Each entry has the file's bytes and the pixels that are expected, both base64: those of exif_transpose(open(file)).convert("RGB"), but for 16-bit
greys, which Pillow clips: there the upper byte of each sample.
"""

import base64
import io
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

OUT = Path(__file__).parent / "data"
H, W = 18, 26


def picture():
    """A smooth picture with an edge and a different colour in each corner, so that every turn shows."""
    y, x = np.mgrid[0:H, 0:W]
    rgb = np.stack([x * 255 / (W - 1), y * 255 / (H - 1), 255 * ((x // 8 + y // 6) % 2)], -1)
    return rgb.astype(np.uint8)


def text(data):
    return base64.b64encode(bytes(data)).decode()


entries = []


def add(name, image, want=None, **options):
    file = io.BytesIO()
    image.save(file, **options)
    if want is None:
        opened = ImageOps.exif_transpose(Image.open(io.BytesIO(file.getvalue())))
        want = np.asarray(opened.convert("RGB"))
    entries.append(
        {
            "name": name,
            "file": text(file.getvalue()),
            "width": want.shape[1],
            "height": want.shape[0],
            "rgb": text(want.tobytes()),
        }
    )


rgb = picture()
image = Image.fromarray(rgb)
grey = image.convert("L")
alpha = Image.fromarray(np.dstack([rgb, np.linspace(0, 255, H * W).reshape(H, W).astype(np.uint8)]))

add("baseline.jpg", image, format="JPEG", quality=90, subsampling=0)
add("subsampled.jpg", image, format="JPEG", quality=80, subsampling=2)
add("progressive.jpg", image, format="JPEG", quality=90, progressive=True)
add("grey.jpg", grey, format="JPEG", quality=90)
add("cmyk.jpg", image.convert("CMYK"), format="JPEG", quality=95)
shaded = np.dstack([255 - rgb, np.full((H, W), 64, np.uint8)])
add("cmyk-black.jpg", Image.fromarray(shaded, "CMYK"), format="JPEG", quality=95)
for orientation in range(1, 9):
    exif = Image.Exif()
    exif[0x0112] = orientation
    add(f"exif-{orientation}.jpg", image, format="JPEG", quality=90, exif=exif)
exif = Image.Exif()
exif[0x0112] = 6
add("exif-6.png", image, format="PNG", exif=exif)
add("exif-6.webp", image, format="WEBP", lossless=True, exif=exif)
add("cmyk-exif-6.jpg", image.convert("CMYK"), format="JPEG", quality=95, exif=exif)

add("rgb.png", image, format="PNG")
add("alpha.png", alpha, format="PNG")
add("grey.png", grey, format="PNG")
add("grey-alpha.png", alpha.convert("LA"), format="PNG")
add("bits-1.png", grey.convert("1"), format="PNG")
palette = image.quantize(13)
add("palette.png", palette, format="PNG")
add("palette-4-bits.png", palette, format="PNG", bits=4)
add("palette-clear.png", palette, format="PNG", transparency=2)
deep = (rgb[..., 0].astype(np.uint16) << 8) | rgb[..., 1]
upper = np.repeat(rgb[..., :1], 3, -1)
add("grey-16.png", Image.fromarray(deep), want=upper, format="PNG")


def png(bit_depth, colour_type, samples, interlaced):
    """A PNG by hand, for what Pillow does not write: 16-bit colours and Adam7's seven passes."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
    lines = b""
    for x0, y0, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        part = samples[y0::dy, x0::dx]
        if part.size:
            lines += b"".join(b"\0" + row.tobytes() for row in part)
    head = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bit_depth, colour_type, 0, 0, int(interlaced))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


def add_png(name, file, want):
    entries.append(
        {"name": name, "file": text(file), "width": W, "height": H, "rgb": text(want.tobytes())}
    )


deep_rgb = (rgb.astype(">u2") << 8) | 77
for name, depth, colour, samples in [
    ("rgb-16.png", 16, 2, deep_rgb.astype(">u2")),
    ("interlaced.png", 8, 2, rgb),
    ("alpha-16-interlaced.png", 16, 6, np.dstack([deep_rgb, np.full((H, W), 900)]).astype(">u2")),
]:
    file = png(depth, colour, samples, "interlaced" in name)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(file)).convert("RGB")), rgb)
    add_png(name, file, rgb)

add("lossy.webp", image, format="WEBP", quality=80)
add("lossless.webp", image, format="WEBP", lossless=True)
add("alpha.webp", alpha, format="WEBP", lossless=True, exact=True)
add("alpha-lossy.webp", alpha, format="WEBP", quality=90)

(OUT / "images.json").write_text(json.dumps(entries, separators=(",", ":")) + "\n")

indices = []
for name, bits, mode, interlaced in [
    ("palette-8", 8, "P", False),
    ("palette-4", 4, "P", False),
    ("palette-2", 2, "P", False),
    ("palette-1", 1, "P", False),
    ("palette-clear", 8, "P", False),
    ("grey-8", 8, "L", False),
    ("grey-interlaced", 8, "L", True),
]:
    numbers = (np.arange(35).reshape(5, 7) * 37 % 2**bits).astype(np.uint8)
    file = io.BytesIO()
    if interlaced:
        file.write(png(8, 0, numbers, True))
    elif mode == "L":
        Image.fromarray(numbers).save(file, format="PNG")
    else:
        paletted = Image.frombytes("P", (7, 5), numbers.tobytes())
        paletted.putpalette([7, 7, 7] * 256)  # one colour for all: only the numbers tell pixels apart
        paletted.save(file, format="PNG", bits=bits, **({"transparency": 3} if "clear" in name else {}))
    indices.append({"name": name, "bits": bits, "file": text(file.getvalue()), "want": numbers.reshape(-1).tolist()})
(OUT / "indices.json").write_text(json.dumps(indices, separators=(",", ":")) + "\n")
