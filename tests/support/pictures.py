"""Image files for tests: deterministic content in every mode and shape that the contract names."""

import io

import numpy as np
from PIL import Image


def photo(width: int = 96, height: int = 80, seed: int = 0) -> Image.Image:
    """Smooth colours with some noise: resizing it is not trivial."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + seed + c) + c) * 60 + np.cos(y / (7 + c)) * 60 + 128 for c in range(3)]
    noisy = np.stack(waves, -1) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def rotated_by_exif() -> bytes:
    """A JPEG whose EXIF says: turn me by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(photo(120, 64, seed=5), "JPEG", quality=95, exif=exif)


def sixteen_bit_gray() -> bytes:
    y, x = np.mgrid[0:60, 0:90]
    return encode(Image.fromarray(((x * 700 + y * 300) % 65536).astype(np.uint16)))


def transparent() -> bytes:
    image = photo(70, 70, seed=3).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return encode(image)


ODD_FILES = {
    "tiny": lambda: encode(photo(1, 1)),
    "small": lambda: encode(photo(3, 5)),
    "huge": lambda: encode(photo(3000, 2000), "JPEG", quality=80),
    "wide 8:1": lambda: encode(photo(400, 50)),
    "tall 1:8": lambda: encode(photo(50, 400)),
    "RGBA": transparent,
    "palette": lambda: encode(photo().quantize(32)),
    "palette with transparency": lambda: encode(photo().quantize(16), transparency=3),
    "gray": lambda: encode(photo().convert("L")),
    "gray with alpha": lambda: encode(photo().convert("LA")),
    "black and white": lambda: encode(photo().convert("1")),
    "16-bit gray": sixteen_bit_gray,
    "EXIF-rotated": rotated_by_exif,
    "CMYK": lambda: encode(photo().convert("CMYK"), "JPEG", quality=95),
    "WebP": lambda: encode(photo(), "WEBP", lossless=True),
    "PPM": lambda: encode(photo(), "PPM"),
}
