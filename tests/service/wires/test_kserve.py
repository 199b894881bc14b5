"""The Open Inference Protocol: tensors in, tensors out."""

import httpx
import pytest

from jrm_service.scoring.fakes import DIMENSIONS, FakePreparer
from jrm_service.scoring.types import ServedModel
from jrm_service.settings import Settings
from jrm_service.wires.kserve import KServeWire
from jrm_service.wires.rewards import Rewards
from support import servers, wire_bodies
from support.cases import each
from support.pictures import encode, photo

SOURCE, *EDITS = (encode(photo(40, 40, seed=n)) for n in range(4))
PAIRS = [wire_bodies.Pair(SOURCE, edited, "make it blue") for edited in EDITS]


def tensor(name: str, data: list, shape: list[int] | None = None, **changes) -> dict:
    return {"name": name, "shape": shape or [len(data)], "datatype": "BYTES", "data": data} | changes


GOOD = [
    tensor("source", [wire_bodies.b64(SOURCE)]),
    tensor("edited", [wire_bodies.b64(edited) for edited in EDITS]),
    tensor("instruction", ["make it blue"]),
]


def infer(url: str, inputs: list, model: str = "jrm", *, headers=None, **document) -> httpx.Response:
    return httpx.post(f"{url}/v2/models/{model}/infer", json={"inputs": inputs} | document, headers=headers, timeout=60)


def test_one_source_and_instruction_are_those_of_every_edit(fake_server):
    reply = infer(fake_server, GOOD, id="a").json()
    outputs = {output["name"]: output for output in reply["outputs"]}
    assert (reply["model_name"], reply["id"]) == ("jrm-fake", "a")
    assert list(outputs) == [
        "reward",
        "reward_std",
        "instruction_following_mean",
        "instruction_following_std",
        "visual_quality_mean",
        "visual_quality_std",
    ]
    assert all((output["shape"], output["datatype"]) == ([3], "FP32") for output in outputs.values())
    assert outputs["reward"]["data"] == wire_bodies.rewards_of_score(fake_server, PAIRS)


def test_nested_data_and_chosen_outputs(fake_server):
    nested = [tensor("source", [[wire_bodies.b64(SOURCE)]], [1, 1]), *GOOD[1:]]
    reply = infer(fake_server, nested, outputs=[{"name": "visual_quality_mean"}]).json()
    assert [output["name"] for output in reply["outputs"]] == ["visual_quality_mean"]


@each(
    ("inputs", "document", "status"),
    [
        (GOOD[1:], {}, 400),  # no source
        (GOOD[:2], {}, 400),
        ([GOOD[0], GOOD[2]], {}, 400),
        ([*GOOD, GOOD[0]], {}, 400),
        ([tensor("mask", ["x"]), *GOOD], {}, 400),
        ([tensor("source", [1]), *GOOD[1:]], {}, 400),
        ([tensor("source", ["x"], [2]), *GOOD[1:]], {}, 400),
        ([tensor("source", ["x"], [1, 1, 1]), *GOOD[1:]], {}, 400),
        ([tensor("source", ["x"], [-1]), *GOOD[1:]], {}, 400),
        ([tensor("source", ["x", "y"]), *GOOD[1:]], {}, 400),
        ([tensor("source", ["x"], datatype="FP32"), *GOOD[1:]], {}, 400),
        ([tensor("source", [wire_bodies.b64(SOURCE)] * 6, [6, 1]), *GOOD[1:]], {}, 400),
        ([GOOD[0], tensor("edited", GOOD[1]["data"], [1, 3]), GOOD[2]], {}, 400),
        ([*GOOD[:2], tensor("instruction", ["make it blue"] * 3, [1, 3])], {}, 400),
        ([*GOOD[:2], tensor("instruction", ["make it blue"], [1, 1])], {}, 400),
        ([tensor("source", ["not base64!"]), *GOOD[1:]], {}, 422),
        (GOOD, {"outputs": [{"name": "nothing"}]}, 400),
        ([*GOOD[:2], tensor("instruction", [" "])], {}, 400),
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_wrong_is_told_in_the_protocols_shape(inputs, document, status, fake_server):
    reply = infer(fake_server, inputs, **document)
    assert reply.status_code == status, reply.text
    assert set(reply.json()) == {"error"}
    assert isinstance(reply.json()["error"], str)


def test_a_shape_is_not_sent_back(fake_server):
    for side in (10**1000, 10**6 + 1):
        error = infer(fake_server, [tensor("source", ["x"], [side]), *GOOD[1:]]).json()["error"]
        assert error == "inputs.0.shape.0: Input should be less than or equal to 1000000"


def test_a_batch_axis_does_not_make_every_source_one_of_every_edit():
    """Clients that send all tensors as [1, N] mean one source for each edit, and not N."""
    columns = wire_bodies.kserve([wire_bodies.Pair(edited, edited, "make it blue") for edited in EDITS])["inputs"]
    batched = [column | {"shape": [1, 3]} for column in columns]
    six = [column | {"shape": [6], "data": column["data"] * 2} for column in columns]
    with servers.serving(load=lambda: servers.fake_parts(preparer=FakePreparer(max_sources=3))) as url:
        assert infer(url, columns).status_code == 200
        assert "'edited' has the shape [1, 3]" in infer(url, batched).json()["error"]
        reply = infer(url, [six[0] | {"shape": [2, 3]}, *six[1:]])  # 6 sources, for 2 of 6 edits
        assert "'source' has the shape [2, 3]" in reply.json()["error"]


def test_binary_tensor_data_is_refused(fake_server):
    for kind in ("application/json", "application/octet-stream"):
        reply = infer(fake_server, GOOD, headers={"inference-header-content-length": "10", "content-type": kind})
        assert reply.status_code == 400
        assert "binary" in reply.json()["error"]


def test_an_unknown_model_is_404(fake_server):
    assert infer(fake_server, GOOD, model="nobody").status_code == 404
    assert httpx.get(f"{fake_server}/v2/models/nobody").status_code == 404


def test_a_body_without_a_type_is_json(fake_server):
    request = httpx.Request("POST", f"{fake_server}/v2/models/jrm/infer", content=b'{"inputs": []}')
    assert "content-type" not in request.headers
    with httpx.Client() as client:
        assert client.send(request).status_code == 400


def test_metadata_and_health(fake_server):
    assert httpx.get(f"{fake_server}/v2").json()["name"] == "jrm-serve"
    assert httpx.get(f"{fake_server}/v2/health/live").json() == {"live": True}
    assert httpx.get(f"{fake_server}/v2/health/ready").json() == {"ready": True}
    assert httpx.get(f"{fake_server}/v2/models/jrm/ready").json() == {"name": "jrm", "ready": True}
    metadata = httpx.get(f"{fake_server}/v2/models/jrm").json()
    assert [one["name"] for one in metadata["inputs"]] == ["source", "edited", "instruction"]
    assert metadata["outputs"][0] == {"name": "reward", "datatype": "FP32", "shape": [-1]}


def test_a_version_is_a_fingerprint(fake_server):
    model = f"{fake_server}/v2/models/jrm"
    (version,) = httpx.get(model).json()["versions"]
    assert httpx.get(f"{model}/versions/{version}").json() == httpx.get(model).json()
    assert httpx.get(f"{model}/versions/{version}/ready").json() == {"name": "jrm", "ready": True}
    assert infer(fake_server, GOOD, model=f"jrm/versions/{version}").status_code == 200
    for path in ("", "/ready", "/infer"):
        reply = httpx.request("POST" if path == "/infer" else "GET", f"{model}/versions/1{path}", json=GOOD)
        assert reply.status_code == 404
        assert reply.json() == {"error": f"no version is called '1'; there is {version}"}


@each(("most", "source"), [(0, []), (1, [[-1]]), (3, [[-1, -1]])])
def test_metadata_announces_as_many_sources_as_are_taken(most, source):
    model = ServedModel("m", "f", {"image": {"max_sources": most}})
    inputs = KServeWire(Rewards()).metadata("jrm", model)["inputs"]
    assert [tensor["shape"] for tensor in inputs if tensor["name"] == "source"] == source


def served_with(*stds: bool, **reward: object) -> ServedModel:
    """A model with a dimension for each, whose head gives a standard deviation or does not."""
    heads = {name: {"outputs": ["mean", "log_std"][: 1 + std]} for name, std in zip(DIMENSIONS, stds, strict=True)}
    return ServedModel("m", "f", {"passes": [{"read": {name: name for name in heads}}], "heads": heads, **reward})


SCALED = {"reward": {"normalize": {"center": 0.0, "scale": 1.0}}}


@each(
    ("model", "settings", "missing"),
    [
        (served_with(True, True), {}, []),
        (served_with(True, False), {}, ["reward_std", "visual_quality_std"]),
        (served_with(True, False, reward={"weights": {"instruction_following": 1.0}}), {}, ["visual_quality_std"]),
        (served_with(False, False), {}, ["reward_std", "instruction_following_std", "visual_quality_std"]),
        (served_with(True, True, **SCALED), {"wire_scale": "kserve=normalized"}, ["reward_std"]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_metadata_announces_what_is_sent(model, settings, missing):
    every = ["reward", "reward_std", *(f"{name}_{kind}" for name in DIMENSIONS for kind in ("mean", "std"))]
    parts = servers.fake_parts()
    with servers.serving(
        Settings(backend="fake", **settings), load=lambda: type(parts)(model, parts.preparer, parts.backends)
    ) as url:
        announced = [tensor["name"] for tensor in httpx.get(f"{url}/v2/models/jrm").json()["outputs"]]
        assert announced == [name for name in every if name not in missing]
        outputs = infer(url, GOOD).json()["outputs"]
        assert [tensor["name"] for tensor in outputs] == announced
        for name in missing:
            assert infer(url, GOOD, outputs=[{"name": name}]).status_code == 400
        before = servers.Metric(url)("jrm_images_decoded_total")
        assert infer(url, GOOD, outputs=[{"name": "nothing"}]).status_code == 400
        assert servers.Metric(url)("jrm_images_decoded_total") == before  # told before anything is scored


@pytest.mark.parametrize("wrong", [b"", b"[]", b"{", b'{"inputs": 1}'])
def test_what_is_no_request_is_400(wrong, fake_server):
    assert httpx.post(f"{fake_server}/v2/models/jrm/infer", content=wrong).status_code == 400
