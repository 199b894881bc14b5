"""Every fault of an answer is found, and named in words that its writer can act on."""

import json

import pytest

from jrm_training.annotate import check
from jrm_training.annotate.jobs import Judgement
from jrm_training.critique import parse_critique
from support.scripted_endpoint import critique

FOUR = Judgement(score=4.0)


def following(text, judged=FOUR, boxes="yx"):
    return check.parse_critique(text, "following", judged, boxes)


def faults(text, kind="following", judged=FOUR):
    with pytest.raises(check.AnswerRejected) as raised:
        check.parse_critique(text, kind, judged, "yx")
    return raised.value.faults


def region(number=0, box=(100, 200, 300, 500), label="square"):
    return {"id": number, "label": label, "bbox_2d": list(box)}


def test_boxes_are_turned_and_what_comes_out_is_a_critique():
    value = following(critique(4, regions=True))
    assert list(value) == ["edit_region", "reasoning"]
    assert value["edit_region"][0]["bbox_2d"] == [200, 100, 500, 300]
    assert parse_critique(json.dumps(value), regions=True).boxes == [(200, 100, 500, 300)]


def test_boxes_with_x_first_stay():
    assert following(critique(4, regions=True), boxes="xy")["edit_region"][0]["bbox_2d"] == [100, 200, 300, 500]


def test_json_in_a_fence_is_taken():
    assert following(f"```json\n{critique(4, regions=True)}\n```\n")["edit_region"]


def test_no_regions_where_nothing_changed():
    assert following(json.dumps({"edit_region": [], "reasoning": "<|global|> Both are the same."}))["edit_region"] == []


def test_quality_needs_no_tags():
    assert check.parse_critique('{"reasoning": "Strong noise."}', "quality", FOUR, "yx") == {
        "reasoning": "Strong noise."
    }
    assert check.parse_critique('{"reasoning": "<|global|> Noise."}', "quality", FOUR, "yx")


FAULTS = {
    "not JSON": ["Here you are!", '{"edit_region": []', "", f"Sure: {critique(4, regions=True)}"],
    "the key 'reasoning' is there twice": ['{"edit_region": [], "reasoning": "a", "reasoning": "b"}'],
    "reasoning: Field required": ['{"edit_region": []}'],
    "edit_region: Field required": ['{"reasoning": "<|global|> good"}'],
    "Extra inputs are not permitted": [critique(4, regions=True, score=4)],
    "reasoning: Input should be a valid string": [critique(4, regions=True, reasoning=["a"])],
    "reasoning: empty": [critique(4, regions=True, edit_region=[], reasoning=" ")],
    "at least 4 items": [critique(4, regions=True, edit_region=[region(box=(1, 2, 3))])],
    "edit_region[0].label": [critique(4, regions=True, edit_region=[region(label="")])],
    "edit_region[0].bbox_2d: 1200 is outside the image": [
        critique(4, regions=True, edit_region=[region(box=(0, 0, 100, 1200))])
    ],
    "edit_region[0].bbox_2d: -1 is outside the image": [
        critique(4, regions=True, edit_region=[region(box=(-1, 0, 100, 100))])
    ],
    "[300, 200, 100, 500] has no area as [ymin, xmin, ymax, xmax]": [
        critique(4, regions=True, edit_region=[region(box=(300, 200, 100, 500))])
    ],
    "[100, 200, 300, 200] has no area": [critique(4, regions=True, edit_region=[region(box=(100, 200, 300, 200))])],
    "ids [0, 0]: each may appear only once": [critique(4, regions=True, edit_region=[region(), region()])],
    "ids [8], expected 0 to 7": [
        critique(4, regions=True, edit_region=[region(8)], reasoning="<|bbox_8|> red <|global|> kept")
    ],
    "there is no region with the id of <|bbox_1|>": [
        critique(4, regions=True, reasoning="<|bbox_0|> red <|bbox_1|> blue <|global|> kept")
    ],
    "region 1 is not mentioned: <|bbox_1|> is missing": [critique(4, regions=True, edit_region=[region(), region(1)])],
    "<|global|> is missing": [critique(4, regions=True, reasoning="<|bbox_0|> red")],
    "<|box_0|> is not a known tag": [
        critique(4, regions=True, reasoning="<|box_0|> red <|bbox_0|> red <|global|> kept")
    ],
    "<|bbox_00|> is not a known tag": [
        critique(4, regions=True, reasoning="<|bbox_00|> red <|bbox_0|> red <|global|> kept")
    ],
    "a tag has no words after it": [
        critique(4, regions=True, reasoning="<|bbox_0|> <|global|> kept"),
        critique(4, regions=True, reasoning="<|bbox_0|> red <|global|>"),
    ],
    "states a score of 2, and people gave 4": [
        critique(4, regions=True, reasoning=f"<|bbox_0|> red <|global|> {words}")
        for words in ("2/4", "2 out of 4", "so a score of 2", "it is scored 2", "Score: 2 of four")
    ],
}


def test_every_fault_is_found():
    missed = [
        (fault, text) for fault, texts in FAULTS.items() for text in texts if not any(fault in f for f in faults(text))
    ]
    assert not missed


def test_tags_without_regions_in_quality():
    assert faults('{"reasoning": "<|bbox_0|> is noisy"}', "quality") == [
        "reasoning: there is no region with the id of <|bbox_0|>"
    ]


def test_several_faults_are_told_at_once():
    text = critique(4, regions=True, edit_region=[region(box=(0, 0, 1, 2000))], reasoning="<|bbox_1|> red")
    assert len(faults(text)) == 4


def test_the_score_itself_may_be_stated_and_other_numbers_too():
    for words in ("4/4", "a score of 4", "2 squares, 3 circles", "the 2nd of 4 windows scored by light"):
        assert following(critique(4, regions=True, reasoning=f"<|bbox_0|> {words} <|global|> kept"))
    assert following(
        critique(4, regions=True, reasoning="<|bbox_0|> 2/4 <|global|> kept"), judged=Judgement(verdict="better")
    )


@pytest.mark.parametrize(
    ("found", "score", "fine"),
    [(4, 4, True), (3, 4, True), (2, 4, False), (3, 2.33, True), (4, 2.33, False), (1, 2, True), (1, 3, False)],
)
def test_words_may_be_read_as_the_next_score(found, score, fine):
    assert (check.contradiction(found, Judgement(score=score), {}) is None) is fine


def test_the_order_of_two_edits_is_not_contradicted():
    """People gave 3, and 2 to another edit whose words were read as 3."""
    judged, others = Judgement(score=3), {2.0: 3}
    assert check.contradiction(4, judged, others) is None
    assert check.contradiction(3, judged, others) is None
    assert "those about an edit that people gave 2 for 3" in check.contradiction(2, judged, others)


def test_a_verdict_is_not_contradicted():
    assert check.contradiction("better", Judgement(verdict="better"), {}) is None
    assert check.contradiction("equal", Judgement(verdict="better"), {}) is None
    assert check.contradiction("better", Judgement(verdict="equal"), {}) is None
    assert check.contradiction("worse", Judgement(verdict="better"), {}) is not None


def test_a_reading():
    assert check.parse_reading('{"score": 3}', FOUR) == 3
    assert check.parse_reading('```\n{"verdict": "worse"}\n```', Judgement(verdict="better")) == "worse"
    for text in ('{"score": 5}', '{"score": "3"}', "3", '{"verdict": "worse"}'):
        with pytest.raises(check.AnswerRejected):
            check.parse_reading(text, FOUR)


def test_what_is_read_back_states_no_score():
    assert check.without_scores("A score of 4, 4/4 even: flawless.") == "A …, … even: flawless."
