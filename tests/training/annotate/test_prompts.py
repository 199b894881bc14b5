"""What is shown and said to the annotator."""

import json

from jrm_training.annotate import check, prompts
from jrm_training.annotate.jobs import Judgement

TEXT = 'Make {it} "red"'
IMAGES = ["a.png", "b.png", "c.png"]


def test_following_shows_the_sources_and_the_edit():
    judged = Judgement(score=3)
    assert prompts.images_of("following", ["s1", "s2"], IMAGES, 1, judged) == ["s1", "s2", "b.png"]
    text = prompts.ask("following", TEXT, 2, judged, "yx")
    assert "Images: source image 1, source image 2, the edited image\n" in text
    assert TEXT in text
    assert "3 of 4." in text
    assert text.count("[ymin, xmin, ymax, xmax]") == 2


def test_quality_shows_the_edit_alone_and_no_instruction():
    judged = Judgement(score=2.33)
    assert prompts.images_of("quality", ["s"], IMAGES, 2, judged) == ["c.png"]
    text = prompts.ask("quality", TEXT, 1, judged, "yx")
    assert TEXT not in text
    assert "2.33 of 4." in text


def test_a_verdict_shows_the_other_edit():
    judged = Judgement(verdict="worse")
    assert prompts.images_of("following", ["s"], ["a", "b"], 1, judged) == ["s", "b", "a"]
    assert prompts.images_of("quality", ["s"], ["a", "b"], 0, judged) == ["a", "b"]
    text = prompts.ask("following", TEXT, 1, judged, "xy")
    assert "people found it worse than the other edit" in text
    assert "of 4" not in text
    assert "[xmin, ymin, xmax, ymax]" in text


def test_a_blind_reading_is_told_nothing_of_the_judgement():
    for judged in (Judgement(score=1), Judgement(score=4)):
        assert prompts.read_back("quality", judged, "Noise.") == prompts.read_back(
            "quality", Judgement(score=2), "Noise."
        )
    assert prompts.read_back("quality", Judgement(verdict="better"), "x") == prompts.read_back(
        "quality", Judgement(verdict="worse"), "x"
    )


def test_the_examples_of_the_schema_are_what_is_checked():
    assert list(prompts.schema("following")["properties"]) == ["edit_region", "reasoning"]
    assert list(prompts.schema("quality")["properties"]) == ["reasoning"]
    for judged, text in ((Judgement(score=1), {"score": 1}), (Judgement(verdict="better"), {"verdict": "better"})):
        assert list(prompts.reading_schema(judged)["properties"]) == list(text)
        check.parse_reading(json.dumps(text), judged)


def test_what_stands_in_an_instruction_is_not_replaced():
    text = prompts.ask("following", "write {levels} and {box}", 1, Judgement(score=1), "yx")
    assert '"write {levels} and {box}"' in text
    assert text.count("{levels}") == text.count("{box}") == 1


def test_templates_of_ones_own():
    templates = {"following": "{instruction}? {judgement} {other}", "quality": "Quality?"}
    assert prompts.ask("following", "red", 1, Judgement(score=2), "yx", templates) == "red? 2 of 4. {other}"
    assert prompts.ask("quality", "red", 1, Judgement(score=2), "yx", templates) == "Quality?"


def test_an_image_that_is_the_edit_of_nothing():
    judged = Judgement(score=3)
    assert prompts.images_of("following", [], IMAGES, 0, judged) == ["a.png"]
    assert "Images: the edited image\n" in prompts.ask("following", TEXT, 0, judged, "yx")
