"""Rows in buffers that are longer than they are: the same numbers, whatever was there before."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_service.model.attention import TrieAttention
from jrm_service.model.checkpoint import load_model, open_checkpoint
from jrm_service.model.devices import replace_tensors
from jrm_service.model.engine import TrieScorer
from jrm_service.model.graphs import Buffers, Graphs, Inputs, find_graphs
from jrm_service.model.rows import PackedModel, through_layers
from jrm_service.model.scorer import PlainScorer
from jrm_service.model.trie import build_trie, positions
from jrm_service.model.varlen import Lengths, one_by_one
from jrm_service.model.weights import empty_model
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Text
from support import checkpoints
from support.cases import each
from support.pictures import photo

DEEPSTACK = 2


def by_ends(query, key, value, lengths, *, causal, scale):
    """As a kernel of a GPU: it knows nothing of a sequence but what stands on the device."""
    assert int(lengths.cu_seqlens_q[-1]) == len(query)
    assert int(lengths.cu_seqlens_k[-1]) == len(key)
    sequences = zip(lengths.cu_seqlens_q.diff().tolist(), lengths.cu_seqlens_k.diff().tolist(), strict=True)
    return one_by_one(query, key, value, Lengths.of(list(sequences)), causal=causal, scale=scale)


def as_recorded(run):
    """What a graph is on a CPU: the same function, again."""
    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return open_checkpoint(checkpoints.write(tmp_path_factory.mktemp("graphs"), checkpoints.two_passes()))


@pytest.fixture(scope="module")
def language(checkpoint):
    model, _ = load_model(checkpoint, "cpu", torch.float32)
    PackedModel(model, checkpoint.image_spec, by_ends)
    return model.language_model


def row(language, lengths, *, images=3) -> Inputs:
    """Sequences of segments of so many tokens; equal segments at the same place are shared."""
    trie = build_trie([[Text((n,) * n) for n in sequence] for sequence in lengths])
    random = torch.Generator().manual_seed(trie.tokens)
    width = language.config.hidden_size
    return Inputs(
        embeds=torch.randn(trie.tokens, width, generator=random),
        position_ids=torch.from_numpy(positions(trie, 1))[:, None],
        attention=TrieAttention.of(trie, by_ends),
        image_slots=torch.randperm(trie.tokens, generator=random)[:images],
        deepstack=[torch.randn(images, width, generator=random) for _ in range(DEEPSTACK)],
    )


def arguments(inputs: Inputs):
    return inputs.embeds, inputs.position_ids, inputs.attention, inputs.image_slots, inputs.deepstack


ROWS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=5)


@given(first=ROWS, second=ROWS)
@settings(max_examples=20, deadline=None)
def test_a_row_in_longer_buffers_gives_what_it_gives_alone_whatever_was_there_before(language, first, second):
    graphs = Graphs(language, [Buffers(language, by_ends, 160, DEEPSTACK)], as_recorded)
    with torch.inference_mode():
        for lengths in (first, second, first):
            inputs = row(language, lengths, images=1)
            expected = through_layers(language, *arguments(inputs))
            torch.testing.assert_close(graphs(*arguments(inputs)), expected, atol=1e-5, rtol=1e-5)


def test_what_was_not_a_number_is_not_left_behind(language):
    graphs = Graphs(language, [Buffers(language, by_ends, 40, DEEPSTACK)], as_recorded)
    broken, inputs = row(language, [[9, 9], [9, 8]]), row(language, [[5, 3]])
    broken.embeds.fill_(torch.nan)
    with torch.inference_mode():
        assert graphs(*arguments(broken)).isnan().all()
        torch.testing.assert_close(
            graphs(*arguments(inputs)), through_layers(language, *arguments(inputs)), atol=1e-5, rtol=1e-5
        )


def test_the_shortest_buffers_with_room_are_taken(language):
    taken = []

    def recording(tokens, run):
        return lambda: taken.append(tokens) or run()

    buffers = [Buffers(language, by_ends, tokens, DEEPSTACK) for tokens in (16, 32, 64)]
    by_run = {one.run: one.tokens for one in buffers}
    graphs = Graphs(language, buffers, lambda run: recording(by_run[run], run))
    with torch.inference_mode():
        for lengths in ([[15]], [[16]], [[31]], [[7], [8, 17]], [[63]], [[64]], [[400]]):
            graphs(*arguments(row(language, lengths)))
    assert taken == [16, 32, 32, 64, 64]


FULL = {
    "as many tokens": ([[16]], 16),
    "too many keys": ([[30, n] for n in range(1, 8)], 64),
    "too many nodes": ([[n] for n in range(1, 66)], 2560),
}


@each("lengths, tokens", FULL.values())
def test_a_row_without_room_goes_through_the_layers_one_by_one(language, lengths, tokens):
    buffers = Buffers(language, by_ends, tokens, DEEPSTACK)
    inputs = row(language, lengths)
    assert not buffers.fit(inputs)
    with torch.inference_mode():
        given_out = Graphs(language, [buffers], lambda _run: pytest.fail)(*arguments(inputs))
        torch.testing.assert_close(given_out, through_layers(language, *arguments(inputs)), atol=0, rtol=0)


def test_scores_from_longer_buffers_are_those_of_the_plain_scorer(checkpoint):
    preparer = CheckpointPreparer(checkpoint)
    source, *edits = (preparer.image(photo(60 + 9 * n, 50, seed=n)) for n in range(4))
    candidates = [preparer.candidate([source], edited, "make it red") for edited in edits]
    plain, trie = PlainScorer(checkpoint, "cpu", torch.float32), TrieScorer(checkpoint, "cpu", torch.float32)
    trie.packed.kernel = by_ends
    used = []
    language = trie._model.language_model
    buffers = Buffers(language, by_ends, 640, DEEPSTACK)
    trie.packed.layers = Graphs(language, [buffers], lambda run: lambda: used.append(run) or run())
    for batch in (candidates, candidates[:1], candidates[1:]):
        got, expected = (scorer.score(scorer.collate(batch)).outcomes for scorer in (trie, plain))
        assert [one.reward for one in got] == pytest.approx([one.reward for one in expected], abs=1e-5)
    assert len(used) == 3


def frozen(run):
    """A graph that was recorded with other buffers: it gives what it gave first."""
    first = []

    def replay():
        first.append(first[0] if first else run().clone())
        return first[0]

    return replay


def not_a_number(run):
    return lambda: run() * torch.nan


@each("capture, right", [(as_recorded, True), (frozen, False), (not_a_number, False)])
def test_a_graph_that_gives_something_else_is_not_trusted(language, capture, right):
    graphs = Graphs(language, [Buffers(language, by_ends, tokens, DEEPSTACK) for tokens in (24, 48)], capture)
    with torch.inference_mode():
        assert graphs.verify(by_ends, DEEPSTACK) is right


def wrong_beside_nothing(query, key, value, lengths, *, causal, scale):
    """Right, unless a sequence has no tokens, as those behind the rest of longer buffers."""
    wrong = float((lengths.cu_seqlens_q.diff() == 0).any())
    return by_ends(query, key, value, lengths, causal=causal, scale=scale) + wrong


def test_a_kernel_that_goes_wrong_in_longer_buffers_is_not_trusted(checkpoint):
    model, _ = load_model(checkpoint, "cpu", torch.float32)
    PackedModel(model, checkpoint.image_spec, wrong_beside_nothing)
    buffers = [Buffers(model.language_model, wrong_beside_nothing, 48, DEEPSTACK)]
    with torch.inference_mode():
        assert not Graphs(model.language_model, buffers, as_recorded).verify(wrong_beside_nothing, DEEPSTACK)


def test_a_trial_needs_nothing_of_the_host(checkpoint):
    """The meta device takes no tensor of another, as a GPU takes none; what is compared in the end it cannot say."""

    def kernel(query, key, value, lengths, *, causal, scale):
        assert all(tensor.is_meta for tensor in (query, key, value, lengths.cu_seqlens_q, lengths.cu_seqlens_k))
        return torch.empty_like(query)

    model = empty_model(checkpoint.config).to(torch.bfloat16).eval()
    PackedModel(model, checkpoint.image_spec, kernel)
    replace_tensors(model, lambda tensor: tensor.to("meta"))
    graphs = Graphs(model.language_model, [Buffers(model.language_model, kernel, 48, DEEPSTACK)], as_recorded)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"):
        graphs.verify(kernel, DEEPSTACK)


def test_only_a_gpu_with_a_kernel_has_graphs(language):
    assert find_graphs(language, by_ends, "cpu", DEEPSTACK) is None
    assert find_graphs(language, None, "cuda:0", DEEPSTACK) is None
