"""The preprocessing version: digests pin the pixels and token ids that it stands for.

A fingerprint promises that equal files become equal pixels and equal token ids. Pillow, tokenizers and transformers
produce both, and may be newer than the versions that were tested. So a few samples are run through the same functions
as a request, and their digests are compared with pinned ones: ``require_pinned`` refuses a difference.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import features

from jrm_service.errors import PipelineDrift
from jrm_service.images import preprocess
from jrm_service.images.decode import decode
from jrm_service.images.preprocess import ImageSpec
from jrm_service.versions import installed

logger = logging.getLogger(__name__)

PIPELINE_VERSION = 1
"""Part of the fingerprint. Raised, with PINNED, whenever the same bytes become other pixels or token ids."""


@dataclass(frozen=True, slots=True)
class Digests:
    """SHA-256 (32 hex digits) of the samples' pixels and token ids.

    ``pixels``: resized images of every filter, normalized patches, and files that decode without loss (PNG, WebP).
    ``jpeg``: decoded JPEG files. ``tokens``: token ids, and the words that text is split into before tokenizing.
    """

    pixels: str
    jpeg: str
    tokens: str


# Lossy WebP is left out: its format fixes brightness and colour planes to the bit, but not their conversion to RGB, so
# two correct builds may differ. JPEG is included, although its standard leaves rounding open: every accepted wheel of
# pillow is built with libjpeg-turbo, which gives equal pixels on every CPU, while another libjpeg gives other pixels.
PINNED = Digests(
    pixels="7e0701babb87af523d0cc414533df0d3",
    jpeg="d97e986c8823936f68035a003cec386e",
    tokens="e5c482830907e150d79852e46df0e236",
)
PINNED_WITH: Mapping[str, str] = {"pillow": "13.0.0", "tokenizers": "0.23.3", "transformers": "5.19.0"}

_NAMES = {"pixels": "pixels", "jpeg": "pixels of JPEG files", "tokens": "token ids"}
_MAKERS = {"pixels": ("pillow",), "jpeg": ("pillow",), "tokens": ("tokenizers", "transformers")}
_SAMPLES = Path(__file__).parent / "samples"
_TOKENIZER = Path(__file__).parent / "bundled" / "jrm-tiny"


@cache
def observed() -> Digests:
    """The digests with the installed libraries; computed once, in some tens of milliseconds."""
    return Digests(
        pixels=_digest(_pixels()),
        jpeg=_digest(_decoded("*.jpg")),
        tokens=_digest(repr(item).encode() for item in _tokens()),
    )


def drift() -> list[str]:
    """The names of what differs from PINNED; empty if nothing does."""
    here, pinned = asdict(observed()), asdict(PINNED)
    return [name for key, name in _NAMES.items() if here[key] != pinned[key]]


def identity() -> object:
    """What the fingerprint hashes: the version, together with the observed digests if any of them differ."""
    return [PIPELINE_VERSION, asdict(observed())] if drift() else PIPELINE_VERSION


def require_pinned(*, allow_drift: bool = False) -> None:
    """Raise PipelineDrift, naming what differs, unless pixels and token ids are those of PIPELINE_VERSION.

    With ``allow_drift`` a difference is only logged as a warning; it changes the fingerprint (see ``identity``).
    """
    problems = _problems()
    if not problems:
        return
    if not allow_drift:
        wanted = " ".join(f"'{name}=={version}'" for name, version in PINNED_WITH.items())
        raise PipelineDrift(
            [
                *problems,
                f"scores would differ while the fingerprint stays. Install what was tested: pip install {wanted}; or "
                "accept another fingerprint: --allow-pipeline-drift (JRM_ALLOW_PIPELINE_DRIFT=true)",
            ]
        )
    for problem in problems:
        logger.warning("%s; allowed, and part of the fingerprint", problem)


def _problems() -> list[str]:
    here, pinned = asdict(observed()), asdict(PINNED)
    problems = []
    for key, name in _NAMES.items():
        if here[key] != pinned[key]:
            makers = ", ".join(
                f"{maker} {installed(maker)} (pinned with {PINNED_WITH[maker]})" for maker in _MAKERS[key]
            )
            library = f", {_libjpeg()}" if key == "jpeg" else ""
            problems.append(
                f"pipeline version {PIPELINE_VERSION}: {name} differ from those that are pinned: {makers}{library}"
            )
    return problems


def _libjpeg() -> str:
    version = features.version_feature("libjpeg_turbo")
    return f"libjpeg-turbo {version}" if version else "without libjpeg-turbo"


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:32]


# --- pixels ----------------------------------------------------------------------------------------------------------

_SPECS = (
    ImageSpec(min_pixels=16_384, max_pixels=65_536),
    ImageSpec(min_pixels=3_136, max_pixels=12_544, resample="bilinear", patch_size=14),
    ImageSpec(min_pixels=4_096, max_pixels=4_096, resample="lanczos", patch_size=8),
    ImageSpec(min_pixels=4_096, max_pixels=65_536, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.25, 0.26, 0.27)),
)
_SIZES = ((37, 53), (301, 199), (64, 64), (500, 61), (23, 170))  # (width, height)


def _pixels() -> Iterator[bytes]:
    for width, height in _SIZES:
        rgb = _drawn(width, height)
        for spec in _SPECS:
            pixels = preprocess.resize(rgb, spec)
            yield preprocess.digest(pixels)
            yield np.ascontiguousarray(preprocess.patches(pixels, spec), "<f4").tobytes()
    yield from _decoded("*.png")
    yield from _decoded("*.webp")


def _drawn(width: int, height: int) -> PILImage.Image:
    """A gradient, a fine texture and hard edges, from integers only: equal on every machine."""
    y, x = np.indices((height, width))
    channels = ((x * 255) // width, (x * 7 + y * 13) % 256, ((x // 5 + y // 3) % 2) * 200 + y % 50)
    return PILImage.fromarray(np.stack(channels, -1).astype(np.uint8))


def _decoded(pattern: str) -> Iterator[bytes]:
    for file in sorted(_SAMPLES.glob(pattern)):
        yield preprocess.digest(np.asarray(decode(file.read_bytes())))


# --- token ids -------------------------------------------------------------------------------------------------------

_TEXTS = (
    "make the red square blue",
    "  Make the  sky   darker,\tthen\n\n add 12345 STARS!!!  ",
    "don't change the dog's collar; they'll notice. We'VE \u2019told you",
    "<|im_end|>\n<|im_start|>assistant\n<|image_pad|><|Reward|>{instruction}",
    "e\u0301 and \u00e9, \u212b and \u00c5, \ufb01 and fi, \u1112\u1161\u11ab and \ud55c",  # composed and not
    "把红色方块变成蓝色，然后添加三颗星星。　完",
    "日本語のテキスト العربية हिन्दी ไทย",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \u2764\ufe0f \U0001f9d1\U0001f3fd\u200d\U0001f680",
    "\u00a0\u2003\u200b\u2028\ufeff\r\n \x00\x7f\x85 end",
    "x_1+2=3; #hashtag @name http://example.com/?a=b&c=%20 \u00bd \u0663 \u2167 \u00b2",
    "\n",
)
_MANIFEST: dict[str, Any] = {
    "format": "jrm-reward/1",
    "name": "pinned",
    "reward_token": "<|Reward|>",
    "image": {"min_pixels": 4096, "max_pixels": 4096},
    "passes": [
        {
            "parts": ["source", "edited", "prompt"],
            "prompt": "Text instruction - {instruction}\nHow good is the edit?  <|Reward|>\n",
            "read": {"first": "head"},
        },
        {
            "parts": ["prompt", "source", "edited", "ending"],
            "prompt": "Judge how well the second image follows the edit.\n",
            "ending": "\nEdit:{instruction}<|Reward|>",
            "read": {"second": "head"},
        },
    ],
    "heads": {"head": {"hidden": [1], "outputs": ["mean"]}},
    "explain": {"first": {"template": "Explain '{instruction}' in your own words."}},
}


def _tokens() -> Iterator[object]:
    """For each text: the ids of every sequence around it, and its words, since the ids alone may not show a split."""
    from transformers import AutoTokenizer  # imports torch, which pixels do not need

    from jrm_service.scoring.types import Image, Text

    from .manifest import Manifest
    from .prompts import sequence_builder

    tokenizer = AutoTokenizer.from_pretrained(_TOKENIZER, local_files_only=True, trust_remote_code=False)
    template = (_TOKENIZER / "chat_template.jinja").read_text(encoding="utf-8")
    builder = sequence_builder(Manifest.model_validate(_MANIFEST), tokenizer, template, max_tokens=100_000)
    blank = np.zeros((64, 64, 3), np.uint8)
    source, edited = (Image(name, blank, 16) for name in (b"source", b"edited"))
    backend = tokenizer.backend_tokenizer
    for text in _TEXTS:
        sequences = builder.candidate([source], edited, text).sequences
        for sequence in (*sequences, builder.question("first", [source], edited, text)):
            yield [item.ids if isinstance(item, Text) else item.key for item in sequence.segments], sequence.tail
        normalized = backend.normalizer.normalize_str(text)
        yield [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]
