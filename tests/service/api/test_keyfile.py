"""The keys file: followed while the server runs, extended without harm."""

import os
import stat
import threading

import pytest
from prometheus_client import CollectorRegistry

from jrm_service.api import keyfile
from jrm_service.api.keyfile import KeyFile
from jrm_service.api.keys import Key, digest
from jrm_service.errors import KeysError
from jrm_service.metrics import Metrics


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def key(secret: str, **limits) -> Key:
    return Key(f"name-of-{secret}", digest(secret.encode()), **limits)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "keys"
    path.write_text(key("one").line() + "\n")
    return path


@pytest.fixture
def metrics():
    return Metrics(CollectorRegistry())


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def file(path, metrics, clock):
    return KeyFile(path, metrics, clock)


def reloads(metrics: Metrics, result: str) -> float:
    return metrics.registry.get_sample_value("jrm_key_reloads_total", {"result": result}) or 0.0


def test_the_keys_of_the_file_are_in_force(file, metrics):
    assert file.find(b"one") == key("one")
    assert file.find(b"two") is None
    assert metrics.registry.get_sample_value("jrm_keys") == 1


def test_a_changed_file_is_in_force_within_a_second(file, path, clock, metrics):
    path.write_text(key("two").line())
    assert file.find(b"one")
    clock.now += 1.0
    assert file.find(b"two")
    assert file.find(b"one") is None
    assert reloads(metrics, "ok") == 1


def test_a_file_that_is_replaced_by_another_of_the_same_size_and_time(file, path, clock, tmp_path):
    before = path.stat()
    other = tmp_path / "other"
    other.write_text(key("two").line() + "\n")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.rename(path)
    assert path.stat().st_size == before.st_size
    clock.now += 1.0
    assert file.find(b"two")


def test_an_unchanged_file_is_not_read_again(file, clock, metrics):
    clock.now += 1.0
    file.find(b"one")
    assert reloads(metrics, "ok") == 0


@pytest.mark.parametrize("damage", ["wrong", "gone", "not text", "huge"])
def test_a_broken_file_leaves_the_keys_as_they_were(file, path, clock, metrics, caplog, damage):
    content = {"wrong": b"one sha256:short", "not text": b"\xff\xfe", "huge": b"#" * 5_000_000}
    path.write_bytes(content[damage]) if damage in content else path.unlink()
    for _ in range(3):
        clock.now += 1.0
        assert file.find(b"one")
    assert reloads(metrics, "failed") == 1
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    path.write_text(key("two").line())
    clock.now += 1.0
    assert file.find(b"one") is None
    assert file.find(b"two")


@pytest.mark.parametrize("damage", ["wrong", "gone"])
def test_a_broken_file_at_first_is_refused_with_its_name(path, metrics, damage):
    path.write_text("one") if damage == "wrong" else path.unlink()
    with pytest.raises(KeysError, match=f"{path.name}: "):
        KeyFile(path, metrics)


def test_an_empty_file_opens_for_nobody_and_says_so(path, metrics, caplog):
    path.write_text("")
    assert KeyFile(path, metrics).find(b"one") is None
    assert "0 API keys are in force" in caplog.text


def test_an_appended_key_is_in_force(file, path, clock):
    keyfile.append(path, key("two", requests=3))
    clock.now += 1.0
    assert file.find(b"one")
    assert file.find(b"two") == key("two", requests=3)


def test_a_new_file_is_for_its_owners_eyes(tmp_path):
    keyfile.append(tmp_path / "new", key("one"))
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600
    assert keyfile.read(tmp_path / "new") == [key("one")]


def test_a_last_line_without_an_end_is_ended(path):
    path.write_text("# keys\n" + key("one").line())
    keyfile.append(path, key("two"))
    assert path.read_text() == f"# keys\n{key('one').line()}\n{key('two').line()}\n"


def test_a_name_that_is_taken_and_a_broken_file_are_left_alone(path):
    for content in (path.read_text(), "what is this"):
        path.write_text(content)
        with pytest.raises(KeysError):
            keyfile.append(path, key("one"))
        assert path.read_text() == content


def test_appending_at_once_loses_nothing(path):
    threads = [threading.Thread(target=keyfile.append, args=(path, key(str(number)))) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {one.name for one in keyfile.read(path)} == {f"name-of-{number}" for number in ["one", *range(20)]}
