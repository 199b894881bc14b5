"""The SDK against a real server with real weights, and the base install in an environment of its own."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from jrm_client import JRMClient, ScoreError
from jrm_client.flow_grpo import jrm_reward, jrm_score
from jrm_service.settings import Settings
from support import checkpoints, servers
from support.pictures import photo
from support.reference import Reference

ROOT = Path(__file__).parents[1]
SOURCES = [photo(64, 48, seed=n) for n in range(3)]
EDITS = [photo(64, 48, seed=10 + n) for n in range(12)]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(URL, reference implementation) of a two-pass checkpoint: EditReward's layout."""
    path = checkpoints.write(tmp_path_factory.mktemp("two-passes"), checkpoints.two_passes())
    with servers.serving(Settings(checkpoint=path, device="cpu")) as url:
        yield url, Reference(path)


def test_a_group_of_twelve(served):
    url, reference = served
    with JRMClient(url) as client:
        group = client.score_group(SOURCES[0], "make it blue", EDITS)
    expected = [reference.score(SOURCES[0], edit, "make it blue")["reward"] for edit in EDITS]
    np.testing.assert_allclose(group.rewards, expected, atol=TOLERANCE)
    assert len(set(group.rewards.tolist())) == 12


def test_a_mixed_batch_keeps_its_order(served):
    url, reference = served
    pairs = [(SOURCES[n % 3], EDITS[n % 5], f"edit {n % 2}") for n in range(14)]
    with JRMClient(url) as client:
        scores = client.score_batch(pairs)
    expected = [reference.score(*pair)["reward"] for pair in pairs]
    np.testing.assert_allclose([score.reward for score in scores], expected, atol=TOLERANCE)


def test_one_bad_edit_in_a_group(served):
    url, _ = served
    with JRMClient(url) as client:
        with pytest.raises(ScoreError) as caught:
            client.score_group(SOURCES[0], "make it blue", [*EDITS[:3], b"not an image"])
        assert {index: error.code for index, error in caught.value.failed.items()} == {3: "invalid_image"}
        group = client.score_group(SOURCES[0], "make it blue", [*EDITS[:3], b"not an image"], on_error="nan")
    assert np.isnan(group.rewards).tolist() == [False, False, False, True]


def test_a_trainer_with_tensors_and_threads(served):
    """What train scripts do: NCHW floats in [0, 1], tuples of prompts, several threads at once."""
    url, reference = served
    images = torch.stack([torch.from_numpy(np.asarray(edit).copy()).permute(2, 0, 1) for edit in EDITS[:4]]) / 255
    prompts = tuple("make it blue" for _ in range(4))
    reward_fn, score_fn = jrm_reward(url), jrm_score(url)
    with ThreadPoolExecutor(4) as pool:
        calls = [
            pool.submit(reward_fn, images, prompts, [{}] * 4, ref_images=[source] * 4, only_strict=True)
            for source in SOURCES
        ]
        results = [call.result() for call in calls]
    for source, (rewards, info) in zip(SOURCES, results, strict=True):
        expected = [reference.score(source, edit, "make it blue") for edit in EDITS[:4]]
        np.testing.assert_allclose(rewards["avg"], [one["reward"] for one in expected], atol=TOLERANCE)
        for name in ("instruction_following", "visual_quality"):
            means = [one["dimensions"][name][0] for one in expected]
            np.testing.assert_allclose(rewards[name], means, atol=TOLERANCE)
        assert info == {}
    scores, _ = score_fn(images, prompts, [{}] * 4, ref_images=[SOURCES[0]] * 4)
    assert scores == pytest.approx(results[0][0]["avg"], abs=1e-5)
    assert all(type(score) is float for score in scores)


@pytest.mark.heavy
def test_the_base_install_needs_no_torch(served, tmp_path):
    """``pip install .`` in a clean environment: the client works, the server says what to install."""
    url, reference = served
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    subprocess.run([*pip, "--constraint", str(ROOT / "constraints" / "cpu.txt"), str(ROOT)], check=True)
    SOURCES[0].save(tmp_path / "source.png")
    EDITS[0].save(tmp_path / "edited.png")
    program = (
        "import json, sys; from jrm_client import JRMClient\n"
        "with JRMClient(sys.argv[1]) as client:\n"
        "    reward = client.score('source.png', 'edited.png', 'make it blue').reward\n"
        "print(json.dumps([reward, sorted({'torch', 'fastapi', 'transformers'} & set(sys.modules))]))"
    )
    run = subprocess.run([str(python), "-c", program, url], cwd=tmp_path, capture_output=True, text=True, check=True)
    reward, heavy = json.loads(run.stdout)
    assert reward == pytest.approx(reference.score(SOURCES[0], EDITS[0], "make it blue")["reward"], abs=TOLERANCE)
    assert heavy == []
    jrm = python.with_name("jrm")
    scored = subprocess.run(
        [str(jrm), "score", "source.png", "edited.png", "-i", "make it blue", "--url", url, "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "reward" in scored.stdout
    served_there = subprocess.run([str(jrm), "serve"], capture_output=True, text=True, check=False)
    assert served_there.returncode == 1
    assert "jrm-serve[service]" in served_there.stderr + served_there.stdout
    assert "Traceback" not in served_there.stderr
