"""The editing model: a small rectified flow that makes an edited picture of noise, given a source and an instruction.

A U-Net of two resolutions on patches of 4 x 4 pixels. It predicts the edited picture x_0 as the source plus a change;
the velocity follows from that: x_t = (1 - t) x_0 + t noise, v = noise - x_0 = (x_t - x_0) / t.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

PATCH = 4
MAX_WORDS = 16
_PADDING, _UNKNOWN = 0, 1


class Editor(nn.Module):
    """2.5 million parameters for pictures of 64 x 64, float in [-1, 1].

    ``vocabulary``: the words that it knows; others are all one word to it.
    """

    def __init__(self, vocabulary: Sequence[str], width: int = 96, inner: int = 128, condition: int = 192) -> None:
        super().__init__()
        self.vocabulary = tuple(vocabulary)
        self._numbers = {word: number for number, word in enumerate(self.vocabulary, start=_UNKNOWN + 1)}
        self.words = nn.Embedding(len(self.vocabulary) + 2, condition // 2)
        self.places = nn.Parameter(torch.randn(MAX_WORDS, condition // 2) * 0.02)
        self.text = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                condition // 2, 4, condition, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            ),
            num_layers=2,
            enable_nested_tensor=False,
        )
        self.from_text = nn.Linear(condition // 2, condition)
        self.from_time = nn.Sequential(nn.Linear(64, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.enter = nn.Conv2d(2 * 3 * PATCH**2, width, 3, padding=1)
        self.positions = nn.Parameter(torch.randn(width, 16, 16) * 0.02)
        self.before = nn.ModuleList(_Block(width, condition) for _ in range(2))
        self.down = nn.Conv2d(width, inner, 2, stride=2)
        self.middle = nn.ModuleList(_Block(inner, condition, attends=number == 1) for number in range(4))
        self.up = nn.Conv2d(inner, 4 * width, 1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.after = nn.ModuleList(_Block(width, condition) for _ in range(2))
        change = nn.Conv2d(width, 3 * PATCH**2, 3, padding=1)
        nn.init.zeros_(change.weight)  # it begins by changing nothing
        assert change.bias is not None
        nn.init.zeros_(change.bias)
        self.leave = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), change)

    def read(self, instructions: Iterable[str]) -> Tensor:
        """Instructions as numbers of words, int64 [N, MAX_WORDS]. Words beyond MAX_WORDS are not read."""
        rows = [[self._numbers.get(word, _UNKNOWN) for word in split(text)][:MAX_WORDS] for text in instructions]
        return torch.tensor([row + [_PADDING] * (MAX_WORDS - len(row)) for row in rows]).reshape(-1, MAX_WORDS)

    def understand(self, words: Tensor) -> Tensor:
        """What instructions mean, [N, condition]: the same for every step of a sample."""
        known = words != _PADDING
        meanings = self.text(self.words(words) + self.places, src_key_padding_mask=~known)
        mean = (meanings * known[..., None]).sum(1) / known.sum(1, keepdim=True).clamp(min=1)
        meaning: Tensor = self.from_text(mean)
        return meaning

    def forward(self, x_t: Tensor, t: Tensor, source: Tensor, meaning: Tensor) -> Tensor:
        """The velocity at x_t, float32 [N, 3, 64, 64]; t [N] in (0, 1], source as x_t, meaning from ``understand``."""
        return (x_t - self.predict(x_t, t, source, meaning)) / t[:, None, None, None]

    def predict(self, x_t: Tensor, t: Tensor, source: Tensor, meaning: Tensor) -> Tensor:
        """The edited picture x_0 that is expected from x_t; shapes as ``forward`` has them."""
        condition = F.silu(self.from_time(_waves(t)) + meaning)
        x = self.enter(F.pixel_unshuffle(torch.cat([x_t, source], 1), PATCH)) + self.positions
        for block in self.before:
            x = block(x, condition)
        y = self.down(x)
        for block in self.middle:
            y = block(y, condition)
        x = self.join(torch.cat([x, F.pixel_shuffle(self.up(y), 2)], 1))
        for block in self.after:
            x = block(x, condition)
        return source + F.pixel_shuffle(self.leave(x), PATCH).float()


class _Block(nn.Module):
    """Two convolutions with the condition's scale and shift between them, and attention over all places, if wanted."""

    def __init__(self, width: int, condition: int, attends: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))
        self.norm = nn.GroupNorm(8, width)
        self.modulate = nn.Linear(condition, 2 * width)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True) if attends else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, 1)
        x = x + self.second(F.silu(self.norm(self.first(x)) * (1 + scale) + shift))
        if self.attention is not None:
            places = x.flatten(2).transpose(1, 2)
            seen, _ = self.attention(places, places, places, need_weights=False)
            x = x + seen.transpose(1, 2).reshape(x.shape)
        return x


def split(text: str) -> list[str]:
    """An instruction as lower-case words."""
    return re.findall(r"[a-z]+|[0-9]+", text.lower())


def save(editor: Editor, file: Path, **facts: str) -> None:
    """Write the weights in float16 (they are used in float32), the vocabulary and ``facts`` about them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(
        {name: value.detach().half().contiguous() for name, value in editor.state_dict().items()},
        partial,
        metadata={"vocabulary": " ".join(editor.vocabulary), **facts},
    )
    partial.replace(file)


def load(file: Path) -> Editor:
    """The editor of a file that ``save`` wrote, in float32."""
    with safe_open(file, "pt") as weights:
        editor = Editor(weights.metadata()["vocabulary"].split())
        names = weights.keys()
        editor.load_state_dict({name: weights.get_tensor(name).float() for name in names})
    return editor


def _waves(t: Tensor) -> Tensor:
    frequencies = torch.exp(torch.linspace(0, math.log(200.0), 32))
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)
