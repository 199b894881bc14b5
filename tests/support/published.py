"""Tiny EditReward (Qwen2.5-VL) and HPSv3 (Qwen2-VL) models, run as their published code runs them.

Written from what that code does, not with ours: it resizes each image to 200,704 pixels itself and hands it to the
base's image processor, renders the turn with the base's chat template, embeds ids and images, and calls the language
model with embeddings alone, which then counts positions as for text. Held to the code itself once, with transformers
4.57.0: both give the same numbers to 1e-6.
"""

import json
import math
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from support.editreward import PROMPTS, read, write

CLASSES = {"qwen2_5_vl": Qwen2_5_VLForConditionalGeneration, "qwen2_vl": Qwen2VLForConditionalGeneration}
PREFERENCE = {"preference": "\nIs it good?  \nTextual prompt - {instruction}\n\n\n\nRate: <|Reward|>\n\nEND\n"}
PIXELS, FACTOR = 200_704, 28


def head(width: int, *, kwargs: bool = False) -> nn.Sequential:
    if kwargs:  # ``rm_head_kwargs``: dropout before the last layer too, which has no bias
        layers = [nn.Linear(width, 20), nn.ReLU(), nn.Dropout(0.1), nn.Linear(20, 20), nn.ReLU(), nn.Dropout(0.1)]
        return nn.Sequential(*layers, nn.Linear(20, 2, bias=False))
    layers = [nn.Linear(width, 24), nn.ReLU(), nn.Dropout(0.05), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)]
    return nn.Sequential(*layers)


class PublishedModel:
    """A random model of the published class over a base folder; ``hpsv3`` has one head and sees no source."""

    def __init__(self, base: Path, *, hpsv3: bool = False, kwargs: bool = False) -> None:
        self.hpsv3, self.prompts = hpsv3, PREFERENCE if hpsv3 else PROMPTS
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
        self.tokenizer.chat_template = read(base / "chat_template.json")["chat_template"]
        self.processor = Qwen2VLImageProcessorPil.from_pretrained(base)
        torch.manual_seed(1)
        config = AutoConfig.from_pretrained(base)
        self.model = CLASSES[config.model_type](config)
        width = config.text_config.hidden_size
        if hpsv3:
            self.model.rm_head = head(width, kwargs=kwargs)
        else:
            self.model.rm_heads = nn.ModuleDict({f"head_{n}": head(width, kwargs=kwargs) for n in range(2)})
        self.model.resize_token_embeddings(len(self.tokenizer))
        for name, parameter in self.model.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter[0].numel()))
            elif name.endswith("bias"):
                nn.init.normal_(parameter, std=0.1)
        self.model.eval()

    def save(self, path: Path, file: str = "model.safetensors", *, old_names: bool = False) -> Path:
        path.mkdir()
        tensors = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        if old_names:
            tensors = {
                name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): tensor
                for name, tensor in tensors.items()
            }
        if file.endswith(".pth"):
            torch.save({"model": tensors}, path / file)
            return path
        if self.model.config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        save_file(tensors, path / file)
        return path

    @torch.no_grad()
    def score(self, source: Image.Image, edited: Image.Image, instruction: str) -> torch.Tensor:
        """(mean, log sigma) of each head: float32 [heads, 2]."""
        images = [edited] if self.hpsv3 else [source, edited]
        heads = [self.model.rm_head] if self.hpsv3 else list(self.model.rm_heads.values())
        rows = []
        for module, template in zip(heads, self.prompts.values(), strict=True):
            pixels = self.processor([resized(image) for image in images], return_tensors="pt")
            ids = self._ids(template.replace("{instruction}", instruction), pixels["image_grid_thw"])
            backbone = self.model.model
            features = backbone.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
            embeds = backbone.language_model.embed_tokens(ids)
            at_images = (ids == self.model.config.image_token_id)[..., None].expand_as(embeds)
            hidden = backbone.language_model(inputs_embeds=embeds.masked_scatter(at_images, features))[0]
            rows.append(module(hidden)[ids == self.tokenizer.convert_tokens_to_ids("<|Reward|>")][0])
        return torch.stack(rows)

    def _ids(self, text: str, grids: torch.Tensor) -> torch.Tensor:
        content = [*({"type": "image"} for _ in grids), {"type": "text", "text": text}]
        rendered = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        first, *others = rendered.split("<|image_pad|>")
        for grid, after in zip(grids, others, strict=True):
            first += "<|image_pad|>" * (int(grid.prod()) // 4) + after
        return self.tokenizer(first, return_tensors="pt")["input_ids"]


def resized(image: Image.Image) -> Image.Image:
    """Both sides in steps of 28, the area at 200,704 or, where that cannot be, beside it."""
    height, width = (max(FACTOR, round(side / FACTOR) * FACTOR) for side in (image.height, image.width))
    if height * width > PIXELS:
        ratio = math.sqrt(image.height * image.width / PIXELS)
        height, width = (math.floor(side / ratio / FACTOR) * FACTOR for side in (image.height, image.width))
    elif height * width < PIXELS:
        ratio = math.sqrt(PIXELS / (image.height * image.width))
        height, width = (math.ceil(side * ratio / FACTOR) * FACTOR for side in (image.height, image.width))
    return image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)


def prompts_file(path: Path, model: PublishedModel) -> Path:
    write(path, model.prompts)
    return path


def config_of_transformers_4(base: Path) -> None:
    """What ``save_pretrained`` of transformers 4 leaves of a hub's flat ``config.json``: the text half twice."""
    config = read(base / "config.json")
    outer = ("architectures", "vision_config", "model_type", "image_token_id", "video_token_id", "tie_word_embeddings")
    text = {key: value for key, value in config.items() if key not in outer and not key.startswith("vision_")}
    config["text_config"] = text | {"model_type": f"{config['model_type']}_text"}
    config["vision_config"]["model_type"] = config["model_type"]
    (base / "config.json").write_text(json.dumps(config))
