"""The table of a study, and that the documentation holds exactly the one that was measured."""

from pathlib import Path

import pytest
from studies.study import FILE, read_study
from studies.table import BEGIN, END, insert, labels, render

from support import studies

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def two():
    return studies.document(0.7, 0.0)


def rows(document):
    lines = [line for line in render(document).splitlines() if line.startswith("|")]
    found = {}
    for line in lines:
        name, *cells = (cell.strip() for cell in line.split("|")[1:-1])
        found.setdefault(name, cells)  # the test split comes first
    return found


def test_a_row_has_goal_values_with_intervals_and_the_gain(two):
    found = rows(two)
    assert found["figure"] == ["goal", "α = 0.7", "α = 0", "gain"]
    figure = two["runs"][1]["splits"]["test"]["reward"]["figures"]["pick_of_group"]
    goal, _, baseline, gained = found["reward: the pick of 4 is a best edit"]
    assert goal == "≥ 0.80"
    assert baseline == f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"
    assert gained == "-0.250 [-0.300, -0.200]"


def test_every_line_has_as_many_cells(two):
    for document in (two, studies.document(0.7), studies.document(0.7, 0.3, 0.0)):
        assert len({len(cells) for cells in rows(document).values()}) == 1


def test_a_run_without_critiques_has_no_figures_of_them(two):
    assert rows(two)["visual quality: verdict is the true label"] == ["", "0.800 [0.750, 0.850]", "–", ""]


def test_without_any_critiques_there_is_no_section_of_them():
    assert "Critiques" not in render(studies.document(0.0))


def test_what_differs_between_runs_is_said(two):
    assert "Not the same" not in render(two)
    text = render(two | {"differences": {"recipe.optimizer.lr": [0.002, 0.001]}})
    assert "Not the same in all runs: `recipe.optimizer.lr` is 0.002, 0.001." in text


def test_edits_without_a_score_are_said(two):
    assert "without a score" not in render(two)
    report = two["runs"][0]["splits"]["test"] | {"failed": {"count": 7, "codes": {"internal": 7}}}
    run = two["runs"][0] | {"splits": two["runs"][0]["splits"] | {"test": report}}
    assert "in no figure: 7 (α = 0.7)" in render(two | {"runs": [run, two["runs"][1]]})


def test_runs_of_one_alpha_are_called_by_name_too():
    runs = [{"alpha": 0.7, "name": "a"}, {"alpha": 0.0, "name": "b"}, {"alpha": 0.7, "name": "c"}]
    assert labels(runs) == ["α = 0.7 (a)", "α = 0", "α = 0.7 (c)"]


def test_a_page_keeps_all_but_what_is_between_the_marks():
    page = f"# Title\n{BEGIN}\nold\n{END}\nend\n"
    assert insert(page, "new\n") == f"# Title\n{BEGIN}\nnew\n{END}\nend\n"
    assert insert(insert(page, "new\n"), "new\n") == insert(page, "new\n")


@pytest.mark.parametrize("page", ["", BEGIN, END + BEGIN])
def test_a_page_without_marks_is_refused(page):
    with pytest.raises(ValueError, match="has no"):
        insert(page, "new\n")


def test_the_documentation_has_the_table_of_the_study_beside_it():
    page, file = DOCS / "training.md", DOCS / FILE
    if page.exists() and file.exists():
        text = page.read_text(encoding="utf-8")
        assert insert(text, render(read_study(file))) == text
