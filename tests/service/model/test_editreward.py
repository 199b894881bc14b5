"""Importing EditReward: the same scores as the published model, in a complete folder."""

import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from jrm_service.model.checkpoint import Checkpoint
from jrm_service.model.editreward import import_editreward
from jrm_service.model.scorer import PlainScorer
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_service.scoring.types import Score
from support.editreward import EMBEDDING, Published, edit, read, write_base
from support.pictures import photo

TOLERANCE = 1e-4
CANDIDATES = [
    (photo(seed=1), photo(200, 120, seed=2), "make the red square blue"),
    (photo(seed=1), photo(96, 80, seed=5), "make the red square blue"),
    (photo(640, 80, seed=3), photo(90, 500, seed=4), "加一棵树 {and} {{a café}}"),
    (photo(33, 47, seed=6), photo(700, 600, seed=7), " remove the circle \n"),
]


def score(checkpoint: Checkpoint, candidate) -> Score:
    source, edited, instruction = candidate
    preparer = CheckpointPreparer(checkpoint)
    scorer = PlainScorer(checkpoint, "cpu", torch.float32)
    images = [preparer.image(image) for image in (source, edited)]
    (outcome,) = scorer.score(scorer.collate([preparer.candidate(images[:1], images[1], instruction)])).outcomes
    assert isinstance(outcome, Score)
    return outcome


def assert_agree(ours: Score, theirs: torch.Tensor) -> None:
    """``theirs``: (mean, log sigma) of head_0, instruction following, and head_1, visual quality."""
    heads = [ours.dimensions[name] for name in ("instruction_following", "visual_quality")]
    for mine, (mean, log_sigma) in zip(heads, theirs.tolist(), strict=True):
        assert mine.mean == pytest.approx(mean, abs=TOLERANCE)
        assert math.log(mine.std) == pytest.approx(log_sigma, abs=TOLERANCE)
    assert ours.reward == pytest.approx(theirs.mean(0)[0].item(), abs=TOLERANCE)
    sigmas = theirs[:, 1].exp()
    assert ours.reward_std == pytest.approx(sigmas.square().sum().sqrt().item() / 2, rel=TOLERANCE)


@pytest.mark.parametrize("candidate", CANDIDATES, ids=lambda candidate: str(candidate[1].size))
def test_scores_equal_the_published_model(imported, published, candidate):
    assert_agree(score(imported.checkpoint, candidate), published.score(*candidate))


def test_the_stand_in_tells_candidates_and_heads_apart(published):
    """Otherwise agreeing with it would say little."""
    scores = torch.stack([published.score(*candidate) for candidate in CANDIDATES]).flatten(1)
    for numbers in scores.T:
        assert torch.pdist(numbers[:, None]).min() > 10 * TOLERANCE
    for numbers in scores:
        assert torch.pdist(numbers[:, None]).min() > 10 * TOLERANCE


@pytest.mark.parametrize("form", ["shards", "model.pth", "final_model.pth"])
def test_every_form_of_the_weights_is_the_same_checkpoint(tmp_path, base, published, prompts, imported, form):
    weights = published.save(tmp_path / "weights", form)
    other = import_editreward(weights, base, tmp_path / "out", prompts=prompts).checkpoint
    assert score(other, CANDIDATES[0]) == score(imported.checkpoint, CANDIDATES[0])


@pytest.mark.parametrize("wrap", [lambda t: {"model": t}, lambda t: {f"module.{n}": x for n, x in t.items()}])
def test_wrapped_state_dicts(tmp_path, base, published, prompts, imported, wrap):
    (tmp_path / "weights").mkdir()
    torch.save(wrap(published.state_dict()), tmp_path / "weights" / "model.pth")
    other = import_editreward(tmp_path / "weights", base, tmp_path / "out", prompts=prompts).checkpoint
    assert score(other, CANDIDATES[0]) == score(imported.checkpoint, CANDIDATES[0])


def test_model_pth_is_read_where_there_are_both_as_the_published_code_does(
    tmp_path, base, published, prompts, imported
):
    weights = published.save(tmp_path / "weights", "model.pth")
    Published(base).save(tmp_path / "others", "model.safetensors")
    (tmp_path / "others" / "model.safetensors").rename(weights / "model.safetensors")
    both = import_editreward(weights, base, tmp_path / "out", prompts=prompts)
    assert score(both.checkpoint, CANDIDATES[0]) == score(imported.checkpoint, CANDIDATES[0])
    assert "model.pth was read, model.safetensors beside it was not" in both.notes


def test_heads_without_a_last_bias(tmp_path, base, prompts):
    published = Published(base, default_heads=False)
    imported = import_editreward(published.save(tmp_path / "weights"), base, tmp_path / "out", prompts=prompts)
    assert [head.hidden for head in imported.checkpoint.manifest.heads.values()] == [[20, 20], [20, 20]]
    assert sum("no bias" in note for note in imported.notes) == 2
    assert_agree(score(imported.checkpoint, CANDIDATES[0]), published.score(*CANDIDATES[0]))


@pytest.mark.parametrize("form", ["model.safetensors", "model.pth"])
def test_bfloat16_weights_keep_their_dtype_and_heads_theirs(tmp_path, base, prompts, form):
    published = Published(base, dtype=torch.bfloat16)
    weights = published.save(tmp_path / "weights", form)
    expected = published.state_dict()
    checkpoint = import_editreward(weights, base, tmp_path / "out", prompts=prompts).checkpoint
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(tensor.dtype == torch.bfloat16 and tensor.equal(expected[name]) for name, tensor in stored.items())
    heads = load_file(tmp_path / "out" / "reward" / "heads.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in heads.values())
    assert heads["head_1.2.weight"].equal(expected["rm_heads.head_1.5.weight"])
    assert_agree(score(checkpoint, CANDIDATES[1]), published.score(*CANDIDATES[1]))


def test_untied_embeddings_in_shards(tmp_path, prompts):
    """The language head stays, and transformers loads the result as the stock model with nothing missing."""
    base = write_base(tmp_path / "base", tied=False)
    published = Published(base)
    weights = published.save(tmp_path / "weights", "model.pth")
    checkpoint = import_editreward(weights, base, tmp_path / "out", prompts=prompts, shard_bytes=600_000).checkpoint
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2
    assert_agree(score(checkpoint, CANDIDATES[0]), published.score(*CANDIDATES[0]))
    model, report = Qwen3VLForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
    assert model.lm_head.weight.equal(published.state_dict()["lm_head.weight"])


def test_paper_prompts_by_default(tmp_path, base, published):
    imported = import_editreward(published.save(tmp_path / "weights"), base, tmp_path / "out")
    passes = imported.checkpoint.manifest.passes
    assert [one.read for one in passes] == [{"instruction_following": "head_0"}, {"visual_quality": "head_1"}]
    assert '{"edit_region": [...], "reasoning": "..."}' in passes[0].prompt
    assert "<|bbox_{id}|>" in passes[0].prompt
    assert all("\nText instruction - {instruction}\n" in one.prompt for one in passes)
    assert all(one.prompt.endswith(": <|Reward|>\n") for one in passes)
    assert any("--prompts" in note for note in imported.notes)
    prompts = {dimension: one.prompt for one in passes for dimension in one.read}
    assert_agree(score(imported.checkpoint, CANDIDATES[2]), published.score(*CANDIDATES[2], prompts=prompts))


def test_the_reward_token_is_appended_and_nothing_else_changes(imported, base):
    before, after = AutoTokenizer.from_pretrained(base), AutoTokenizer.from_pretrained(imported.checkpoint.path)
    assert after.convert_tokens_to_ids("<|Reward|>") == len(before)
    assert after.get_vocab() == before.get_vocab() | {"<|Reward|>": len(before)}
    for text in ("make the red square blue", "<|im_start|>a<tool_call>b<|im_end|>\n", "Ça  va\u0301 12 加\n\n x"):
        assert after(text)["input_ids"] == before(text)["input_ids"]
    assert imported.checkpoint.config.text_config.vocab_size == len(after)


def test_a_base_that_has_the_reward_token_keeps_its_id(tmp_path, imported, published, prompts):
    weights = published.save(tmp_path / "weights")
    again = import_editreward(weights, imported.checkpoint.path, tmp_path / "out", prompts=prompts).checkpoint
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (
        imported.checkpoint.path / "tokenizer.json"
    ).read_bytes()
    assert score(again, CANDIDATES[0]) == score(imported.checkpoint, CANDIDATES[0])


def test_padded_rows_are_taken_and_noted(tmp_path, base, published, prompts):
    weights = published.save(tmp_path / "weights")
    tensors = load_file(weights / "model.safetensors")
    tensors[EMBEDDING] = torch.cat([tensors[EMBEDDING], torch.zeros(7, 64)])
    save_file(tensors, weights / "model.safetensors")
    imported = import_editreward(weights, base, tmp_path / "out", prompts=prompts)
    assert any("padding" in note for note in imported.notes)
    assert_agree(score(imported.checkpoint, CANDIDATES[0]), published.score(*CANDIDATES[0]))


def test_companion_files_are_copied_and_hold_no_path_of_this_machine(imported, base, tmp_path_factory):
    out = imported.checkpoint.path
    for name in ("video_preprocessor_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    small = [file for file in out.rglob("*") if file.suffix in (".json", ".jinja")]
    assert not any(str(tmp_path_factory.getbasetemp()) in file.read_text() for file in small)
    assert imported.checkpoint.manifest.provenance["base"] == "base"
    assert imported.checkpoint.manifest.provenance["source"] == ["weights/model.safetensors"]
    assert read(out / "config.json")["architectures"] == ["Qwen3VLForConditionalGeneration"]


def test_companion_files_that_are_missing_do_not_stop_the_import(case):
    for name in ("video_preprocessor_config.json", "generation_config.json"):
        (case.base / name).unlink()
    imported = import_editreward(case.weights, case.base, case.folder / "out", prompts=case.prompts)
    assert [note.split(":")[0] for note in imported.notes] == ["base/video_preprocessor_config.json"]


def test_other_users_may_read_what_they_may_read_elsewhere(imported, tmp_path):
    """A server runs under another user than the one who imported."""
    (tmp_path / "usual").touch()
    files = [file for file in imported.checkpoint.path.rglob("*") if file.is_file()]
    assert {file.stat().st_mode for file in files} == {(tmp_path / "usual").stat().st_mode}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, (16384, 65536)),
        ({"min_pixels": 20000}, (20000, 65536)),
        ({"max_pixels": 30000}, (16384, 30000)),
        ({"min_pixels": 200704, "max_pixels": 200704}, (200704, 200704)),
    ],
)
def test_image_spec_of_the_base_unless_overridden(tmp_path, base, published, flags, expected):
    out = tmp_path / "out"
    spec = import_editreward(published.save(tmp_path / "weights"), base, out, **flags).checkpoint.image_spec
    assert (spec.min_pixels, spec.max_pixels, spec.resample) == (*expected, "bicubic")
    assert read(out / "preprocessor_config.json")["size"] == {
        "shortest_edge": expected[0],
        "longest_edge": expected[1],
    }


def test_flat_pixel_keys_of_older_bases_win_as_in_transformers(tmp_path, base, published):
    other = shutil.copytree(base, tmp_path / "base")
    edit(other / "preprocessor_config.json", min_pixels=10000, max_pixels=40000)
    spec = import_editreward(published.save(tmp_path / "weights"), other, tmp_path / "out").checkpoint.image_spec
    assert (spec.min_pixels, spec.max_pixels) == (10000, 40000)
    assert "min_pixels" not in read(tmp_path / "out" / "preprocessor_config.json")
