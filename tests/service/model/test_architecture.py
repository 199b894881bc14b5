"""A config.json from anywhere: what cannot be built or run is a problem with its key, never an exception of another."""

import copy
import json

import pytest

from jrm_service.errors import CheckpointError
from jrm_service.model.architecture import read_architecture
from jrm_service.model.checkpoint import open_checkpoint
from jrm_service.model.checkpoint_source import BUNDLED
from support import checkpoints

STOCK = json.loads((BUNDLED / "config.json").read_bytes())


def changed(part="", /, **changes):
    raw = copy.deepcopy(STOCK)
    (raw[part] if part else raw).update(changes)
    return raw


def without(part):
    raw = copy.deepcopy(STOCK)
    del raw[part]
    return raw


def rope(**changes):
    return changed("text_config", rope_scaling=STOCK["text_config"]["rope_scaling"] | changes)


REFUSED = {
    "another family": (changed(model_type="llava"), "model_type is 'llava', must be one of 'qwen3_vl' (Qwen3-VL), "),
    "halves of another family": (changed(model_type="qwen2_5_vl"), "text_config.model_type is 'qwen3_vl_text'"),
    "no family": (without("model_type"), "model_type is None"),
    "no text half": (without("text_config"), "text_config: missing"),
    "no vision half": (without("vision_config"), "vision_config: missing"),
    "a text half that is a list": (changed(text_config=[]), "text_config: must be an object"),
    "the rope of Qwen2-VL": (
        changed("text_config", rope_scaling={"type": "mrope", "mrope_section": [6, 5, 5]}),
        "transformers refuses it (",
    ),
    "an unknown rope": (rope(rope_type="spiral"), "transformers refuses it ("),
    "a rope that is text": (changed("text_config", rope_scaling="mrope"), "transformers refuses it ("),
    "sections of another width": (rope(mrope_section=[6, 5, 6]), "text_config.rope_scaling.mrope_section is [6, 5, 6]"),
    "two sections": (rope(mrope_section=[8, 8]), "mrope_section is [8, 8]"),
    "sections as text": (rope(mrope_section="655"), "mrope_section is '655'"),
    "a negative section": (rope(mrope_section=[18, 3, -5]), "mrope_section is [18, 3, -5]"),
    "a padding id beyond the vocabulary": (changed("text_config", pad_token_id=9999), "transformers refuses it ("),
    "an unknown activation": (changed("text_config", hidden_act="unknown"), "transformers refuses it ("),
    "an unknown activation in the tower": (changed("vision_config", hidden_act="unknown"), "transformers refuses it ("),
    "no heads": (changed("text_config", num_attention_heads=0), "text_config.num_attention_heads is 0"),
    "no heads in the tower": (changed("vision_config", num_heads=0), "vision_config.num_heads is 0"),
    "no key-value heads": (changed("text_config", num_key_value_heads=0), "text_config.num_key_value_heads is 0"),
    "odd groups of heads": (changed("text_config", num_key_value_heads=2), "not a multiple of 2 key-value heads"),
    "an odd head": (changed("text_config", head_dim=31), "head_dim"),
    "a tower that does not divide": (changed("vision_config", num_heads=7), "vision_config.hidden_size is 96"),
    "a negative size": (changed("text_config", hidden_size=-160), "text_config.hidden_size is -160"),
    "a size as text": (changed("text_config", intermediate_size="416"), "text_config.intermediate_size is '416'"),
    "a size as a fraction": (changed("vision_config", patch_size=8.0), "vision_config.patch_size is 8.0"),
    "a size as a truth": (
        changed("vision_config", spatial_merge_size=True),
        "vision_config.spatial_merge_size is True",
    ),
    "a size as a pair": (changed("vision_config", patch_size=[8, 8]), "vision_config.patch_size is [8, 8]"),
    "no context": (changed("text_config", max_position_embeddings=0), "text_config.max_position_embeddings is 0"),
    "layers without end": (changed("text_config", num_hidden_layers=10**8), "num_hidden_layers is 100000000"),
    "a tower without end": (changed("vision_config", depth=10**30), "vision_config.depth is 1000"),
    "a huge vocabulary": (changed("text_config", vocab_size=10**18), "text_config.vocab_size is 1000"),
    "layers beyond the tower": (
        changed("vision_config", deepstack_visual_indexes=[0, 3]),
        "vision_config.deepstack_visual_indexes is [0, 3], must be different layers from 0 to 2",
    ),
    "a negative layer": (changed("vision_config", deepstack_visual_indexes=[-1]), "deepstack_visual_indexes is [-1]"),
    "a layer twice": (changed("vision_config", deepstack_visual_indexes=[1, 1]), "deepstack_visual_indexes is [1, 1]"),
    "layers out of order": (changed("vision_config", deepstack_visual_indexes=[1, 0]), "must be in ascending order"),
    "layers as text": (changed("vision_config", deepstack_visual_indexes=["0"]), "transformers refuses it ("),
    "a tower for another width": (changed("vision_config", out_hidden_size=64), "vision_config.out_hidden_size is 64"),
    "positions in no square": (changed("vision_config", num_position_embeddings=65), "must be a square number"),
    "no epsilon": (changed("text_config", rms_norm_eps=0.0), "text_config.rms_norm_eps is 0.0"),
    "an epsilon as text": (changed("text_config", rms_norm_eps="1e-6"), "transformers refuses it ("),
    "a negative base": (changed("text_config", rope_theta=-1.0), "text_config.rope_theta is -1.0"),
    "an image token as text": (changed(image_token_id="<|image_pad|>"), "image_token_id is '<|image_pad|>'"),
    "ties as text": (changed(tie_word_embeddings="false"), "tie_word_embeddings is 'false'"),
    "quantized": (changed(quantization_config={"quant_method": "fp8"}), "quantization_config: quantized weights"),
}

# What the server decides itself, or has no meaning here: not read, and no code of the checkpoint runs.
IGNORED = {
    "attention": {"attn_implementation": "flash_attention_2"},
    "attention, as it is saved": {"_attn_implementation": "flash_attention_3"},
    "a dtype": {"dtype": "garbage"},
    "a dtype in its old spelling": {"torch_dtype": "float7"},
    "code": {"auto_map": {"AutoConfig": "configuration_evil.Evil"}},
    "an unknown key": {"made_by": "a trainer"},
    "no quantization": {"quantization_config": None},
}


def test_what_cannot_be_built_or_run_is_a_problem():
    for kind, (raw, reason) in REFUSED.items():
        before, problems = copy.deepcopy(raw), []
        assert read_architecture(raw, "config.json", problems) is None, kind
        assert any(problem.startswith(f"config.json: {reason}") or reason in problem for problem in problems), (
            kind,
            problems,
        )
        assert all(problem.startswith("config.json: ") and "\n" not in problem for problem in problems), kind
        assert raw == before, kind


def test_what_the_server_decides_itself_is_not_read():
    for kind, keys in IGNORED.items():
        for part in ("", "text_config", "vision_config"):
            problems: list[str] = []
            config = read_architecture(changed(part, **keys), "config.json", problems)
            assert config is not None, (kind, part, problems)
            assert config.text_config.hidden_size == 160, kind


@pytest.mark.parametrize(
    "kind", ["the rope of Qwen2-VL", "a padding id beyond the vocabulary", "layers beyond the tower"]
)
def test_a_checkpoint_with_such_a_file_does_not_open(tmp_path, kind):
    path = checkpoints.write(tmp_path, checkpoints.one_pass())
    raw, reason = REFUSED[kind]
    (path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(path)
    assert any(problem.startswith(f"config.json: {reason}") for problem in caught.value.problems)
