"""What the pods get in JRM_… variables, read by the server's own settings."""

from helm.chart import COMPONENT, MATRIX, all_of, matrix_values, of_role, render, server, variables
from jrm_service.settings import Settings
from support.cases import each


def parsed(values, role, monkeypatch):
    with monkeypatch.context() as patch:
        for name, value in variables(values, role).items():
            if name.startswith("JRM_"):
                patch.setenv(name, value)
        return Settings()


@each("path", MATRIX, ids=lambda path: path.stem)
def test_the_server_takes_them(path, monkeypatch):
    values = matrix_values(path)
    for one in all_of(render(values), "Deployment"):
        role = one["metadata"]["labels"][COMPONENT]
        if role != "redis":
            assert parsed(values, role, monkeypatch).serve == role


def test_every_number_arrives_as_it_was_written(monkeypatch):
    """Helm's own way to print 67108864 is 6.7108864e+07."""
    settings = {"max_body_bytes": 67108864, "max_bodies_bytes": 10**12, "redis_timeout_s": 0.05, "self_test": False}
    read = parsed({"settings": settings, "volumes": {"tmp": "1Ti"}}, "score", monkeypatch)
    assert {name: getattr(read, name) for name in settings} == settings


def test_the_page_and_what_is_kept_for_it(monkeypatch):
    read = parsed({}, "score", monkeypatch)
    assert (read.page, read.keep_recent) == (True, 0)
    read = parsed({"settings": {"page": False, "keep_recent": 200}}, "score", monkeypatch)
    assert (read.page, read.keep_recent) == (False, 200)


def test_a_role_wins_over_what_both_have(monkeypatch):
    values = {"settings": {"max_queue": 2000, "max_requests": 7}, "score": {"settings": {"max_queue": 3000}}}
    read = parsed(values, "score", monkeypatch)
    assert (read.max_queue, read.max_requests) == (3000, 7)


@each(("gpus", "devices"), [(0, "cpu"), (1, "cuda:0"), (3, "cuda:0,cuda:1,cuda:2")])
def test_there_is_a_device_for_each_gpu(gpus, devices):
    assert variables({"score": {"gpus": gpus}})["JRM_DEVICE"] == devices


def test_threads_follow_the_cpus_of_the_pod_and_not_those_of_the_machine():
    (threads,) = [one for one in server()["env"] if one["name"] == "JRM_PREPROCESS_THREADS"]
    assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"


@each(
    "values",
    [
        {"settings": {"preprocess_threads": 3}},
        {"score": {"settings": {"preprocess_threads": 3}}},
        {"score": {"resources": {"requests": {"cpu": None, "memory": "1Gi"}}}},
    ],
)
def test_threads_that_were_set_or_cannot_be_known_are_left_alone(values):
    assert "JRM_PREPROCESS_THREADS" not in {one["name"] for one in server(values).get("env", [])}


def test_a_service_port_of_its_own_moves_no_pod():
    objects = render({"service": {"port": 80}})
    assert of_role(objects, "ConfigMap", "score")["data"]["JRM_PORT"] == "8000"
    assert server({"service": {"port": 80}})["ports"] == [{"name": "http", "containerPort": 8000, "protocol": "TCP"}]


def test_keys_are_read_from_a_folder_that_follows_the_secret():
    values = {"apiKeys": {"existingSecret": "jrm-keys"}}
    (mount,) = [one for one in server(values)["volumeMounts"] if one["name"] == "keys"]
    assert mount == {"name": "keys", "mountPath": "/etc/jrm/keys", "readOnly": True}
    assert variables(values)["JRM_API_KEYS_FILE"] == "/etc/jrm/keys/keys.txt"
