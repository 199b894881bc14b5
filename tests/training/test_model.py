"""One pass over a packed row against transformers on one sequence at a time: rewards, language loss, gradients."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from jrm_service.errors import CheckpointError
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.engine import TrieScorer
from jrm_service.model.scorer import PlainScorer
from jrm_service.scoring.preparing import CheckpointPreparer
from jrm_training.batch import Collator
from jrm_training.data import Edit, Group
from jrm_training.losses import language_loss
from jrm_training.model import JointModel
from support import checkpoints
from support.pictures import photo
from support.reference import Reference
from support.training import edit, group, weights

TOLERANCE = 1e-4
LAYOUTS = {
    "one pass": checkpoints.one_pass(),
    "two passes": checkpoints.two_passes(),
    "prompt first, means only": checkpoints.mean_only(checkpoints.prompt_first()),
}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def checkpoint(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return open_checkpoint(checkpoints.write(folder, checkpoints.two_passes(), tied=request.param))


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return open_checkpoint(checkpoints.write(tmp_path_factory.mktemp("untied"), checkpoints.two_passes(), tied=False))


def plain_outputs(checkpoint, groups):
    """What the reference scorer gives, dimension -> (mean, std) of every edit in order."""
    preparer, scorer = CheckpointPreparer(checkpoint), PlainScorer(checkpoint, "cpu", torch.float32)
    candidates = [
        preparer.candidate([preparer.image(of.source)], preparer.image(one.image), of.instruction)
        for of in groups
        for one in of.edits
    ]
    scores = scorer.score(scorer.collate(candidates)).outcomes
    return {name: [score.dimensions[name] for score in scores] for name in checkpoint.manifest.dimensions}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rewards_are_those_of_the_plain_scorer(layout, tmp_path):
    checkpoint = open_checkpoint(checkpoints.write(tmp_path, layout))
    source = photo(48, 40)
    unchanged = Group(
        source, "leave it", (Edit(source), Edit(photo(200, 40, seed=3), critiques={"visual_quality": "x"}))
    )
    groups = [group(1, edits=3), unchanged]
    joint = JointModel.load(checkpoint)(Collator(checkpoint).row(groups))
    for name, expected in plain_outputs(checkpoint, groups).items():
        got = joint.outputs[name]
        assert got.dtype == torch.float32
        assert got[:, 0].tolist() == pytest.approx([one.mean for one in expected], abs=TOLERANCE)
        if expected[0].std is not None:
            logs = [math.log(one.std) for one in expected]
            assert got[:, 1].tolist() == pytest.approx(logs, abs=TOLERANCE)


def test_the_language_loss_is_that_of_transformers(checkpoint):
    """Of its own class for conditional generation, with labels on the critique alone."""
    critique = '{"reasoning": "<|im_end|> fine", "edit_region": []}'
    one = Group(photo(48, 40), "make it red", (edit(1, visual_quality=critique),))
    collator = Collator(checkpoint)
    row = collator.row([one])
    ours = language_loss(JointModel.load(checkpoint)(row).logits, row.targets)
    preparer = CheckpointPreparer(checkpoint)
    candidate = preparer.candidate([preparer.image(one.source)], preparer.image(one.edits[0].image), one.instruction)
    inputs = PlainScorer(checkpoint, "cpu", torch.float32).collate([candidate])[0][1]  # the pass for visual quality
    answer = torch.tensor([collator.critique_ids(critique)])
    ids = torch.cat([inputs.input_ids, answer], 1)
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint.path)(
        input_ids=ids,
        mm_token_type_ids=torch.cat([inputs.mm_token_type_ids, torch.zeros_like(answer)], 1),
        pixel_values=inputs.pixel_values,
        image_grid_thw=inputs.image_grid_thw,
        labels=torch.cat([torch.full_like(inputs.input_ids, -100), answer], 1),
    ).loss
    assert ours.item() == pytest.approx(theirs.item(), abs=TOLERANCE)


def test_one_edits_critique_touches_nothing_of_another(checkpoint):
    model, collator = JointModel.load(checkpoint), Collator(checkpoint)

    def losses(second):
        critiques = [{"visual_quality": "good enough"}, {"visual_quality": second, "instruction_following": second}]
        edits = tuple(Edit(photo(48, 40, seed=n), critiques=each) for n, each in enumerate(critiques))
        row = collator.row([Group(photo(48, 40), "x", edits)])
        joint = model(row)
        first = len(collator.critique_ids("good enough"))
        return language_loss(joint.logits[:first], row.targets[:first]).item(), joint.outputs["visual_quality"]

    (loss, rewards), (other_loss, other_rewards) = losses("bad"), losses("something else altogether")
    assert loss == pytest.approx(other_loss, abs=1e-6)
    assert torch.allclose(rewards, other_rewards, atol=1e-6)


def test_serving_and_training_compute_the_same_states(checkpoint):
    """To the last bit: it is one forward pass."""
    engine, edits = TrieScorer(checkpoint, "cpu", torch.float32), group(1, edits=3)
    preparer = CheckpointPreparer(checkpoint)
    source = preparer.image(edits.source)
    candidates = [preparer.candidate([source], preparer.image(edit.image), edits.instruction) for edit in edits.edits]
    (row,) = engine.collate(candidates)
    with torch.inference_mode():
        features, _ = engine._image_features(row)
        served = engine.packed.hidden_states(row.packed, features)[row.packed.reads]
    trained = JointModel.load(checkpoint)(Collator(checkpoint, critiques=False).row([edits])).h
    assert trained.requires_grad
    assert torch.equal(trained.flatten(0, 1), served)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_gradients_are_those_of_transformers_on_one_sequence_at_a_time(layout, tmp_path):
    """Of every weight, for states and logits alike; one edit is the unchanged source."""
    checkpoint = open_checkpoint(checkpoints.write(tmp_path, layout, tied=False))
    reference, collator, changed = Reference(checkpoint.path), Collator(checkpoint), group(1, edits=2)
    source, instruction = changed.source, changed.instruction
    edits = (*changed.edits, Edit(source, critiques={"visual_quality": "no edit"}))
    passes = reference.manifest["passes"]
    weights_of_h = torch.randn(
        len(edits), len(passes), checkpoint.hidden_size, generator=torch.Generator().manual_seed(0)
    )

    model, row = JointModel.load(checkpoint), collator.row([Group(source, instruction, edits)])
    joint = model(row)
    ((joint.h * weights_of_h).sum() + language_loss(joint.logits, row.targets, reduction="sum")).backward()
    # The reward heads come after h, so they have no gradient.
    stock = {name: weight.grad for name, weight in model.named_parameters() if not name.startswith("heads.")}
    ours, _ = model.split(stock)

    for candidate, weights_of_passes in zip(edits, weights_of_h, strict=True):
        images = {"source": source, "edited": candidate.image}
        for one_pass, weight in zip(passes, weights_of_passes, strict=True):
            loss = (reference.forward(one_pass, images, instruction)[0] * weight).sum()
            for answer in (
                collator.critique_ids(candidate.critiques[n]) for n in one_pass["read"] if n in candidate.critiques
            ):
                _, logits = reference.forward(one_pass, images, instruction, answer)
                loss = loss + torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
            loss.backward()
    theirs = {name: weight.grad for name, weight in reference.model.named_parameters()}
    assert ours.keys() == theirs.keys()
    off = {name: ((ours[name] - grad).norm() / grad.norm().clamp(min=1e-3)).item() for name, grad in theirs.items()}
    assert max(off.values()) < TOLERANCE, max(off, key=off.get)


def test_a_model_that_was_read_in_inference_mode_still_trains(checkpoint):
    model, row = JointModel.load(checkpoint), Collator(checkpoint).row([group(1)])
    with torch.inference_mode():
        before = model(row).h
    h = model(row).h
    h.sum().backward()
    assert torch.equal(before, h)


def gradients(checkpoint, choose):
    """Gradient norms by parameter name, of a scalar chosen from a row's outputs, and the gradient of the embedding."""
    model = JointModel.load(checkpoint)
    row = Collator(checkpoint).row([group(1)])
    choose(model(row), row).backward()
    norms = {name: 0.0 if p.grad is None else p.grad.norm().item() for name, p in model.named_parameters()}
    return norms, model.backbone.get_input_embeddings().weight.grad


def reward_token(checkpoint):
    return AutoTokenizer.from_pretrained(checkpoint.path).convert_tokens_to_ids("<|Reward|>")


def test_a_reward_reaches_everything_that_it_depends_on(untied):
    norms, embedding = gradients(untied, lambda joint, _: sum(one.sum() for one in joint.outputs.values()))
    assert {name for name, norm in norms.items() if not norm} == {"lm_head.weight"}
    assert embedding[reward_token(untied)].norm() > 0


def test_the_critique_reaches_everything_but_the_reward_heads(untied):
    norms, embedding = gradients(untied, lambda joint, row: language_loss(joint.logits, row.targets))
    silent = {name for name, norm in norms.items() if not norm}
    assert silent
    assert all(name.startswith("heads.") for name in silent)
    assert embedding[reward_token(untied)].norm() > 0


def test_gradient_checkpointing_changes_no_gradient(checkpoint):
    row = Collator(checkpoint).row([group(1)])
    found = []
    for checkpointed in (False, True):
        model = JointModel.load(checkpoint)
        if checkpointed:
            model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        joint = model(row)
        rewards = sum(outputs.square().sum() for outputs in joint.outputs.values())
        (language_loss(joint.logits, row.targets) + rewards).backward()
        found.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*found, strict=True))


def test_no_logits_without_critiques(checkpoint):
    joint = JointModel.load(checkpoint)(Collator(checkpoint, critiques=False).row([group(1)]))
    assert joint.logits.shape == (0, checkpoint.config.text_config.vocab_size)
    assert joint.h.shape == (2, 2, checkpoint.hidden_size)


def test_split_names_every_tensor_of_the_checkpoint(checkpoint):
    model = JointModel.load(checkpoint)
    stock, heads = model.split(model.state_dict())
    stored = weights(checkpoint.path)
    assert {name: tensor.shape for name, tensor in (stock | heads).items()} == {n: t.shape for n, t in stored.items()}
    assert all(tensor.equal(stored[name]) for name, tensor in (stock | heads).items())


def test_a_language_head_that_is_not_finite_is_refused(tmp_path):
    folder = checkpoints.write(tmp_path, checkpoints.two_passes(), tied=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"][3, 3] = math.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: holds NaN"):
        JointModel.load(open_checkpoint(folder))
