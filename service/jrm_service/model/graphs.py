"""CUDA graphs for short rows: the layers of the language model recorded for a handful of lengths, run in one launch.

A row of one candidate is computed in less time than the host takes to launch its kernels one by one. A graph has fixed
shapes, so a row is copied into the buffers of the next longer length, and the remaining slots become a sequence of
their own, which no real token sees and nothing reads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from jrm_service.errors import CheckpointError, one_line
from jrm_service.scoring.types import Text

from .attention import TrieAttention
from .devices import is_responsive
from .rows import through_layers
from .trie import build_trie, positions
from .varlen import Kernel, Lengths

logger = logging.getLogger(__name__)

LENGTHS = (512, 768, 1024, 1280, 1536, 2048, 2560)  # tokens; one candidate with the paper's prompts has about 1,200
_KEYS = 3  # times the tokens: keys that several nodes see count for each of them
_NODES = 64
# Tolerances as shares of a hidden state's norm: for the same kernels, and for kernels of a row of another length.
_SAME, _TOLERANCE = 2**-7, 2**-4

Run = Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Inputs:
    """The arguments of ``through_layers`` for a row, on its device."""

    embeds: torch.Tensor
    position_ids: torch.Tensor
    attention: TrieAttention
    image_slots: torch.Tensor
    deepstack: Sequence[torch.Tensor]

    def through(self, language_model: Any) -> torch.Tensor:
        """Hidden states [T, H]."""
        return through_layers(
            language_model, self.embeds, self.position_ids, self.attention, self.image_slots, self.deepstack
        )


class Buffers:
    """The inputs of a row of ``tokens`` slots, into which shorter rows are copied."""

    def __init__(self, language_model: Any, kernel: Kernel, tokens: int, deepstack: int) -> None:
        """``deepstack``: how many layers of the vision tower are added."""
        weight = language_model.get_input_embeddings().weight
        self.tokens, self.keys = tokens, _KEYS * tokens
        self._language_model = language_model
        self._slots = torch.arange(tokens, device=weight.device)
        self._ends = Lengths(
            cu_seqlens_q=torch.zeros(_NODES + 1, dtype=torch.int32, device=weight.device),
            cu_seqlens_k=torch.zeros(_NODES + 1, dtype=torch.int32, device=weight.device),
            sequences=(),  # unknown on the host
            longest=(tokens, self.keys),
        )
        self._row = Inputs(
            embeds=weight.new_zeros(tokens, weight.shape[1]),
            position_ids=self._slots.new_zeros(3, 1, tokens),
            attention=TrieAttention(
                queries=self._slots.clone(),
                restore=self._slots.clone(),
                keys=self._slots.new_zeros(self.keys),
                shapes=[],
                masks=[],
                kernel=kernel,
                lengths=self._ends,
            ),
            image_slots=self._slots,  # slots without an image get zeros added
            deepstack=[weight.new_zeros(tokens, weight.shape[1]) for _ in range(deepstack)],
        )

    def fit(self, row: Inputs) -> bool:
        """Whether there is room for a row and for the sequence of remaining slots, which needs a key for each."""
        rest, lengths = self.tokens - len(row.embeds), row.attention.lengths
        return (
            rest > 0
            and len(row.attention.keys) + rest <= self.keys
            and lengths is not None
            and len(lengths.cu_seqlens_q) <= _NODES
            and len(row.deepstack) == len(self._row.deepstack)
        )

    def fill(self, row: Inputs) -> None:
        """Copy a row that fits, and overwrite everything of the previous one."""
        ours, tokens = self._row, len(row.embeds)
        assert row.attention.lengths is not None
        ours.embeds.zero_()[:tokens].copy_(row.embeds)
        ours.position_ids.zero_()[..., :tokens].copy_(row.position_ids)
        for order, copied in (
            (ours.attention.queries, row.attention.queries),
            (ours.attention.restore, row.attention.restore),
        ):
            order.copy_(self._slots)[:tokens].copy_(copied)
        # All keys of the remaining slots are the last slot, which is always one of them.
        ours.attention.keys.fill_(self.tokens - 1)[: len(row.attention.keys)].copy_(row.attention.keys)
        for ends, copied, last in (
            (self._ends.cu_seqlens_q, row.attention.lengths.cu_seqlens_q, self.tokens),
            (self._ends.cu_seqlens_k, row.attention.lengths.cu_seqlens_k, self.keys),
        ):
            ends.fill_(last)[: len(copied)].copy_(copied)  # then empty sequences
        for added, layer in zip(ours.deepstack, row.deepstack, strict=True):
            added.zero_().index_copy_(0, row.image_slots, layer.to(added.dtype))

    def run(self) -> torch.Tensor:
        """Return hidden states [tokens, H] of every slot."""
        return self._row.through(self._language_model)


class Graphs:
    """Has the interface of ``through_layers``; rows that fit no buffers go through the layers one by one."""

    def __init__(self, language_model: Any, buffers: Sequence[Buffers], capture: Callable[[Run], Run]) -> None:
        """``capture`` records a function and returns one that replays it. ``buffers``: shortest first."""
        self._language_model = language_model
        # Longest first: the shorter ones reuse its memory.
        self._graphs = [(buffer, capture(buffer.run)) for buffer in reversed(buffers)][::-1]

    def __call__(
        self,
        embeds: torch.Tensor,
        position_ids: torch.Tensor,
        attention: TrieAttention,
        image_slots: torch.Tensor,
        deepstack: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Hidden states [T, H]; they are overwritten by the next call."""
        row = Inputs(embeds, position_ids, attention, image_slots, deepstack)
        for buffers, replay in self._graphs:
            if buffers.fit(row):
                buffers.fill(row)
                return replay()[: len(embeds)]
        return row.through(self._language_model)

    def verify(self, kernel: Kernel, deepstack: int) -> bool:
        """Whether each graph computes, for two rows in turn, what its kernels compute one by one, and whether that is
        what they compute for the row without buffers.
        """
        for buffers, replay in self._graphs:
            third = buffers.tokens // 3
            for lengths in ([[third, third], [third, third // 2]], [[third // 2, 3], [third]]):
                row = _trial(self._language_model, kernel, lengths, deepstack)
                buffers.fill(row)
                tokens, replayed = len(row.embeds), replay().clone()
                in_buffers, alone = buffers.run()[:tokens], row.through(self._language_model)
                if not (_near(replayed[:tokens], in_buffers, _SAME) and _near(in_buffers, alone, _TOLERANCE)):
                    return False
        return True


def _near(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    off = (got.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1)
    return bool((off <= tolerance).all())  # False for NaN as well


def _trial(language_model: Any, kernel: Kernel, lengths: Sequence[Sequence[int]], deepstack: int) -> Inputs:
    """A row of text with DeepStack features for its first tokens."""
    weight = language_model.get_input_embeddings().weight
    trie = build_trie([[Text((tokens,) * tokens) for tokens in sequence] for sequence in lengths])
    random = torch.randn(trie.tokens, weight.shape[1], generator=torch.Generator().manual_seed(trie.tokens))
    features = weight.std() * random.to(weight)  # there first: a number on a GPU multiplies nothing on the host
    return Inputs(
        embeds=features,
        position_ids=torch.from_numpy(positions(trie, 1))[:, None].to(weight.device),
        attention=TrieAttention.of(trie, kernel).to(weight.device),
        image_slots=torch.arange(2, device=weight.device),
        deepstack=[features[2:4]] * deepstack,
    )


def find_graphs(language_model: Any, kernel: Kernel | None, device: str, deepstack: int) -> Graphs | None:
    """Return graphs that were verified on this GPU; None if there are none, or on a CPU.

    Raises CheckpointError if the device no longer answers after the attempt.
    """
    if kernel is None or not device.startswith("cuda"):
        return None
    try:
        # A capture that fails leaves its own stream as the current one: torch puts back only what ended well.
        with torch.inference_mode(), torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream()):
            buffers = [Buffers(language_model, kernel, tokens, deepstack) for tokens in LENGTHS]
            graphs = Graphs(language_model, buffers, _Capture(device))
            if graphs.verify(kernel, deepstack):
                return graphs
        logger.warning("graphs on %s: none, their outputs differ from those of the same kernels run one by one", device)
    except Exception as error:  # recording may raise anything
        logger.warning("graphs on %s: none: %s", device, one_line(error))
    if not is_responsive(device):
        raise CheckpointError([f"{device} does not answer after graphs were tried on it: use --cuda-graphs false"])
    return None


class _Capture:
    """Records CUDA graphs that share memory, since no two of them run at the same time."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._side: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call] # one: a library has a workspace for each

    def __call__(self, run: Run) -> Run:
        # A first call allocates things, such as a library's workspace, that must not be allocated during recording.
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            run()
        torch.cuda.current_stream().wait_stream(self._side)
        graph = torch.cuda.CUDAGraph()
        # thread_local: what another thread does meanwhile, such as pinning memory, is not recorded.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            output = run()

        def replay() -> torch.Tensor:
            with torch.cuda.device(self._device):
                graph.replay()
            return output

        return replay
