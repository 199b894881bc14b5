"""What a browser gets at / and below /page, and what everybody else gets there."""

import hashlib
import io
import json
import subprocess
import sys
import zipfile
from importlib.resources import files
from pathlib import Path

import httpx
import pytest
from PIL import Image

from jrm_service.api import page
from jrm_service.api.keys import Key, digest
from jrm_service.settings import Settings
from support import servers
from support.cases import each
from support.servers import error_of

ROOT = Path(__file__).parents[3]
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
STATIC = Path(str(files(page) / "static"))
FILES = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file())
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".txt": "text/plain; charset=utf-8",
}


@pytest.fixture(scope="module")
def without():
    """A server without the page."""
    with servers.serving(Settings(backend="fake", page=False)) as url:
        yield url


def test_a_browser_gets_the_page(fake_server):
    reply = httpx.get(fake_server, headers=BROWSER)
    assert reply.content == (STATIC / "index.html").read_bytes()
    assert (reply.status_code, reply.headers["content-type"]) == (200, TYPES[".html"])
    assert reply.headers["vary"] == "accept"
    for refused in ("text/html;q=0", "application/json, text/html; q=0.0", "text/htmlx"):
        assert httpx.get(fake_server, headers={"accept": refused}).status_code == 404, refused


def test_every_file_is_served_as_what_it_is(fake_server):
    for name in FILES:
        reply = httpx.get(f"{fake_server}/page/{name}")
        assert reply.content == (STATIC / name).read_bytes(), name
        assert reply.headers["content-type"] == TYPES[Path(name).suffix], name


@each("path", ["/", "/page/index.html", "/page/scene/source.png"])
def test_nothing_but_the_pages_own_files_may_run(fake_server, path):
    reply = httpx.get(fake_server + path, headers=BROWSER)
    policy = dict(rule.split(" ", 1) for rule in reply.headers["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in reply.headers


@each("path", ["/", "/page/index.html"])
def test_what_a_browser_has_is_not_sent_again(fake_server, path):
    first = httpx.get(fake_server + path, headers=BROWSER)
    assert first.headers["cache-control"] == "no-cache"
    for tag in (first.headers["etag"], f'"other", W/{first.headers["etag"]}'):
        again = httpx.get(fake_server + path, headers={**BROWSER, "if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == first.headers["etag"]
    assert httpx.get(fake_server + path, headers={**BROWSER, "if-none-match": '"other"'}).status_code == 200


@each(
    "path",
    [
        "/page/",
        "/page/nothing.js",
        "/page/scene",
        "/page/../files.py",
        "/page/%2e%2e/files.py",
        "/page/scene/%2e%2e/index.html",
        "/page//index.html",
        "/page/%2fetc/passwd",
        "/page/index.html/",
        "/page/..%5cfiles.py",
        "/page/index.html%00",
    ],
)
def test_there_are_no_other_files(fake_server, path):
    assert error_of(httpx.get(httpx.URL(fake_server).copy_with(raw_path=path.encode()))) == (404, "not_found")


def test_programs_get_what_they_got_before(fake_server):
    assert error_of(httpx.get(fake_server)) == (404, "not_found")
    assert error_of(httpx.post(fake_server, headers=BROWSER)) == (404, "not_found")
    with servers.serving(Settings(backend="fake", wires="deepgen")) as url:
        assert httpx.get(url).json() == {"status": "ok", "service": "jrm"}
        assert httpx.get(url, headers=BROWSER).headers["content-type"] == TYPES[".html"]


def test_a_head_is_answered_as_a_get_is(fake_server):
    reply = httpx.head(fake_server, headers=BROWSER)
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-length"] == str((STATIC / "index.html").stat().st_size)


def test_off_there_is_no_page_and_browsers_see_the_documentation(without):
    assert httpx.get(without, headers=BROWSER).content == httpx.get(f"{without}/docs").content
    for name in FILES:
        assert error_of(httpx.get(f"{without}/page/{name}")) == (404, "not_found"), name


def test_the_page_needs_no_key_and_scores_do(tmp_path):
    path = tmp_path / "keys"
    path.write_text(Key("alice", digest(b"alice")).line())
    with servers.serving(Settings(backend="fake", api_keys_file=path, wires="deepgen")) as url:
        assert httpx.get(url, headers=BROWSER).status_code == 200
        for name in FILES:
            assert httpx.get(f"{url}/page/{name}").status_code == 200, name
        for method, target in (("GET", "/"), ("POST", "/"), ("GET", "/page/nothing"), ("GET", "/page/")):
            assert error_of(httpx.request(method, url + target)) == (401, "unauthorized"), (method, target)
        assert error_of(httpx.post(url, headers=BROWSER)) == (401, "unauthorized")


def test_without_a_page_the_root_needs_a_key(tmp_path):
    path = tmp_path / "keys"
    path.write_text(Key("alice", digest(b"alice")).line())
    with servers.serving(Settings(backend="fake", api_keys_file=path, page=False)) as url:
        assert error_of(httpx.get(url, headers=BROWSER)) == (401, "unauthorized")


def test_the_scene_is_complete_and_small():
    scene = json.loads((STATIC / "scene.json").read_text(encoding="utf-8"))
    assert set(scene) == {"source", "instruction", "edits"}
    used = [scene["source"], *scene["edits"]]
    assert {name for name in FILES if name.startswith("scene/")} == set(used)
    assert 3 <= len(scene["edits"]) == len(set(scene["edits"])) <= 24
    sizes = {Image.open(io.BytesIO((STATIC / name).read_bytes())).size for name in used}
    assert len(sizes) == 1
    assert sum((STATIC / name).stat().st_size for name in set(used)) < 20_000
    assert len({hashlib.sha256((STATIC / name).read_bytes()).digest() for name in set(used)}) == len(set(used))


def test_the_page_refers_to_nothing_from_the_root():
    """So that it works behind a proxy that adds a prefix."""
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    for attribute in ('src="/', 'href="/', 'src="http', 'href="http'):
        assert attribute not in html


@pytest.mark.heavy
def test_the_wheel_has_every_file(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(command, check=True)
    [wheel] = tmp_path.glob("*.whl")
    prefix = "jrm_service/api/page/static/"
    with zipfile.ZipFile(wheel) as archive:
        assert sorted(name.removeprefix(prefix) for name in archive.namelist() if name.startswith(prefix)) == FILES
