import io

import pytest
from rich.console import Console

from jrm_client import ExplainDelta, ExplainDone, Explanation
from jrm_client.explain_report import Critiques, critique, preview, printable
from jrm_client.protocol import CandidateErrorBody, EditRegion, Segment

WHOLE = Explanation(
    status="ok",
    segments=[Segment(region=1, text="It is red."), Segment(region="global", text="Nothing else changed.")],
    edit_regions=[EditRegion(id=1, label="square", bbox_2d=(120, 80, 400, 360), bbox_pixels=(15, 10, 51, 46))],
)


def printed(renderable: object) -> str:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(renderable)
    return console.export_text()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("", []),
        ("{", []),
        ('{"reas', []),
        ('{"reasoning": "', []),
        ('{"reasoning": "It is', [("global", "It is")]),
        ('{"reasoning": "It <|bbox_1|> is red. <|glo', [("global", "It"), (1, "is red.")]),
        ('{"reasoning": "<|bbox_0|> a <|global|> b", "edit_region": [{"id', [(0, "a"), ("global", "b")]),
        ('{"reasoning": "a < b <', [("global", "a < b")]),
        ('{"reasoning": 7', []),
        ("[1, 2", []),
        ("It is red", []),
    ],
)
def test_a_critique_that_is_being_written(written: str, expected: list[tuple[int | str, str]]) -> None:
    assert [(segment.region, segment.text) for segment in preview(written)] == expected


def test_every_beginning_of_a_critique_can_be_shown() -> None:
    raw = '{"reasoning": "<|bbox_0|> A \\"red\\" \\u00fc. <|global|> ok", "edit_region": [{"id": 0}]}'
    for end in range(len(raw) + 1):
        assert "bbox" not in "".join(segment.text for segment in preview(raw[:end]))


def test_a_whole_critique() -> None:
    text = printed(critique("instruction_following", WHOLE))
    for part in ("instruction_following  ok", "1 square", "It is red.", "global", "x 15 to 51, y 10 to 46"):
        assert part in text


def test_a_critique_that_was_cut_or_failed_says_so() -> None:
    cut = Explanation(status="truncated")
    assert "quality  truncated: cut off at the token limit" in printed(critique("quality", cut))
    error = CandidateErrorBody(code="deadline_exceeded", message="out of time")
    failed = Explanation(status="error", error=error)
    assert "quality  error deadline_exceeded: out of time" in printed(critique("quality", failed))


def test_what_is_written_is_replaced_by_what_is_whole() -> None:
    critiques = Critiques()
    critiques.add(ExplainDelta(dimension="quality", delta='{"reasoning": "It'))
    critiques.add(ExplainDelta(dimension="quality", delta=" looks"))
    assert "It looks" in printed(critiques)
    assert critiques.explanations == {}
    critiques.add(ExplainDone(dimension="quality", explanation=WHOLE))
    assert "It is red." in printed(critiques)
    assert "It looks" not in printed(critiques)
    assert critiques.explanations == {"quality": WHOLE}


def test_markup_and_control_characters_are_text() -> None:
    assert printable("a\x1b[31mb\nc\x07") == "a [31mb\nc "
    segments = [Segment(region="global", text="[bold]not markup[/bold] \x1b]0;title\x07")]
    text = printed(critique("quality", Explanation(status="ok", segments=segments)))
    assert "[bold]not markup[/bold]  ]0;title" in text
