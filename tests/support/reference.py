"""A second implementation of the score, from files to reward, that shares no code with the service.

Pixels come from transformers' own image processor on its pillow backend, tokens from its own tokenizer over the whole
rendered conversation, hidden states from the stock class with a language head as a user would load it, heads and
pooling from numpy.
"""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.numpy import load_file
from transformers import AutoModelForImageTextToText, AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

IMAGE = "<|image_pad|>"


class Reference:
    def __init__(self, path: Path) -> None:
        self.manifest = json.loads((path / "reward" / "manifest.json").read_text())
        self.heads = load_file(path / "reward" / "heads.safetensors")
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.plain_tokenizer = AutoTokenizer.from_pretrained(path, split_special_tokens=True)
        self.model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32).eval()
        rules = json.loads((path / "preprocessor_config.json").read_text())
        names = ("size", "resample", "patch_size", "merge_size", "temporal_patch_size", "image_mean", "image_std")
        self.processor = Qwen2VLImageProcessorPil(**{name: rules[name] for name in names})

    def score(
        self, source: Image.Image | list[Image.Image], edited: Image.Image, instruction: str
    ) -> dict[str, object]:
        """{"reward", "reward_std", "dimensions": {name: (mean, std or None)}}. Without a source: an empty list."""
        dimensions = {}
        for one in self.manifest["passes"]:
            h = self.hidden_state(one, {"source": source, "edited": edited}, instruction)
            for dimension, head in one["read"].items():
                mean, *log_std = self._head(head, h)
                dimensions[dimension] = (float(mean), float(np.exp(log_std[0])) if log_std else None)
        return {"dimensions": dimensions, **self._pool(dimensions)}

    @torch.no_grad()
    def hidden_state(self, one, images, instruction):
        return self.forward(one, images, instruction)[0].numpy()

    def forward(self, one, images, instruction, answer=()):
        """(hidden state [H] of the reward token, logits of the ids in ``answer``) of a pass, with gradients."""
        images = {part: image if isinstance(image, list) else [image] for part, image in images.items()}
        chosen = [image for part in one["parts"] for image in images.get(part, [])]
        encoded = self.processor([to_rgb(image) for image in chosen], return_tensors="pt")
        counts = [int(grid.prod()) // 4 for grid in encoded["image_grid_thw"]]
        ids = self._token_ids(one, instruction, counts, len(images["source"]))
        image_id, reward_id = self.tokenizer.convert_tokens_to_ids([IMAGE, self.manifest["reward_token"]])
        (position,) = [n for n, i in enumerate(ids) if i == reward_id]
        whole = [*ids, *answer]
        sequential = self.manifest.get("positions") == "sequential"
        output = self.model(
            input_ids=torch.tensor([whole]),
            attention_mask=torch.ones(1, len(whole), dtype=torch.long),
            mm_token_type_ids=torch.tensor([[int(i == image_id) for i in whole]]),
            pixel_values=encoded["pixel_values"],
            image_grid_thw=encoded["image_grid_thw"],
            position_ids=torch.arange(len(whole)).expand(3, 1, -1) if sequential else None,
            output_hidden_states=True,
        )
        return output.hidden_states[-1][0, position], output.logits[0, len(ids) - 1 : len(whole) - 1]

    def _token_ids(self, one, instruction, image_tokens, sources=1):
        """Every piece of text between control tokens is encoded with special tokens switched off."""
        content = [
            {"type": "text", "text": one[part]} if part in ("prompt", "ending") else {"type": "image"}
            for part in one["parts"]
            for _ in range(sources if part == "source" else 1)
        ]
        text = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        controls = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", IMAGE, "<|Reward|>"]
        ids, counts = [], iter(image_tokens)
        while text:
            found = [(text.find(control), control) for control in controls if control in text]
            position, control = min(found) if found else (len(text), None)
            piece, text = text[:position], text[position + len(control or "") :]
            if piece:
                ids += self.plain_tokenizer(piece.replace("{instruction}", instruction))["input_ids"]
            if control is not None:
                repeat = next(counts) if control == IMAGE else 1
                ids += [self.tokenizer.convert_tokens_to_ids(control)] * repeat
        return ids

    def _head(self, name, h):
        layers = len(self.manifest["heads"][name]["hidden"]) + 1
        for number in range(layers):
            h = self.heads[f"{name}.{number}.weight"] @ h + self.heads[f"{name}.{number}.bias"]
            h = np.maximum(h, 0) if number < layers - 1 else h
        return h

    def _pool(self, dimensions):
        rule = self.manifest["reward"]
        if rule["combine"] == "min":
            mean, std = min(dimensions.values(), key=lambda pair: pair[0])
            return {"reward": mean, "reward_std": std}
        weights = [rule["weights"].get(name, 1.0) for name in dimensions]
        means, stds = zip(*dimensions.values(), strict=True)
        reward = float(np.dot(weights, means) / sum(weights))
        if None in stds:
            return {"reward": reward, "reward_std": None}
        return {"reward": reward, "reward_std": float(np.linalg.norm(np.multiply(weights, stds)) / sum(weights))}


def to_rgb(image: Image.Image) -> Image.Image:
    """As transformers' loader does it, but for 16-bit gray, of which the high byte is kept (docs/images.md)."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    return image.convert("RGB")
