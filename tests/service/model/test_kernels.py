"""What replaces transformers' layers: that it is right for every family, that it is checked, and when it is refused."""

import logging
import math

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLModel, Qwen2VLConfig, Qwen2VLModel, Qwen3VLConfig, Qwen3VLModel

from jrm_service.errors import CheckpointError
from jrm_service.model import kernels
from jrm_service.model.attention import ATTENTION, TrieAttention
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.engine import TrieScorer
from jrm_service.model.fused import FusedLayer, GatedMLP, LayerFunctions, Norm, as_it_is
from jrm_service.model.kernels import COMPILED, EAGER, IN_DTYPE, IN_FP8, IN_SIMULATED_FP8, PLAIN, KernelVariant, fuse
from jrm_service.model.matrix_products import Merged, ScaledFP8, quantize
from jrm_service.model.rows import through_layers
from jrm_service.model.scorer import PlainScorer
from jrm_service.model.trie import build_trie, positions
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Text
from support import checkpoints
from support.cases import each
from support.pictures import photo

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]},
}
TOWER = {"depth": 2, "num_heads": 2}
FAMILIES = {
    "Qwen3-VL": lambda: Qwen3VLModel(
        Qwen3VLConfig(
            text_config=TEXT,
            vision_config=TOWER
            | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "deepstack_visual_indexes": [0]},
        )
    ),
    "Qwen2.5-VL": lambda: Qwen2_5_VLModel(
        Qwen2_5_VLConfig(
            text_config=TEXT,
            vision_config=TOWER
            | {"hidden_size": 32, "intermediate_size": 48, "out_hidden_size": 64, "fullatt_block_indexes": [1]},
        )
    ),
    "Qwen2-VL": lambda: Qwen2VLModel(
        Qwen2VLConfig(text_config=TEXT, vision_config=TOWER | {"embed_dim": 32, "hidden_size": 64})
    ),
}


def backbone(family: str, dtype: torch.dtype = torch.float32):
    """With random weights in every place, norms and biases included, that are large enough to matter."""
    torch.manual_seed(0)
    model = FAMILIES[family]().to(dtype).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape) * 0.3 + (parameter.dim() == 1))
    model.language_model.config._attn_implementation = ATTENTION
    return model


def hidden_states(model) -> torch.Tensor:
    """Of a row in which segments are shared."""
    trie = build_trie([[Text((1, 2, 3)), Text((4, 5))], [Text((1, 2, 3)), Text((6,) * 7)], [Text((7, 8))]])
    embeds = 0.1 * torch.randn(trie.tokens, 64, generator=torch.Generator().manual_seed(1)).to(model.dtype)
    position_ids = torch.from_numpy(positions(trie, 1))[:, None]
    return through_layers(model.language_model, embeds, position_ids, TrieAttention.of(trie), torch.tensor([0]), [])


def fused(model, variants=(EAGER,), arithmetic=IN_DTYPE) -> dict[str, str]:
    return fuse(model, device="cpu", dtype=model.dtype, kernel=None, variants=variants, arithmetic=arithmetic)


@pytest.fixture
def checkpoint(tmp_path):
    return open_checkpoint(checkpoints.write(tmp_path / "checkpoint", checkpoints.two_passes()))


def rewards(scorer, checkpoint, edits=7) -> list[float]:
    preparer = CheckpointPreparer(checkpoint)
    source, *edited = (preparer.image(photo(60 + 9 * n, 50 + 7 * n, seed=n)) for n in range(edits + 1))
    candidates = [preparer.candidate([source], image, f"make it {n}") for n, image in enumerate(edited)]
    return [outcome.reward for outcome in scorer.score(scorer.collate(candidates)).outcomes]


@pytest.fixture
def stance():
    """What is said of compiling holds for the whole process: it is taken back."""
    yield
    torch.compiler.set_stance("default")


# --- the same numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_fused_layers_give_what_plain_ones_give_in_every_family(family):
    model = backbone(family)
    with torch.inference_mode():
        expected = hidden_states(model)
        assert fused(model)["linear"] == "merged"
        assert all(isinstance(layer, FusedLayer) for layer in model.language_model.layers)
        torch.testing.assert_close(hidden_states(model), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_tower_has_of_norms_and_gated_layers_is_fused_too(family):
    model = backbone(family)
    patches = torch.randn(4, 32)
    before = [block.mlp(block.norm2(patches)) for block in model.visual.blocks]
    fused(model)
    after = [block.mlp(block.norm2(patches)) for block in model.visual.blocks]
    kinds = {type(module) for module in model.visual.modules()} & {GatedMLP, Norm}
    assert kinds == ({GatedMLP, Norm} if family == "Qwen2.5-VL" else set())
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    assert isinstance(model.language_model.norm, Norm)


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_move_into_the_products_and_are_not_held_twice(family):
    model = backbone(family)
    before = sum(tensor.numel() for tensor in model.state_dict().values())
    names = {name for name, _ in model.named_modules()}
    fused(model)
    assert sum(tensor.numel() for tensor in model.state_dict().values()) == before
    assert not any(name.endswith(("q_proj", "up_proj")) for name, _ in model.named_modules())
    assert any(name.endswith("q_proj") for name in names)


def test_a_scorer_with_fused_layers_scores_as_the_plain_one(checkpoint):
    scorer = TrieScorer(checkpoint, "cpu", torch.float32, variants=[EAGER])
    assert scorer.kernels == PLAIN | {"norm": "fused", "linear": "merged", "attention": "per_shape"}
    expected = rewards(PlainScorer(checkpoint, "cpu", torch.float32), checkpoint)
    assert rewards(scorer, checkpoint) == pytest.approx(expected, abs=1e-5)


def test_in_bfloat16_they_are_as_far_from_float32_as_plain_layers_are(checkpoint):
    exact = rewards(PlainScorer(checkpoint, "cpu", torch.float32), checkpoint)
    off = [
        max(abs(a - b) for a, b in zip(rewards(scorer, checkpoint), exact, strict=True))
        for scorer in (TrieScorer(checkpoint, "cpu", torch.bfloat16, variants=variants) for variants in ([], [EAGER]))
    ]
    assert 0 < off[1] < 3 * off[0]


def test_a_cpu_keeps_its_plain_layers(checkpoint):
    scorer = TrieScorer(checkpoint, "cpu", torch.float32)
    assert scorer.kernels == PLAIN | {"attention": "per_shape"}
    assert kernels.variants_on("cuda:1") == (COMPILED, EAGER)


@each("operand, products", [(as_it_is, Merged), (quantize, ScaledFP8)])
def test_nothing_is_read_back_from_the_device(operand, products):
    """On the meta device, whatever asks for a number raises."""
    language = backbone("Qwen2.5-VL", torch.bfloat16).to("meta").language_model
    layer = FusedLayer(language.layers[0], LayerFunctions(1e-6, operand=operand), products)
    hidden, row = kernels._trial_row(language, [[5, 3], [5, 9]], "meta", torch.bfloat16, None)
    given = layer(hidden, **row)
    assert given.is_meta
    assert (given.shape, given.dtype) == (hidden.shape, hidden.dtype)


# --- fp8 -------------------------------------------------------------------------------------------------------------


def test_fp8_moves_scores_a_little_simulated_or_real(checkpoint):
    exact = rewards(PlainScorer(checkpoint, "cpu", torch.float32), checkpoint)
    spread = max(exact) - min(exact)
    for dtype, arithmetic in ((torch.float32, IN_SIMULATED_FP8), (torch.bfloat16, IN_FP8)):
        scorer = TrieScorer(checkpoint, "cpu", dtype, variants=[EAGER], arithmetic=arithmetic)
        off = max(abs(a - b) for a, b in zip(rewards(scorer, checkpoint), exact, strict=True))
        assert 1e-4 < off < spread
    assert scorer.kernels["linear"] == "fp8"


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_layers_of_the_language_model_are_in_fp8(family):
    model = backbone(family, torch.bfloat16)
    fused(model, arithmetic=IN_FP8)
    in_fp8 = {name for name, tensor in model.state_dict().items() if tensor.dtype is torch.float8_e4m3fn}
    assert len(in_fp8) == 3 * 4
    assert all(name.startswith("language_model.layers.") for name in in_fp8)


def test_without_a_way_that_is_right_fp8_is_refused():
    for variants in ((), (KernelVariant("broken", lambda _: fails),)):
        with pytest.raises(CheckpointError, match="no fp8 layer on cpu"):
            fused(backbone("Qwen3-VL", torch.bfloat16), variants, IN_FP8)


# --- what is not trusted ---------------------------------------------------------------------------------------------


def fails(*_arguments):
    raise RuntimeError("Failed to find C compiler.\nSet CC.")


def slightly_off(function):
    def run(*arguments):
        given = function(*arguments)
        return tuple(1.02 * part for part in given) if isinstance(given, tuple) else 1.02 * given

    return run


def not_a_number(function):
    return lambda *arguments: function(*arguments) * math.nan


WRONG = {"no compiler": lambda _: fails, "slightly off": slightly_off, "not a number": not_a_number}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_way_that_fails_or_gives_something_else_is_passed_over(wrong, caplog):
    model = backbone("Qwen2.5-VL")
    with torch.inference_mode(), caplog.at_level(logging.INFO):
        expected = hidden_states(model)
        assert fused(model, [KernelVariant(wrong, WRONG[wrong])]) == PLAIN | {"attention": "per_shape"}
        torch.testing.assert_close(hidden_states(model), expected, atol=0, rtol=0)
        assert caplog.records[-1].getMessage() == "layers on cpu: plain, nothing faster is right here"
        assert fused(model, [KernelVariant(wrong, WRONG[wrong]), EAGER])["norm"] == "fused"


def test_a_device_that_does_not_answer_after_the_trial_names_the_switch():
    """As after a kernel that has crashed it: every later call on it fails, and the error explains nothing."""
    model = backbone("Qwen2.5-VL")
    with pytest.raises(CheckpointError, match=r"cuda:99 does not answer after eager layers: use --fused-layers false"):
        fuse(model, device="cuda:99", dtype=model.dtype, kernel=None, variants=[EAGER])


class OtherNorm(torch.nn.Module):
    """As some models have it: the weight is what is added to 1."""

    def __init__(self):
        super().__init__()
        self.variance_epsilon = 1e-6
        self.weight = torch.nn.Parameter(torch.randn(32), requires_grad=False)

    def forward(self, x):
        return torch.nn.functional.rms_norm(x, (32,), 1 + self.weight, 1e-6)


@each("other", [OtherNorm(), torch.nn.Sequential(torch.nn.Linear(32, 32))])
def test_other_modules_of_a_tower_stay_as_they_are_and_the_rest_is_fused(other):
    other.variance_epsilon = 1e-6  # or something that has the attribute and is no norm at all
    model = backbone("Qwen2.5-VL")
    model.visual.blocks[1].norm2 = other
    fused(model)
    assert model.visual.blocks[1].norm2 is other
    assert isinstance(model.visual.blocks[0].norm2, Norm)


def test_layers_of_another_structure_stay_as_they_are():
    model = backbone("Qwen3-VL")
    del model.language_model.layers[0].mlp.gate_proj
    assert fused(model)["mlp"] == "plain"


# --- compiling -------------------------------------------------------------------------------------------------------


def counted(backend: str) -> tuple[KernelVariant, CompileCounterWithBackend]:
    counter = CompileCounterWithBackend(backend)
    return KernelVariant("counted", lambda function: torch.compile(function, fullgraph=True, backend=counter)), counter


@pytest.mark.parametrize("arithmetic", [IN_DTYPE, IN_SIMULATED_FP8], ids=["float32", "fp8"])
def test_nothing_is_compiled_after_the_start_whatever_the_lengths(checkpoint, arithmetic):
    """By torch's own tracer, which decides what to compile anew; what it traced is run as it is."""
    torch.compiler.reset()
    variant, counter = counted("eager")
    scorer = TrieScorer(checkpoint, "cpu", torch.float32, variants=[variant], arithmetic=arithmetic)
    at_start = counter.frame_count
    assert at_start > 0
    plain = TrieScorer(checkpoint, "cpu", torch.float32, variants=[EAGER], arithmetic=arithmetic)
    for edits in (1, 2, 5, 9):
        expected = rewards(plain, checkpoint, edits)
        assert rewards(scorer, checkpoint, edits) == pytest.approx(expected, abs=1e-5)
    assert counter.frame_count == at_start


def test_what_comes_late_is_compiled_as_well():
    """torch counts what it compiles of a function for all models of a process, and gives up after a few."""
    torch.compiler.reset()
    variant, counter = counted("eager")
    x, weight = torch.ones(2, 4), torch.ones(4)
    with torch._dynamo.config.patch(recompile_limit=8):
        COMPILED.wrap(torch.neg)
        for number in range(12):
            eps = (number + 1) * 1e-3
            expected = torch.nn.functional.rms_norm(x, (4,), weight, eps)
            torch.testing.assert_close(LayerFunctions(eps, variant.wrap).norm(x, weight), expected)
    assert counter.frame_count == 12


@pytest.mark.usefixtures("stance")
def test_once_ready_a_call_that_nothing_was_compiled_for_runs_as_it_is_written():
    torch.compiler.reset()
    variant, counter = counted("eager")
    doubled = variant.wrap(lambda x: x + x)
    doubled(torch.ones(3))
    at_start = counter.frame_count
    kernels.compile_no_more()
    assert doubled(torch.ones(2, 2, dtype=torch.float64)).tolist() == [[2.0, 2.0], [2.0, 2.0]]
    assert doubled(torch.ones(3)).tolist() == [2.0, 2.0, 2.0]
    assert counter.frame_count == at_start


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, inside its compiler
@pytest.mark.parametrize("arithmetic", [IN_DTYPE, IN_SIMULATED_FP8], ids=["float32", "fp8"])
def test_compiled_layers_score_as_plain_ones(checkpoint, arithmetic):
    """With the compiler for a CPU, which fuses the same functions as that for a GPU."""
    torch.compiler.reset()
    scorer = TrieScorer(checkpoint, "cpu", torch.float32, variants=[COMPILED], arithmetic=arithmetic)
    assert scorer.kernels["rotary"] == "compiled"
    plain = TrieScorer(checkpoint, "cpu", torch.float32, variants=[EAGER], arithmetic=arithmetic)
    tolerance = 1e-5 if arithmetic is IN_DTYPE else 0.05
    assert rewards(scorer, checkpoint) == pytest.approx(rewards(plain, checkpoint), abs=tolerance)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_without_a_folder_to_write_to_layers_run_uncompiled(checkpoint, monkeypatch):
    torch.compiler.reset()
    with monkeypatch.context() as changed:
        changed.setenv("TORCHINDUCTOR_CACHE_DIR", "/proc/nowhere")
        scorer = TrieScorer(checkpoint, "cpu", torch.float32, variants=[COMPILED, EAGER])
    assert (scorer.kernels["norm"], scorer.kernels["rotary"]) == ("fused", "plain")
    expected = rewards(PlainScorer(checkpoint, "cpu", torch.float32), checkpoint)
    assert rewards(scorer, checkpoint) == pytest.approx(expected, abs=1e-5)
