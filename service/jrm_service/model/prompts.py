"""Candidates to token sequences: the manifest's passes in the checkpoint's own chat template.

Each pass is rendered once, when the checkpoint is opened, with a marker where the instruction goes. Control tokens are
recognised in that rendering only. An instruction is put into its stretch of template text *before* tokenizing (token
merges cross its edges), and the stretch is tokenized with special tokens off: ``<|im_end|>``, ``<|image_pad|>`` or
``<|Reward|>`` inside an instruction is plain text, which can neither close the turn nor move the read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from jrm_service.errors import InstructionTooLong
from jrm_service.scoring.types import Candidate, Image, Segment, Text, TokenSequence

from .manifest import INSTRUCTION, Manifest, Pass

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - a vocabulary entry
_MARKER = "\ue000instruction\ue001"  # private-use characters: no template or tokenizer gives them a meaning


@dataclass(frozen=True, slots=True)
class _Slot:
    """Where the instruction goes: a stretch of template text around it, without control tokens."""

    before: str
    after: str


_Piece = tuple[int, ...] | _Slot | Literal["source", "edited"]


class TemplateError(ValueError):
    """The tokenizer or the chat template cannot express the manifest's passes."""


class SequenceBuilder:
    """Builds the token sequences of candidates. Immutable after construction, so safe under threads."""

    def __init__(
        self, manifest: Manifest, tokenizer: PreTrainedTokenizerBase, chat_template: str, *, max_tokens: int
    ) -> None:
        """``max_tokens`` is the model's context length. Raises TemplateError, one line per problem."""
        self._max_tokens = max_tokens
        # Flags like `encode_special_tokens` are state of the Rust tokenizer that every caller shares. A private copy
        # whose flags never change again is what makes concurrent encoding right (FACTS: wrong ids without a lock).
        self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._plain.no_padding()
        self._control = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        problems = _token_problems(manifest, tokenizer)
        if problems:
            raise TemplateError("\n".join(problems))
        self._reward_id = self._control[manifest.reward_token]
        self._passes = [
            self._compile(f"passes.{number}", one, _render(one, tokenizer, chat_template), reads=True)
            for number, one in enumerate(manifest.passes)
        ]
        self._questions = dict(self._compile_questions(manifest, tokenizer, chat_template))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def _compile_questions(
        self, manifest: Manifest, tokenizer: PreTrainedTokenizerBase, chat_template: str
    ) -> Iterator[tuple[str, tuple[_Piece, ...]]]:
        """For each dimension that can be explained: the pass that is scored, or that pass with a prompt of its own."""
        for number, one in enumerate(manifest.passes):
            for dimension in one.read.keys() & manifest.explain.keys():
                template = manifest.explain[dimension].template
                if template is None:
                    yield dimension, self._passes[number]
                    continue
                parts = [part for part in one.parts if part != "ending"]
                own = one.model_copy(update={"parts": parts, "prompt": template, "ending": None})
                rendered = _render(own, tokenizer, chat_template)
                yield dimension, self._compile(f"explain.{dimension}", own, rendered, reads=False)

    def _compile(self, name: str, one: Pass, rendered: str, *, reads: bool) -> tuple[_Piece, ...]:
        """Split a rendering at its control tokens; put an image where the template has its placeholder."""
        images = [part for part in one.parts if part in ("source", "edited")]
        longest_first = sorted(self._control, key=len, reverse=True)
        pieces: list[_Piece] = []
        for text in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", rendered):
            if text == IMAGE_TOKEN:
                if not images:
                    raise TemplateError(f"{name}: more {IMAGE_TOKEN} than images in the rendered turn")
                pieces.append("source" if images.pop(0) == "source" else "edited")
            elif text in self._control:
                pieces.append((self._control[text],))
            elif _MARKER in text:
                before, _, after = text.partition(_MARKER)
                pieces.append(_Slot(before, after))
            elif text:
                pieces.append(self._encode(text))
        if images:
            raise TemplateError(f"{name}: the chat template shows no {IMAGE_TOKEN} for '{images[0]}'")
        if reads and sum(piece == (self._reward_id,) for piece in pieces) != 1:
            raise TemplateError(f"{name}: the rendered turn must hold the reward token exactly once")
        if rendered.count(_MARKER) != one.text.count(INSTRUCTION):
            raise TemplateError(f"{name}: the chat template drops or repeats {INSTRUCTION}")
        return tuple(pieces)

    def candidate(self, source: Image, edited: Image, instruction: str) -> Candidate:
        """Tokenize every pass. Raises InstructionTooLong when a sequence exceeds the model's context."""
        sequences = tuple(self._sequence(pieces, source, edited, instruction) for pieces in self._passes)
        longest = max(sequence.tokens for sequence in sequences)
        if longest > self._max_tokens:
            raise InstructionTooLong(
                f"instruction and images make {longest} tokens, the model takes {self._max_tokens}"
            )
        return Candidate(source=source, edited=edited, instruction=instruction, sequences=sequences)

    def question(self, dimension: str, source: Image, edited: Image, instruction: str) -> TokenSequence:
        """Tokenize what the language head answers with its critique of a dimension, generation prompt included.

        Raises KeyError for a dimension that the manifest does not explain, InstructionTooLong when the sequence leaves
        no room for an answer in the model's context.
        """
        sequence = self._sequence(self._questions[dimension], source, edited, instruction)
        if sequence.tokens >= self._max_tokens:
            raise InstructionTooLong(
                f"instruction and images make {sequence.tokens} tokens, the model takes {self._max_tokens}"
            )
        return sequence

    def _sequence(self, pieces: tuple[_Piece, ...], source: Image, edited: Image, instruction: str) -> TokenSequence:
        segments: list[Segment] = []
        run: list[int] = []
        for piece in pieces:
            if piece == "source" or piece == "edited":
                segments += [Text(tuple(run)), source if piece == "source" else edited]
                run = []
            elif isinstance(piece, _Slot):
                run += self._encode(piece.before + instruction + piece.after)
            else:
                run += piece
                if piece == (self._reward_id,):
                    segments.append(Text(tuple(run)))
                    run = []
        return TokenSequence(segments=tuple(segments), tail=tuple(run))


def _render(one: Pass, tokenizer: PreTrainedTokenizerBase, chat_template: str) -> str:
    """One user turn with the generation prompt, the marker in place of the instruction."""
    content = []
    for part in one.parts:
        text = one.template(part)
        content.append(
            {"type": "image"} if text is None else {"type": "text", "text": text.replace(INSTRUCTION, _MARKER)}
        )
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=chat_template, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(rendered, str)
    return rendered


def _token_problems(manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """A token that decides where the model reads or looks must be one special token that swallows no neighbours."""
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    problems = []
    for name in (manifest.reward_token, IMAGE_TOKEN):
        token = added.get(name)
        if token is None or not token.special:
            problems.append(f"tokenizer: {name} is not a special token of its own")
        elif token.lstrip or token.rstrip or token.single_word:
            problems.append(f"tokenizer: {name} must not be lstrip, rstrip or single_word")
    return problems
