"""The Redis that replicas share: none, one of the release, or one that is there already."""

from redis import Redis

from helm.chart import all_of, of_role, one_of, pod, render, server, variables
from support import redis_servers
from support.cases import each

INTERNAL = {"redis": {"mode": "internal"}}
WITH_PASSWORD = {"redis": {"mode": "internal", "internal": {"existingSecret": "redis"}}}
URL = {"redis": {"mode": "external", "external": {"url": "rediss://cache.example.com:6380/1"}}}


def redis(values):
    (container,) = pod(values, "redis")["containers"]
    return container


def test_without_one_nothing_is_shared():
    assert "JRM_REDIS_URL" not in variables()
    assert not [one for one in render() if one["metadata"]["name"].endswith("-redis")]


def test_the_server_finds_the_internal_one_by_its_service():
    service = one_of(render(INTERNAL), "Service", "rl-jrm-redis")
    assert variables(INTERNAL)["JRM_REDIS_URL"] == f"redis://rl-jrm-redis:{service['spec']['ports'][0]['port']}/0"


def test_a_password_is_in_no_manifest():
    assert variables(WITH_PASSWORD)["JRM_REDIS_URL"] == "redis://:from-a-secret@rl-jrm-redis:6379/0"
    container = redis(WITH_PASSWORD)
    assert container["args"][-2:] == ["--requirepass", "$(REDIS_PASSWORD)"]
    for one in (container, server(WITH_PASSWORD)):
        (secret,) = [variable for variable in one["env"] if variable["name"] == "REDIS_PASSWORD"]
        assert secret["valueFrom"] == {"secretKeyRef": {"name": "redis", "key": "password"}}


def options(values):
    """The server's options, as in its configuration file."""
    command, *arguments = redis(values)["args"]
    assert command == "valkey-server"
    return {name.removeprefix("--"): value for name, value in zip(arguments[::2], arguments[1::2], strict=True)}


def test_it_keeps_nothing_and_forgets_what_was_used_least():
    assert options(INTERNAL) == {
        "save": "",
        "appendonly": "no",
        "maxmemory": "512mb",
        "maxmemory-policy": "allkeys-lru",
    }


def test_its_working_directory_can_be_written_to():
    (volume,) = pod(INTERNAL, "redis")["volumes"]
    assert redis(INTERNAL)["volumeMounts"] == [{"name": volume["name"], "mountPath": "/data"}]
    assert volume["emptyDir"] == {"sizeLimit": "64Mi"}


def test_a_real_server_takes_these_options():
    given = {name.replace("-", "_"): value for name, value in options(INTERNAL).items()}
    with redis_servers.real(**given) as server, Redis.from_url(server.connection_url, decode_responses=True) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(512 * 2**20)}
        assert client.config_get("save") == {"save": ""}


def test_nobody_but_the_servers_reaches_it_whatever_else_is_allowed():
    policy = one_of(render(INTERNAL), "NetworkPolicy", "rl-jrm-redis")["spec"]
    (rule,) = policy["ingress"]
    assert rule["from"][0]["podSelector"]["matchExpressions"][0]["values"] == ["score", "explain"]
    assert policy["egress"] == []


def test_an_external_one_is_a_url_or_a_secret_with_one():
    assert of_role(render(URL), "ConfigMap", "score")["data"]["JRM_REDIS_URL"] == "rediss://cache.example.com:6380/1"
    secret = {"redis": {"mode": "external", "external": {"existingSecret": "shared", "existingSecretKey": "where"}}}
    (variable,) = [one for one in server(secret)["env"] if one["name"] == "JRM_REDIS_URL"]
    assert variable["valueFrom"] == {"secretKeyRef": {"name": "shared", "key": "where"}}


@each("values", [URL, {}])
def test_then_there_is_none_of_the_release(values):
    assert len(all_of(render(values), "Deployment")) == 1
