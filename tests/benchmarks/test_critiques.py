"""What the figures count, on critiques whose mistakes are known."""

import json

import pytest
from benchmarks.critiques import Written, as_text, figures

from jrm_client.protocol import ExplainUsage
from jrm_service.explain.critique import read
from jrm_training.world import World

REGIONS = {"instruction_following": True, "visual_quality": False}
GROUPS = World(6, seed=3, split="test", edits=3)[:]
USAGE = ExplainUsage(prompt_tokens=1, completion_tokens=10)


def written(change=lambda _dimension, text: text):
    """What a language head would have written that changes the true critiques so."""
    return Written(
        [
            [
                {
                    name: read(
                        change(name, edit.critiques[name]),
                        regions=boxes,
                        size=edit.image.size,
                        finish_reason="stop",
                        usage=USAGE,
                    )
                    for name, boxes in REGIONS.items()
                }
                for edit in group.edits
            ]
            for group in GROUPS
        ],
        seconds=2.0,
        tokens=100,
    )


def values(one, other):
    found = figures(GROUPS, one, other, REGIONS)
    return {name: {figure: one.value for figure, one in of.items()} for name, of in found.items()}


def test_the_truth_is_right_in_everything():
    assert values(written(), written()) == {
        "instruction_following": {
            "ok": 1,
            "regions_found": 1,
            "regions_made_up": 0,
            "verdict_right": 1,
            "same": 1,
        },
        "visual_quality": {"ok": 1, "verdict_right": 1, "same": 1},
    }


def test_what_is_not_json_is_wrong_in_everything():
    found = values(written(lambda _dimension, text: text[:-3]), written())
    assert found["instruction_following"] | {"regions_made_up": None} == {
        "ok": 0,
        "regions_found": 0,
        "regions_made_up": None,
        "verdict_right": 0,
        "same": 0,
    }


def test_a_region_elsewhere_is_made_up():
    def elsewhere(dimension, text):
        said = json.loads(text)
        for region in said.get("edit_region", []):
            region["bbox_2d"] = [0, 0, 10, 10]
        return json.dumps(said)

    found = values(written(elsewhere), written())["instruction_following"]
    assert (found["regions_found"], found["regions_made_up"]) == (0, 1)
    assert found["verdict_right"] == 1


def test_another_verdict_is_wrong_in_its_dimension_alone():
    words = ("very good", "relatively good", "relatively poor", "very poor")

    def flatter(dimension, text):
        if dimension == "visual_quality":
            for word in words:
                text = text.replace(f"{word}:", "very good:")
        return text

    found = values(written(flatter), written())
    clean = [edit.labels["visual_quality"] == 4 for group in GROUPS for edit in group.edits]
    assert found["visual_quality"]["verdict_right"] == pytest.approx(sum(clean) / len(clean))
    assert found["instruction_following"]["verdict_right"] == 1


def test_one_that_was_cut_is_not_ok():
    cut = read('{"reasoning": "<|gl', regions=True, size=(64, 64), finish_reason="length", usage=USAGE)
    assert as_text(cut, regions=True) == ""


def test_ids_that_stand_twice_do_not_hide_regions():
    text = '{"reasoning": "a", "edit_region": [' + ", ".join(
        f'{{"id": 0, "label": "x", "bbox_2d": [{n}, 0, {n + 50}, 50]}}' for n in (0, 500)
    )
    explanation = read(text + "]}", regions=True, size=(64, 64), finish_reason="stop", usage=USAGE)
    assert [region["id"] for region in json.loads(as_text(explanation, regions=True))["edit_region"]] == [0, 1]


def test_speed_is_tokens_over_seconds():
    assert written().rate == 50
