"""``jrm key``, and a server that reads what it writes."""

from pathlib import Path

import httpx
import pytest
from click.testing import Result
from typer.testing import CliRunner

from jrm_client.cli import app
from jrm_service.api.keys import Key, digest
from jrm_service.settings import Settings
from support import servers


@pytest.fixture
def path(tmp_path):
    return tmp_path / "keys"


def key(*arguments: str, path: Path) -> Result:
    return CliRunner().invoke(app, ["key", *arguments], env={"JRM_API_KEYS_FILE": str(path)})


def test_a_new_key_opens_a_server_that_runs(path):
    path.write_text("# none yet\n")
    with servers.serving(Settings(backend="fake", api_keys_file=path)) as url:
        made = key("new", "--name", "trainer-a", path=path)
        [secret] = made.stdout.splitlines()
        headers = {"authorization": f"Bearer {secret}"}
        while httpx.get(f"{url}/v1/info", headers=headers).status_code != 200:  # within a second
            pass
    assert secret not in path.read_text() + made.stderr


def test_limits_are_written_and_listed(path):
    key("new", "--name", "a", "--requests", "64", "--candidates-per-minute", "20000", path=path)
    [line] = path.read_text().splitlines()
    assert line.endswith(" requests=64 candidates_per_minute=20000")
    listed = key("list", path=path).stdout
    assert all(word in listed for word in ("a", "64", "20,000"))


def test_scopes_are_written_and_listed(path):
    key("new", "--name", "viewer", "--scope", "watch", path=path)
    key("new", "--name", "trainer-a", path=path)
    first, second = path.read_text().splitlines()
    assert first.endswith(" scope=watch")
    assert "scope" not in second
    rows = key("list", path=path).stdout.splitlines()
    assert [("watch" in row) for row in rows[1:]] == [True, False]


def test_a_scope_that_there_is_not_writes_nothing(path):
    refused = key("new", "--name", "a", "--scope", "wach", path=path)
    assert refused.exit_code == 2
    assert "watch" in refused.output
    assert not path.exists()


def test_listing_shows_no_whole_hash(path):
    path.write_text(Key("trainer-a", digest(b"x")).line())
    listed = key("list", path=path).stdout
    assert "trainer-a" in listed
    assert digest(b"x").hex() not in listed


def test_a_name_that_is_taken_is_told_and_prints_no_key(path):
    key("new", "--name", "a", path=path)
    again = key("new", "--name", "a", path=path)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "already" in again.stderr
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("arguments", [["new", "--name", "a b"], ["new"], ["new", "--name", "a", "--requests", "0"]])
def test_wrong_usage_writes_nothing(path, arguments):
    assert key(*arguments, path=path).exit_code == 2
    assert not path.exists()


def test_a_file_that_cannot_be_read_is_told(path):
    listed = key("list", path=path)
    assert listed.exit_code == 1
    assert listed.stderr == f"error: {path}: No such file or directory\n"
