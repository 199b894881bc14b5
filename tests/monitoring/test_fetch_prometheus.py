"""Where the tests find Prometheus: on PATH, or unpacked beside Python."""

import pytest
from tools.fetch_prometheus import ADVICE, PROGRAMS, find

from support.cases import each


@each("program", PROGRAMS)
def test_both_programs_are_found(program):
    assert find(program).name == program


def test_a_program_on_the_path_is_taken_first(tmp_path, monkeypatch):
    own = tmp_path / "promtool"
    own.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find("promtool") == own


def test_what_to_install_is_said_where_there_is_none():
    with pytest.raises(FileNotFoundError, match=r"no-such-program is not here: install Prometheus") as error:
        find("no-such-program")
    assert ADVICE in str(error.value)
