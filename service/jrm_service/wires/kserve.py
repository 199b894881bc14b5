"""KServe V2, the Open Inference Protocol: ``POST /v2/models/{model}/infer``, with health and metadata beside it.

Tensors are BYTES in JSON: ``source`` and ``edited`` hold base64, ``instruction`` text. A single source or instruction
is used for every edit. The protocol has no errors of elements: the first candidate's error is the request's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import Response

from jrm_client.protocol import DEFAULT_TIMEOUT_MS
from jrm_service.api.errors import headers_of, reason_of, status_of
from jrm_service.api.guards import patience_ms
from jrm_service.api.parse import check_count, invalid, read_base64
from jrm_service.api.score_path import IncomingRequest, ParsedRequest, ScoredRequest
from jrm_service.errors import InvalidRequest, JRMError, UnknownModel
from jrm_service.images.reader import ImageInput
from jrm_service.scoring.types import Score, ServedModel

from .candidates import Outcome, WireCandidate, ask, check_sources, scores
from .rewards import Rewards

T = TypeVar("T")

_MAX_SIDE = 1_000_000  # elements of a tensor in one direction
BINARY = "inference-header-content-length"
"""A header with the length of the JSON in a body; binary tensors follow, an extension that is not supported."""


class _Tensor(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: Literal["source", "edited", "instruction"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=_MAX_SIDE)]], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: list[Any]


class _Output(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str | None = None
    inputs: Annotated[list[_Tensor], Field(fail_fast=True)]
    outputs: Annotated[list[_Output], Field(fail_fast=True)] | None = None


class KServeWire:
    """Implements Wire."""

    name = "kserve"
    timeout_ms = DEFAULT_TIMEOUT_MS

    def __init__(self, rewards: Rewards) -> None:
        self._rewards = rewards

    def takes(self, content: Any) -> bool:
        """It has a route of its own."""
        return True

    def read(self, content: Any, incoming: IncomingRequest) -> ParsedRequest:
        """Every element of ``edited`` is a candidate. Raises InvalidRequest, PayloadTooLarge, UnknownModel."""
        self.require(incoming.path["model"], incoming.path.get("version"), incoming.model)
        try:
            document = _Document.model_validate(content)
        except ValidationError as error:
            raise invalid(error, own=0) from None
        names = self._outputs(incoming.model)
        wanted = [output.name for output in document.outputs or ()]
        for name in wanted:
            if name not in names:
                raise InvalidRequest(f"outputs: no tensor is called '{name[:64]}'; there are {', '.join(names)}")

        def answer(outcomes: Sequence[Outcome], scored: ScoredRequest) -> Response:
            return self._answer(document.id, wanted or names, scores(outcomes), scored.model)

        return ask(
            _candidates(document.inputs, incoming),
            answer,
            timeout_ms=patience_ms(incoming.headers, self.timeout_ms),
        )

    def refuse(self, error: JRMError) -> Response:
        """An error reply in the protocol's shape."""
        return JSONResponse({"error": reason_of(error)}, status_of(error), headers_of(error))

    def require(self, name: str | None, version: str | None, model: ServedModel) -> None:
        """Raise UnknownModel if a path names another model, or another version of it."""
        if name is not None and name not in self._rewards.names(model):
            raise UnknownModel(f"no model is called '{name[:64]}'", param="model")
        if version not in (None, model.fingerprint):
            raise UnknownModel(f"no version is called '{version[:64]}'; there is {model.fingerprint}", param="version")

    def metadata(self, name: str, model: ServedModel) -> dict[str, Any]:
        """The reply of ``GET /v2/models/{model}``; the version is the fingerprint."""
        return {
            "name": name,
            "versions": [model.fingerprint],
            "platform": "jrm-serve",
            "inputs": [{"name": name, "datatype": "BYTES", "shape": shape} for name, shape in _inputs(model).items()],
            "outputs": [{"name": name, "datatype": "FP32", "shape": [-1]} for name in self._outputs(model)],
        }

    def _outputs(self, model: ServedModel) -> list[str]:
        """The tensors of a reply: a std where all heads behind it predict one, but none for a normalized reward."""
        heads = {name: model.description["heads"][head] for name, head in _read(model).items()}
        uncertain = {name for name, head in heads.items() if "log_std" in head["outputs"]}
        pooled = model.description.get("reward", {}).get("weights") or heads
        names = ["reward"]
        if heads and uncertain.issuperset(pooled) and not self._rewards.normalized:
            names.append("reward_std")
        for name in heads:
            names += [f"{name}_mean", f"{name}_std"] if name in uncertain else [f"{name}_mean"]
        return names

    def _answer(
        self, request_id: str | None, names: Sequence[str], scored: Sequence[Score], model: ServedModel
    ) -> Response:
        columns: dict[str, list[float | None]] = {
            "reward": [self._rewards.number(score, model) for score in scored],
            "reward_std": [score.reward_std for score in scored],
        }
        for name in _read(model):
            columns[f"{name}_mean"] = [score.dimensions[name].mean for score in scored]
            columns[f"{name}_std"] = [score.dimensions[name].std for score in scored]
        body = {"model_name": model.name, "model_version": model.fingerprint}
        outputs = [
            {"name": name, "shape": [len(scored)], "datatype": "FP32", "data": columns[name]}
            for name in columns
            if name in names
        ]
        return JSONResponse(body | ({"id": request_id} if request_id is not None else {}) | {"outputs": outputs})


def _inputs(model: ServedModel) -> dict[str, list[int]]:
    """The tensors of a request and their shapes: ``source`` has none, one or several images for each edit."""
    most = model.description.get("image", {}).get("max_sources", 1)
    sources = {"source": [-1] if most == 1 else [-1, -1]} if most else {}
    return {**sources, "edited": [-1], "instruction": [-1]}


def _read(model: ServedModel) -> dict[str, str]:
    """The head of each dimension, in the order in which the passes read them."""
    return {name: head for pass_ in model.description.get("passes", ()) for name, head in pass_["read"].items()}


def _candidates(tensors: Sequence[_Tensor], incoming: IncomingRequest) -> list[WireCandidate]:
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors):
        raise InvalidRequest("inputs: a tensor is there twice")
    for name in ("edited", "instruction"):
        if name not in by_name:
            raise InvalidRequest(f"inputs: the tensor '{name}' is missing", param=name)
    edits = _column(by_name["edited"])
    check_count(len(edits), incoming.max_candidates)
    instructions = _of_each(by_name["instruction"], _column(by_name["instruction"]), len(edits))
    sources = _sources(by_name["source"], len(edits), incoming) if "source" in by_name else [[]] * len(edits)
    return [
        WireCandidate(
            f"edited[{number}]", sources[number], instructions[number], read_base64(f"edited[{number}]", text)
        )
        for number, text in enumerate(edits)
    ]


def _sources(tensor: _Tensor, count: int, incoming: IncomingRequest) -> list[list[ImageInput]]:
    """The sources of each edit: one in [1] or [count], k in [1, k] or [count, k]. Shared sources are read once."""
    rows, width = (*tensor.shape, 1)[:2]
    check_sources("source", width, incoming)
    texts = _strings(tensor)
    if rows not in (1, count):
        raise InvalidRequest(f"inputs: 'source' has the shape {tensor.shape}, which is not that of {count} edits")
    names = [f"source[{row}]" + (f"[{n}]" if tensor.shape[1:] else "") for row in range(rows) for n in range(width)]
    images = [read_base64(name, text) for name, text in zip(names, texts, strict=True)]
    return _of_each(tensor, [images[row * width : (row + 1) * width] for row in range(rows)], count)


def _of_each(tensor: _Tensor, values: list[T], count: int) -> list[T]:
    """One value for each edit; a single value is used for all."""
    if len(values) not in (1, count):
        raise InvalidRequest(f"inputs: '{tensor.name}' has {len(values)} elements, 'edited' has {count}")
    return values if len(values) == count else values * count


def _column(tensor: _Tensor) -> list[str]:
    """The elements of a one-dimensional tensor: with shape [1, N], ``source`` would mean N images for each edit."""
    if len(tensor.shape) != 1:
        raise InvalidRequest(f"inputs: '{tensor.name}' has the shape {tensor.shape}, must have one dimension")
    return _strings(tensor)


def _strings(tensor: _Tensor) -> list[str]:
    """The elements, which the protocol allows to be nested like their shape."""
    texts = list(_flat(tensor.data, len(tensor.shape)))
    if len(texts) != math.prod(tensor.shape):
        raise InvalidRequest(
            f"inputs: '{tensor.name}' has {len(texts)} elements, which is not its shape {tensor.shape}"
        )
    if not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(f"inputs: '{tensor.name}' has an element that is not a string")
    return texts


def _flat(data: Sequence[Any], depth: int) -> Iterable[Any]:
    for value in data:
        if isinstance(value, list) and depth > 1:
            yield from _flat(value, depth - 1)
        else:
            yield value
