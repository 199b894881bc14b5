"""Critiques from the language head (Eq. 3), greedy and unconstrained, as the answer to the prompt that is scored.

The prompt is the server's own token sequence, reward token and generation prompt included, which is also what precedes
a critique in training (``batch.py``). Decoding is transformers' own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeVar

import numpy as np
import torch
from transformers import AutoTokenizer, GenerationConfig, Qwen3VLForConditionalGeneration

from jrm_service.errors import CandidateError, CheckpointError
from jrm_service.images import preprocess
from jrm_service.model.checkpoint import Checkpoint
from jrm_service.model.devices import on_device, resolve_device
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Candidate, Image, TokenSequence

from .data import Group

_LOOKAHEAD = 8  # batches' worth of prompts that are read ahead to find some of equal shape
_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class WrittenCritique:
    """A critique as the language head wrote it.

    ``text`` is everything before the end of the turn, special tokens such as ``<|bbox_0|>`` spelt out.
    ``finish_reason`` is "stop" if the model ended its turn, "length" if it reached the token limit.
    """

    text: str
    finish_reason: Literal["stop", "length"]


def write_critiques(
    checkpoint: Checkpoint,
    groups: Iterable[Group],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    max_new_tokens: int = 256,
    batch: int = 16,
    progress: Callable[[int], None] = lambda _written: None,
) -> Iterator[tuple[Mapping[str, WrittenCritique], ...]]:
    """Load the checkpoint, then write a critique for every dimension of every edit: argmax at each token.

    Yields, for each group and in the order of ``groups``, one mapping for each edit: dimension -> critique, in the
    manifest's order. Dimensions that one pass reads have one prompt, so one critique. The mapping is empty for an edit
    that has no score either: an aspect ratio that no model takes, or a prompt over the model's context.

    Groups are read as they are needed, some ahead of what is yielded. ``batch`` prompts run at once, of equal length
    and image sizes, so that nothing is padded and a critique does not depend on its neighbours, but for rounding where
    two tokens are all but equally likely. ``progress`` is called after each batch with the number of prompts answered.

    A critique ends at the tokenizer's end-of-sequence token, which is what training puts there, and is cut after
    ``max_new_tokens`` tokens or at the model's context. The checkpoint's ``generation_config.json`` is ignored.

    Raises, when called, ValueError for a dimension whose ``explain`` has a template of its own, which is not supported,
    and for a limit below 1, and CheckpointError for a device that does not exist or a weight that is not finite. While
    iterating, WorkerLost when the device is gone, and what reading ``groups`` raises.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("batch", batch)):
        if value < 1:
            raise ValueError(f"{name} is {value}, must be at least 1")
    templates = [name for name, one in checkpoint.manifest.explain.items() if one.template is not None]
    if templates:
        raise ValueError(
            f"reward/manifest.json: explain.{templates[0]}.template: a template of its own is not supported here, only "
            "null, which makes the critique the answer to the prompt that is scored"
        )
    head = _LanguageHead(checkpoint, resolve_device(device), dtype, max_new_tokens)
    return _in_order(checkpoint, groups, head, batch, progress)


def batches(
    items: Iterable[_Item], key: Callable[[_Item], Hashable], size: int, lookahead: int
) -> Iterator[list[_Item]]:
    """Batch items of equal key, at most ``size`` together, in order of arrival.

    A batch that does not fill up is not waited for: it leaves ``lookahead`` items after its first.
    """
    waiting: dict[Hashable, tuple[int, list[_Item]]] = {}  # the oldest first: a key that left is put in anew
    for number, item in enumerate(items):
        name = key(item)
        _, same = waiting.setdefault(name, (number, []))
        same.append(item)
        if len(same) == size:
            yield waiting.pop(name)[1]
        while waiting and number - waiting[oldest := next(iter(waiting))][0] >= lookahead:
            yield waiting.pop(oldest)[1]
    for _, same in waiting.values():
        yield same


@dataclass(slots=True)
class _Answers:
    """The answers to one group's prompts so far: by pass, for each edit."""

    edits: tuple[dict[int, WrittenCritique], ...]
    missing: int


@dataclass(frozen=True, slots=True)
class _Prompt:
    """One pass over one edit, and where its answer goes."""

    answers: _Answers
    edit: int
    number: int
    sequence: TokenSequence

    @property
    def shape(self) -> Hashable:
        """What must be equal within a batch: the length in tokens and the sizes of the images."""
        return self.sequence.tokens, *(image.pixels.shape for image in _images(self.sequence))


def _in_order(
    checkpoint: Checkpoint,
    groups: Iterable[Group],
    head: _LanguageHead,
    batch: int,
    progress: Callable[[int], None],
) -> Iterator[tuple[Mapping[str, WrittenCritique], ...]]:
    preparer = CheckpointPreparer(checkpoint)
    unfinished: deque[_Answers] = deque()
    answered = 0

    def prompts() -> Iterator[_Prompt]:
        for group in groups:
            candidates = _candidates(preparer, group)
            missing = sum(len(candidate.sequences) for candidate in candidates.values())
            answers = _Answers(tuple({} for _ in group.edits), missing)
            unfinished.append(answers)
            for edit, candidate in candidates.items():
                for number, sequence in enumerate(candidate.sequences):
                    yield _Prompt(answers, edit, number, sequence)

    def done() -> Iterator[tuple[Mapping[str, WrittenCritique], ...]]:
        passes = checkpoint.manifest.passes
        while unfinished and not unfinished[0].missing:
            yield tuple(
                {name: by_pass[number] for number in sorted(by_pass) for name in passes[number].read}
                for by_pass in unfinished.popleft().edits
            )

    for prompt_batch in batches(prompts(), lambda prompt: prompt.shape, batch, _LOOKAHEAD * batch):
        for prompt, written in zip(
            prompt_batch, head.answer([prompt.sequence for prompt in prompt_batch]), strict=True
        ):
            prompt.answers.edits[prompt.edit][prompt.number] = written
            prompt.answers.missing -= 1
        answered += len(prompt_batch)
        progress(answered)
        yield from done()
    yield from done()  # groups without a prompt behind the last batch


def _candidates(preparer: CheckpointPreparer, group: Group) -> dict[int, Candidate]:
    """The edits that the model can be given, by their place in the group."""
    candidates: dict[int, Candidate] = {}
    with suppress(CandidateError):
        sources = [preparer.image(source) for source in group.sources]
        for place, edit in enumerate(group.edits):
            with suppress(CandidateError):
                candidates[place] = preparer.candidate(sources, preparer.image(edit.image), group.instruction)
    return candidates


def _images(sequence: TokenSequence) -> list[Image]:
    return [segment for segment in sequence.segments if isinstance(segment, Image)]


class _LanguageHead:
    """The stock model of a checkpoint, which answers token sequences."""

    def __init__(self, checkpoint: Checkpoint, device: str, dtype: torch.dtype, max_new_tokens: int) -> None:
        self._config = checkpoint.config
        self._spec = checkpoint.image_spec
        self._device = device
        self._max_new_tokens = max_new_tokens
        local = {"local_files_only": True, "trust_remote_code": False}
        self._tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, **local)
        self._end = int(self._tokenizer.eos_token_id)
        model = Qwen3VLForConditionalGeneration.from_pretrained(
            checkpoint.path, dtype=dtype, use_safetensors=True, **local
        )
        broken = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
        if broken:
            raise CheckpointError([f"{broken[0]}: holds NaN or infinity"])
        model.generation_config = GenerationConfig()  # or `generate` would fill in options from the folder's
        self._model = model.to(device).eval()

    def answer(self, sequences: Sequence[TokenSequence]) -> list[WrittenCritique]:
        """Answer prompts of equal length and image sizes."""
        length = sequences[0].tokens
        room = min(self._max_new_tokens, self._config.text_config.max_position_embeddings - length)
        if room < 1:
            return [WrittenCritique("", "length")] * len(sequences)
        rules = GenerationConfig(do_sample=False, max_new_tokens=room, eos_token_id=self._end, pad_token_id=self._end)
        with on_device(self._device):
            ids = self._model.generate(**self._inputs(sequences), generation_config=rules)
            return [self._written(new) for new in ids[:, length:].tolist()]

    def _inputs(self, sequences: Sequence[TokenSequence]) -> dict[str, torch.Tensor]:
        """What the model's forward takes: int64 [B, T] by token, and the images of all rows one after the other."""
        image_id = self._config.image_token_id
        rows = []
        for sequence in sequences:
            ids = [[image_id] * s.tokens if isinstance(s, Image) else s.ids for s in sequence.segments]
            rows.append([*chain.from_iterable(ids), *sequence.tail])
        input_ids = torch.tensor(rows)
        pixels = [image.pixels for sequence in sequences for image in _images(sequence)]
        inputs = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "mm_token_type_ids": (input_ids == image_id).long(),  # no text holds this id: see SequenceBuilder
            "pixel_values": torch.from_numpy(np.concatenate([preprocess.patches(one, self._spec) for one in pixels])),
            "image_grid_thw": torch.tensor([preprocess.grid(one, self._spec) for one in pixels]),
        }
        return {name: tensor.to(self._device) for name, tensor in inputs.items()}

    def _written(self, ids: list[int]) -> WrittenCritique:
        stopped = self._end in ids
        answer_ids = ids[: ids.index(self._end)] if stopped else ids
        text = self._tokenizer.decode(answer_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return WrittenCritique(text, "stop" if stopped else "length")
