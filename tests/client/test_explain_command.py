import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from client.scripted_server import Reply, ScriptedServer, Stream, refusal
from jrm_client.cli import app

Serve = Callable[..., ScriptedServer]

REGIONS = {
    "status": "ok",
    "reasoning": "<|bbox_0|> It is red. <|global|> Nothing else changed.",
    "segments": [{"region": 0, "text": "It is red."}, {"region": "global", "text": "Nothing else changed."}],
    "edit_regions": [{"id": 0, "label": "square", "bbox_2d": [120, 80, 400, 360], "bbox_pixels": [15, 10, 51, 46]}],
}
PLAIN = {"status": "ok", "reasoning": "Sharp.", "segments": [{"region": "global", "text": "Sharp."}]}
FAILED = {"status": "error", "error": {"code": "deadline_exceeded", "message": "out of time"}}


def whole(**explanations: object) -> Reply:
    return Reply(
        json={"id": "e", "object": "explanation", "model": "m", "fingerprint": "f", "explanations": explanations}
    )


def streamed(**explanations: object) -> Stream:
    events = [{"dimension": name, "delta": '{"reasoning": "It'} for name in explanations]
    events += [{"dimension": name, "explanation": one} for name, one in explanations.items()]
    return Stream([b"data: %b\n\n" % text.encode() for text in [*map(json.dumps, events), "[DONE]"]])


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("S.png", "A.png"):
        Image.new("RGB", (128, 128), "teal").save(tmp_path / name)
    return tmp_path


def explain(folder: Path, server: ScriptedServer, *more: object) -> Any:
    arguments = ["explain", folder / "S.png", folder / "A.png", "-i", "red", "--url", server.url, *more]
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.mark.parametrize(("reply", "how"), [(streamed, []), (whole, ["--no-stream"])])
def test_a_critique_for_people(serve: Serve, folder: Path, reply: Any, how: list[str]) -> None:
    server = serve(reply(following=REGIONS, quality=PLAIN))
    done = explain(folder, server, *how)
    assert done.exit_code == 0, done.output
    for part in ("following  ok", "0 square", "It is red.", "x 15 to 51, y 10 to 46", "quality  ok", "Sharp."):
        assert part in done.stdout
    assert json.loads(server.requests[0].body)["stream"] is (not how)


def test_json_for_programs(serve: Serve, folder: Path) -> None:
    done = explain(folder, serve(whole(following=REGIONS, quality=PLAIN)), "--json")
    printed = json.loads(done.stdout)
    assert printed["instruction"] == "red"
    assert printed["explanations"]["following"]["edit_regions"] == REGIONS["edit_regions"]
    assert printed["explanations"]["quality"]["segments"] == PLAIN["segments"]
    assert printed["overlays"] == {"following": str(folder / "A.explained.png")}


def test_what_is_asked_for(serve: Serve, folder: Path) -> None:
    server = serve(streamed(a=PLAIN, b=PLAIN))
    explain(folder, server, "--dimension", "a", "--dimension", "b", "--max-tokens", 64, "--api-key", "sk-1")
    [request] = server.requests
    body = json.loads(request.body)
    assert (body["dimensions"], body["max_tokens"], body["instruction"]) == (["a", "b"], 64, "red")
    assert request.headers["authorization"] == "Bearer sk-1"


def test_no_source_and_several(serve: Serve, folder: Path) -> None:
    server = serve(then=whole(quality=PLAIN))
    sent = []
    for options in (
        ["--no-source"],
        ["--source", folder / "S.png"],
        ["--source", folder / "S.png", "--source", folder / "A.png"],
    ):
        arguments = ["explain", *options, folder / "A.png", "-i", "red", "--url", server.url, "--json"]
        done = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        source = json.loads(server.requests[-1].body).get("source")
        sent.append(len(source) if isinstance(source, list) else type(source))
    assert sent == [type(None), str, 2]
    assert CliRunner().invoke(app, ["explain", str(folder / "A.png"), "-i", "red"]).exit_code == 2


# --- the overlay ------------------------------------------------------------------------------------------------------


def test_the_overlay_is_beside_the_edit(serve: Serve, folder: Path) -> None:
    done = explain(folder, serve(streamed(following=REGIONS, quality=PLAIN)))
    path = folder / "A.explained.png"
    assert f"overlay: {path}" in done.stdout
    with Image.open(path) as overlay, Image.open(folder / "A.png") as edited:
        assert (overlay.format, overlay.size) == ("PNG", (128, 128))
        assert overlay.getpixel((15, 30)) != edited.getpixel((15, 30)) == (0, 128, 128)


def test_the_overlay_is_a_png_wherever_it_goes(serve: Serve, folder: Path) -> None:
    explain(folder, serve(streamed(following=REGIONS)), "--out", folder / "overlay")
    with Image.open(folder / "overlay") as overlay:
        assert overlay.format == "PNG"
    assert not (folder / "A.explained.png").exists()


def test_without_regions_there_is_an_overlay_only_if_it_is_asked_for(serve: Serve, folder: Path) -> None:
    server = serve(then=streamed(quality=PLAIN))
    assert "overlay" not in explain(folder, server).stdout
    assert sorted(path.name for path in folder.iterdir()) == ["A.png", "S.png"]
    explain(folder, server, "--out", folder / "overlay.png")
    assert (folder / "overlay.png").exists()


def test_regions_in_several_dimensions_have_a_file_each(serve: Serve, folder: Path) -> None:
    explain(folder, serve(streamed(one=REGIONS, two=REGIONS)), "--out", folder / "overlay.png")
    assert {path.name for path in folder.iterdir()} == {"S.png", "A.png", "overlay.one.png", "overlay.two.png"}


@pytest.mark.parametrize("name", ["S.png", "A.png", "link.png"])
def test_an_input_is_never_overwritten(serve: Serve, folder: Path, name: str) -> None:
    (folder / "link.png").hardlink_to(folder / "A.png")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    server = serve(then=streamed(following=REGIONS))
    done = explain(folder, server, "--out", folder / name)
    assert done.exit_code == 2
    assert "never overwritten" in done.stderr
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert server.requests == []


def test_what_is_no_file_is_wrong_usage(serve: Serve, folder: Path) -> None:
    server = serve()
    for arguments in ([".", "."], ["/", "/"], ["S", "S", "--out", str(folder)]):
        done = CliRunner().invoke(app, ["explain", *arguments, "-i", "red", "--url", server.url])
        assert done.exit_code == 2, arguments
    assert server.requests == []


def test_a_folder_that_is_not_there_is_told_before_anything_is_asked(serve: Serve, folder: Path) -> None:
    server = serve()
    assert explain(folder, server, "--out", folder / "no" / "overlay.png").exit_code == 2
    assert server.requests == []


def test_a_dimension_cannot_lead_the_overlay_astray(serve: Serve, folder: Path) -> None:
    inside = folder / "inside"
    inside.mkdir()
    explanations = {"../one": REGIONS, "../two": REGIONS}
    done = explain(folder, serve(streamed(**explanations)), "--out", inside / "overlay.png")
    assert done.exit_code == 1
    assert {path.name for path in folder.iterdir()} == {"S.png", "A.png", "inside"}


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["--stream", "--no-stream", "--json"])
def test_a_dimension_that_failed(serve: Serve, folder: Path, how: str) -> None:
    reply = streamed if how == "--stream" else whole
    done = explain(folder, serve(reply(following=REGIONS, quality=FAILED)), how)
    assert done.exit_code == 1
    assert "deadline_exceeded" in done.stdout
    assert (folder / "A.explained.png").exists()  # the other one is not lost


@pytest.mark.parametrize("how", ["--stream", "--no-stream", "--json"])
def test_a_refusal_is_one_line(serve: Serve, folder: Path, how: str) -> None:
    done = explain(folder, serve(refusal(422, "invalid_image")), how)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.startswith("jrm explain: HTTP 422 (invalid_image)")
    assert len(done.stderr.splitlines()) == 1


def test_a_stream_that_breaks_shows_what_there_was(serve: Serve, folder: Path) -> None:
    done = explain(folder, serve(Stream(streamed(quality=PLAIN).pieces[:1], "broken")))
    assert done.exit_code == 1
    assert "It" in done.stdout
    assert "jrm explain: the reply of" in done.stderr


def test_an_edit_that_is_no_image_any_more(serve: Serve, folder: Path) -> None:
    (folder / "A.png").write_bytes(b"BAD")
    done = explain(folder, serve(streamed(following=REGIONS)))
    assert done.exit_code == 1
    assert "edited: not a PNG" in done.stderr


@pytest.mark.parametrize("arguments", [["S"], ["S", "A"], ["S", "A", "-i", "red", "--max-tokens", "0"]])
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["explain", *arguments]).exit_code == 2
