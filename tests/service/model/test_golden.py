"""The self-test: what was recorded is what is served, or it says which number is off and by how much."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from jrm_service.errors import CheckpointError
from jrm_service.model import golden, golden_recording
from jrm_service.model.checkpoint import Checkpoint, open_checkpoint
from jrm_service.model.checkpoint_source import scorer_in
from jrm_service.model.engine import TrieScorer
from jrm_service.model.kernels import EAGER, IN_FP8
from jrm_service.model.scorer import PlainScorer
from jrm_service.scoring.fakes import FakeBackend
from jrm_service.scoring.preparing import CheckpointPreparer
from support import checkpoints

ENGINES = {"plain": PlainScorer, "trie": TrieScorer}
LAYOUTS = {
    "one pass": checkpoints.one_pass(),
    "two passes": checkpoints.two_passes(),
    "mean only": checkpoints.mean_only(checkpoints.prompt_first()),
}


def recorded(path, manifest, seed=0):
    """A checkpoint with golden scores."""
    opened = open_checkpoint(checkpoints.write(path, manifest, seed=seed))
    golden_recording.record(opened, golden_recording.drawn_examples())
    return opened


@pytest.fixture(scope="module", params=range(3))
def of_seed(request, tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("seed"), checkpoints.one_pass(), seed=request.param)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return recorded(tmp_path_factory.mktemp("whole"), checkpoints.one_pass())


@pytest.fixture
def checkpoint(tmp_path, whole):
    """A copy for the test to break."""
    return open_checkpoint(shutil.copytree(whole.path, tmp_path / "golden"))


def file_of(checkpoint: Checkpoint):
    return checkpoint.path / golden.FILE


def read(checkpoint: Checkpoint) -> golden.Golden:
    tests = golden.read(checkpoint)
    assert tests is not None
    return tests


def check(tests, checkpoint, *, engine="trie", dtype="float32", device="cpu"):
    backend = ENGINES[engine](checkpoint, device, getattr(torch, dtype))
    return golden.check(tests, CheckpointPreparer(checkpoint), backend, dtype)


def problems(call, *arguments, **options) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        call(*arguments, **options)
    return caught.value.problems


def changed(tests: golden.Golden, index: int = 0, **changes) -> golden.Golden:
    """The same golden scores, with some keys of one case replaced."""
    document = tests.model_dump()
    document["cases"][index] |= changes
    return golden.Golden.model_validate(document)


def edit(checkpoint: Checkpoint, change) -> None:
    document = json.loads(file_of(checkpoint).read_text())
    change(document)
    file_of(checkpoint).write_text(json.dumps(document))


# --- passing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_was_recorded_is_what_is_served(tmp_path, layout, engine):
    checkpoint = recorded(tmp_path, LAYOUTS[layout], seed=1)
    result = check(read(checkpoint), checkpoint, engine=engine)
    assert result.cases == 4
    assert result.max_deviation < 1e-4
    assert result.tolerance == 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_lower_precision_passes_within_its_tolerance(of_seed, dtype):
    result = check(read(of_seed), of_seed, dtype=dtype)
    assert 1e-4 < result.max_deviation <= result.tolerance


def test_fp8_passes_within_a_tolerance_of_its_own(checkpoint):
    tests, preparer = read(checkpoint), CheckpointPreparer(checkpoint)
    simulated = golden.check(tests, preparer, scorer_in("fp8", checkpoint), "fp8")
    real = golden.check(
        tests, preparer, TrieScorer(checkpoint, "cpu", torch.bfloat16, variants=[EAGER], arithmetic=IN_FP8), "fp8"
    )
    for result in (simulated, real):
        assert 1e-4 < result.max_deviation <= result.tolerance == tests.tolerance.fp8


def test_a_file_that_says_nothing_of_fp8_allows_five_times_what_bfloat16_may_be_off():
    assert golden.Tolerance(bfloat16=0.2).fp8 == pytest.approx(1.0)
    assert golden.Tolerance().fp8 == pytest.approx(0.25)
    assert golden.Tolerance(fp8=0.5).fp8 == 0.5


def test_more_cases_than_one_batch_are_all_compared(checkpoint):
    cases = read(checkpoint).cases * 5
    tests = read(checkpoint).model_copy(update={"cases": cases})
    assert check(tests, checkpoint).cases == 20
    assert "cases.19: reward: got" in problems(check, changed(tests, 19, reward=cases[3].reward + 1), checkpoint)[1]


def test_a_checkpoint_may_have_none(checkpoint):
    file_of(checkpoint).unlink()
    assert golden.read(checkpoint) is None


def test_golden_scores_are_no_part_of_the_fingerprint(checkpoint):
    recorded = open_checkpoint(checkpoint.path).fingerprint
    file_of(checkpoint).unlink()
    assert open_checkpoint(checkpoint.path).fingerprint == recorded


# --- failing ---------------------------------------------------------------------------------------------------------


def test_another_number_is_told_with_its_place_and_size(checkpoint):
    tests = read(checkpoint)
    score = tests.cases[2]
    summary, line = problems(check, changed(tests, 2, reward=score.reward + 0.25), checkpoint)
    assert summary.startswith("reward/golden.json: self-test on cpu in float32: 1 of 24 numbers are off by up to 0.25")
    assert line.startswith(f"reward/golden.json: cases.2: reward: got {score.reward:.5f}")
    assert line.endswith(f", recorded {score.reward + 0.25:.7g}: off by 0.25, tolerance 0.001")


def test_a_weight_that_is_not_what_was_recorded_is_found(checkpoint):
    """The device computes with other weights: the files, and so the fingerprint, are right."""
    tests = read(checkpoint)
    backend = TrieScorer(checkpoint, "cpu", torch.float32)
    backend._model.language_model.layers[1].mlp.down_proj.weight.data[0] *= -1
    found = problems(golden.check, tests, CheckpointPreparer(checkpoint), backend, "float32")
    assert " numbers are off by up to " in found[0]
    assert all("off by" in line for line in found[1:-1])
    assert found[-1].endswith(" more")


def test_images_in_the_wrong_order_are_found(checkpoint):
    """Such a fault keeps every shape and every score plausible."""
    tests = read(checkpoint)
    one = tests.cases[0]
    assert problems(check, changed(tests, source=one.edited, edited=one.source[0]), checkpoint)


def test_any_number_of_sources(tmp_path):
    for name, layout, counts in (
        ("none", checkpoints.no_source(), {0}),
        ("several", checkpoints.several_sources(3), {1, 2}),
    ):
        checkpoint = open_checkpoint(checkpoints.write(tmp_path / name, layout))
        examples = golden_recording.drawn_examples(checkpoint.manifest.max_sources)
        assert {len(example.sources) for example in examples} == counts
        golden_recording.record(checkpoint, examples)
        tests = golden.read(checkpoint)
        assert check(tests, checkpoint).cases == len(examples)
    swapped = tests.model_copy(
        update={"cases": [case.model_copy(update={"source": case.source[::-1]}) for case in tests.cases]}
    )
    assert problems(check, swapped, checkpoint)
    bare = tests.model_copy(update={"cases": [case.model_copy(update={"source": []}) for case in tests.cases]})
    assert "takes 1 to 3 source images, got none" in problems(check, bare, checkpoint)[1]


def test_a_score_that_is_not_a_number_never_passes(checkpoint):
    backend = TrieScorer(checkpoint, "cpu", torch.float32)
    for parameter in backend._heads.parameters():
        parameter.fill_(math.nan)
    found = problems(golden.check, read(checkpoint), CheckpointPreparer(checkpoint), backend, "float32")
    assert "self-test on cpu in float32: 24 of 24 numbers are off; " in found[0]
    assert "cases.0: instruction_following.mean: got nan, recorded " in found[1]


def test_other_dimensions_are_told(checkpoint):
    """A backend of another model: what it lacks and what nobody recorded."""
    tests = read(checkpoint)
    dimensions = {"quality": tests.cases[0].dimensions["visual_quality"].model_dump()}
    found = "\n".join(problems(check, changed(tests, dimensions=dimensions), checkpoint))
    assert "cases.0: quality.mean: got none, recorded " in found
    assert "cases.0: visual_quality.mean: got -" in found or "cases.0: visual_quality.mean: got 0" in found


def test_a_std_where_none_was_recorded_is_told(checkpoint):
    assert "reward_std: got " in problems(check, changed(read(checkpoint), reward_std=None), checkpoint)[1]


def test_a_case_without_a_score_is_told(checkpoint):
    tests = read(checkpoint)
    cut = changed(tests, edited=tests.cases[0].edited[:400])
    assert problems(check, cut, checkpoint)[1].startswith("reward/golden.json: cases.0: has no score: edited: ")
    long = changed(tests, 1, instruction="long " * 9000)
    assert "cases.1: has no score: instruction: " in problems(check, long, checkpoint)[1]


def test_every_backend_is_tested_by_what_it_gives(checkpoint):
    found = problems(golden.check, read(checkpoint), CheckpointPreparer(checkpoint), FakeBackend("cuda:1"), "bfloat16")
    assert "self-test on cuda:1 in bfloat16" in found[0]


def test_changed_files_are_refused_by_fingerprint(checkpoint):
    file = checkpoint.path / "reward" / "heads.safetensors"
    heads = load_file(file)
    heads["head_0.2.bias"] += 1e-3
    save_file(heads, file)
    reopened = open_checkpoint(checkpoint.path)
    (found,) = problems(golden.require_fingerprint, read(reopened), reopened)
    assert checkpoint.fingerprint in found
    assert reopened.fingerprint in found
    assert "jrm golden --force" in found


# --- how far off -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "got", "expected", "off"),
    [
        ("x.mean", 5.1, 5.0, 0.1),
        ("reward", -4.9, -5.0, 0.1),
        ("x.std", 5.1, 5.0, 0.02),
        ("reward_std", 0.4, 0.5, 0.1),
        ("x.std", None, None, 0.0),
        ("x.std", None, 1.0, math.inf),
        ("x.std", 1.0, None, math.inf),
        ("x.mean", math.nan, 0.0, math.inf),
        ("x.mean", -math.inf, 0.0, math.inf),
    ],
)
def test_deviation(name, got, expected, off):
    assert golden.deviation(name, got, expected) == pytest.approx(off)


# --- the file --------------------------------------------------------------------------------------------------------

BREAK = {
    "format": (lambda d: d.update(format="jrm-golden/2"), "format: "),
    "unknown key": (lambda d: d.update(tolerances={}), "tolerances: "),
    "no cases": (lambda d: d.update(cases=[]), "cases: "),
    "too many cases": (lambda d: d.update(cases=d["cases"] * 17), "cases: "),
    "unknown dtype": (lambda d: d["tolerance"].update(float64=1.0), "tolerance.float64: "),
    "no tolerance at all": (lambda d: d["tolerance"].update(float32=0), "tolerance.float32: "),
    "fingerprint": (lambda d: d.update(fingerprint="x"), "fingerprint: "),
    "not base64": (lambda d: d["cases"][1].update(edited="?"), "cases.1.edited: not base64"),
    "no instruction": (lambda d: d["cases"][1].update(instruction=""), "cases.1.instruction: "),
    "no reward": (lambda d: d["cases"][0].pop("reward"), "cases.0.reward: "),
    "reward as text": (lambda d: d["cases"][0].update(reward="0.5"), "cases.0.reward: "),
    "NaN": (lambda d: d["cases"][0].update(reward=math.nan), "NaN is not a JSON number"),
    "negative std": (
        lambda d: d["cases"][0]["dimensions"]["visual_quality"].update(std=-1.0),
        "cases.0.dimensions.visual_quality.std: ",
    ),
}


@pytest.mark.parametrize("kind", BREAK)
def test_a_malformed_file_is_refused_by_key(checkpoint, kind):
    change, expected = BREAK[kind]
    edit(checkpoint, change)
    (found,) = problems(golden.read, checkpoint)
    assert found.startswith(f"reward/golden.json: {expected}")


def test_a_file_that_is_not_json_is_refused(checkpoint):
    for data, reason in {
        b"\xff{": "not UTF-8",
        b"[]": "must be a JSON object",
        b'{"a": 1, "a": 2}': "the key 'a' is there twice",
    }.items():
        file_of(checkpoint).write_bytes(data)
        assert problems(golden.read, checkpoint)[0].startswith(f"reward/golden.json: {reason}")


def test_a_tolerance_of_its_own_counts(checkpoint):
    edit(checkpoint, lambda d: d.update(tolerance={"float32": 0.5}))
    tests = read(checkpoint)
    assert check(changed(tests, reward=tests.cases[0].reward + 0.4), checkpoint).tolerance == 0.5
    assert tests.tolerance.bfloat16 == golden.Tolerance().bfloat16
