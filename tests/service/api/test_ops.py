"""Health, metrics, models, info, the schema: what operators and generic clients see."""

import base64
import threading
from dataclasses import replace

import httpx
import openai
import pytest

from jrm_service.errors import InternalError
from jrm_service.scoring.fakes import FakeBackend, NaNBackend, OutOfMemoryBackend, RaisingBackend
from jrm_service.scoring.types import ServedModel
from jrm_service.settings import Settings
from support import servers
from support.pictures import encode, photo
from support.servers import Metric, error_of


def test_started_live_and_ready(tiny_server):
    assert httpx.get(f"{tiny_server}/health/startup").json() == {"status": "started"}
    assert httpx.get(f"{tiny_server}/health/live").json() == {"status": "live"}
    assert httpx.get(f"{tiny_server}/health/ready").json() == {"status": "ready", "parts": {"score": "ready"}}


def test_not_ready_while_the_model_loads():
    loaded = threading.Event()

    def load():
        loaded.wait(30)
        return servers.fake_parts()

    with servers.starting(load=load) as url:
        try:
            assert httpx.get(f"{url}/health/live").status_code == 200
            for response in (
                httpx.get(f"{url}/health/startup"),
                httpx.get(f"{url}/health/ready"),
                httpx.get(f"{url}/v1/models"),
                httpx.get(f"{url}/v1/info"),
                httpx.post(f"{url}/v1/score", json={}),
            ):
                assert error_of(response) == (503, "not_ready")
                assert int(response.headers["retry-after"]) >= 1
        finally:
            loaded.set()


def test_a_failed_load_is_told_and_never_ready():
    told = []

    def load():
        raise ValueError("no such weights")

    heard = threading.Event()
    with servers.starting(load=load, on_failed=lambda error: (told.append(error), heard.set())) as url:
        assert heard.wait(30)
        assert error_of(httpx.get(f"{url}/health/ready")) == (503, "not_ready")
        assert error_of(httpx.get(f"{url}/health/startup")) == (503, "not_ready")
    assert [str(error) for error in told] == ["no such weights"]


def test_the_openai_client_lists_the_model(tiny_server):
    with openai.OpenAI(base_url=f"{tiny_server}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["jrm-tiny-untrained"]


def test_info_says_what_produces_the_scores(tiny_server):
    info = httpx.get(f"{tiny_server}/v1/info").json()
    assert info["model"] == "jrm-tiny-untrained"
    assert len(info["fingerprint"]) == 32
    assert (info["device"], info["dtype"]) == ("cpu", "float32")
    assert (info["quantize"], info["precision"]) == ("none", "float32")
    assert info["dimensions"] == ["instruction_following", "visual_quality"]
    assert info["image"]["min_pixels"] == 16384
    assert info["limits"]["max_candidates"] == 1024
    assert info["limits"]["max_batch_tokens"] == 16_384
    assert {"torch", "transformers", "pillow"} <= set(info["versions"])
    assert "/" not in str(info["backbone"])


@pytest.mark.parametrize(("chosen", "in_force"), [(None, 4321), (99, 99)])
def test_info_has_the_token_budget_that_is_in_force(chosen, in_force):
    parts = replace(servers.fake_parts(), batch_tokens=4321)
    with servers.serving(Settings(backend="fake", max_batch_tokens=chosen), load=lambda: parts) as url:
        assert httpx.get(f"{url}/v1/info").json()["limits"]["max_batch_tokens"] == in_force


def test_explain_says_that_it_is_not_served(fake_server):
    for path in ("/v1/explain", "/explain"):
        response = httpx.post(f"{fake_server}{path}", json={})
        assert error_of(response) == (503, "explain_disabled")
        assert response.headers["retry-after"]


def test_metrics_count_requests_and_candidates():
    with servers.serving() as url:
        metric = Metric(url)
        files = [("source", ("s", encode(photo()))), ("edited", ("e", encode(photo(seed=1)))), ("edited", ("x", b"no"))]
        assert httpx.post(f"{url}/v1/score", files=files, data={"instruction": "x"}).status_code == 200
        httpx.get(f"{url}/some/path/that/nobody/serves")
        text = httpx.get(f"{url}/metrics").text
        assert 'jrm_http_requests_total{method="POST",route="/v1/score",status="200"} 1.0' in text
        assert 'route="unmatched",status="404"' in text
        assert "nobody" not in text
        assert 'jrm_candidates_total{outcome="ok"} 1.0' in text
        assert 'jrm_candidates_total{outcome="invalid_image"} 1.0' in text
        assert metric("jrm_images_decoded_total") == 2
        assert metric("jrm_batch_candidates_sum") == 1
        assert metric("jrm_group_completion_seconds_count") == 1
        assert metric("jrm_queue_depth") == 0


def test_an_error_inside_has_no_traceback_and_keeps_the_request_id():
    """The backend's exception is the candidate's InternalError; its text stays in the log."""
    backend = RaisingBackend(FakeBackend(), error=lambda: RuntimeError("secret /path/to/weights"))
    with servers.serving(load=lambda: servers.fake_parts(backend)) as url:
        files = {"source": ("s", encode(photo())), "edited": ("e", encode(photo()))}
        headers = {"x-request-id": "mine"}
        response = httpx.post(f"{url}/v1/score", files=files, data={"instruction": "x"}, headers=headers)
        assert error_of(response) == (500, InternalError.code)
        assert response.headers["x-request-id"] == "mine"
        assert "secret" not in response.text
        assert "Traceback" not in response.text


def test_a_defect_in_a_route_has_the_contracts_shape():
    """What nobody foresaw is still a typed error with the request's id."""
    broken = replace(servers.fake_parts(), model=ServedModel("x", "x", {"oops": object()}))
    with servers.serving(load=lambda: broken) as url:
        response = httpx.get(f"{url}/v1/info", headers={"x-request-id": "mine"})
        assert error_of(response) == (500, "internal")
        assert response.headers["x-request-id"] == "mine"
        assert "object" not in response.text


def test_a_number_that_is_not_finite_is_an_error_and_never_a_reward():
    backend = NaNBackend(FakeBackend(), when=lambda candidate: candidate.instruction == "nan")
    with servers.serving(load=lambda: servers.fake_parts(backend)) as url:
        image = base64.b64encode(encode(photo())).decode()
        groups = [{"source": image, "instruction": text, "edits": [image]} for text in ("fine", "nan")]
        reply = httpx.post(f"{url}/v1/score", json={"groups": groups})
        assert reply.status_code == 200
        fine, broken = (group["scores"][0] for group in reply.json()["groups"])
        assert fine["status"] == "ok"
        assert broken["error"]["code"] == "non_finite_score"
        assert "reward" not in broken
        alone = httpx.post(f"{url}/v1/score", json={"groups": groups[1:]})
        assert error_of(alone) == (500, "non_finite_score")


def test_a_candidate_too_large_for_the_device_is_the_callers_to_change():
    backend = OutOfMemoryBackend(FakeBackend(), tokens=5_000)
    with servers.serving(Settings(max_batch_tokens=5_000), load=lambda: servers.fake_parts(backend)) as url:
        image = base64.b64encode(encode(photo())).decode()
        groups = [{"source": image, "instruction": text, "edits": [image]} for text in ("fine", "long " * 1000)]
        fine, large = httpx.post(f"{url}/v1/score", json={"groups": groups}).json()["groups"]
        assert fine["scores"][0]["status"] == "ok"
        assert large["scores"][0]["error"]["code"] == "candidate_too_large"
        alone = httpx.post(f"{url}/v1/score", json={"groups": groups[1:]})
        assert error_of(alone) == (422, "candidate_too_large")
        assert alone.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/docs", "/openapi.json"])
def test_the_documentation_is_served(fake_server, path):
    assert httpx.get(f"{fake_server}{path}").status_code == 200


def test_the_schema_is_complete(fake_server):
    schema = httpx.get(f"{fake_server}/openapi.json").json()
    for path in ("/v1/score", "/score"):
        operation = schema["paths"][path]["post"]
        assert set(operation["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
        assert {"200", "400", "401", "408", "413", "415", "422", "429", "500", "503", "504"} <= set(
            operation["responses"]
        )

    def references(node):
        if isinstance(node, dict):
            yield from ([node["$ref"]] if "$ref" in node else [])
            for child in node.values():
                yield from references(child)
        elif isinstance(node, list):
            for child in node:
                yield from references(child)

    for reference in references(schema):
        node = schema
        for step in reference.removeprefix("#/").split("/"):
            node = node[step]
