"""What `make dist` builds: the wheel and the source distribution, and that they hold the same program."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {"jrm_client": "client", "jrm_service": "service", "jrm_training": "training"}

pytestmark = pytest.mark.heavy  # fetches what builds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


def sources() -> set[str]:
    """Every file of the three packages, by its path in the repository."""
    files = (file for name, folder in PACKAGES.items() for file in (ROOT / folder / name).rglob("*") if file.is_file())
    return {str(file.relative_to(ROOT)) for file in files if "__pycache__" not in file.parts}


def test_the_wheel_has_the_three_packages_and_the_licences(folder):
    """`build` makes the wheel out of the source distribution: what that lacks, this would."""
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    code = {name for name in names if ".dist-info/" not in name}
    assert code == {file.split("/", 1)[1] for file in sources()}
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE.md"}


def test_the_source_distribution_is_the_repository_without_what_is_made_in_it(folder):
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        names = {member.name.split("/", 1)[1] for member in file.getmembers() if member.isfile()}
    assert sources() <= names
    assert {"LICENSE", "NOTICE.md", "README.md", "Makefile", "helm/jrm/Chart.yaml", "tests/conftest.py"} <= names
    assert not {name.split("/")[0] for name in names} & {".git", ".venv", "out", ".mypy_cache", ".pytest_cache"}
