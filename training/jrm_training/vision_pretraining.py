"""Pretraining of the tiny model's vision tower: it learns to name what each image token shows.

The paper starts from a backbone that can see. The tiny model starts from nothing, and would take very long to learn to
see from ranking and critiques alone. So it is first trained on what is known about a scene: from every image token's
embedding, the language head should name the colour and kind of the shape in the token's square, and a probe, which is
thrown away later, should predict the shape's box.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F

from jrm_service.images import preprocess
from jrm_service.model.checkpoint import Checkpoint

from .batch import Collator
from .config import Optimizer
from .model import JointModel
from .optimization import Optimizers, schedule
from .world import flaws
from .world.scene import COLOURS, KINDS, Scene, draw
from .world.tasks import SEEN, sample_task

BACKGROUND = "nothing"
_COVERED = 0.12  # share of a token's square that a shape must cover to count as what it shows
Example = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.float32]]
_SIDES = (64, 96, 128, 192, 256)


def pretrain_vision(
    model: JointModel,
    checkpoint: Checkpoint,
    *,
    steps: int,
    batch: int = 24,
    seed: int = 0,
    on_step: Callable[[int, float, float], None] = lambda _step, _loss, _accuracy: None,
) -> None:
    """Train in place. ``on_step`` gets the step, the loss and the share of tokens whose shape was named correctly.

    Held-out combinations of colour and kind are not shown. Raises ValueError for a tokenizer in which one of the words
    is several tokens.
    """
    spec, device, vision = checkpoint.image_spec, model.lm_head.weight.device, model.packed.vision
    collator = Collator(checkpoint)
    names = torch.tensor([[collator.word(colour), collator.word(kind)] for colour in COLOURS for kind in KINDS])
    nothing = collator.word(BACKGROUND)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = BoxProbe(model.lm_head.in_features).to(device)
    recipe = Optimizer(lr=2e-3, muon_lr=1e-2, weight_decay=0.05, warmup=0.03)
    optimizers = Optimizers(nn.ModuleDict({"backbone": model.backbone, "probe": probe}), recipe)
    random = Random(f"eyes/{seed}")  # noqa: S311 - not a secret
    for step in range(steps):
        examples = [_sample(random, spec) for _ in range(batch)]
        features = vision.encode([vision.inputs(pixels) for pixels, _, _ in examples])
        embeddings = torch.cat([image.embeds for image in features])
        shape = torch.from_numpy(np.concatenate([shapes for _, shapes, _ in examples])).to(device)
        boxes = torch.from_numpy(np.concatenate([boxes for _, _, boxes in examples])).to(device)
        has_shape = shape >= 0
        targets = names.to(device)[shape[has_shape]]
        log_probs = model.lm_head(model.backbone.language_model.norm(embeddings)).log_softmax(-1)
        shape_loss = -log_probs[has_shape].gather(1, targets).mean()
        background_loss = -log_probs[~has_shape, nothing].mean()
        loss = shape_loss + 0.3 * background_loss + probe(embeddings[has_shape], boxes[has_shape])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizers.step(schedule(step, steps, recipe))
        top_two = log_probs[has_shape].detach().topk(2).indices.sort(dim=1).values
        accuracy = (top_two == targets.sort(dim=1).values).all(dim=1).float().mean()
        on_step(step + 1, loss.item(), accuracy.item())


class BoxProbe(nn.Module):
    """Predicts a shape's box from the embedding of one of its image tokens: four numbers, and two digits of each."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.numbers = nn.Linear(hidden, 4)
        self.digits = nn.Linear(hidden, 4 * 2 * 10)

    def forward(self, embeddings: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Loss of embeddings [N, hidden] against boxes [N, 4] on a scale of 0 to 1: L1, and cross-entropy of digits."""
        tens = (100 * boxes).round().long().clamp(0, 99)
        digits = torch.stack([tens // 10, tens % 10], dim=-1)
        logits = self.digits(embeddings).view(-1, 10)
        return F.l1_loss(self.numbers(embeddings), boxes) + F.cross_entropy(logits, digits.flatten())


def sample_scene(random: Random) -> Scene:
    """Any source of the world that has no held-out combination in it."""
    return sample_task(random, shapes=(1, 5), palette=SEEN).scene


def _sample(random: Random, spec: preprocess.ImageSpec) -> Example:
    scene = sample_scene(random)
    side, oversample = random.choice(_SIDES), random.choice((1, 2, 4))
    flaw = flaws.sample(random.choice((4, 4, 4, 3, 2)), random)
    return example(scene, flaw, side, spec, oversample)


def example(
    scene: Scene, flaw: flaws.Flaw | None, side: int, spec: preprocess.ImageSpec, oversample: int = 1
) -> Example:
    """A scene as the model sees it, and what each image token shows, in the order of the model's tokens.

    Returns pixels uint8 [H, W, 3]; int64 [tokens], a number for colour and kind of the shape that covers most of the
    token's square, -1 for none; and that shape's box on a scale of 0 to 1, float32 [tokens, 4], zeros for none.
    """
    image = draw(scene, side, oversample)
    pixels = preprocess.resize(image if flaw is None else flaws.apply(image, flaw), spec)
    height, width = pixels.shape[:2]
    rows, columns = height // spec.factor, width // spec.factor
    shapes = np.asarray(_shape_map(scene, (width, height)))
    squares = shapes.reshape(rows, spec.factor, columns, spec.factor).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    names = [list(COLOURS).index(shape.colour) * len(KINDS) + KINDS.index(shape.kind) for shape in scene.shapes]
    shown = np.full(len(squares), -1)
    boxes = np.zeros((len(squares), 4), np.float32)
    for number, square in enumerate(squares):
        counts = np.bincount(square, minlength=len(names) + 1)[1:]
        if counts.size and counts.max() >= _COVERED * square.size:
            shown[number] = names[counts.argmax()]
            boxes[number] = [edge / 1000 for edge in scene.box(scene.shapes[counts.argmax()])]
    return pixels, shown, boxes


def _shape_map(scene: Scene, size: tuple[int, int]) -> Image.Image:
    """An image whose pixels are 0 for the background and 1 + the index of the shape elsewhere."""
    shape_map = Image.new("L", size)
    for number, shape in enumerate(scene.shapes, start=1):
        points = [(x / scene.width * size[0], y / scene.height * size[1]) for x, y in shape.outline()]
        ImageDraw.Draw(shape_map).polygon(points, fill=number)
    return shape_map
