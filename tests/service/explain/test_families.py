"""vLLM's half of a checkpoint of another family than the bundled one: it writes what transformers writes."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from jrm_service.images import preprocess
from jrm_service.model.checkpoint import open_checkpoint
from support import checkpoints
from support.answering import prompts

TOKENS = 8


def written_by_transformers(path):
    """Greedily, from the tokens and pixels that vLLM is given."""
    checkpoint = open_checkpoint(path)
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    for prompt in prompts(path):
        grids = [preprocess.grid(pixels, checkpoint.image_spec) for pixels in prompt.images]
        tokens = iter([rows * columns // 4 for _, rows, columns in grids])
        image_id = checkpoint.config.image_token_id
        ids = [number for n in prompt.ids for number in ([n] * next(tokens) if n == image_id else [n])]
        given = torch.tensor([ids])
        patches = [preprocess.patches(pixels, checkpoint.image_spec) for pixels in prompt.images]
        output = model.generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            mm_token_type_ids=(given == image_id).long(),
            pixel_values=torch.from_numpy(np.concatenate(patches)),
            image_grid_thw=torch.tensor(grids),
            max_new_tokens=TOKENS,
            do_sample=False,
        )
        yield tokenizer.decode(output[0, len(ids) :])


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_vllm_writes_what_transformers_writes(tmp_path, family):
    path = checkpoints.write(tmp_path / "checkpoint", checkpoints.two_passes(), family=family, tied=False)
    program = [sys.executable, "-m", "support.answering", str(path), str(TOKENS)]
    run = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False, cwd="tests")
    assert run.returncode == 0, run.stderr[-3000:]
    answers = json.loads(run.stdout.splitlines()[-1])
    # A character whose last byte was not written yet: vLLM keeps it back, transformers shows a stand-in.
    assert answers == [text.rstrip("\ufffd") for text in written_by_transformers(path)]
    assert all(answers)
