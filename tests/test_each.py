"""A test of many cases reports each of them that fails."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
from support.cases import each

@each(("number", "word"), [(1, "one"), (2, "two"), (3, "three")], ids=lambda value: f"<{value}>")
def test_of_three(number, tmp_path, word):
    assert tmp_path.is_dir()
    assert word == "two"
"""


def test_every_case_is_tried_and_each_that_fails_is_named(tmp_path):
    (tmp_path / "pytest.ini").write_text(f"[pytest]\npythonpath = {Path(__file__).parent}\n")
    (tmp_path / "test_program.py").write_text(PROGRAM)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--color=no", str(tmp_path)]
    bare = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other plugins take seconds to load
    done = subprocess.run(command, env=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_of_three [<1>, <one>]" in done.stdout
    assert "test_of_three [<2>, <two>]" not in done.stdout
    assert "test_of_three [<3>, <three>]" in done.stdout
    assert "contains 2 failed subtests" in done.stdout
