"""What holds for every page: links lead somewhere, blocks parse, names exist."""

import ast
import json
import re
import shlex

from prometheus_client import CollectorRegistry

from docs import pages
from jrm_service.metrics import Metrics
from jrm_service.settings import CLIENT_VARIABLES, Settings
from support.cases import each

every_page = each("page", pages.PAGES, ids=pages.name)

PYTHON_NAMES = {"jrm_client", "jrm_service", "jrm_training", "jrm_score", "jrm_reward"}


@every_page
def test_relative_links_resolve(page):
    for link in pages.links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in pages.anchors(target), f"{link}: no such heading"


@every_page
def test_json_blocks_parse(page):
    for block in pages.blocks(page, "json"):
        json.loads(block)


@every_page
def test_python_blocks_compile(page):
    for block in pages.blocks(page, "python"):
        compile(block, pages.name(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@every_page
def test_every_metric_that_is_named_exists(page):
    samples = set()
    for family in Metrics(CollectorRegistry()).registry.collect():
        endings = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count", ""]}.get(family.type, [""])
        samples |= {family.name + ending for ending in endings}
    named = set(re.findall(r"\bjrm_[a-z_]+", page.read_text(encoding="utf-8")))
    assert named - samples - PYTHON_NAMES == set()


@every_page
def test_every_variable_that_is_named_exists(page):
    named = set(re.findall(r"\bJRM_[A-Z_]*[A-Z]", page.read_text(encoding="utf-8")))
    assert named - CLIENT_VARIABLES - {f"JRM_{field.upper()}" for field in Settings.model_fields} == set()


@every_page
def test_jrm_serve_is_called_with_flags_that_it_has(page):
    flags = {f"--{field.replace('_', '-')}" for field in Settings.model_fields}
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    for command in re.findall(r"jrm serve((?: [^\n`#]+)?)", text):
        assert {word for word in shlex.split(command, posix=False) if word.startswith("--")} <= flags


@each("page", [pages.ROOT / "README.md", pages.DOCS / "architecture.md"], ids=pages.name)
def test_a_map_names_folders_and_files_that_exist(page):
    [tree] = [block for block in pages.blocks(page, "") if "jrm_service/" in block]
    folders: list[str] = []
    for line in tree.splitlines():
        indent, word = len(line) - len(line.lstrip()), line.split()[0]
        if word.endswith("/"):
            folders = [*folders[: indent // 2], word]
            assert (pages.ROOT / "".join(folders)).is_dir(), line
        files = re.findall(r"[\w/]+\.py\b", line)
        for file in files:
            candidates = ["".join(folders[: depth + 1]) + file for depth in range(len(folders))] + [file]
            assert any((pages.ROOT / path).exists() for path in candidates), f"{file} in {line!r}"
