"""The training loop: rows, both losses, optimizer steps, and saved states from which a killed run resumes.

On one device or many. What a step computes does not depend on how it is divided: losses are summed and divided by the
step's own counts, so micro-batches and devices only change the order of additions.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from jrm_service.model.checkpoint import Checkpoint

from .batch import Collator, GroupRow
from .config import Recipe
from .data import Group, GroupFile
from .distributed import place, shard, sum_gradients, sum_over_devices
from .lora import add_lora
from .losses import Pairs, language_loss, pairs_of, ranking_loss
from .model import JointModel, JointOutput
from .optimization import Optimizers, schedule
from .order import Order, steps_of
from .states import load_state, save_state

LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class StepLog:
    """What one step did, over all devices; ``step`` counts from 1.

    ``rank`` (Eq. 5), ``language`` (Eq. 6) and ``total`` (Eq. 7) are means over the step's pairs and critique tokens.
    ``gradient_norm`` is taken before clipping, ``learning_rate`` is AdamW's. ``accuracy`` is the share of pairs with a
    preferred edit whose means are in the right order, by dimension. ``tokens`` counts packed tokens.
    """

    step: int
    rank: float
    language: float
    total: float
    gradient_norm: float
    learning_rate: float
    accuracy: dict[str, float]
    tokens: int
    groups_per_second: float


class Rows(Dataset[GroupRow | ValueError]):
    """A data set of which an "item" is a list of group indices, collated.

    A group that cannot be read is returned as its error, since a worker process would bury it in a traceback.
    """

    def __init__(self, groups: Sequence[Group], collator: Collator) -> None:
        self._groups, self._collator = groups, collator

    def __getitem__(self, indices: Sequence[int]) -> GroupRow | ValueError:
        try:
            return self._collator.row([self._groups[n] for n in indices])
        except ValueError as error:
            return error


class Trainer:
    """One run of a recipe in a folder, from its start or its newest state to its last step."""

    def __init__(
        self, recipe: Recipe, checkpoint: Checkpoint, groups: Sequence[Group], out: Path, device: str = "cpu"
    ) -> None:
        """Loads the weights and, where ``out`` has a state, the run so far.

        Raises CheckpointError, and ValueError for a recipe that does not fit the data, the number of processes, or the
        run that ``out`` already has.
        """
        self.recipe, self.out, self.device = recipe, out, torch.device(device)
        self._rank, self._world = place()
        self._order = Order(
            len(groups), recipe.batch, recipe.micro_batch, recipe.data.seed, shuffle=not recipe.data.curriculum
        )
        self._rows_of_step = self._order.rows_each(self._world)
        self.steps = steps_of(recipe, len(groups))
        half = recipe.dtype == "bfloat16"
        self.model = JointModel.load(checkpoint, self.device, torch.bfloat16 if half and recipe.lora else torch.float32)
        if recipe.fresh_sigma:
            self.model.forget_sigma()
        collator = Collator(checkpoint, critiques=recipe.alpha > 0, max_tokens=recipe.max_tokens)
        if recipe.lora is not None:
            add_lora(self.model, recipe.lora, collator.new_tokens, recipe.data.seed)
        if recipe.gradient_checkpointing:
            self.model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
        self._sharded = recipe.shard and dist.is_initialized()
        if self._sharded:
            shard(self.model, torch.bfloat16 if half else None)
        # Weights that are frozen or sharded are in bfloat16 already.
        self._autocast = half and not (self._sharded or recipe.lora)
        self._optimizers = Optimizers(self.model, recipe.optimizer)
        self._rows = Rows(groups, collator)
        self._dimensions = checkpoint.manifest.dimensions
        self._data: dict[str, int | str] = {"groups": len(groups)}
        if isinstance(groups, GroupFile):
            self._data["rows"] = groups.checksum
        if recipe.lora is not None:  # states only have what is trained
            self._data["start"] = checkpoint.pinned_fingerprint
        self.step = load_state(out, recipe, self._data, self.model, self._optimizers.parts)

    @property
    def finished(self) -> bool:
        """Whether every step is done."""
        return self.step >= self.steps

    def fit(self, on_step: Callable[[StepLog], None] = lambda _: None) -> None:
        """Train to the last step; ``on_step`` is called with each step before its state is saved.

        Raises FloatingPointError at the first loss or gradient that is not finite, with neither weights nor states
        touched by it, and ValueError for a group that cannot be read (DataError) or is too long.
        """
        if self.finished:
            return
        rows = self._load_rows()
        while not self.finished:
            started = time.perf_counter()
            log = self._step([next(rows) for _ in range(self._rows_of_step)], started)
            self.step += 1
            on_step(log)
            if self.step % self.recipe.save_every == 0 or self.finished:
                save_state(self.out, self.step, self.recipe, self._data, self.model, self._optimizers.parts)

    def _step(self, rows: list[GroupRow], started: float) -> StepLog:
        """Losses and gradients of all rows, then one update."""
        recipe = self.recipe
        pairs_of_rows = [[pairs_of(labels, row.group_of) for labels in row.labels.unbind(1)] for row in rows]
        pair_count, critique_token_count = self._sums(
            [
                sum(len(pairs) for by_dimension in pairs_of_rows for pairs in by_dimension),
                sum(len(row.targets) for row in rows),
            ]
        )
        losses = torch.zeros(2, dtype=torch.float64, device=self.device)  # sums over pairs, over critique tokens
        order_counts = torch.zeros(len(self._dimensions), 2, dtype=torch.float64, device=self.device)
        for row, by_dimension in zip(rows, pairs_of_rows, strict=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
                joint = self.model(row)
            row_rank = self._ranking(joint, by_dimension, order_counts)
            row_language = language_loss(joint.logits, row.targets.to(self.device), reduction="sum")
            loss = (1 - recipe.alpha) * row_rank / max(pair_count, 1)
            loss = loss + recipe.alpha * row_language / max(critique_token_count, 1)
            loss.backward()  # type: ignore[no-untyped-call]
            losses += torch.stack([row_rank.detach(), row_language.detach()])
        if not self._sharded:
            sum_gradients(self.model)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.optimizer.clip)
        gradient_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        tokens = float(sum(row.packed.ids.numel() for row in rows))
        numbers = [*losses.tolist(), tokens, *order_counts.flatten().tolist()]
        rank_sum, language_sum, tokens, *counts = self._sums(numbers)
        rank, language = rank_sum / max(pair_count, 1), language_sum / max(critique_token_count, 1)
        total = (1 - recipe.alpha) * rank + recipe.alpha * language
        if not (math.isfinite(total) and math.isfinite(gradient_norm)):
            raise FloatingPointError(
                f"step {self.step + 1}: the loss is {total:g} and its gradient's norm {gradient_norm:g}; "
                "weights and states are those from before it"
            )
        share = schedule(self.step, self.steps, recipe.optimizer)
        self._optimizers.step(share)
        correct = dict(zip(self._dimensions, zip(counts[::2], counts[1::2], strict=True), strict=True))
        return StepLog(
            step=self.step + 1,
            rank=rank,
            language=language,
            total=total,
            gradient_norm=gradient_norm,
            learning_rate=recipe.optimizer.lr * share,
            accuracy={name: count / of for name, (count, of) in correct.items() if of},
            tokens=int(tokens),
            groups_per_second=recipe.batch / (time.perf_counter() - started),
        )

    def _ranking(self, joint: JointOutput, by_dimension: list[Pairs], order_counts: torch.Tensor) -> torch.Tensor:
        """Sum of -log P over the pairs of all dimensions.

        Adds to ``order_counts`` [dimensions, 2] the pairs whose means are in the right order, and all that have one.
        """
        total = torch.zeros((), device=self.device)
        for name, host_pairs, counts in zip(self._dimensions, by_dimension, order_counts, strict=True):
            pairs = host_pairs.to(self.device)
            mean, *log_std = joint.outputs[name].unbind(1)
            total = total + ranking_loss(mean, log_std[0] if log_std else None, pairs).total
            has_preferred = pairs.target == 1  # the preferred edit of a pair is its first
            in_order = mean[pairs.first] > mean[pairs.second]
            counts += torch.stack([(in_order & has_preferred).sum(), has_preferred.sum()])
        return total

    def _sums(self, numbers: Sequence[float]) -> list[float]:
        return sum_over_devices(torch.tensor(numbers, dtype=torch.float64, device=self.device))

    # --- data ---------------------------------------------------------------------------------------------------------

    def _load_rows(self) -> Iterator[GroupRow]:
        """This process's rows from the present step on."""
        workers = self.recipe.data.workers
        steps = range(self.step, self.steps)
        loader = DataLoader(
            self._rows,
            batch_size=None,
            sampler=[indices for step in steps for indices in self._order.rows(step, self._rank, self._world)],
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
        )
        for row in loader:
            if isinstance(row, ValueError):
                raise row
            yield row


def read_log(out: Path, upto: int | None = None) -> list[dict[str, Any]]:
    """The run's log, one dict per step in order, up to step ``upto``. Of a step that was run twice, the later one."""
    file = out / LOG
    by_step: dict[int, dict[str, Any]] = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with suppress(json.JSONDecodeError):  # a kill may have left an incomplete line
            log = json.loads(line)
            by_step[log["step"]] = log
    return [by_step[step] for step in sorted(by_step) if upto is None or step <= upto]


def append_log(out: Path, log: StepLog) -> None:
    """Append a line, starting a new one if a kill left the last line incomplete. Raises OSError."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOG).open("ab+") as file:
        if file.tell():
            file.seek(-1, 2)
            ends_with_newline = file.read(1) == b"\n"
            file.write(b"" if ends_with_newline else b"\n")
        file.write(json.dumps(asdict(log)).encode() + b"\n")
