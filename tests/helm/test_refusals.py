"""Wrong values are refused with a message that says where, what and, where it is not plain, what instead."""

import pytest

from helm.chart import refusal

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
    ({"score": {"extraEnv": [{"name": "JRM_PORT", "value": "1"}]}}, "score.extraEnv has JRM_PORT: it belongs into"),
    ({"ingress": {"enabled": True}}, "ingress.enabled is true: ingress.hosts is empty"),
    ({"gateway": {"enabled": True}}, "gateway.enabled is true: gateway.parentRefs is empty"),
    ({"probes": {"startup": {"failureThreshold": 900}}}, "progressDeadlineSeconds is 3600, but probes.startup lets"),
    ({"score": {"minReadySeconds": 3600}}, "score.minReadySeconds must be less than progressDeadlineSeconds"),
]


@pytest.mark.parametrize(("values", "message"), WRONG + CLASHING)
def test_it_is_refused_and_told_why(values, message):
    assert message in refusal(values)


def test_every_clash_is_told_at_once():
    message = refusal({"score": {"enabled": False}, "ingress": {"enabled": True}, "redis": {"mode": "external"}})
    assert message.count("\n  - ") == 3
