"""A tiny EditReward as its own code leaves it: a base folder laid out like the hub's, and a model with two heads.

Written from what the published code does, not with ours: the model is transformers' class with ``nn.Sequential`` heads,
scored one sample at a time from the full rendered text and transformers' image processor.
"""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from jrm_service.errors import CheckpointError
from jrm_service.model.editreward import import_editreward
from jrm_service.model.tiny import write_tiny_checkpoint

# As EditReward's templates are: a leading newline, trailing spaces, text after the reward token.
_END = "\nText instruction - {instruction}\n\nRate: <|Reward|>\n\nEND\n"
PROMPTS = {
    "instruction_following": '\nDoes it follow?  \nFormat: {"regions": {}}' + _END,
    "visual_quality": "\nDoes it look good?  \n" + _END,
}
PADDED_VOCABULARY = 384
EMBEDDING = "model.language_model.embed_tokens.weight"


def write_base(path: Path, *, tied: bool = True, family: str = "qwen3_vl") -> Path:
    """What a hub folder of the base model holds, less its weights: a padded vocabulary and no reward token.

    Those of older families have the text keys at the top, pixel limits of their own, and no file for videos.
    """
    tiny = write_tiny_checkpoint(path.with_name(f"{path.name}-tiny"), tied=tied, family=family)
    path.mkdir()
    config = read(tiny / "config.json")
    config["text_config"]["vocab_size"] = PADDED_VOCABULARY
    preprocessor = read(tiny / "preprocessor_config.json")
    del preprocessor["resample"]
    if family == "qwen3_vl":
        shutil.copy(tiny / "video_preprocessor_config.json", path)
    else:
        text = config.pop("text_config")
        del text["model_type"]
        config |= text
        config["rope_scaling"] = {"type": "mrope", "mrope_section": config["rope_scaling"]["mrope_section"]}
        del preprocessor["size"]
        preprocessor |= {"min_pixels": 3136, "max_pixels": 12845056, "image_processor_type": "Qwen2VLImageProcessor"}
    write(path / "config.json", config)
    write(path / "preprocessor_config.json", preprocessor)
    write(path / "generation_config.json", {"do_sample": True, "temperature": 0.7})
    write(path / "chat_template.json", {"chat_template": (tiny / "chat_template.jinja").read_text()})
    _write_tokenizer(tiny, path)
    return path


def _write_tokenizer(tiny: Path, path: Path) -> None:
    """In the form of transformers 4: added tokens outside the vocabulary, listed in the config, one of them plain."""
    whole = read(tiny / "tokenizer.json")
    added = [token for token in whole["added_tokens"] if token["content"] != "<|Reward|>"]
    for token in whole["added_tokens"]:
        del whole["model"]["vocab"][token["content"]]
    added.append(added[-1] | {"id": added[-1]["id"] + 1, "content": "<tool_call>", "special": False})
    whole["added_tokens"] = added
    write(path / "tokenizer.json", whole)
    write(path / "vocab.json", whole["model"]["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in whole["model"]["merges"]]
    (path / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n", encoding="utf-8")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"} for token in added
        },
        "additional_special_tokens": [token["content"] for token in added if token["special"]],
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 8192,
    }
    write(path / "tokenizer_config.json", config)


class EditReward(Qwen3VLForConditionalGeneration):
    """The published model's modules, so that its state dict has the published names."""

    def __init__(self, config: Qwen3VLConfig, *, default_heads: bool = True) -> None:
        super().__init__(config)
        make = _default_head if default_heads else _head_of_kwargs
        self.rm_heads = nn.ModuleDict({f"head_{i}": make(config.text_config.hidden_size) for i in range(2)})


def _default_head(hidden_size: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Linear(hidden_size, 24), nn.ReLU(), nn.Dropout(0.05)), *(nn.Linear(24, 16), nn.ReLU()), nn.Linear(16, 2)
    )


def _head_of_kwargs(hidden_size: int) -> nn.Sequential:
    """``rm_head_kwargs``: equal widths, dropout before the last layer too, which has no bias."""
    return nn.Sequential(
        *(nn.Linear(hidden_size, 20), nn.ReLU(), nn.Dropout(0.1)),
        *(nn.Linear(20, 20), nn.ReLU(), nn.Dropout(0.1)),
        nn.Linear(20, 2, bias=False),
    )


class Published:
    """A random EditReward over a base folder: saved like the published one, scored as its own code would."""

    def __init__(self, base: Path, *, default_heads: bool = True, dtype: torch.dtype = torch.float32) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
        chat = read(base / "chat_template.json")["chat_template"]
        self.tokenizer.chat_template = chat
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(base)
        torch.manual_seed(0)
        model = EditReward(Qwen3VLConfig.from_pretrained(base), default_heads=default_heads)
        model.resize_token_embeddings(len(self.tokenizer))
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:  # transformers' own initial weights make every image look alike
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
        # Weights alone: `model.to(dtype)` would round the rotary tables, which no state dict holds.
        self._tensors = {
            name: tensor.detach().to(torch.float32 if name.startswith("rm_heads.") else dtype, copy=True)
            for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(self._tensors)
        self.model = model.eval()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self._tensors)

    def save(self, path: Path, form: str = "model.safetensors") -> Path:
        """``form`` is the file's name, or "shards"."""
        path.mkdir()
        tensors = self.state_dict()
        if form.endswith(".pth"):
            torch.save(tensors, path / form)
            return path
        if self.model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]  # as transformers does
        if form == "model.safetensors":
            save_file(tensors, path / form)
            return path
        files = {name: f"model-0000{n % 3 + 1}-of-00003.safetensors" for n, name in enumerate(sorted(tensors))}
        for file in set(files.values()):
            save_file({name: tensors[name] for name in files if files[name] == file}, path / file)
        write(path / "model.safetensors.index.json", {"metadata": {}, "weight_map": files})
        return path

    @torch.no_grad()
    def score(
        self, source: Image.Image, edited: Image.Image, instruction: str, prompts: dict[str, str] = PROMPTS
    ) -> torch.Tensor:
        """(mean, log sigma) of each head: float32 [2, 2]."""
        images = self.processor([source, edited], return_tensors="pt")
        rows = []
        for head, dimension in enumerate(("instruction_following", "visual_quality")):
            ids = self._ids(prompts[dimension].replace("{instruction}", instruction), images["image_grid_thw"])
            hidden = self.model.model(
                input_ids=ids,
                mm_token_type_ids=(ids == self.tokenizer.convert_tokens_to_ids("<|image_pad|>")).long(),
                pixel_values=images["pixel_values"],
                image_grid_thw=images["image_grid_thw"],
            ).last_hidden_state
            logits = self.model.rm_heads[f"head_{head}"](hidden)
            rows.append(logits[ids == self.tokenizer.convert_tokens_to_ids("<|Reward|>")].squeeze(0))
        return torch.stack(rows)

    def _ids(self, text: str, grids: torch.Tensor) -> torch.Tensor:
        content = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": text}]
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, between, after = rendered.split("<|image_pad|>")
        first, second = ("<|image_pad|>" * (int(grid.prod()) // 4) for grid in grids)
        return self.tokenizer(before + first + between + second + after, return_tensors="pt")["input_ids"]


def read(file: Path) -> dict:
    return json.loads(file.read_text())


def write(file: Path, value: object) -> None:
    file.write_text(json.dumps(value))


def edit(file, **changes):
    write(file, read(file) | changes)


class Case:
    """Copies of everything, to break."""

    def __init__(self, folder, base, published, prompts):
        self.folder = folder
        self.base = shutil.copytree(base, folder / "base")
        self.weights = published.save(folder / "weights")
        self.prompts = folder / "prompts.json"
        shutil.copy(prompts, self.prompts)
        self.flags = {}

    def tensors(self, change):
        tensors = load_file(self.weights / "model.safetensors")
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, self.weights / "model.safetensors")

    def problems(self) -> list[str]:
        """Of an import that must fail, and must leave nothing behind."""
        before = sorted(self.folder.rglob("*"))
        with pytest.raises(CheckpointError) as caught:
            import_editreward(self.weights, self.base, self.folder / "out", prompts=self.prompts, **self.flags)
        assert sorted(self.folder.rglob("*")) == before
        return caught.value.problems
