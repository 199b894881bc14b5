import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jrm_training.bootstrap import estimates
from jrm_training.critique import Critique, CritiqueError, RegionCritique, critique_tallies, found, iou, parse_critique

REGION = {"id": 0, "label": "blue square", "bbox_2d": [120, 80, 400, 360]}


def text(*regions, reasoning="<|global|> fine", **more) -> str:
    return json.dumps({"edit_region": list(regions), "reasoning": reasoning, **more})


# --- the schema of appendix C -----------------------------------------------------------------------------------------


def test_a_critique_with_regions():
    critique = parse_critique(text(REGION, REGION | {"id": 1}), regions=True)
    assert isinstance(critique, RegionCritique)
    assert critique.boxes == [(120, 80, 400, 360)] * 2


def test_nothing_edited_means_no_regions():
    assert parse_critique(text(), regions=True).boxes == []


def test_keys_in_any_order():
    assert parse_critique('{"reasoning": "good", "edit_region": []}', regions=True).reasoning == "good"


def test_a_critique_without_regions():
    assert parse_critique('{"reasoning": "noise"}', regions=False) == Critique(reasoning="noise")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ("", "not JSON"),
        ("good", "not JSON"),
        (text(REGION)[:-1], "not JSON"),
        (text(REGION) + " done", "not JSON"),
        ("```json\n" + text(REGION) + "\n```", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"edit_region": [], "reasoning": "a", "reasoning": "b"}', "the key 'reasoning' is there twice"),
        ("[]", "critique"),
        ('{"reasoning": "good"}', "edit_region"),
        ('{"edit_region": []}', "reasoning"),
        (text(reasoning=""), "reasoning"),
        (text(reasoning=["good"]), "reasoning"),
        (text(score=4), "score"),
        (text(REGION | {"score": 4}), "edit_region.0.score"),
        (text(REGION, REGION), "ids"),
        (text(REGION | {"id": -1}), "edit_region.0.id"),
        (text(REGION | {"id": "0"}), "edit_region.0.id"),
        (text(REGION | {"id": True}), "edit_region.0.id"),
        (text(REGION | {"label": ""}), "edit_region.0.label"),
        (text(REGION | {"bbox_2d": [1, 2, 3]}), "edit_region.0.bbox_2d"),
        (text(REGION | {"bbox_2d": [1, 2, 3, 4, 5]}), "edit_region.0.bbox_2d"),
        (text(REGION | {"bbox_2d": [0, 0, 10, 1001]}), "edit_region.0.bbox_2d"),
        (text(REGION | {"bbox_2d": [-1, 0, 10, 10]}), "edit_region.0.bbox_2d"),
        (text(REGION | {"bbox_2d": [10, 0, 10, 10]}), "x1 < x2"),
        (text(REGION | {"bbox_2d": [0, 20, 10, 10]}), "x1 < x2"),
        (text(REGION | {"bbox_2d": ["0", 0, 10, 10]}), "edit_region.0.bbox_2d"),
        (text(REGION).replace("120", "NaN"), "NaN"),
    ],
)
def test_what_is_no_critique(broken, reason):
    with pytest.raises(CritiqueError, match=reason):
        parse_critique(broken, regions=True)


def test_regions_where_none_belong():
    with pytest.raises(CritiqueError, match="edit_region"):
        parse_critique(text(REGION), regions=False)


# --- regions ----------------------------------------------------------------------------------------------------------

A, B = (0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)
spans = st.tuples(st.integers(0, 5), st.integers(1, 4)).map(lambda s: (s[0], s[0] + s[1]))
boxes = st.builds(lambda x, y: (x[0], y[0], x[1], y[1]), spans, spans)


def cells(box):
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


@settings(deadline=None)
@given(boxes, boxes)
def test_iou_as_counted_in_cells(a, b):
    assert iou(a, b) == pytest.approx(len(cells(a) & cells(b)) / len(cells(a) | cells(b)))


def test_half_an_overlap_is_enough():
    assert found([A], [(0.0, 0.0, 10.0, 5.0)]) == 1
    assert found([A], [(0.0, 0.0, 10.0, 4.9)]) == 0


def test_the_order_of_regions_does_not_matter():
    assert found([A, B], [B, A]) == 2


def test_one_prediction_stands_for_one_region():
    assert found([A, A], [A]) == 1
    assert found([A], [A, A]) == 1


def test_the_best_overlap_is_matched_first():
    high, half = (0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 5.0)
    near_high, near_half = (0.0, 0.0, 10.0, 9.0), (0.0, 0.0, 10.0, 3.1)  # the first would also do for `half`
    assert found([half, high], [near_high, near_half]) == 2


# --- figures ----------------------------------------------------------------------------------------------------------


def figures(true, generated, regions=True):
    tallies = critique_tallies(true, generated, "d", regions)
    return {name: (e.value, e.count) for name, e in estimates(tallies, draws=1).items()}


def test_figures_of_regions():
    far = REGION | {"id": 1, "bbox_2d": [800, 800, 900, 900]}
    true = [[{"d": text(REGION, far)}, {"d": text(REGION)}], [{"d": text(REGION)}]]
    generated = [[{"d": text(REGION)}, {"d": "broken"}], [{"d": text(REGION, far)}]]
    assert figures(true, generated) == {
        "critique_valid": (pytest.approx(2 / 3), 3),
        "regions_found": (0.5, 4),
        "regions_made_up": (pytest.approx(1 / 3), 3),
    }


def test_what_was_not_generated_is_left_out():
    true = [[{"d": text(REGION)}, {"d": text(REGION)}], [{"d": text(REGION)}]]
    assert figures(true, [[{"d": text()}, {}], []])["regions_found"] == (0.0, 1)


def test_a_true_critique_of_another_form_has_no_regions_to_find():
    assert figures([[{"d": "plain words"}]], [[{"d": text(REGION)}]]) == {
        "critique_valid": (1.0, 1),
        "regions_found": (None, 0),
        "regions_made_up": (None, 0),
    }


def test_without_regions_only_validity_counts():
    assert figures([[{}]], [[{"d": '{"reasoning": "noise"}'}]], regions=False) == {"critique_valid": (1.0, 1)}
