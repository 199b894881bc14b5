"""No source image and several, over real servers: every form of a request, every way to get it wrong."""

import json
import shlex

import httpx
import pytest
from typer.testing import CliRunner

from jrm_client import APIStatusError, JRMClient, ScoreError
from jrm_client.cli import app
from jrm_client.flow_grpo import jrm_reward, jrm_score
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.golden_recording import drawn_examples, record
from jrm_service.scoring.fakes import FakePreparer
from jrm_service.settings import Settings
from jrm_training.data import Edit, Group
from jrm_training.evaluate_scorers import ServerScorer
from service.api.test_score import b64, bomb, post, reward
from support import checkpoints, processes, servers
from support.pictures import encode, photo
from support.reference import Reference
from support.servers import error_of

PICTURES = [photo(40 + 8 * n, 48, seed=n) for n in range(4)]
A, B, C, EDITED = map(encode, PICTURES)
LAYOUTS = {"none": checkpoints.no_source, "several": checkpoints.several_sources}


@pytest.fixture(scope="module", params=LAYOUTS)
def served(request, tmp_path_factory):
    """(URL, folder, the sources that each of its requests has) of a server with real weights."""
    path = checkpoints.write(tmp_path_factory.mktemp("sources"), LAYOUTS[request.param]())
    takes = [[]] if request.param == "none" else [[0], [0, 1], [1, 0], [2, 0, 2]]
    with servers.serving(load=lambda: servers.parts_of(path)) as url:
        yield url, path, takes


@pytest.fixture(scope="module")
def several():
    """A fake that takes up to three sources."""
    parts = servers.fake_parts(preparer=FakePreparer(max_sources=3))
    with servers.serving(Settings(backend="fake", max_body_bytes=4_000_000), load=lambda: parts) as url:
        yield url


@pytest.fixture(scope="module")
def none():
    """A fake that takes no source."""
    parts = servers.fake_parts(preparer=FakePreparer(max_sources=0))
    with servers.serving(Settings(backend="fake"), load=lambda: parts) as url:
        yield url


def body(*sources: bytes, **changes) -> dict:
    """A pair whose source is absent, bare or a list, as there are sources."""
    given = (
        {"source": b64(sources[0])} if len(sources) == 1 else {"source": [b64(s) for s in sources]} if sources else {}
    )
    return given | {"edited": b64(EDITED), "instruction": "put it there"} | changes


def test_every_form_of_a_request_gives_the_reference_score(served):
    url, path, takes = served
    reference = Reference(path)
    for chosen in takes:
        sources = [(A, B, C)[n] for n in chosen]
        expected = reference.score([PICTURES[n] for n in chosen], PICTURES[3], "put it there")["reward"]
        as_json = reward(post(url, body(*sources)))
        assert as_json == pytest.approx(expected, abs=1e-4), chosen
        group = {"groups": [body(*sources) | {"edits": [b64(EDITED)]}]}
        del group["groups"][0]["edited"]
        assert reward(post(url, group)) == as_json
        files = [*(("source", ("s", source)) for source in sources), ("edited", ("e", EDITED))]
        assert reward(post(url, files=files, data={"instruction": "put it there"})) == as_json
        named = {"source": [f"part:{n}" for n in chosen]} if chosen else {"source": None}
        document = named | {"edited": "part:e", "instruction": "put it there"}
        parts = {str(n): ("s", (A, B, C)[n]) for n in chosen}
        parts |= {"request": (None, json.dumps(document)), "e": ("e", EDITED)}
        assert reward(post(url, files=parts)) == as_json
        with JRMClient(url) as client:
            assert client.score(sources or None, EDITED, "put it there").reward == as_json
            paired = client.score_batch([(tuple(sources) or None, EDITED, "put it there")])
            assert [score.reward for score in paired] == [as_json]


def test_what_is_said_of_the_sources(served):
    url, path, takes = served
    most = max(map(len, takes))
    assert httpx.get(f"{url}/v1/info").json()["image"]["max_sources"] == most
    inspected = json.loads(CliRunner().invoke(app, ["inspect", str(path), "--json"]).stdout)
    assert inspected["image"]["max_sources"] == most
    models = httpx.get(f"{url}/openapi.json").json()["components"]["schemas"]
    for name in ("Group", "PairRequest", "ExplainRequest"):
        source = models[name]["properties"]["source"]
        if most:
            assert "source" in models[name]["required"]
            assert [form.get("maxItems") for form in source["oneOf"]] == [None, most]
        else:
            assert source == {"type": "null"}
    assert ("source" in models["ScoreForm"]["required"]) is bool(most)


def test_a_wrong_number_of_sources_names_the_checkpoint(served):
    url, _, takes = served
    most = max(map(len, takes))
    name = "jrm-tiny-sources" if most else "jrm-tiny-text-to-image"
    for sources in ([A], [A, B]) if not most else ([], [A, B, C, A]):
        response = post(url, body(*sources))
        assert error_of(response) == (400, "invalid_request")
        assert name in response.json()["error"]["message"]
        assert response.json()["error"]["param"] == "source"
        with JRMClient(url) as client, pytest.raises(APIStatusError, match=name):
            client.score(sources or None, EDITED, "put it there")


def test_trainers(served):
    url, _, takes = served
    with JRMClient(url) as client:
        for sources in ([(A, B, C)[n] for n in chosen] for chosen in takes):
            given = {"ref_images": [sources] * 2} if sources else {}
            expected = [client.score(sources or None, image, "put it there").reward for image in (EDITED, C)]
            for make in (jrm_score, jrm_reward):
                function = make(url)
                rewards, _ = function([EDITED, C], ["put it there"] * 2, [{}] * 2, **given)
                function.close()
                assert (rewards["avg"] if isinstance(rewards, dict) else rewards) == pytest.approx(expected, abs=1e-5)
    if max(map(len, takes)):
        function = jrm_reward(url)
        with pytest.raises(ValueError, match=r"no source images: pass ref_images, or name .*'jrm-tiny-sources'"):
            function([EDITED], ["x"], [{}])
        function.close()


def test_evaluation(served):
    url, _, takes = served
    edits = tuple(Edit(picture) for picture in PICTURES[2:])
    with JRMClient(url) as client:
        scorer = ServerScorer(client)
        for chosen in takes:
            group = Group(tuple(PICTURES[n] for n in chosen) or None, "put it there", edits)
            assert all(hasattr(outcome, "reward") for outcome in scorer.score(group))
        wrong = Group(tuple(PICTURES) if max(map(len, takes)) else PICTURES[0], "put it there", edits)
        assert [outcome.code for outcome in scorer.score(wrong)] == ["invalid_request"] * 2


def test_a_jsonl_file(served, tmp_path):
    url, _, takes = served
    for name, data in {"a": A, "b": B, "c": C, "e": EDITED}.items():
        (tmp_path / name).write_bytes(data)
    rows = [
        {"source": ["abc"[n] for n in chosen] or None, "edited": "e", "instruction": "put it there"} for chosen in takes
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["score", "--jsonl", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--url", url]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    scored = [json.loads(line)["reward"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    alone = [reward(post(url, body(*((A, B, C)[n] for n in chosen)))) for chosen in takes]
    assert scored == pytest.approx(alone, abs=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("kind", LAYOUTS)
def test_a_server_process_scores_its_golden_cases_and_the_line_that_it_prints(kind, tmp_path):
    path = checkpoints.write(tmp_path / kind, LAYOUTS[kind]())
    checkpoint = open_checkpoint(path)
    golden = record(checkpoint, drawn_examples(checkpoint.manifest.max_sources))
    with processes.serving("--checkpoint", str(path), "--device", "cpu") as server:
        server.wait_until_ready()
        for case in golden.cases:
            given = {"source": case.source} if case.source else {}
            scored = post(server.url, given | {"edited": case.edited, "instruction": case.instruction})
            assert reward(scored) == pytest.approx(case.reward, abs=1e-4)
        (line,) = [line for line in server.log if line.startswith("curl ")]
        assert reward(post(server.url, json.loads(shlex.split(line)[-1]))) != 0


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_no_list_of_another_kind_is_taken(several):
    for source in ([], [None], [b64(A), None], [[b64(A)], b64(B)], [b64(A), ""], 5, {"a": b64(A)}, "", True):
        response = post(several, body(source=source))
        assert error_of(response) == (400, "invalid_request"), source
        assert response.json()["error"]["param"].startswith("source"), source
    assert error_of(post(several, body(source=["AAAA"] * 10_000))) == (400, "invalid_request")
    document = {"source": ["part:a"] * 10_000, "edited": "part:a", "instruction": "x"}
    sent = {"request": (None, json.dumps(document)), "a": ("a", A)}
    assert error_of(post(several, files=sent)) == (400, "invalid_request")
    files = [("source", ("s", b"x"))] * 5_000 + [("edited", ("e", EDITED))]
    assert error_of(post(several, files=files, data={"instruction": "x"})) == (400, "invalid_request")
    assert post(several, body(A)).status_code == 200  # and it serves on


def test_a_source_where_none_is_taken(none):
    assert post(none, body()).status_code == post(none, body(source=None)).status_code == 200
    for sources in ([A], [A, B]):
        assert error_of(post(none, body(*sources))) == (400, "invalid_request")
    response = post(
        none,
        {
            "groups": [
                {"edits": [b64(A)], "instruction": "x"},
                {"source": b64(A), "edits": [b64(A)], "instruction": "x"},
            ]
        },
    )
    assert response.json()["error"]["param"] == "groups[1].source"
    files = [("source", ("s", A)), ("edited", ("e", EDITED))]
    assert error_of(post(none, files=files, data={"instruction": "x"})) == (400, "invalid_request")


def test_a_list_of_one_is_the_bare_image_and_the_same_one_twice_is_two(several):
    bare = post(several, body(A, instruction="cached?")).json()
    listed = post(several, body(instruction="cached?", source=[b64(A)])).json()
    assert [one["cached"] for one in (bare["groups"][0]["scores"][0], listed["groups"][0]["scores"][0])] == [
        False,
        True,
    ]
    twice = post(several, body(A, A, instruction="cached?")).json()
    assert twice["groups"][0]["scores"][0]["cached"] is False
    assert twice["groups"][0]["scores"][0]["reward"] != bare["groups"][0]["scores"][0]["reward"]
    assert twice["usage"]["images"] == 2
    mixed = [f"data:image/png;base64,{b64(A)}", b64(A)]
    assert post(several, body(source=mixed, instruction="cached?")).json()["groups"][0]["scores"][0]["cached"]


@pytest.mark.parametrize(
    ("bad", "code"),
    [(b64(bomb(33_000, 1_000)), "image_too_large"), ("!!!", "invalid_image"), (b64(B[:60]), "invalid_image")],
)
def test_one_bad_source_fails_its_group_alone_by_name(several, bad, code):
    good = {"source": [b64(A), b64(B)], "edits": [b64(EDITED)], "instruction": "x"}
    reply = post(several, {"groups": [good, good | {"source": [b64(A), bad, b64(C)], "edits": [b64(EDITED), b64(C)]}]})
    fine, failed = reply.json()["groups"]
    assert [score["status"] for score in fine["scores"]] == ["ok"]
    assert [(s["error"]["code"], s["error"]["param"]) for s in failed["scores"]] == [(code, "groups[1].source[1]")] * 2
    assert all(score["error"]["message"].startswith("source[1]: ") for score in failed["scores"])
    alone = post(several, {"source": [b64(A), bad], "edited": b64(EDITED), "instruction": "x"})
    assert alone.status_code == 422
    assert (alone.json()["error"]["code"], alone.json()["error"]["param"]) == (code, "source[1]")
    with JRMClient(several) as client, pytest.raises(ScoreError, match=r"pairs\[0\]\.source\[1\]: "):
        client.score_batch([([A, b"no image"], EDITED, "x")])
