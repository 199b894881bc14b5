"""Renders the manifest's passes in the checkpoint's chat template, and builds what tokenizes candidates from them.

Each pass is rendered once, when the checkpoint is opened, with a marker where the instruction goes. Control tokens are
recognised in that rendering only. An instruction is put into its stretch of template text *before* tokenizing (token
merges cross its edges), and the stretch is tokenized with special tokens off: ``<|im_end|>``, ``<|image_pad|>`` or
``<|Reward|>`` inside an instruction is plain text, which can neither close the turn nor move the read.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from jrm_service.scoring.preparing import ChatTurns, Piece, Prompts, SequenceBuilder, Slot, Turn, plain_tokenizer

from .manifest import INSTRUCTION, Manifest, Part, Pass

IMAGE_TOKEN = "<|image_pad|>"  # noqa: S105 - a vocabulary entry
_MARKER = "\ue000instruction\ue001"  # private-use characters: no template or tokenizer gives them a meaning


class TemplateError(ValueError):
    """The tokenizer or the chat template cannot express the manifest's passes."""


def sequence_builder(
    manifest: Manifest, tokenizer: PreTrainedTokenizerBase, chat_template: str, *, max_tokens: int
) -> SequenceBuilder:
    """Return the builder of a manifest's sequences. ``max_tokens`` is the model's context length.

    Raises TemplateError, one line per problem.
    """
    problems = _token_problems(manifest, tokenizer)
    if problems:
        raise TemplateError("\n".join(problems))
    return SequenceBuilder(_Compiler(manifest, tokenizer, chat_template).prompts(max_tokens))


class _Compiler:
    """Renders every pass and question once and cuts it into pieces."""

    def __init__(self, manifest: Manifest, tokenizer: PreTrainedTokenizerBase, chat_template: str) -> None:
        self._manifest = manifest
        self._tokenizer = tokenizer
        self._chat_template = chat_template
        self._serialized = tokenizer.backend_tokenizer.to_str()
        self._plain = plain_tokenizer(self._serialized)
        self._control = {str(t): i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
        self._reward_id = self._control[manifest.reward_token]

    def prompts(self, max_tokens: int) -> Prompts:
        most = self._manifest.max_sources
        turns = {sources: self._turns(sources) for sources in range(min(most, 1), most + 1)}
        return Prompts(self._serialized, turns, self._reward_id, max_tokens)

    def _turns(self, sources: int) -> ChatTurns:
        """Render for one number of source images: a template may number its images."""
        passes = tuple(
            self._compile(f"passes.{number}", pass_, sources, reads=True)
            for number, pass_ in enumerate(self._manifest.passes)
        )
        return ChatTurns(passes, dict(self._compile_questions(passes, sources)))

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._plain.encode(text, add_special_tokens=False).ids)

    def _compile_questions(self, passes: Sequence[Turn], sources: int) -> Iterator[tuple[str, Turn]]:
        """For each dimension that can be explained: the pass that is scored, or that pass with another prompt."""
        for number, pass_ in enumerate(self._manifest.passes):
            for dimension in pass_.read.keys() & self._manifest.explain.keys():
                template = self._manifest.explain[dimension].template
                if template is None:
                    yield dimension, passes[number]
                    continue
                parts = [part for part in pass_.parts if part != "ending"]
                own = pass_.model_copy(update={"parts": parts, "prompt": template, "ending": None})
                yield dimension, self._compile(f"explain.{dimension}", own, sources, reads=False)

    def _compile(self, name: str, pass_: Pass, sources: int, *, reads: bool) -> Turn:
        """Split a rendering at its control tokens; put an image where the template has its placeholder."""
        images = [part for part in _parts(pass_, sources) if part in ("source", "edited")]
        rendered = _render(pass_, sources, self._tokenizer, self._chat_template)
        longest_first = sorted(self._control, key=len, reverse=True)
        pieces: list[Piece] = []
        for text in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", rendered):
            if text == IMAGE_TOKEN:
                if not images:
                    raise TemplateError(f"{name}: more {IMAGE_TOKEN} than images in the rendered turn")
                pieces.append("source" if images.pop(0) == "source" else "edited")
            elif text in self._control:
                pieces.append((self._control[text],))
            elif _MARKER in text:
                before, _, after = text.partition(_MARKER)
                pieces.append(Slot(before, after))
            elif text:
                pieces.append(self._encode(text))
        if images:
            raise TemplateError(f"{name}: the chat template shows no {IMAGE_TOKEN} for '{images[0]}'")
        if reads and sum(piece == (self._reward_id,) for piece in pieces) != 1:
            raise TemplateError(f"{name}: the rendered turn must hold the reward token exactly once")
        if rendered.count(_MARKER) != pass_.text.count(INSTRUCTION):
            raise TemplateError(f"{name}: the chat template drops or repeats {INSTRUCTION}")
        return tuple(pieces)


def _parts(pass_: Pass, sources: int) -> list[Part]:
    """The parts of a pass, ``source`` once for each source image."""
    return [part for part in pass_.parts for _ in range(sources if part == "source" else 1)]


def _render(pass_: Pass, sources: int, tokenizer: PreTrainedTokenizerBase, chat_template: str) -> str:
    """One user turn with the generation prompt, the marker in place of the instruction."""
    content = []
    for part in _parts(pass_, sources):
        text = pass_.template(part)
        content.append(
            {"type": "image"} if text is None else {"type": "text", "text": text.replace(INSTRUCTION, _MARKER)}
        )
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], chat_template=chat_template, tokenize=False, add_generation_prompt=True
    )
    assert isinstance(rendered, str)
    return rendered


def _token_problems(manifest: Manifest, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The reward token and the image token must each be one special token that strips no neighbouring white space."""
    added = {str(token): token for token in tokenizer.added_tokens_decoder.values()}
    problems = []
    for name in (manifest.reward_token, IMAGE_TOKEN):
        token = added.get(name)
        if token is None or not token.special:
            problems.append(f"tokenizer: {name} is not a special token of its own")
        elif token.lstrip or token.rstrip or token.single_word:
            problems.append(f"tokenizer: {name} must not be lstrip, rstrip or single_word")
    return problems
