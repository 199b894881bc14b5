"""The journal outlives the process, and is nobody else's."""

import pytest

from jrm_training.annotate.journal import Entry, Journal, JournalError

SETTINGS = {"model": "m", "scale": [1.0, 4.0]}


def entry(line=1, edit=0, critique=None, **options):
    values = {"row": 7, "dimension": "d", "read": None, "tries": 1, "tokens_in": 10, "tokens_out": 2}
    return Entry(line=line, edit=edit, critique=critique, **(values | options))


def entries(journal):
    return [journal.entry(settled) for _, settled in journal.items()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journal"


def write(path, *entries):
    with Journal(path, SETTINGS) as journal:
        for one in entries:
            journal.append(one)


def test_entries_come_back(path):
    given_up = entry(2, faults=[["ünicode"], ["a", "b"]], answer="{", unmetered=1)
    write(path, entry(critique={"reasoning": "good"}, read=3), given_up)
    with Journal(path, SETTINGS) as journal:
        assert entries(journal) == [entry(critique={"reasoning": "good"}, read=3), given_up]
        settled = journal.get((1, "d", 0))
        assert (settled.row, settled.accepted, settled.read) == (7, True, 3)
        assert not journal.get((2, "d", 0)).accepted
        assert journal.get((2, "d", 1)) is None
        assert journal.total() == (20, 4, 1)


def test_the_last_entry_counts_and_all_are_paid_for(path):
    write(path, entry(), entry(critique={"reasoning": "good"}))
    with Journal(path, SETTINGS) as journal:
        assert [one.critique for one in entries(journal)] == [{"reasoning": "good"}]
        assert journal.total() == (20, 4, 0)


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_line_that_was_cut_short_is_removed(path, cut):
    write(path, entry(1))
    whole = path.read_bytes()
    write(path, entry(2))
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal(path, SETTINGS) as journal:
        assert [one.line for one in entries(journal)] == [1]
    assert path.read_bytes() == whole


def test_a_first_line_that_was_cut_short(path):
    write(path)
    path.write_bytes(path.read_bytes()[:20])
    with Journal(path, SETTINGS) as journal:
        assert entries(journal) == []
        journal.append(entry())
        assert entries(journal) == [entry()]
    with Journal(path, SETTINGS) as journal:
        assert entries(journal) == [entry()]


def test_other_settings_are_refused(path):
    write(path, entry())
    with pytest.raises(JournalError, match="answers for another model, verify; use another --out"):
        Journal(path, SETTINGS | {"model": "n", "verify": True})
    with Journal(path, SETTINGS) as journal:
        assert entries(journal) == [entry()]


@pytest.mark.parametrize(
    "content",
    [b"words", b"{}\n", b"[]\n", b'{"format": "jrm-annotate/2", "settings": {}}\n', b"\xff\n", b'{"line": 1}\n'],
)
def test_somebody_elses_file_is_refused_and_left_alone(path, content):
    path.write_bytes(content)
    with pytest.raises(JournalError, match="use another --out"):
        Journal(path, SETTINGS)
    assert path.read_bytes() == content


def test_two_runs_do_not_share_it(path):
    with Journal(path, SETTINGS), pytest.raises(JournalError, match="another run is writing to it"):
        Journal(path, SETTINGS)
    with Journal(path, SETTINGS):
        pass


def test_reading_alone_writes_nothing(path):
    with Journal(path, SETTINGS, read_only=True) as journal:
        assert entries(journal) == []
    assert not path.exists()
    write(path, entry())
    torn = path.read_bytes() + b'{"line": '
    path.write_bytes(torn)
    with Journal(path, SETTINGS, read_only=True) as journal:
        assert entries(journal) == [entry()]
    assert path.read_bytes() == torn
