"""Wrong values are refused with a message that says where, what and, where it is not plain, what instead."""

import pytest
from pydantic import ValidationError

from helm.chart import CHART, refusal, render
from jrm_service.settings import Settings
from support.cases import each

# Types, bounds and names: values.schema.json.
WRONG = [
    ({"scroe": {}}, "additional properties 'scroe' not allowed"),
    ({"score": {"replica": 3}}, "at '/score': additional properties 'replica' not allowed"),
    ({"score": {"replicas": 0}}, "at '/score/replicas': minimum: got 0, want 1"),
    ({"score": {"replicas": "three"}}, "at '/score/replicas': got string, want integer"),
    ({"score": {"gpus": -1}}, "at '/score/gpus': minimum: got -1, want 0"),
    ({"score": {"gpus": 0.5}}, "at '/score/gpus': got number, want integer"),
    ({"explain": {"gpus": 2}}, "at '/explain/gpus': maximum: got 2, want 1"),
    ({"explain": {"autoscaling": {"kind": "hpa"}}}, "additional properties 'autoscaling' not allowed"),
    ({"settings": {"max_quue": 5}}, "at '/settings': additional properties 'max_quue' not allowed"),
    ({"settings": {"max_queue": 0}}, "at '/settings/max_queue': minimum: got 0, want 1"),
    ({"settings": {"max_queue": "many"}}, "at '/settings/max_queue': got string, want integer"),
    ({"settings": {"dtype": "int8"}}, "at '/settings/dtype': value must be one of 'auto', 'float32'"),
    ({"settings": {"explain_gpu_share": 1.5}}, "at '/settings/explain_gpu_share': maximum: got 1.5, want 1"),
    ({"settings": {"hang_timeout_s": 0}}, "at '/settings/hang_timeout_s': exclusiveMinimum: got 0, want 0"),
    ({"settings": {"device": "cuda:0"}}, "set score.gpus or explain.gpus instead"),
    ({"settings": {"port": 9000}}, "set service.port instead"),
    ({"score": {"settings": {"redis_url": "redis://cache"}}}, "set redis.mode instead"),
    ({"score": {"settings": {"checkpoint": "/data"}}}, "set checkpoint.source instead"),
    ({"explain": {"settings": {"grace_s": 5}}}, "set shutdown.graceSeconds instead"),
    ({"checkpoint": {"source": "s3"}}, "value must be one of 'bundled', 'pvc', 'image', 'hub', 'objectStore'"),
    ({"checkpoint": {"fingerprint": "abc"}}, "at '/checkpoint/fingerprint': 'abc' does not match pattern"),
    ({"checkpoint": {"hub": {"repo": "my-jrm"}}}, "at '/checkpoint/hub/repo': 'my-jrm' does not match pattern"),
    ({"checkpoint": {"store": {"sizeLimit": "lots"}}}, "at '/checkpoint/store/sizeLimit': 'lots' does not match"),
    ({"image": {"digest": "latest"}}, "at '/image/digest': 'latest' does not match pattern"),
    ({"image": {"tag": 1.0}}, "at '/image/tag': got number, want string"),
    ({"image": {"pullPolicy": "Sometimes"}}, "value must be one of 'IfNotPresent', 'Always', 'Never'"),
    ({"redis": {"mode": "cluster"}}, "value must be one of 'none', 'internal', 'external'"),
    ({"redis": {"external": {"url": "http://cache"}}}, "at '/redis/external/url': 'http://cache' does not match"),
    ({"redis": {"external": {"url": "redis://:secret@cache"}}}, "at '/redis/external/url'"),
    ({"redis": {"external": {"url": "redis://cache:0"}}}, "at '/redis/external/url'"),
    ({"redis": {"external": {"url": "redis://:6379"}}}, "at '/redis/external/url'"),
    ({"nameOverride": "judge"}, "additional properties 'nameOverride' not allowed"),
    ({"gpu": {"taint": "a b"}}, "at '/gpu/taint': 'a b' does not match pattern"),
    ({"score": {"autoscaling": {"keda": {"authModes": "password"}}}}, "at '/score/autoscaling/keda/authModes'"),
    ({"score": {"autoscaling": {"kind": "both"}}}, "value must be one of 'none', 'hpa', 'keda'"),
    ({"score": {"autoscaling": {"minReplicas": 0}}}, "at '/score/autoscaling/minReplicas': minimum: got 0, want 1"),
    ({"score": {"autoscaling": {"queueWaitSeconds": 0}}}, "at '/score/autoscaling/queueWaitSeconds': minimum"),
    ({"score": {"strategy": {"maxSurge": "much"}}}, "at '/score/strategy/maxSurge'"),
    ({"score": {"resources": {"request": {"cpu": 1}}}}, "additional properties 'request' not allowed"),
    ({"shutdown": {"graceSeconds": 0}}, "at '/shutdown/graceSeconds': exclusiveMinimum"),
    ({"shutdown": {"preStopSeconds": "10s"}}, "at '/shutdown/preStopSeconds': got string, want integer"),
    ({"ingress": {"enabled": "yes"}}, "at '/ingress/enabled': got string, want boolean"),
    ({"ingress": {"hosts": ["https://jrm.example.com"]}}, "at '/ingress/hosts/0'"),
    ({"gateway": {"timeout": 600}}, "at '/gateway/timeout': got number, want string"),
    ({"service": {"port": 70000}}, "at '/service/port': maximum: got 70,000, want 65,535"),
    ({"fullnameOverride": "My_Release"}, "at '/fullnameOverride': 'My_Release' does not match pattern"),
    ({"volumes": {"shm": 1024}}, "at '/volumes/shm': got number, want string"),
]

# What one value means for another: templates/_validate.tpl.
CLASHING = [
    ({"score": {"enabled": False}}, "score.enabled and explain.enabled are both false: nothing would run"),
    ({"checkpoint": {"source": "hub"}}, "checkpoint.source is hub: checkpoint.hub.repo is missing"),
    ({"checkpoint": {"source": "pvc"}}, "checkpoint.source is pvc: checkpoint.pvc.claimName is missing"),
    ({"checkpoint": {"source": "image"}}, "checkpoint.source is image: checkpoint.image.reference is missing"),
    ({"checkpoint": {"source": "objectStore"}}, "checkpoint.objectStore.remote is missing"),
    (
        {"checkpoint": {"hub": {"repo": "my-team/my-jrm"}}},
        "checkpoint.hub.repo is set, but checkpoint.source is bundled: choose one",
    ),
    (
        {"checkpoint": {"source": "pvc", "pvc": {"claimName": "a"}, "hub": {"repo": "my-team/my-jrm"}}},
        "checkpoint.hub.repo is set, but checkpoint.source is pvc: choose one",
    ),
    ({"checkpoint": {"fingerprint": "0" * 32}}, "checkpoint.fingerprint is for a checkpoint of yours"),
    ({"checkpoint": {"store": {"claimName": "a"}}}, "checkpoint.store.claimName is for checkpoints that are fetched"),
    ({"redis": {"mode": "external"}}, "set one of redis.external.url and redis.external.existingSecret"),
    (
        {"redis": {"mode": "external", "external": {"url": "redis://cache", "existingSecret": "cache"}}},
        "set one of redis.external.url and redis.external.existingSecret",
    ),
    ({"redis": {"external": {"url": "redis://cache"}}}, "redis.external is set, but redis.mode is none"),
    (
        {"redis": {"internal": {"existingSecret": "redis"}}},
        "redis.internal.existingSecret is set, but redis.mode is none",
    ),
    (
        {"score": {"replicas": 3, "autoscaling": {"kind": "hpa"}}},
        "score.replicas is 3, but score.autoscaling.kind is hpa: set score.autoscaling.minReplicas instead",
    ),
    (
        {"score": {"autoscaling": {"kind": "hpa", "minReplicas": 5}}},
        "score.autoscaling.minReplicas is 5, more than maxReplicas, 4",
    ),
    ({"score": {"autoscaling": {"kind": "keda"}}}, "score.autoscaling.keda.serverAddress, the URL of Prometheus"),
    (
        {"score": {"autoscaling": {"kind": "hpa", "keda": {"serverAddress": "http://prometheus:9090"}}}},
        "score.autoscaling.keda is set, but score.autoscaling.kind is hpa: choose one",
    ),
    (
        {"score": {"autoscaling": {"kind": "keda", "keda": {"serverAddress": "http://p", "authentication": "p"}}}},
        "keda.authentication is set: set authModes too",
    ),
    ({"score": {"autoscaling": {"keda": {"authModes": "basic"}}}}, "keda.authModes is set, but authentication"),
    (
        {"monitoring": {"serviceMonitor": {"enabled": True, "interval": "1s500ms", "scrapeTimeout": "1600ms"}}},
        "scrapeTimeout is 1600ms, longer than the interval, 1s500ms",
    ),
    (
        {
            "score": {"autoscaling": {"kind": "hpa"}},
            "monitoring": {"serviceMonitor": {"enabled": True, "interval": "1m"}},
        },
        "interval is 1m: autoscaling looks at 2 minutes",
    ),
    (
        {"score": {"enabled": False, "autoscaling": {"kind": "hpa"}}, "explain": {"enabled": True}},
        "score.autoscaling.kind is hpa, but score.enabled is false",
    ),
    ({"explain": {"enabled": True, "gpus": 0}}, "the -cpu image has no vLLM: set explain.gpus to 1"),
    ({"explain": {"enabled": True}, "settings": {"backend": "fake"}}, "the backend is fake and has no language head"),
    ({"score": {"podDisruptionBudget": {"minAvailable": 1}}}, "no node could ever be drained"),
    ({"score": {"replicas": 3, "podDisruptionBudget": {"minAvailable": "70%"}}}, "minAvailable is 70%"),
    ({"score": {"podDisruptionBudget": {"maxUnavailable": 0}}}, "maxUnavailable is 0: no node could ever be drained"),
    ({"score": {"strategy": {"maxUnavailable": 0}}}, "score.strategy: maxSurge and maxUnavailable are both 0"),
    ({"score": {"strategy": {"maxSurge": "0%", "maxUnavailable": "0%"}}}, "maxSurge and maxUnavailable are both 0"),
    (
        {"score": {"resources": {"limits": {"nvidia.com/gpu": 1}}}},
        "score.resources.limits has nvidia.com/gpu: set score",
    ),
    ({"score": {"extraEnv": [{"name": "JRM_PORT", "value": "1"}]}}, "score.extraEnv has JRM_PORT: it belongs in"),
    ({"score": {"settings": {"max_queue": 240}}}, "score pods could never admit a request of max_candidates, 1024"),
    ({"settings": {"max_candidates": 5000}}, "Give both in settings: {max_queue: 4096, max_candidates: 4096}"),
    ({"explain": {"enabled": True, "settings": {"max_queue": 5}}}, "explain pods could never admit a request"),
    ({"volumes": {"tmp": "1000M"}}, "volumes.tmp is 1000M, but score pods keep uploads of up to 1073741824 bytes"),
    ({"settings": {"max_bodies_bytes": 4294967297}}, "volumes.tmp is 4Gi, but score pods keep uploads of up to 42949"),
    ({"settings": {"otlp_endpoint": "collector:4317"}}, "the otlp_endpoint of score pods must be http://HOST:PORT"),
    ({"score": {"extraVolumes": [{"name": "tmp"}]}}, "score pods would have two volumes named tmp"),
    (
        {"checkpoint": {"extraVolumes": [{"name": "ca"}]}, "score": {"extraVolumes": [{"name": "ca"}]}},
        "score pods would have two volumes named ca",
    ),
    (
        {"score": {"extraVolumeMounts": [{"name": "big", "mountPath": "/cache/"}]}},
        "score.extraVolumeMounts has /cache/, where the chart mounts a volume of its own",
    ),
    (
        {"checkpoint": {"extraVolumeMounts": [{"name": "big", "mountPath": "/store"}]}},
        "checkpoint.extraVolumeMounts has /store, where",
    ),
    ({"checkpoint": {"extraEnv": [{"name": "HF_TOKEN"}]}}, "checkpoint.extraEnv has HF_TOKEN, which the chart sets"),
    (
        {"checkpoint": {"objectStore": {"env": {"A": "b"}}, "extraEnv": [{"name": "A"}]}},
        "checkpoint.extraEnv has A, which the chart sets",
    ),
    ({"gpu": {"resource": "nvidia.com/mig-1g.10gb"}, "score": {"gpus": 2}}, "a process sees one MIG slice only"),
    ({"ingress": {"enabled": True}}, "ingress.enabled is true: ingress.hosts is empty"),
    ({"gateway": {"enabled": True}}, "gateway.enabled is true: gateway.parentRefs is empty"),
    ({"probes": {"startup": {"failureThreshold": 900}}}, "progressDeadlineSeconds is 3600, but probes.startup lets"),
    ({"score": {"minReadySeconds": 3600}}, "score.minReadySeconds must be less than progressDeadlineSeconds"),
]


@each(("values", "message"), WRONG + CLASHING)
def test_it_is_refused_and_told_why(values, message):
    assert message in refusal(values)


GOES = [
    {"settings": {"max_queue": 240, "max_candidates": 240}},
    {"settings": {"max_queue": 1024}},
    {"settings": {"max_candidates": 4096}},
    {"settings": {"max_queue": 5}, "score": {"settings": {"max_candidates": 5}}},
    {"volumes": {"tmp": "1Gi"}},
    {"volumes": {"tmp": "1.5Ti"}, "settings": {"max_bodies_bytes": 3 * 2**39}},
    {"settings": {"otlp_endpoint": "https://[::1]:4318/v1/traces"}},
    {"gpu": {"resource": "nvidia.com/mig-1g.10gb"}, "score": {"gpus": 1}},
    {"score": {"autoscaling": {"kind": "none", "keda": {"serverAddress": "http://prometheus:9090"}}}},
    {"monitoring": {"serviceMonitor": {"enabled": True, "interval": "1m", "scrapeTimeout": "60s"}}},
    {"monitoring": {"serviceMonitor": {"enabled": True, "interval": "1s", "scrapeTimeout": "900ms"}}},
    {
        "score": {
            "extraVolumes": [{"name": "big", "emptyDir": {}}],
            "extraVolumeMounts": [{"name": "big", "mountPath": "/cache/huggingface"}],
        }
    },
]


@each("values", GOES)
def test_what_lies_just_within_is_taken(values):
    assert render(values)


@each("url", ["collector:4317", "http://", "http://h:0", "http://u:p@h", "http://h?a=b", "ftp://h"])
def test_an_address_for_traces_that_the_server_refuses_is_refused_here(url):
    with pytest.raises(ValidationError):
        Settings(otlp_endpoint=url)
    assert "otlp_endpoint" in refusal({"settings": {"otlp_endpoint": url}})


@each("name", ["max_queue", "max_candidates", "max_bodies_bytes"])
def test_the_server_has_the_defaults_that_values_are_held_to(name):
    """A change there is to be made in templates/_validate.tpl too."""
    default = Settings.model_fields[name].default
    template = (CHART / "templates" / "_validate.tpl").read_text(encoding="utf-8")
    assert f"(default {default} $settings.{name})" in template


def test_every_clash_is_told_at_once():
    message = refusal({"score": {"enabled": False}, "ingress": {"enabled": True}, "redis": {"mode": "external"}})
    assert message.count("\n  - ") == 3
