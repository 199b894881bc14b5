"""What a manifest may say, and that each mistake is named by its key."""

import json

import pytest

from jrm_service.model.manifest import Manifest, read_manifest
from support import checkpoints


def problems_of(tmp_path, document) -> list[str]:
    path = tmp_path / "reward" / "manifest.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    manifest, problems = read_manifest(path)
    assert (manifest is None) == bool(problems)
    return problems


def one_pass_with(**changes):
    document = checkpoints.one_pass()
    document["passes"][0] |= changes
    return document


PROMPT = "{instruction} <|Reward|>"
BROKEN = {
    "unknown key": (checkpoints.manifest(rewards={}), "rewards: Extra inputs"),
    "unknown key inside": (one_pass_with(promt="x"), "passes.0.promt: Extra inputs"),
    "other format": (checkpoints.manifest(format="jrm-reward/2"), "format:"),
    "scale of nothing": (
        checkpoints.manifest(reward={"normalize": {"center": 0.0, "scale": 0.0}}),
        "reward.normalize.scale:",
    ),
    "scale without center": (checkpoints.manifest(reward={"normalize": {"scale": 1.0}}), "reward.normalize.center:"),
    "no name": (checkpoints.manifest(name=""), "name:"),
    "no passes": (checkpoints.manifest(passes=[]), "passes:"),
    "no reward token": (one_pass_with(prompt="{instruction}"), "passes.0: the templates hold <|Reward|> 0 times"),
    "two reward tokens": (one_pass_with(prompt=PROMPT + "<|Reward|>"), "hold <|Reward|> 2 times"),
    "two instructions": (one_pass_with(prompt="{instruction}" + PROMPT), "hold {instruction} 2 times"),
    "instruction unseen": (one_pass_with(prompt="<|Reward|>{instruction}"), "{instruction} stands after <|Reward|>"),
    "image unseen": (one_pass_with(parts=["prompt", "source", "edited"]), "before the image 'source'"),
    "part twice": (
        one_pass_with(parts=["source", "source", "edited", "prompt"]),
        "passes.0.parts: each part may appear once",
    ),
    "no edited image": (one_pass_with(parts=["source", "prompt"]), "passes.0.parts:"),
    "unknown part": (one_pass_with(parts=["source", "edited", "prompt", "mask"]), "passes.0.parts.3:"),
    "ending without template": (
        one_pass_with(parts=["source", "edited", "prompt", "ending"]),
        "passes.0: the part 'ending'",
    ),
    "template without ending": (one_pass_with(ending="x"), "passes.0: the part 'ending'"),
    "head not defined": (one_pass_with(read={"a": "head_9"}), "head 'head_9', which heads does not define"),
    "head not read": (one_pass_with(read={"a": "head_0"}), "heads.head_1 is read by no pass"),
    "log_std alone": (
        checkpoints.manifest(heads={n: {"hidden": [], "outputs": ["log_std"]} for n in ("head_0", "head_1")}),
        "heads.head_0.outputs:",
    ),
    "min above max": (
        checkpoints.manifest(image={"min_pixels": 9, "max_pixels": 8, "resample": "bicubic"}),
        "image: min_pixels 9 is above max_pixels 8",
    ),
    "other resampling": (
        checkpoints.manifest(image={"min_pixels": 1, "max_pixels": 8, "resample": "nearest"}),
        "image.resample:",
    ),
    "weight of no dimension": (
        checkpoints.manifest(reward={"combine": "mean", "weights": {"beauty": 1}}),
        "reward.weights.beauty",
    ),
    "negative weight": (
        checkpoints.manifest(reward={"combine": "mean", "weights": {"visual_quality": -1}}),
        "reward.weights.visual_quality:",
    ),
    "explains no dimension": (checkpoints.manifest(explain={"beauty": {}}), "explain.beauty is not a dimension"),
    "not JSON": ("{", "not JSON"),
    "not an object": ("[]", "must be a JSON object"),
    "a key twice": ('{"format": "jrm-reward/1", "name": "a", "name": "b"}', "the key 'name' is there twice"),
    "a number beyond float64": ('{"provenance": {"lr": 1e999}}', "the number 1e999 is too large"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_mistake_is_named(tmp_path, kind):
    document, expected = BROKEN[kind]
    problems = problems_of(tmp_path, document)
    assert any(expected in problem for problem in problems), problems
    assert all(problem.startswith("reward/manifest.json: ") for problem in problems)


def test_every_mistake_is_named_at_once(tmp_path):
    document = checkpoints.manifest(name="", extra=1, image={"min_pixels": 0, "max_pixels": 8})
    assert len(problems_of(tmp_path, document)) == 3


@pytest.mark.parametrize("build", [checkpoints.one_pass, checkpoints.two_passes, checkpoints.prompt_first])
def test_layouts_are_valid(tmp_path, build):
    assert problems_of(tmp_path, build()) == []


def test_the_design_example_is_valid(tmp_path):
    """The published EditReward layout of the checkpoint format."""
    head = {"hidden": [1024, 16], "outputs": ["mean", "log_std"]}
    parts, prompt = ["source", "edited", "prompt"], "…\nText instruction - {instruction}\n…: <|Reward|>\n"
    document = {
        "format": "jrm-reward/1",
        "name": "my-jrm",
        "reward_token": "<|Reward|>",
        "image": {"min_pixels": 200704, "max_pixels": 200704, "resample": "bicubic"},
        "passes": [
            {"parts": parts, "prompt": prompt, "read": {"instruction_following": "head_0"}},
            {"parts": parts, "prompt": "…<|Reward|>", "read": {"visual_quality": "head_1"}},
        ],
        "heads": {"head_0": head, "head_1": head},
        "reward": {"combine": "mean", "weights": {"instruction_following": 1.0, "visual_quality": 1.0}},
        "explain": {
            "instruction_following": {"template": None, "regions": True},
            "visual_quality": {"template": None, "regions": False},
        },
        "provenance": {"base": "…", "notes": "…"},
    }
    assert problems_of(tmp_path, document) == []


def test_weights_default_to_one_each():
    manifest = Manifest.model_validate(checkpoints.lowest(checkpoints.one_pass()))
    assert manifest.pooled_weights == {"instruction_following": 1.0, "visual_quality": 1.0}


def test_a_dimension_of_weight_zero_is_left_out():
    weights = {"instruction_following": 1.0, "visual_quality": 0.0}
    manifest = Manifest.model_validate(checkpoints.manifest(reward={"combine": "min", "weights": weights}))
    assert manifest.pooled_weights == {"instruction_following": 1.0}


def test_spelling_does_not_change_the_canonical_form():
    document = checkpoints.one_pass()
    shuffled = dict(reversed(document.items())) | {"explain": document["explain"]}
    forms = {Manifest.model_validate(one).canonical_json() for one in (document, shuffled)}
    assert len(forms) == 1


def test_a_manifest_without_a_scale_is_hashed_as_it_was_before_there_were_any():
    plain = Manifest.model_validate(checkpoints.manifest())
    assert "normalize" not in plain.canonical_json()
    scaled = Manifest.model_validate(checkpoints.manifest(reward={"normalize": {"center": 1.0, "scale": 2.0}}))
    assert '"normalize":{"center":1.0,"scale":2.0}' in scaled.canonical_json()
