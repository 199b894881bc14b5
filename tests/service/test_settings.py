"""Flags win over the environment, which wins over defaults; what is unknown or unsafe is refused."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from jrm_service.settings import Settings


def test_flags_win_over_environment_over_defaults(monkeypatch):
    assert Settings().port == 8000
    monkeypatch.setenv("JRM_PORT", "9000")
    assert Settings().port == 9000
    assert Settings(port=9001).port == 9001


def test_a_misspelt_variable_is_refused(monkeypatch):
    monkeypatch.setenv("JRM_MAX_CANDIDATE", "5")
    with pytest.raises(ValidationError, match="unknown environment variable JRM_MAX_CANDIDATE"):
        Settings()


def test_a_misspelt_variable_that_is_no_text_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("JRM_\udcff", "5")
    with pytest.raises(ValidationError, match=r"unknown environment variable JRM_\\udcff"):
        Settings()


def test_variables_of_a_service_called_jrm_are_not_ours(monkeypatch):
    for name, value in {"JRM_PORT": "tcp://10.0.0.1:8000", "JRM_SERVICE_HOST": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    assert Settings().port == 8000
    assert Settings(port=9001).port == 9001
    monkeypatch.setenv("JRM_SERVICE_HOSTS", "10.0.0.1")
    with pytest.raises(ValidationError, match="unknown environment variable JRM_SERVICE_HOSTS"):
        Settings()


def test_the_clients_variables_are_not_the_servers(monkeypatch):
    monkeypatch.setenv("JRM_URL", "http://localhost:8000")
    monkeypatch.setenv("JRM_API_KEY", "secret")
    monkeypatch.setenv("JRM_EDITED", "drawing:draw")
    assert "secret" not in repr(Settings())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 70000),
        ("dtype", "int8"),
        ("max_candidates", 0),
        ("body_timeout_s", "inf"),
        ("serve", "nothing"),
        ("log_format", "xml"),
        ("max_requests", 0),
        ("device", "cpu; rm -rf"),
        ("checkpont", "x"),
        ("max_queue", 5),
        ("grace_s", 1e300),
        ("explain_cache_gib", "inf"),
        ("checkpoint", ""),
        ("api_keys_file", ""),
        ("otlp_endpoint", "collector:4318"),
        ("otlp_endpoint", "grpc://collector:4317"),
        ("otlp_endpoint", "http://user:secret@collector:4318"),
        ("otlp_endpoint", "http://collector:4318?token=secret"),
        ("otlp_endpoint", "http://collector:port"),
    ],
)
def test_unusable_values_are_refused(name, value):
    with pytest.raises(ValidationError):
        Settings(**{name: value})


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings().port = 1


def test_devices_are_a_list():
    assert Settings(device="cuda:0,cuda:1").devices == ["cuda:0", "cuda:1"]


def test_a_machine_of_many_cpus_starts_with_the_defaults():
    program = (
        "import os; os.sched_getaffinity = lambda _: range(384)\n"
        "from jrm_service import settings; print(settings.Settings())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "preprocess_threads=256" in run.stdout
