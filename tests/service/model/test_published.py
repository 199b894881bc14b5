"""EditReward on Qwen2.5-VL and HPSv3 on Qwen2-VL: imported, they score as their published code does."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText
from typer.testing import CliRunner

from jrm_client.cli import app
from jrm_service.errors import CheckpointError
from jrm_service.model.editreward import import_editreward
from jrm_service.model.engine import TrieScorer
from jrm_service.model.hpsv3 import import_hpsv3
from jrm_service.model.scorer import PlainScorer
from jrm_service.scoring.preparing import CheckpointPreparer
from support.editreward import edit, read, write, write_base
from support.pictures import photo
from support.published import PublishedModel, config_of_transformers_4, prompts_file

TOLERANCE = 1e-4
CANDIDATES = [
    (photo(seed=1), photo(200, 120, seed=2), "make the red square blue"),
    (photo(640, 80, seed=3), photo(90, 500, seed=4), "加一棵树 {and} {{a café}}"),
    (photo(448, 448, seed=5), photo(450, 447, seed=6), " remove the circle \n"),  # exactly the limit, and just over it
    (photo(33, 47, seed=6), photo(700, 600, seed=7), "x"),
]


class Case:
    """A base folder, a published model over it, and its import."""

    def __init__(self, folder, family, **options):
        self.folder = folder
        self.base = write_base(folder / "base", family=family, tied=False)
        self.hpsv3 = family == "qwen2_vl"
        self.model = PublishedModel(self.base, hpsv3=self.hpsv3, **options)
        self.prompts = prompts_file(folder / "prompts.json", self.model)
        self.outs = 0

    def import_(self, weights, base=None, **options):
        self.outs += 1
        run = import_hpsv3 if self.hpsv3 else import_editreward
        out = self.folder / f"out-{self.outs}"
        return run(weights, base or self.base, out, **{"prompts": self.prompts} | options)

    def assert_scores(self, checkpoint, candidates=CANDIDATES):
        preparer = CheckpointPreparer(checkpoint)
        prepared = [
            preparer.candidate([preparer.image(source)][: preparer.max_sources], preparer.image(edited), instruction)
            for source, edited, instruction in candidates
        ]
        wanted = [self.model.score(*candidate) for candidate in candidates]
        for kind in (PlainScorer, TrieScorer):
            scorer = kind(checkpoint, "cpu", torch.float32)
            for outcome, theirs in zip(scorer.score(scorer.collate(prepared)).outcomes, wanted, strict=True):
                ours = [(d.mean, math.log(d.std)) for d in outcome.dimensions.values()]
                assert torch.allclose(torch.tensor(ours), theirs, atol=TOLERANCE)
                assert outcome.reward == pytest.approx(theirs.mean(0)[0].item(), abs=TOLERANCE)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen2_vl"])
def case(request, tmp_path_factory):
    return Case(tmp_path_factory.mktemp("published"), request.param)


@pytest.fixture(scope="module")
def imported(case):
    return case.import_(case.model.save(case.folder / "weights"))


def test_scores_equal_the_published_model(case, imported):
    case.assert_scores(imported.checkpoint)


def test_what_the_published_code_does_is_in_the_manifest(case, imported):
    manifest = imported.checkpoint.manifest
    assert manifest.positions == "sequential"
    assert (manifest.image.min_pixels, manifest.image.max_pixels) == (200_704, 200_704)
    assert read(imported.checkpoint.path / "preprocessor_config.json")["size"] == {
        "shortest_edge": 200_704,
        "longest_edge": 200_704,
    }
    parts = ["edited", "prompt"] if case.hpsv3 else ["source", "edited", "prompt"]
    assert all(pass_.parts == parts for pass_ in manifest.passes)
    assert manifest.dimensions == list(case.model.prompts)
    assert imported.notes == ()
    turns = imported.checkpoint.builder.prompts.turns[0 if case.hpsv3 else 1]
    rendered = turns.passes[0]
    system = imported.checkpoint.builder._encode("system\nYou are a helpful assistant.")
    assert system in rendered


@pytest.mark.parametrize("file", ["model.safetensors", "model.pth", "HPSv3.safetensors"])
@pytest.mark.parametrize("old_names", [True, False], ids=["old names", "new names"])
def test_every_form_of_the_weights_is_the_same_checkpoint(case, imported, tmp_path, file, old_names):
    if file.startswith("HPSv3") and not case.hpsv3:
        file = "final_model.pth"
    other = case.import_(case.model.save(tmp_path / "weights", file, old_names=old_names)).checkpoint
    assert other._tensors == imported.checkpoint._tensors


def test_heads_without_a_last_bias(tmp_path):
    case = Case(tmp_path, "qwen2_5_vl", kwargs=True)
    imported = case.import_(case.model.save(tmp_path / "weights"))
    assert [head.hidden for head in imported.checkpoint.manifest.heads.values()] == [[20, 20], [20, 20]]
    case.assert_scores(imported.checkpoint, CANDIDATES[:1])


def test_other_forms_of_the_base(case, imported, tmp_path):
    """Saved by transformers 4, the text half is there twice; the chat template may lie in the tokenizer's file."""
    base = shutil.copytree(case.base, tmp_path / "base")
    config_of_transformers_4(base)
    edit(base / "tokenizer_config.json", chat_template=read(base / "chat_template.json")["chat_template"])
    (base / "chat_template.json").unlink()
    other = case.import_(case.folder / "weights", base).checkpoint
    assert other.builder.prompts == imported.checkpoint.builder.prompts
    assert other.config.text_config.to_dict() == imported.checkpoint.config.text_config.to_dict()
    case.assert_scores(other, CANDIDATES[:1])


def test_transformers_loads_the_language_half_with_nothing_missing(imported):
    _, report = AutoModelForImageTextToText.from_pretrained(imported.checkpoint.path, output_loading_info=True)
    assert not any(report.values())


def test_a_video_processor_is_written_where_the_base_has_none(imported):
    """vLLM asks for one; the hub's folders of these families have none."""
    video = read(imported.checkpoint.path / "video_preprocessor_config.json")
    assert video["video_processor_type"] == "Qwen2VLVideoProcessor"


def test_pixel_limits_can_be_overridden(case):
    spec = case.import_(case.folder / "weights", min_pixels=50_000, max_pixels=100_000).checkpoint.image_spec
    assert (spec.min_pixels, spec.max_pixels) == (50_000, 100_000)


def test_a_base_that_would_resize_again_is_noted(case, tmp_path):
    base = shutil.copytree(case.base, tmp_path / "base")
    edit(base / "preprocessor_config.json", max_pixels=210_000)
    assert any("a second time" in note for note in case.import_(case.folder / "weights", base).notes)


def test_prompts_in_our_own_words_by_default(case):
    imported = case.import_(case.folder / "weights", prompts=None)
    assert [pass_.prompt.count("{instruction}") for pass_ in imported.checkpoint.manifest.passes] == [
        1 for _ in case.model.prompts
    ]
    assert any("--prompts" in note for note in imported.notes)


def test_what_is_not_imported_is_named(case, tmp_path):
    wrong = import_editreward if case.hpsv3 else import_hpsv3
    with pytest.raises(CheckpointError) as caught:
        wrong(case.folder / "weights", case.base, tmp_path / "out", prompts=case.prompts)
    told = "\n".join(caught.value.problems)
    assert ("a single head" if case.hpsv3 else "HPSv3 was trained from Qwen2-VL") in told
    write(tmp_path / "prompts.json", {"preference": "no token"})
    with pytest.raises(CheckpointError, match=r"must be exactly once|missing"):
        case.import_(case.folder / "weights", prompts=tmp_path / "prompts.json")
    assert not (tmp_path / "out").exists()


PAGES = {"qwen2_5_vl": ("editreward-qwen2.5-vl.md", "editreward-mimo-vl.md"), "qwen2_vl": ("hpsv3.md",)}
DOCS = Path(__file__).parents[3] / "docs"


def write_checkout(folder, prompts, *, hpsv3):
    """The modules that the documented programs import prompts from, and the program where the page runs it."""
    page = "hpsv3.md" if hpsv3 else "editreward.md"
    program = re.search(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL)[1]
    root = folder if hpsv3 else folder / "EditReward"
    dataset = root / ("hpsv3" if hpsv3 else "EditReward") / "dataset"
    dataset.mkdir(parents=True)
    end = "\nRate: <|Reward|>\n\nEND\n"
    names = ("INSTRUCTION",) if hpsv3 else ("INSTRUCTION_EDIT_FOLLOWING", "INSTRUCTION_EDIT_QUALITY")
    texts = {
        name: template.removesuffix(end)
        .replace("{", "{{")
        .replace("}", "}}")
        .replace("{{instruction}}", "{text_prompt}")
        for name, template in zip(names, prompts.values(), strict=True)
    }
    constants = texts | {"prompt_with_special_token": end}
    for module in ("prompts", "data_collator_qwen_edit", "data_collator_qwen"):
        lines = [f"{name} = {text!r}" for name, text in constants.items()]
        (dataset / f"{module}.py").write_text("\n".join(lines))
    (root / "write_prompts.py").write_text(program)
    return root


def test_the_documented_way(case, tmp_path, monkeypatch):
    """The program and the commands of each page, run as printed on a stand-in for the user's files."""
    for page in PAGES[case.model.model.config.model_type]:
        folder = tmp_path / page
        folder.mkdir()
        root = write_checkout(folder, case.model.prompts, hpsv3=case.hpsv3)
        subprocess.run([sys.executable, "write_prompts.py"], cwd=root, check=True)
        assert json.loads((root / "prompts.json").read_text()) == case.model.prompts
        text = (DOCS / page).read_text().replace("\\\n", "")
        importing, inspecting, serving = [
            shlex.split(line)[1:] for line in text.splitlines() if line.startswith("jrm ")
        ]
        options = dict(zip(importing[1::2], importing[2::2], strict=True))
        case.model.save(folder / options["--checkpoint"], "HPSv3.safetensors" if case.hpsv3 else "model.safetensors")
        shutil.copytree(case.base, folder / options["--base"])
        monkeypatch.chdir(folder)
        imported = CliRunner().invoke(app, importing)
        assert imported.exit_code == 0, imported.output
        shown = CliRunner().invoke(app, inspecting).stdout
        assert "sequential" in shown
        assert "200,704" in shown
        assert serving == ["serve", "--checkpoint", options["--out"]]
