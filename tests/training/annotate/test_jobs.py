"""What is to be written for which rows."""

import pytest

from jrm_training.annotate.jobs import KINDS, Judgement, Scale, read_jobs
from jrm_training.data import DataError
from support.preferences import both, row, write


def jobs(tmp_path, *rows, scale=None, **options):
    return read_jobs(write(tmp_path, rows), KINDS, scale or Scale(), **options)


def test_a_critique_for_each_edit_in_each_dimension(tmp_path):
    following, quality = jobs(tmp_path, row(1, both(4, 2), both(1, 3)))
    assert (following.dimension, following.kind) == ("instruction_following", "following")
    assert following.edits == {0: Judgement(score=4), 1: Judgement(score=1)}
    assert (quality.dimension, quality.kind) == ("visual_quality", "quality")
    assert quality.edits == {0: Judgement(score=2), 1: Judgement(score=3)}
    assert (quality.line, quality.instruction, quality.sources) == (1, "edit 1", ("images/1.png",))


def test_what_is_there_is_not_written_again(tmp_path):
    one = row(1, both(4, 2), both(1, 3))
    one["edits"][0]["critiques"] = {"instruction_following": {"reasoning": "known"}}
    assert [list(job.edits) for job in jobs(tmp_path, one)] == [[1], [0, 1]]


def test_a_dimension_that_nobody_judged_gets_nothing(tmp_path):
    (job,) = jobs(tmp_path, row(1, {"visual_quality": 1}, {"visual_quality": 2}))
    assert job.dimension == "visual_quality"


def test_preferences_without_labels_are_verdicts(tmp_path):
    (job,) = jobs(tmp_path, row(1, {}, {}, preferences={"instruction_following": "second"}))
    assert job.edits == {0: Judgement(verdict="worse"), 1: Judgement(verdict="better")}
    (job,) = jobs(tmp_path, row(1, {}, {}, preferences={"instruction_following": "tie"}))
    assert job.edits == {0: Judgement(verdict="equal"), 1: Judgement(verdict="equal")}


@pytest.mark.parametrize(
    ("labels", "preference", "scored"),
    [((4, 1), "first", True), ((4, 1), "second", False), ((4, 1), "tie", False), ((2, 2), "tie", True)],
)
def test_labels_count_where_the_preference_agrees(tmp_path, labels, preference, scored):
    one = row(1, *({"visual_quality": label} for label in labels), preferences={"visual_quality": preference})
    (job,) = jobs(tmp_path, one)
    assert all((judged.score is not None) is scored for judged in job.edits.values())


def test_labels_of_another_scale(tmp_path):
    (job,) = jobs(tmp_path, row(1, {"visual_quality": 0}, {"visual_quality": 7}), scale=Scale(0, 10))
    assert [judged.score for judged in job.edits.values()] == [1.0, 3.1]


def test_a_label_that_is_not_on_the_scale(tmp_path):
    bad = row(2, both(4, 2), both(7, 0))
    with pytest.raises(DataError, match=r"line 2: edits\[1\].labels.instruction_following: 7 is not on the scale"):
        jobs(tmp_path, row(1, both(1, 1), both(1, 1)), bad)


def test_bad_rows_are_all_told(tmp_path):
    path = write(tmp_path, [row(1, both(1, 1), both(1, 1))])
    path.write_text(path.read_text() + "{}\n" + path.read_text().replace("images/1-0", "nowhere"))
    with pytest.raises(DataError, match=r"2 bad rows\n.*line 2(.|\n)*line 3.*No such file"):
        read_jobs(path, KINDS, Scale())


def test_the_first_rows(tmp_path):
    assert {job.line for job in jobs(tmp_path, *(row(n, both(1, 2), both(2, 1)) for n in range(4)), limit=2)} == {1, 2}


def test_equal_rows_are_recognized(tmp_path):
    first, second = row(1, both(1, 2), both(2, 1)), row(1, both(1, 2), both(2, 2))
    same = [job.row for job in (*jobs(tmp_path, first), *jobs(tmp_path, first))]
    assert len(set(same)) == 1
    assert jobs(tmp_path, second)[0].row not in same
