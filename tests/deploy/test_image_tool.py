"""The parts of tools/image that need no container."""

import py_compile
from pathlib import Path

from tools.image import building, probe

from deploy import dockerfile


def test_an_image_is_called_by_version_and_target():
    assert building.name_of("cpu") == f"jrm-serve:{dockerfile.read().arguments['VERSION']}-cpu"


def test_what_pip_finds_on_this_machine_is_mounted(tmp_path):
    wheels, index = tmp_path / "wheels", tmp_path / "mirror/simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    settings = {
        "find-links": f"{wheels} /nowhere/at/all",
        "extra-index-url": f"https://index.example.com/simple file://{index}",
    }
    assert [*building._local(settings)] == [wheels, index.parent]


def test_the_share_of_modules_with_bytecode_that_stays_valid(tmp_path):
    for name in ("checked", "unchecked", "without"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    (tmp_path / "empty.py").touch()
    py_compile.compile(str(tmp_path / "checked.py"))
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(tmp_path / "unchecked.py"), invalidation_mode=mode)
    assert probe.compiled(tmp_path) == 1 / 3


def test_a_folder_that_is_not_there_is_not_writable(tmp_path):
    assert probe.writable(tmp_path)
    assert not probe.writable(tmp_path / "missing")
    assert not [*Path(tmp_path).iterdir()]
