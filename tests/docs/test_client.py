"""The program and the table about explanations in docs/client.md."""

import json
import re

import pytest
from PIL import Image

from client.scripted_server import Reply, ScriptedServer, Stream
from docs import pages
from jrm_client import protocol
from support.cases import each

PAGE = pages.DOCS / "client.md"
EXPLANATION = {
    "status": "ok",
    "reasoning": "It is red.",
    "edit_regions": [{"id": 0, "label": "car", "bbox_2d": [0, 0, 500, 500], "bbox_pixels": [0, 0, 32, 32]}],
}
REPLY = {
    "id": "e",
    "object": "explanation",
    "model": "m",
    "fingerprint": "f",
    "explanations": {"quality": EXPLANATION},
}


@pytest.fixture
def server():
    events = [{"dimension": "quality", "delta": "{"}, {"dimension": "quality", "explanation": EXPLANATION}]
    pieces = [f"data: {data}\n\n".encode() for data in [*map(json.dumps, events), "[DONE]"]]
    with ScriptedServer(Reply(json=REPLY), Stream(pieces)) as server:
        yield server


def test_the_program(server, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("source.png", "edited.png"):
        Image.new("RGB", (64, 64)).save(name)
    [block] = [block for block in pages.blocks(PAGE, "python") if "explain_stream" in block]
    exec(compile(block.replace("http://127.0.0.1:8000", server.url), pages.name(PAGE), "exec"), {})
    assert capsys.readouterr().out == "quality ok It is red.\n{\nquality: ok\n"
    assert (tmp_path / "quality.png").exists()


@each("model", [protocol.Explanation, protocol.EditRegion, protocol.ExplainDelta, protocol.ExplainDone])
def test_every_field_is_on_the_page(model):
    text = PAGE.read_text(encoding="utf-8")
    assert {field for field in model.model_fields if not re.search(rf"\b{field}\b", text)} == set()


def test_the_default_limit_of_tokens():
    assert f"`max_tokens` ({protocol.DEFAULT_MAX_TOKENS} for each dimension)" in pages.prose(PAGE)
