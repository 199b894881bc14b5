"""``compute_score`` for verl-omni and verl: they call it once for each sample, concurrently for a whole batch.

verl-omni passes the edited picture as ``solution_image``. verl passes text, which ``edited`` turns into the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from jrm_client.aio import DEFAULT_TIMEOUT, AsyncJRMClient

from . import environment
from .columns import Columns


async def compute_score(
    data_source: Any = None,
    solution_image: Any = None,
    ground_truth: Any = None,
    extra_info: Mapping[str, Any] | None = None,
    *,
    solution_str: str | None = None,
    server_url: str | None = None,
    **settings: Any,
) -> dict[str, float]:
    """Return ``score``, the reward of one edit, and the mean of every dimension.

    ``solution_image``: uint8 [3, H, W] or [1, 3, H, W]. ``extra_info`` has the columns, and beside them are
    ``ground_truth`` and ``data_source``. ``server_url``, and in ``settings`` ``edited``, ``source`` (``"image"`` by
    default), ``instruction`` (``"ground_truth"``), ``source_root``, ``timeout`` and ``pin_fingerprint``, come from the
    trainer's configuration, or else from the environment (``jrm_client.trainers.environment``). Other ``settings``,
    which the trainer adds, are ignored.

    Raises ScoreError if the edit has no score, ValueError for a picture or a column that is missing, and whatever
    ``JRMClient`` raises.
    """
    options = {"source": "image", "instruction": "ground_truth", **environment.options(settings)}
    row = {**(extra_info or {}), "ground_truth": ground_truth, "data_source": data_source}
    completion: Any = solution_str
    if solution_image is not None:
        completion, options["edited"] = solution_image, _picture
    [pair] = Columns.of(options).pairs([completion], {name: [cell] for name, cell in row.items()})
    if pair is None:
        raise ValueError("edited gave None for the completion; give an image for every completion")
    url, timeout = server_url or environment.url(), options.get("timeout", DEFAULT_TIMEOUT)
    score = await _client(url, timeout, options.get("pin_fingerprint", True)).score(*pair)
    return {"score": score.reward, **{name: value.mean for name, value in score.dimensions.items()}}


@functools.cache
def _client(url: str, timeout: float, pin_fingerprint: bool | str) -> AsyncJRMClient:
    return AsyncJRMClient(url, timeout=timeout, pin_fingerprint=pin_fingerprint)


def _picture(image: Any) -> Any:
    """[3, H, W] as the client takes it: uint8 as [H, W, 3], floats as they are."""
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) == 4 and shape[0] == 1:
        image, shape = image[0], shape[1:]
    if len(shape) != 3 or shape[0] != 3:
        raise ValueError(f"solution_image: shape {shape}; expected one picture, [3, H, W]")
    if "uint8" not in str(image.dtype):
        return image
    return image.permute(1, 2, 0) if hasattr(image, "permute") else image.transpose(1, 2, 0)
