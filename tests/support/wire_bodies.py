"""The same candidates in the words of each trainer, byte for byte as their clients send them."""

import base64
import io
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
from PIL import Image

ALL = "unirl,flow-factory,kserve,rerank,edit-r1,deepgen,editscore"


@dataclass(frozen=True)
class Pair:
    source: bytes
    edited: bytes
    instruction: str


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def picture(data: bytes) -> Image.Image:
    """As a trainer holds it: decoded, and no longer tied to a file."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def unirl_entry(pair: Pair, *, names: Sequence[str] = ("jrm",), **identity) -> dict:
    turns = [pair.source, pair.edited]
    return {
        "history": [{"text": pair.instruction, "image_b64": b64(data)} for data in turns],
        "required_rewards": list(names),
        "metadata": None,
        **identity,
    }


def unirl(pairs: Sequence[Pair], **options) -> dict:
    return {"protocol_version": "1", "requests": [unirl_entry(pair, **options) for pair in pairs]}


def flow_factory(pairs: Sequence[Pair]) -> dict:
    return {
        "prompt": [pair.instruction for pair in pairs],
        "image": [b64(pair.edited) for pair in pairs],
        "video": None,
        "condition_images": [[b64(pair.source)] for pair in pairs],
        "condition_videos": None,
    }


def edit_r1(pairs: Sequence[Pair]) -> dict:
    return {
        "ref_images": [pair.source for pair in pairs],
        "images": [pair.edited for pair in pairs],
        "prompts": [pair.instruction for pair in pairs],
        "metadatas": [{"requirement": "keep the rest"} for _ in pairs],
    }


def deepgen(pairs: Sequence[Pair]) -> dict:
    return {
        "images": {"source": [pair.source for pair in pairs], "edited": [pair.edited for pair in pairs]},
        "prompts": [pair.instruction for pair in pairs],
        "metadata": {},
    }


def editscore(pairs: Sequence[Pair]) -> dict:
    return {
        "input_images": [[picture(pair.source)] for pair in pairs],
        "output_image": [picture(pair.edited) for pair in pairs],
        "meta_datas": [json.dumps({"instruction": pair.instruction, "id": f"{n}"}) for n, pair in enumerate(pairs)],
        "server_type": "vlm",
    }


def _tensor(name: str, values: Sequence[str]) -> dict:
    return {"name": name, "shape": [len(values)], "datatype": "BYTES", "data": list(values)}


def kserve(pairs: Sequence[Pair]) -> dict:
    return {
        "id": "step-7",
        "inputs": [
            _tensor("source", [b64(pair.source) for pair in pairs]),
            _tensor("edited", [b64(pair.edited) for pair in pairs]),
            _tensor("instruction", [pair.instruction for pair in pairs]),
        ],
    }


def _part(data: bytes) -> dict:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{b64(data)}"}}


def rerank(pairs: Sequence[Pair]) -> dict:
    """Of pairs that share source and instruction."""
    return {
        "model": "jrm",
        "query": {"content": [_part(pairs[0].source), {"type": "text", "text": pairs[0].instruction}]},
        "documents": [{"content": [_part(pair.edited)]} for pair in pairs],
    }


def post_pickle(url: str, value: object, *, protocol: int | None = None, **options) -> httpx.Response:
    return httpx.post(url, content=pickle.dumps(value, protocol), timeout=60, **options)


def rewards_over(wire: str, url: str, pairs: Sequence[Pair]) -> list[float]:
    """The rewards of pairs that share source and instruction, in order, as the client of a wire finds them."""
    if wire == "unirl":
        found = httpx.post(f"{url}/score", json=unirl(pairs), timeout=60).json()
        return [next(iter(result["jrm"].values())) for result in found["results"]]
    if wire == "flow-factory":
        return httpx.post(f"{url}/compute", json=flow_factory(pairs), timeout=60).json()["rewards"]
    if wire == "kserve":
        found = httpx.post(f"{url}/v2/models/jrm/infer", json=kserve(pairs), timeout=60).json()
        return next(tensor["data"] for tensor in found["outputs"] if tensor["name"] == "reward")
    if wire == "rerank":
        results = httpx.post(f"{url}/v1/rerank", json=rerank(pairs), timeout=60).json()["results"]
        return [result["relevance_score"] for result in sorted(results, key=lambda result: result["index"])]
    if wire == "edit-r1":
        return pickle.loads(post_pickle(f"{url}/mode/logits_non_cot", edit_r1(pairs)).content)["scores"]
    if wire == "deepgen":
        return pickle.loads(post_pickle(url, deepgen(pairs)).content)["scores"]
    return pickle.loads(post_pickle(url, editscore(pairs)).content)["rewards"]


def rewards_of_score(url: str, pairs: Sequence[Pair]) -> list[float]:
    """The same through our own route."""
    groups = [
        {"source": b64(pair.source), "instruction": pair.instruction, "edits": [b64(pair.edited)]} for pair in pairs
    ]
    found = httpx.post(f"{url}/v1/score", json={"groups": groups}, timeout=60).json()
    return [group["scores"][0]["reward"] for group in found["groups"]]
