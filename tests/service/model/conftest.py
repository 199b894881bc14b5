"""A tiny EditReward and what an import makes of it."""

import pytest

from jrm_service.model.editreward import import_editreward
from support.editreward import PROMPTS, Case, Published, write, write_base


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return write_base(tmp_path_factory.mktemp("editreward") / "base")


@pytest.fixture(scope="session")
def published(base):
    return Published(base)


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.json"
    write(file, PROMPTS)
    return file


@pytest.fixture(scope="session")
def imported(base, published, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imported")
    return import_editreward(published.save(folder / "weights"), base, folder / "out", prompts=prompts)


@pytest.fixture
def case(tmp_path, base, published, prompts):
    return Case(tmp_path, base, published, prompts)
