"""Images and an instruction -> candidates: resizing and tokenizing, the part of a checkpoint that the server runs.

It works from plain data that the worker process has made with transformers' tokenizer class and the chat template:
neither transformers nor torch is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from PIL import Image as PILImage
from tokenizers import Tokenizer

from jrm_service.errors import InstructionTooLong
from jrm_service.images import preprocess
from jrm_service.images.preprocess import ImageSpec

from .types import Candidate, Image, Segment, Text, TokenSequence


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of the instruction, with the template text around it that has no control tokens."""

    before: str
    after: str


Piece = tuple[int, ...] | Slot | Literal["source", "edited"]
Turn = tuple[Piece, ...]
"""A user turn in the chat template, cut at everything that is not fixed text; it has a ``source`` for each source."""


@dataclass(frozen=True, slots=True)
class ChatTurns:
    """A manifest's passes, in order, and its questions, by dimension, for one number of source images."""

    passes: tuple[Turn, ...]
    questions: Mapping[str, Turn]


@dataclass(frozen=True, slots=True)
class Prompts:
    """A manifest's passes and questions, rendered in the chat template.

    ``tokenizer`` is its serialized form, as the tokenizers library reads it; ``turns`` has an entry for each number of
    source images that the checkpoint takes; ``reward_id`` is the id of the reward token, ``max_tokens`` the model's
    context length.
    """

    tokenizer: str
    turns: Mapping[int, ChatTurns]
    reward_id: int
    max_tokens: int

    @property
    def max_sources(self) -> int:
        """The most source images of a candidate. 0: it has none; otherwise it has at least one."""
        return max(self.turns)


class SequenceBuilder:
    """Builds the token sequences of candidates. Immutable after construction, so safe under threads."""

    def __init__(self, prompts: Prompts) -> None:
        self.prompts = prompts
        self._plain = plain_tokenizer(prompts.tokenizer)

    def __reduce__(self) -> tuple[type[SequenceBuilder], tuple[Prompts]]:
        return SequenceBuilder, (self.prompts,)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def candidate(self, sources: Sequence[Image], edited: Image, instruction: str) -> Candidate:
        """Tokenize every pass.

        Raises InstructionTooLong when a sequence exceeds the model's context, ValueError for a number of sources that
        the checkpoint does not take.
        """
        turns = self._turns(sources)
        sequences = tuple(self._sequence(turn, sources, edited, instruction) for turn in turns.passes)
        longest = max(sequence.tokens for sequence in sequences)
        if longest > self.prompts.max_tokens:
            raise InstructionTooLong(
                f"instruction and images make {longest} tokens, the model takes {self.prompts.max_tokens}"
            )
        return Candidate(tuple(sources), edited, instruction, sequences)

    def question(self, dimension: str, sources: Sequence[Image], edited: Image, instruction: str) -> TokenSequence:
        """Tokenize the prompt for the language head's critique of a dimension, generation prompt included.

        Raises KeyError for a dimension that the manifest does not explain, InstructionTooLong when the sequence leaves
        no room for an answer in the model's context, ValueError as ``candidate`` does.
        """
        sequence = self._sequence(self._turns(sources).questions[dimension], sources, edited, instruction)
        if sequence.tokens >= self.prompts.max_tokens:
            raise InstructionTooLong(
                f"instruction and images make {sequence.tokens} tokens, the model takes {self.prompts.max_tokens}"
            )
        return sequence

    def _turns(self, sources: Sequence[Image]) -> ChatTurns:
        problem = sources_problem(len(sources), self.prompts.max_sources)
        if problem is not None:
            raise ValueError(f"the checkpoint {problem}")
        return self.prompts.turns[len(sources)]

    def _sequence(self, turn: Turn, sources: Sequence[Image], edited: Image, instruction: str) -> TokenSequence:
        segments: list[Segment] = []
        run: list[int] = []
        in_order = iter(sources)
        for piece in turn:
            if piece == "source" or piece == "edited":
                segments += [Text(tuple(run)), next(in_order) if piece == "source" else edited]
                run = []
            elif isinstance(piece, Slot):
                run += self._encode(piece.before + instruction + piece.after)
            else:
                run += piece
                if piece == (self.prompts.reward_id,):
                    segments.append(Text(tuple(run)))
                    run = []
        return TokenSequence(segments=tuple(segments), tail=tuple(run))


def sources_problem(count: int, most: int) -> str | None:
    """What is wrong with ``count`` source images, as the end of a sentence about a checkpoint; None if nothing is.

    ``most`` is the most that the checkpoint takes. If that is not 0, it needs at least one.
    """
    if min(most, 1) <= count <= most:
        return None
    wanted = {0: "no source image", 1: "one source image"}.get(most, f"1 to {most} source images")
    return f"takes {wanted}, got {count or 'none'}"


class Preprocessing(Protocol):
    """The part of a checkpoint, or of a worker's description of one, that preparing needs."""

    @property
    def image_spec(self) -> ImageSpec: ...  # noqa: D102
    @property
    def builder(self) -> SequenceBuilder: ...  # noqa: D102


class CheckpointPreparer:
    """Implements ``Preparer``, and ``Questions`` of the explain service, for a checkpoint. Thread-safe."""

    def __init__(self, checkpoint: Preprocessing) -> None:
        self._spec = checkpoint.image_spec
        self._builder = checkpoint.builder

    def image(self, rgb: PILImage.Image) -> Image:
        """RGB to uint8 pixels at the size that the model sees. Raises ImageTooLarge for an aspect ratio over 200."""
        pixels = preprocess.resize(rgb, self._spec)
        return Image(preprocess.digest(pixels), pixels, preprocess.tokens(pixels, self._spec))

    @property
    def most_image_bytes(self) -> int:
        """The largest size of the resized pixels in bytes, apart from rounding to whole tokens."""
        return self._spec.max_pixels * 3

    @property
    def max_sources(self) -> int:
        """The most source images of a candidate. 0: it has none; otherwise it has at least one."""
        return self._builder.prompts.max_sources

    def candidate(self, sources: Sequence[Image], edited: Image, instruction: str) -> Candidate:
        """Tokenize every pass. Raises InstructionTooLong, and ValueError, as ``SequenceBuilder.candidate`` does."""
        return self._builder.candidate(sources, edited, instruction)

    def question(self, dimension: str, sources: Sequence[Image], edited: Image, instruction: str) -> TokenSequence:
        """The prompt for the language head's critique of a dimension. Raises InstructionTooLong."""
        return self._builder.question(dimension, sources, edited, instruction)


def plain_tokenizer(serialized: str) -> Tokenizer:
    """A tokenizer that treats special tokens in a text as plain text, and neither pads nor truncates.

    Flags like ``encode_special_tokens`` are state of the Rust tokenizer that all callers share. Only a private copy
    whose flags never change again encodes correctly under threads.
    """
    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
