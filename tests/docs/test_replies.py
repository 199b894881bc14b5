"""The replies in the documentation are those of a server with the bundled checkpoint (tools/replies.py makes them)."""

import json

import pytest
from tools import replies

from docs import pages
from jrm_service.settings import Settings
from support import servers
from support.cases import each

REPLY = {"id": "a", "score": 1.25, "status": "ok", "timings_ms": {"total": 3.5}, "items": [1, None]}


@pytest.fixture(scope="module")
def url():
    with servers.serving(Settings(**replies.FLAGS), load=servers.parts_of) as url:
        yield url


def check(url, *, explains):
    """Raise AssertionError unless each reply on a page is what its command prints now."""
    found = [(page, reply) for page in replies.pages() for reply in replies.of(page) if reply.explains is explains]
    assert found
    for page, reply in found:
        differences = reply.differences(reply.take(url))
        assert not differences, f"{pages.name(page)}: {reply.command}{differences}\nrun `python -m tools.replies`"


def test_replies_are_those_of_the_bundled_checkpoint(url):
    check(url, explains=False)


def test_critiques_are_those_of_the_bundled_checkpoint(explaining):
    check(explaining.url, explains=True)


@each(
    ("change", "same"),
    [
        ({}, True),
        ({"id": "b", "timings_ms": {"total": 7.0}, "score": 1.2505}, True),
        ({"score": 1.26}, False),
        ({"score": 1}, False),
        ({"id": 1}, False),
        ({"timings_ms": {}}, False),
        ({"status": "error"}, False),
        ({"items": [1]}, False),
        ({"items": [True, None]}, False),
        ({"more": 1}, False),
    ],
)
def test_what_may_differ(change, same):
    reply = replies.Reply("", json.dumps(REPLY), json=True, begin=0, end=0)
    assert (reply.differences(json.dumps(REPLY | change)) == []) is same


def test_a_page_is_brought_up_to_date(tmp_path):
    page = tmp_path / "page.md"
    text = """# A
```bash
echo '{"id": "b", "list": [1, 2]}'
```
It prints

<!-- reply -->
```json
{"id": "a", "list": [1]}
```

```bash
printf 'a \\nb\\n'
```
<!-- reply -->
```
a
```
The end
"""
    page.write_text(text)
    assert replies.rewrite(page, "http://a", explains=False) == 2
    new = text.replace('{"id": "a", "list": [1]}', '{\n  "id": "b",\n  "list": [1, 2]\n}').replace("\na\n", "\na\nb\n")
    assert page.read_text() == new
    assert replies.rewrite(page, "http://a", explains=False) == 0


def test_a_reply_needs_a_command(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- reply -->\n```json\n{}\n```\n")
    with pytest.raises(ValueError, match="without a bash block"):
        replies.of(page)
