"""What is not imported: every reason named, nothing left behind."""

import os

import pytest
import torch

from jrm_service.errors import CheckpointError
from jrm_service.model.editreward import import_editreward
from support.editreward import EMBEDDING, edit, read, write


def drop_head(case):
    case.tensors(lambda t: [t.pop(name) for name in list(t) if name.startswith("rm_heads.head_1.")])


def single_head(case):
    case.tensors(lambda t: [t.update({n.replace("rm_heads.head_0", "rm_head"): t.pop(n)}) for n in heads(t)])


def heads(tensors):
    return [name for name in tensors if name.startswith("rm_heads.head_0.")]


def replace(name, make):
    return lambda case: case.tensors(lambda t: t.update({name: make(t[name])}))


def remove(name):
    return lambda case: case.tensors(lambda t: t.pop(name))


def rename(old, new):
    return lambda case: case.tensors(lambda t: t.update({new: t.pop(old)}))


def prompt(dimension, template):
    return lambda case: edit(case.prompts, **{dimension: template})


def base_file(name, **changes):
    return lambda case: edit(case.base / name, **changes)


def other_tokenizer(tokens):
    """A base whose tokenizer has this many tokens more than the one that the weights were trained with."""

    def change(case):
        whole = read(case.base / "tokenizer.json")
        last = whole["added_tokens"][-1]
        whole["added_tokens"] += [
            last | {"id": last["id"] + n, "content": f"<extra_{n}>"} for n in range(1, tokens + 1)
        ]
        write(case.base / "tokenizer.json", whole)
        config = read(case.base / "tokenizer_config.json")
        del config["added_tokens_decoder"]
        write(case.base / "tokenizer_config.json", config)

    return change


HEAD = "rm_heads.head_0"


def other_rope(case):
    config = read(case.base / "config.json")
    config["text_config"]["rope_scaling"] = {"type": "mrope", "mrope_section": [4, 2, 2]}
    write(case.base / "config.json", config)


def twice(folder, name, key):
    """The file with a key in front that it has already."""

    def change(case):
        file = getattr(case, folder) / name if name else getattr(case, folder)
        file.write_text(f'{{"{key}": null, ' + file.read_text().lstrip().removeprefix("{"))

    return change


BROKEN = {
    "prompts with a key twice": (
        twice("prompts", "", "visual_quality"),
        "prompts.json: the key 'visual_quality' is there twice",
    ),
    "a config with a key twice": (
        twice("base", "config.json", "model_type"),
        "config.json: the key 'model_type' is there twice",
    ),
    "an image processor with a key twice": (
        twice("base", "preprocessor_config.json", "image_mean"),
        "preprocessor_config.json: the key 'image_mean' is there twice",
    ),
    "a tokenizer with a key twice": (
        twice("base", "tokenizer.json", "model"),
        "tokenizer.json: the key 'model' is there twice",
    ),
    "a base whose rope is of another family": (other_rope, "config.json: transformers refuses it ("),
    "no head_1": (drop_head, "rm_heads.head_1: missing"),
    "a single head": (single_head, "rm_head.*: a single head"),
    "a third head": (rename(f"{HEAD}.5.bias", "rm_heads.head_2.5.bias"), "head_2.5.bias: not a tensor of"),
    "an odd key in a head": (rename(f"{HEAD}.5.bias", f"{HEAD}.norm.bias"), f"{HEAD}.norm.bias: not a tensor of"),
    "a head for another width": (replace(f"{HEAD}.0.weight", lambda t: t[:, 1:]), "[24, 63], must be [any, 64]"),
    "layers that do not meet": (replace(f"{HEAD}.3.weight", lambda t: t[:, 1:]), "[16, 23], must be [any, 24]"),
    "three outputs": (replace(f"{HEAD}.5.weight", lambda t: torch.ones(3, 16)), "[3, 16], must be [2, 16]"),
    "a bias of another width": (replace(f"{HEAD}.3.bias", lambda t: t[1:]), "has shape [15], must be [16]"),
    "no bias in the middle": (remove(f"{HEAD}.3.bias"), f"{HEAD}.3.bias: missing"),
    "no weight": (remove(f"{HEAD}.5.weight"), f"{HEAD}.5.weight: missing"),
    "a flat weight": (replace(f"{HEAD}.0.weight", torch.flatten), f"{HEAD}.0.weight: has shape [1536]"),
    "layers without activation": (rename(f"{HEAD}.5.weight", f"{HEAD}.4.weight"), "has layers at [0, 3, 4, 5]"),
    "integers in a head": (replace(f"{HEAD}.0.bias", torch.Tensor.int), f"{HEAD}.0.bias: has dtype I32"),
    "NaN in a head": (replace(f"{HEAD}.0.bias", lambda t: t * torch.nan), f"{HEAD}.0.bias: holds NaN"),
    "NaN in the backbone": (replace("model.visual.merger.norm.bias", lambda t: t / 0), "merger.norm.bias: holds NaN"),
    "a missing tensor": (remove("model.visual.merger.norm.bias"), "model.visual.merger.norm.bias: missing"),
    "an extra tensor": (rename("model.visual.merger.norm.bias", "model.odd"), "model.odd: extra"),
    "no embedding": (remove(EMBEDDING), f"{EMBEDDING}: missing"),
    "a LoRA adapter": (rename(EMBEDDING, "model.lm.lora_A.weight"), "LoRA adapter"),
    "one row too few": (replace(EMBEDDING, lambda t: t[:-1]), "320 tokens, 321 with <|Reward|>"),
    "a tokenizer with one more token": (other_tokenizer(1), "only 321 rows"),
    "a tied head that differs": (
        lambda case: case.tensors(lambda t: t.update({"lm_head.weight": t[EMBEDDING] + 1})),
        "lm_head.weight: differs from the embedding",
    ),
    "another family": (base_file("config.json", model_type="llava"), "model_type is 'llava'"),
    "halves of another family": (base_file("config.json", model_type="qwen2_vl"), "model_type is 'qwen3_vl_text'"),
    "no text_config": (base_file("config.json", text_config=None), "config.json: text_config: missing"),
    "another image token": (base_file("config.json", image_token_id=3), "image_token_id is 3"),
    "a vision_config that is none": (base_file("config.json", vision_config=7), "vision_config: must be an object"),
    "no image size": (base_file("preprocessor_config.json", size=None), "size.shortest_edge is None"),
    "no mean": (
        lambda case: write(
            case.base / "preprocessor_config.json",
            {k: v for k, v in read(case.base / "preprocessor_config.json").items() if k != "image_mean"},
        ),
        "image_mean: missing",
    ),
    "a truth value for a filter": (base_file("preprocessor_config.json", resample=True), "resample is True"),
    "a list for a filter": (base_file("preprocessor_config.json", resample=[3]), "resample is [3]"),
    "one mean for all channels": (base_file("preprocessor_config.json", image_mean=0.5), "image_mean is 0.5"),
    "a size of another family": (base_file("preprocessor_config.json", size={"height": 9}), "size.height: not a rule"),
    "another image processor": (
        base_file("preprocessor_config.json", image_processor_type="CLIPImageProcessor"),
        "image_processor_type is 'CLIPImageProcessor'",
    ),
    "another patch size": (base_file("preprocessor_config.json", patch_size=14), "patch_size is 14"),
    "an unknown filter": (base_file("preprocessor_config.json", resample=0), "resample is 0"),
    "no rescaling": (base_file("preprocessor_config.json", do_rescale=False), "do_rescale is False"),
    "a smallest area above the largest": (
        lambda case: case.flags.update(min_pixels=70_000),
        "min_pixels 70000 is above max_pixels 65536",
    ),
    "a chat template that shows no image": (
        base_file("chat_template.json", chat_template="{{ messages[0].content[2].text }}"),
        "no <|image_pad|> for 'source'",
    ),
    "a broken chat template": (base_file("chat_template.json", chat_template="{% if %}"), "cannot render the turns"),
    "a prompt without reward token": (prompt("visual_quality", "{instruction}"), "<|Reward|> 0 times"),
    "a prompt without instruction": (prompt("visual_quality", "<|Reward|>"), "{instruction} 0 times"),
    "a prompt with two instructions": (
        prompt("visual_quality", "{instruction}{instruction}<|Reward|>"),
        "{instruction} 2 times",
    ),
    "an instruction that comes too late": (prompt("visual_quality", "<|Reward|>{instruction}"), "cannot see it"),
    "EditReward's own placeholder": (prompt("visual_quality", "{text_prompt}<|Reward|>"), "ours is {instruction}"),
    "a prompt that is no text": (prompt("visual_quality", 5), "visual_quality: must be a text"),
    "an unknown dimension": (prompt("overall", "x"), "overall: not a dimension"),
    "a missing dimension": (lambda case: write(case.prompts, {}), "instruction_following: missing"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_refused(case, kind):
    break_it, expected = BROKEN[kind]
    break_it(case)
    found = case.problems()
    assert any(expected in problem for problem in found), found


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.json"])
def test_a_missing_file_of_the_base_is_named(case, name):
    (case.base / name).unlink()
    (case.base / "vocab.json").unlink()  # which would do for a tokenizer
    expected = name.replace("chat_template.json", "chat_template.jinja")
    assert any(problem.startswith(f"base/{expected}: missing") for problem in case.problems())


def test_missing_prompts_are_named(case):
    case.prompts.unlink()
    assert [problem.rsplit("/")[-1] for problem in case.problems()] == ["prompts.json: missing"]


def test_no_weights_are_named(case):
    (case.weights / "model.safetensors").unlink()
    assert any("weights: holds none of model.pth, model.safetensors" in problem for problem in case.problems())


def test_everything_is_told_at_once(case):
    broken = ["no head_1", "an extra tensor", "a tokenizer with one more token", "another patch size"]
    broken += ["a prompt without reward token", "an unknown dimension", "three outputs"]
    for kind in broken:
        BROKEN[kind][0](case)
    problems = case.problems()
    for kind in broken:
        assert any(BROKEN[kind][1] in problem for problem in problems), kind


def test_a_wrong_base_is_told_in_a_few_lines(case):
    config = read(case.base / "config.json")
    config["text_config"]["intermediate_size"] += 32
    config["vision_config"]["intermediate_size"] += 32
    write(case.base / "config.json", config)
    problems = case.problems()
    assert len(problems) < 12
    assert "more tensors do not fit" in problems[-1]


def test_a_malicious_pickle_is_refused_and_not_run(case, tmp_path_factory):
    proof = tmp_path_factory.mktemp("pickle") / "was-run"

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(proof),)

    (case.weights / "model.safetensors").unlink()
    torch.save({"model": {"x": torch.zeros(1)}, "extra": Payload()}, case.weights / "model.pth")
    problems = case.problems()
    assert any("model.pth: refused" in problem and "mkdir" in problem for problem in problems)
    assert not any("weights_only" in problem for problem in problems)
    assert not proof.exists()


def test_nothing_is_overwritten(case):
    (case.folder / "out").mkdir()
    (case.folder / "out" / "mine.txt").write_text("keep")
    assert any("not an empty folder" in problem for problem in case.problems())


def test_an_empty_folder_is_filled(case):
    (case.folder / "out").mkdir()
    import_editreward(case.weights, case.base, case.folder / "out", prompts=case.prompts)
    assert (case.folder / "out" / "reward" / "manifest.json").exists()


def test_an_empty_folder_stays_empty_on_failure(case):
    (case.folder / "out").mkdir()
    BROKEN["NaN in the backbone"][0](case)
    assert case.problems()  # which checks that nothing is left


def test_a_place_that_cannot_be_written(case):
    (case.folder / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        import_editreward(case.weights, case.base, case.folder / "file" / "out")


def test_no_folder_is_named(case):
    with pytest.raises(CheckpointError) as caught:
        import_editreward(case.folder / "a", case.folder / "b", case.folder / "out")
    assert [problem.rsplit("/")[-1] for problem in caught.value.problems] == ["a: not a folder", "b: not a folder"]
