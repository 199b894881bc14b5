"""Groups to packed rows: prompt, reward token and critique as one sequence, with shared prefixes packed once.

The sequences are those that the server builds (``SequenceBuilder``) with the critique as the assistant's answer, and a
row is the trie that the server scores: sources and edited images are computed once for all edits and passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from jrm_client.jsonl import quoted
from jrm_service.errors import CandidateError, CheckpointError
from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.model.rows import Row, pack
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Candidate, Text, TokenSequence

from .data import Group

_REGION = re.compile(r"<\|(?:bbox_\d+|global)\|>")

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GroupRow:
    """A packed row of groups on the host, and what the losses need.

    ``reads`` int64 [candidates, passes] are the slots of the reward tokens. ``before`` int64 [C] are the slots
    whose next token is one of a critique, ``targets`` int64 [C] those tokens. ``labels`` float64 [candidates,
    dimensions] have NaN where there is none; ``group_of`` int64 [candidates] numbers the groups of the row.
    """

    packed: Row
    reads: torch.Tensor
    before: torch.Tensor
    targets: torch.Tensor
    labels: torch.Tensor
    group_of: torch.Tensor


class Collator:
    """Turns groups into rows, exactly as the checkpoint's server would read them. Can be pickled for workers."""

    def __init__(self, checkpoint: Checkpoint, *, critiques: bool = True, max_tokens: int | None = None) -> None:
        """``critiques`` False leaves the critiques out, for alpha = 0; no sequence may exceed ``max_tokens``.

        Nor may one exceed the model's context. Raises CheckpointError for a tokenizer that cannot end a turn.
        """
        self._checkpoint = checkpoint
        self._preparer = CheckpointPreparer(checkpoint)
        self._critiques = critiques
        context = int(checkpoint.config.text_config.max_position_embeddings)
        self._max_tokens = context if max_tokens is None else min(max_tokens, context)
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
        if tokenizer.eos_token_id is None:
            raise CheckpointError(["tokenizer_config.json: eos_token: missing, a critique could not end"])
        self._end = int(tokenizer.eos_token_id)
        # A private copy, as in SequenceBuilder: these flags are state of the Rust tokenizer that all callers share.
        self._plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._plain.encode_special_tokens = True
        self._plain.no_truncation()
        self._plain.no_padding()
        added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items()}
        self._regions = {token: number for token, number in added.items() if _REGION.fullmatch(token)}
        self._reward_token = added[checkpoint.manifest.reward_token]

    @property
    def new_tokens(self) -> list[int]:
        """Ids of the tokens that no stock model has: the reward token, and the region tags that are tokens."""
        return sorted({self._reward_token, *self._regions.values()})

    def __reduce__(self) -> tuple[Callable[..., Collator], tuple[Path, bool, int]]:
        """Reopened in another process: a pickled Rust tokenizer forgets that special tokens are to be plain text."""
        return _reopen, (self._checkpoint.path, self._critiques, self._max_tokens)

    def word(self, word: str) -> int:
        """The single token of a word with a space before it. Raises ValueError if it is several."""
        ids: list[int] = self._plain.encode(f" {word}", add_special_tokens=False).ids
        if len(ids) != 1:
            raise ValueError(f"'{word}' is {len(ids)} tokens, must be one")
        return ids[0]

    def critique_ids(self, text: str) -> Ids:
        """A critique and the end of the turn: region tags that the tokenizer has are tokens, the rest is plain text."""
        ids: list[int] = []
        for piece in self._pieces(text):
            region = self._regions.get(piece)
            ids += [region] if region is not None else self._plain.encode(piece, add_special_tokens=False).ids
        return (*ids, self._end)

    def _pieces(self, text: str) -> Iterator[str]:
        """The text cut around the region tags that the tokenizer has."""
        end = 0
        for tag in _REGION.finditer(text):
            if tag[0] in self._regions:
                yield from (text[end : tag.start()], tag[0])
                end = tag.end()
        yield text[end:]

    def row(self, groups: Sequence[Group]) -> GroupRow:
        """Pack groups into one row. Raises ValueError for a group that the model cannot take, by its instruction."""
        manifest = self._checkpoint.manifest
        candidates = [candidate for group in groups for candidate in self._candidates(group)]
        scored = [sequence for candidate in candidates for sequence in candidate.sequences]
        answers = self._answers(groups, scored)
        with_critiques = [(*scored[n].segments, Text((*scored[n].tail, *critique))) for n, critique in answers]
        packed = pack(
            [*(sequence.segments for sequence in scored), *with_critiques],
            factor=self._checkpoint.image_spec.factor,
            image_token_id=self._checkpoint.config.image_token_id,
            position_rule=manifest.positions,
        )
        reads, ends = packed.reads[: len(scored)], packed.reads[len(scored) :].tolist()
        before = [torch.empty(0, dtype=torch.int64)]
        for (n, critique), end in zip(answers, ends, strict=True):
            slots = torch.arange(end - len(critique), end)
            if not scored[n].tail:  # the critique has a node to itself, and the reward token is what it follows
                slots[0] = reads[n]
            before.append(slots)
        return GroupRow(
            packed=packed,
            reads=reads.view(len(candidates), len(manifest.passes)),
            before=torch.cat(before),
            targets=torch.tensor([number for _, critique in answers for number in critique], dtype=torch.int64),
            labels=torch.tensor(
                [labels for group in groups for labels in _labels(group, manifest.dimensions)], dtype=torch.float64
            ),
            group_of=torch.tensor([number for number, group in enumerate(groups) for _ in group.edits]),
        )

    def _candidates(self, group: Group) -> list[Candidate]:
        try:
            sources = [self._preparer.image(source) for source in group.sources]
            edited = [self._preparer.image(edit.image) for edit in group.edits]
            return [self._preparer.candidate(sources, image, group.instruction) for image in edited]
        except (CandidateError, ValueError) as error:  # ValueError: another number of sources than the checkpoint takes
            raise ValueError(f"{_named(group)}: {error}") from None

    def _answers(self, groups: Sequence[Group], scored: Sequence[TokenSequence]) -> list[tuple[int, Ids]]:
        """Every critique with the number of the sequence that it answers.

        A pass that is read for several dimensions has as many answers: all of them shape its **h**.
        """
        answers: list[tuple[int, Ids]] = []
        manifest = self._checkpoint.manifest
        passes = [(group, edit, pass_) for group in groups for edit in group.edits for pass_ in manifest.passes]
        for number, ((group, edit, pass_), sequence) in enumerate(zip(passes, scored, strict=True)):
            texts = [edit.critiques[name] for name in pass_.read if name in edit.critiques] if self._critiques else []
            critiques = [self.critique_ids(text) for text in texts]
            longest = max(map(len, critiques), default=0)
            if sequence.tokens + longest > self._max_tokens:
                raise ValueError(
                    f"{_named(group)}: a sequence of {sequence.tokens} tokens and a critique of {longest}, "
                    f"the limit is {self._max_tokens}"
                )
            answers += [(number, critique) for critique in critiques]
        return answers


def _reopen(path: Path, critiques: bool, max_tokens: int) -> Collator:
    return Collator(open_checkpoint(path), critiques=critiques, max_tokens=max_tokens)


def _labels(group: Group, dimensions: Sequence[str]) -> Iterator[tuple[float, ...]]:
    """The numbers that the edits are compared by: a tuple for each edit, in the order of the dimensions."""
    return zip(*(group.ranking(name) for name in dimensions), strict=True)


def _named(group: Group) -> str:
    return f"instruction '{quoted(group.instruction)}'"
