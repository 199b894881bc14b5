"""Critiques of the same edits written in two ways, and how right they are: through ``/v1/explain``, and unconstrained.

Both are greedy and answer the same prompt. What they wrote is read as the server reads it and measured as training
measures it, so only the way of writing differs.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from studies.verdicts import verdict
from transformers import AutoTokenizer

from jrm_client import AsyncJRMClient
from jrm_client.protocol import ExplainUsage, Explanation
from jrm_service.explain.critique import read
from jrm_service.model.checkpoint import Checkpoint
from jrm_training.bootstrap import Estimate, Share, Tally, estimates
from jrm_training.critique import critique_tallies
from jrm_training.data import Group
from jrm_training.generate_critiques import write_critiques

MAX_TOKENS = 256
CALLERS = 8

ByDimension = Mapping[str, Explanation]


@dataclass(frozen=True)
class Written:
    """The explanations of every edit of every group, how long they took and how many tokens they have, ends included.

    ``seconds`` is from the first request to the last answer; reading prompts and images is in it, loading is not.
    """

    explanations: Sequence[Sequence[ByDimension]]
    seconds: float
    tokens: int

    @property
    def rate(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


async def through_the_server(client: AsyncJRMClient, groups: Sequence[Group]) -> Written:
    """As callers get them: structured output, ``CALLERS`` requests at once."""
    turn = asyncio.Semaphore(CALLERS)

    async def explain(group: Group, edit: int) -> ByDimension:
        async with turn:
            return await client.explain(group.source, group.edits[edit].image, group.instruction, max_tokens=MAX_TOKENS)

    began = time.perf_counter()
    explanations = await asyncio.gather(
        *(asyncio.gather(*(explain(group, edit) for edit in range(len(group.edits)))) for group in groups)
    )
    seconds = time.perf_counter() - began
    every = [one for of_group in explanations for of_edit in of_group for one in of_edit.values()]
    return Written(explanations, seconds, sum(one.usage.completion_tokens for one in every if one.usage is not None))


def unconstrained(checkpoint: Checkpoint, groups: Sequence[Group]) -> Written:
    """As the language head writes them by itself, with transformers, in float32 on the CPU."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.path, local_files_only=True, trust_remote_code=False)
    regions = _regions(checkpoint)
    writing = write_critiques(checkpoint, groups, max_new_tokens=MAX_TOKENS)
    began = time.perf_counter()
    written = list(writing)
    seconds = time.perf_counter() - began
    tokens = 0
    explanations: list[list[ByDimension]] = []
    for group, of_group in zip(groups, written, strict=True):
        explanations.append([])
        for edit, texts in zip(group.edits, of_group, strict=True):
            explained = {}
            for name, one in texts.items():
                length = len(tokenizer(one.text, add_special_tokens=False).input_ids) + (one.finish_reason == "stop")
                tokens += length
                usage = ExplainUsage(prompt_tokens=0, completion_tokens=length)
                explained[name] = read(
                    one.text,
                    regions=regions[name],
                    size=edit.image.size,
                    finish_reason=one.finish_reason,
                    usage=usage,
                )
            explanations[-1].append(explained)
    return Written(explanations, seconds, tokens)


def figures(
    groups: Sequence[Group], written: Written, other: Written, regions: Mapping[str, bool]
) -> dict[str, dict[str, Estimate]]:
    """How right the critiques are, by dimension: shares with 95% intervals from resampling the groups.

    ``ok``: with status ok. ``regions_found`` and ``regions_made_up``: as ``critique_tallies`` counts them, for a
    dimension with regions. ``verdict_right``: the critique opens with the verdict that is the true label.
    ``same``: the text is the one of ``other``.
    """
    return {name: estimates(_tallies(groups, written, other, name, with_boxes)) for name, with_boxes in regions.items()}


def _tallies(groups: Sequence[Group], written: Written, other: Written, name: str, regions: bool) -> dict[str, Tally]:
    true = [[edit.critiques for edit in group.edits] for group in groups]
    texts = [[{name: as_text(edit[name], regions)} for edit in of_group] for of_group in written.explanations]
    counted = critique_tallies(true, texts, name, regions)
    right, same = np.zeros((len(groups), 2)), np.zeros((len(groups), 2))
    for number, group in enumerate(groups):
        for edit, text, one, theirs in zip(
            group.edits, texts[number], written.explanations[number], other.explanations[number], strict=True
        ):
            right[number] += verdict(text[name], regions) == edit.labels[name], 1
            same[number] += one[name].raw == theirs[name].raw, 1
    return {
        "ok": counted.pop("critique_valid"),
        **counted,
        "verdict_right": Share(right),
        "same": Share(same),
    }


def as_text(explanation: Explanation, regions: bool) -> str:
    """What a caller got, in the words of appendix C as training reads them; empty for one that is not ok."""
    if explanation.status != "ok":
        return ""
    text: dict[str, object] = {"reasoning": explanation.reasoning}
    if regions:
        text["edit_region"] = [
            {"id": number, "label": region.label or "nothing", "bbox_2d": list(region.bbox_2d)}
            for number, region in enumerate(explanation.edit_regions)
        ]
    return json.dumps(text)


def _regions(checkpoint: Checkpoint) -> dict[str, bool]:
    return {name: one.regions for name, one in checkpoint.manifest.explain.items()}
