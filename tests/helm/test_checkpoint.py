"""Where the checkpoint comes from, and that a broken or half-fetched one is never served."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helm.chart import chart_values, pod, server
from jrm_service.model.checkpoint_source import BUNDLED
from support.cases import each

FINGERPRINT = "35b2a90b20a3e16ee80a35b6cbca1360"
FETCHED = ["hub", "s3", "image-copy"]


def init(values, name):
    (container,) = [one for one in pod(values)["initContainers"] if one["name"] == name]
    return container


def checkpoint_volume(values):
    (volume,) = [one for one in pod(values)["volumes"] if one["name"] == "checkpoint"]
    return volume


def checkpoint_mount(values):
    (mount,) = [one for one in server(values)["volumeMounts"] if one["name"] == "checkpoint"]
    return mount


@pytest.fixture
def run(tmp_path):
    """Runs the script of an init container as it is, on folders of the test; what it calls is found in ``bin``."""
    (tmp_path / "bin").mkdir()

    def run(container, **variables):
        given = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        folders = {"FOLDER": str(tmp_path / "store" / "model"), "PART": str(tmp_path / "store" / "model.part-pod")}
        path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        return subprocess.run(
            [*container["command"], *container["args"]],
            env=os.environ | given | folders | {"PATH": path} | variables,
            capture_output=True,
            text=True,
            check=False,
        )

    (tmp_path / "store").mkdir()
    return run


@pytest.fixture
def part(tmp_path, run):
    """A checkpoint that was fetched and not looked at yet."""
    return Path(shutil.copytree(BUNDLED, tmp_path / "store" / "model.part-pod"))


@pytest.fixture
def folder(tmp_path):
    """Where it is served from."""
    return tmp_path / "store" / "model"


def program(tmp_path, name, script='printf "%s\\n" "$@" > "$0.called"'):
    """A program for the script to find. By default it writes down its arguments; returns where."""
    path = tmp_path / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path.with_name(f"{name}.called")


def test_the_bundled_one_needs_nothing():
    assert "initContainers" not in pod()
    assert "checkpoint" not in {volume["name"] for volume in pod()["volumes"]}


def test_a_claim_is_mounted_to_be_read():
    values = chart_values("gpu")
    assert checkpoint_volume(values)["persistentVolumeClaim"] == {"claimName": "checkpoints", "readOnly": True}
    assert checkpoint_mount(values) == {
        "name": "checkpoint",
        "mountPath": "/checkpoint",
        "subPath": "my-jrm",
        "readOnly": True,
    }


def test_an_image_can_be_the_volume():
    values = chart_values("image-volume")
    assert checkpoint_volume(values)["image"]["reference"] == "registry.example.com/my-jrm:3"
    assert checkpoint_mount(values)["subPath"] == "model"


@each("name", ["two-roles", "image-volume"])
def test_what_is_mounted_is_held_to_its_fingerprint_before_it_is_served(name):
    container = init(chart_values(name), "inspect")
    assert container["args"] == ["inspect", "--expect", FINGERPRINT, "/checkpoint"]
    assert checkpoint_mount(chart_values(name)) in container["volumeMounts"]


@each("name", ["two-roles", "image-volume", *FETCHED])
def test_what_the_server_may_serve_is_not_refused_before(name):
    values = chart_values(name)
    allowed = {"name": "JRM_ALLOW_PIPELINE_DRIFT", "value": "true"}
    assert allowed not in init(values, "inspect").get("env", [])
    values.setdefault("settings", {})["allow_pipeline_drift"] = True
    assert allowed in init(values, "inspect")["env"]


@each("name", FETCHED)
def test_what_is_fetched_is_looked_through_before_it_is_served(name):
    assert [one["name"] for one in pod(chart_values(name))["initContainers"]] == ["fetch", "inspect"]
    assert checkpoint_mount(chart_values(name))["readOnly"] is True


@each("name", FETCHED)
def test_the_server_reads_the_folder_that_was_looked_through(name):
    values = chart_values(name)
    folders = {one["name"]: one.get("value") for one in init(values, "inspect")["env"]}
    assert folders["FOLDER"] == f"/store/{checkpoint_mount(values)['subPath']}"


def test_another_revision_is_another_folder():
    other = chart_values("hub")
    other["checkpoint"]["hub"]["revision"] = "main"
    assert checkpoint_mount(other)["subPath"] != checkpoint_mount(chart_values("hub"))["subPath"]


def test_what_is_fetched_goes_to_a_folder_with_a_limit_or_to_a_claim():
    assert checkpoint_volume(chart_values("hub"))["emptyDir"] == {"sizeLimit": "20Gi"}
    assert checkpoint_volume(chart_values("s3"))["persistentVolumeClaim"] == {"claimName": "fetched"}


PROXY = {"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"}
AUTHORITY = {"name": "authority", "mountPath": "/etc/authority", "readOnly": True}


@each("name", [*FETCHED, "two-roles"])
def test_what_fetches_and_inspects_can_be_given_a_proxy_and_the_certificate_of_its_authority(name):
    values = chart_values(name)
    volume = {"name": "authority", "configMap": {"name": "authority"}}
    values["checkpoint"] |= {"extraEnv": [PROXY], "extraVolumes": [volume], "extraVolumeMounts": [AUTHORITY]}
    assert volume in pod(values)["volumes"]
    for container in pod(values)["initContainers"]:
        assert container["env"][-1] == PROXY
        assert container["volumeMounts"][-1] == AUTHORITY
    assert PROXY not in server(values)["env"]


def test_a_token_comes_from_its_secret():
    (token,) = [one for one in init(chart_values("hub"), "fetch")["env"] if one["name"] == "HF_TOKEN"]
    assert token["valueFrom"] == {"secretKeyRef": {"name": "hub-token", "key": "token"}}
    assert init(chart_values("s3"), "fetch")["envFrom"] == [{"secretRef": {"name": "s3-credentials"}}]


def test_the_hub_is_asked_for_one_revision_into_the_unfinished_folder(run, tmp_path):
    called = program(tmp_path, "hf")
    assert run(init(chart_values("hub"), "fetch")).returncode == 0
    part = str(tmp_path / "store" / "model.part-pod")
    assert called.read_text().splitlines() == [
        *("download", "my-team/my-jrm", "--revision", "0a1b2c3", "--local-dir", part)
    ]


def test_the_hubs_own_client_has_these_options():
    hf = Path(sys.executable).with_name("hf")
    text = subprocess.run([hf, "download", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--revision" in text
    assert "--local-dir" in text


def test_the_object_store_is_copied_into_the_unfinished_folder(run, tmp_path):
    called = program(tmp_path, "rclone")
    assert run(init(chart_values("s3"), "fetch")).returncode == 0
    assert called.read_text().splitlines()[-2:] == ["store:models/my-jrm", str(tmp_path / "store" / "model.part-pod")]


def test_what_killed_pods_left_on_a_claim_goes_after_two_days(run, tmp_path):
    program(tmp_path, "rclone")
    old, new = (tmp_path / "store" / f"model.part-{name}" for name in ("old", "new"))
    old.mkdir()
    new.mkdir()
    os.utime(old, (0, 0))
    assert run(init(chart_values("s3"), "fetch")).returncode == 0
    assert not old.exists()
    assert new.exists()


def test_a_copy_begins_anew_where_one_was_interrupted(run, part):
    (part / "config.json").chmod(0o400)
    (part / "rest-of-something-else").touch()
    assert run(init(chart_values("image-copy"), "fetch"), SOURCE=str(BUNDLED)).returncode == 0
    assert sorted(path.name for path in part.iterdir()) == sorted(path.name for path in BUNDLED.iterdir())


@pytest.mark.parametrize("name", FETCHED)
def test_what_is_there_is_not_fetched_again(run, folder, tmp_path, name):
    folder.mkdir()
    calls = [program(tmp_path, tool) for tool in ("hf", "rclone", "cp")]
    assert run(init(chart_values(name), "fetch")).returncode == 0
    assert not any(call.exists() for call in calls)


def test_a_good_checkpoint_gets_its_name(run, part, folder):
    done = run(init(chart_values("hub"), "inspect"))
    assert done.returncode == 0, done.stderr
    assert FINGERPRINT in done.stdout
    assert folder.is_dir()
    assert not part.exists()


def test_an_interrupted_download_gets_none(run, part, folder):
    (part / "model.safetensors").unlink()
    done = run(init(chart_values("s3"), "inspect"))
    assert done.returncode == 1
    assert "model.safetensors" in done.stderr
    assert not folder.exists()


def test_another_checkpoint_than_expected_gets_none(run, part, folder):
    done = run(init(chart_values("hub"), "inspect"), EXPECT="0" * 32)
    assert done.returncode == 1
    assert f"the fingerprint is {FINGERPRINT}, expected {'0' * 32}" in done.stderr
    assert not folder.exists()


def test_the_second_of_two_pods_on_one_volume_uses_what_the_first_brought(run, part, folder, tmp_path):
    first = shutil.copytree(BUNDLED, tmp_path / "first")
    # The first pod gets there between the second one's inspection and its renaming.
    program(tmp_path, "jrm", f"mv {first} {folder}")
    done = run(init(chart_values("s3"), "inspect"))
    assert done.returncode == 0, done.stderr
    assert (folder / "model.safetensors").exists()
    assert not part.exists()
