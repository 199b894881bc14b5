"""docker-compose.yml and what it mounts, without starting anything."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

from deploy import dockerfile
from deploy.dockerfile import ROOT
from jrm_service.settings import Settings
from support.cases import each

FILE = ROOT / "docker-compose.yml"
COMPOSE = yaml.safe_load(FILE.read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
SERVERS = ["jrm", "jrm-gpu"]
every_service = each("name", SERVICES)
every_server = each("name", SERVERS)


def mounts(name: str) -> dict[str, str]:
    """Target -> source of what a service mounts from this repository."""
    short = [volume.split(":") for volume in SERVICES[name].get("volumes", []) if isinstance(volume, str)]
    return {target: source for source, target, *_ in short if source.startswith("./")}


def configuration(path: str):
    return yaml.safe_load((ROOT / "deploy/compose" / path).read_text(encoding="utf-8"))


def test_it_is_a_valid_compose_file():
    command = [Path(sys.executable).parent / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FILE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_up_starts_all_but_the_gpu_server():
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {
        "jrm",
        "redis",
        "prometheus",
        "grafana",
    }
    assert SERVICES["jrm-gpu"]["profiles"] == ["gpu"]


@every_service
def test_it_may_do_little(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc"} & service.keys()


@every_service
def test_its_ports_are_this_machines_own(name):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


def test_no_two_want_the_same_port():
    ports = [re.search(r":-(\d+)\}:", port)[1] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == len(set(ports)) == 4


@every_service
def test_it_is_watched_and_started_again(name):
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert SERVICES[name]["restart"] == "unless-stopped"


@every_service
def test_it_waits_for_services_that_are_healthy(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        assert how == {"condition": "service_healthy"}
        assert "profiles" not in SERVICES[other]


@every_service
def test_its_image_is_of_one_exact_version(name):
    assert re.search(r":v?\d+\.\d+\.\d+(-[a-z]+)?$", SERVICES[name]["image"])


@every_service
def test_what_it_mounts_of_the_repository_is_there_and_read_only(name):
    for target, source in mounts(name).items():
        assert f"{source}:{target}:ro" in SERVICES[name]["volumes"]
        assert (ROOT / source).is_file()


@every_server
def test_a_server_is_built_from_the_target_that_its_tag_names(name):
    service = SERVICES[name]
    version = dockerfile.read().arguments["VERSION"]
    assert service["image"] == f"jrm-serve:{version}-{service['build']['target']}"
    declared = {argument for stage in dockerfile.read().stages.values() for argument in stage.of("ARG")}
    assert set(service["build"]["args"]) <= declared


@every_server
def test_a_server_is_told_settings_that_exist(name):
    variables = SERVICES[name]["environment"]
    fields = {f"JRM_{field.upper()}": field for field in Settings.model_fields}
    assert variables.keys() <= fields.keys()
    literal = {fields[key]: value for key, value in variables.items() if "$" not in value}
    assert Settings(**literal).redis_url is not None


@every_server
def test_the_page_is_on_and_keeps_nothing_unless_it_is_told_to(name):
    environment = SERVICES[name]["environment"]
    assert [environment[f"JRM_{setting}"] for setting in ("PAGE", "KEEP_RECENT")] == [
        "${PAGE:-on}",
        "${KEEP_RECENT:-0}",
    ]
    for page, keep in (("on", "0"), ("off", "200")):
        settings = Settings(page=page, keep_recent=keep)
        assert (settings.page, settings.keep_recent) == (page == "on", int(keep))


@every_server
def test_a_server_has_time_to_drain(name):
    service = SERVICES[name]
    assert int(service["stop_grace_period"].removesuffix("s")) >= int(service["environment"]["JRM_GRACE_S"]) + 5


@every_server
def test_a_server_can_write_where_its_image_wants_to(name):
    service = SERVICES[name]
    named = {volume.split(":")[1] for volume in service.get("volumes", []) if isinstance(volume, str)}
    assert {"/tmp", "/cache"} <= {*service["tmpfs"], *named}


def test_the_gpu_server_gets_a_gpu_and_a_checkpoint_that_it_cannot_change():
    service = SERVICES["jrm-gpu"]
    [device] = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["capabilities"] == ["gpu"]
    [checkpoint] = [volume for volume in service["volumes"] if isinstance(volume, dict)]
    assert checkpoint["target"] == service["environment"]["JRM_CHECKPOINT"]
    assert checkpoint["read_only"] is True


def test_redis_forgets_what_is_oldest_and_writes_nothing():
    command = " ".join(SERVICES["redis"]["command"])
    assert "--maxmemory-policy allkeys-lru" in command
    assert "--save  --appendonly no" in command


def test_prometheus_scrapes_the_servers_under_the_job_of_the_rules():
    config = configuration("prometheus.yml")
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "jrm-serve"]
    [names] = job["dns_sd_configs"]
    assert names["names"] == SERVERS
    assert names["port"] == Settings.model_fields["port"].default
    assert set(config["rule_files"]) <= mounts("prometheus").keys()
    assert "--config.file=/etc/prometheus/prometheus.yml" in SERVICES["prometheus"]["command"]


def test_grafana_finds_prometheus_and_the_dashboard():
    [source] = configuration("grafana/datasources.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    [provider] = configuration("grafana/dashboards.yaml")["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).parent == Path(provider["options"]["path"])
    assert mounts("grafana")[home] == "./helm/jrm/files/dashboard.json"
    assert {"/etc/grafana/provisioning/datasources/jrm.yaml", "/etc/grafana/provisioning/dashboards/jrm.yaml"} <= (
        mounts("grafana").keys()
    )
