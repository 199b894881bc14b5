"""Test data for schemathesis: images where the schema says image."""

import base64
import sys
from pathlib import Path

import schemathesis
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.pictures import encode, photo

IMAGES = [encode(photo(n + 1, n + 2, seed=n), kind) for n, kind in enumerate(("PNG", "JPEG", "WEBP", "PPM"))]

schemathesis.openapi.format("image-base64", st.sampled_from([base64.b64encode(data).decode() for data in IMAGES]))
schemathesis.openapi.media_type(
    "text/plain", st.text(min_size=1, max_size=50).map(lambda text: f"make it {text}".encode())
)
for kind, data in zip(("png", "jpeg", "webp", "x-portable-pixmap"), IMAGES, strict=True):
    schemathesis.openapi.media_type(f"image/{kind}", st.just(data))
