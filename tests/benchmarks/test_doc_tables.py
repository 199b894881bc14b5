"""Tables go between their own marks of a page, and nothing else changes."""

import pytest
from benchmarks.doc_tables import put


def test_only_what_stands_between_the_marks_is_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A\n<!-- b -->\nold\n<!-- /b -->\n<!-- c -->\nkept\n<!-- /c -->\n")
    put(page, "b", "new\n")
    expected = "# A\n<!-- b -->\nnew\n<!-- /b -->\n<!-- c -->\nkept\n<!-- /c -->\n"
    assert page.read_text() == expected
    put(page, "b", "new")
    assert page.read_text() == expected


@pytest.mark.parametrize("text", ["", "<!-- b -->", "<!-- /b -->"])
def test_a_page_without_both_marks_is_left_alone(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=r"has no <!-- b --> \.\.\. <!-- /b -->"):
        put(page, "b", "new")
    assert page.read_text() == text
