"""The server's settings: flags override ``JRM_…`` environment variables, which override the defaults here."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import Field, SecretStr, field_serializer, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from .cpus import usable_cpus
from .service_links import service_links

PREFIX = "JRM_"
# The client reads these from the same environment; they are not the server's.
CLIENT_VARIABLES = {
    "JRM_URL",
    "JRM_API_KEY",
    "JRM_EDITED",
    "JRM_SOURCE",
    "JRM_INSTRUCTION",
    "JRM_SOURCE_ROOT",
    "JRM_TIMEOUT",
    "JRM_FINGERPRINT",
}

MiB = 2**20
_MAX_THREADS = 256
WIRES = ("unirl", "flow-factory", "kserve", "rerank", "edit-r1", "deepgen", "editscore")
"""The wire formats that can be enabled in addition to our own; see the package ``wires``."""
_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, le=31_536_000, allow_inf_nan=False)]  # a year: clocks overflow far beyond


class Settings(BaseSettings):
    """All settings of the server. Unknown ``JRM_…`` variables are refused: a misspelt limit would be no limit."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", env_ignore_empty=True, hide_input_in_errors=True
    )

    checkpoint: Annotated[
        Path | None, Field(description="JRM checkpoint folder; the bundled tiny one when not given")
    ] = None
    backend: Annotated[
        Literal["model", "fake"],
        Field(description="'fake' answers instantly with made-up scores, for integration tests"),
    ] = "model"
    host: Annotated[str, Field(min_length=1, description="address to listen on")] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535, description="port to listen on; 0 picks a free one")] = 8000
    reuse_port: Annotated[
        bool, Field(description="share the port with other servers that set it too, each with devices of its own")
    ] = False
    device: Annotated[
        str, Field(pattern=r"^[a-z0-9:,]+$", description="auto, cpu, cuda:0, or several: cuda:0,cuda:1")
    ] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Field(description="backbone dtype; auto is bfloat16 on a GPU, float32 on a CPU. Heads are always float32"),
    ] = "auto"
    quantize: Annotated[
        Literal["none", "fp8"],
        Field(description="'fp8' computes the language model's linear layers in 8 bits, on a GPU that supports it"),
    ] = "none"
    fused_layers: Annotated[
        bool, Field(description="replace layers by fused ones on a GPU, if they are verified at start-up")
    ] = True
    cuda_graphs: Annotated[
        bool, Field(description="record the kernels of short rows as CUDA graphs, if they are verified at start-up")
    ] = True
    gpu_share: Annotated[
        float, Field(gt=0, le=1, description="share of a GPU's memory that a scoring worker may take in total")
    ] = 1.0
    engine: Annotated[
        Literal["trie", "plain"],
        Field(description="'trie' computes what candidates share once; 'plain', the reference, shares nothing"),
    ] = "trie"
    self_test: Annotated[
        bool, Field(description="compare the checkpoint's golden scores at start-up, and refuse to serve wrong ones")
    ] = True
    allow_pipeline_drift: Annotated[
        bool,
        Field(description="accept libraries that produce other pixels or token ids; the fingerprint then differs"),
    ] = False
    serve: Annotated[Literal["score", "explain", "score,explain"], Field(description="what this process serves")] = (
        "score"
    )
    wires: Annotated[
        str, Field(description=f"wire formats to accept in addition to our own: none, or some of {', '.join(WIRES)}")
    ] = "unirl,flow-factory,kserve,rerank"
    wire_scale: Annotated[
        str, Field(description="NAME=normalized,…: wires that send normalized rewards; the others send raw ones")
    ] = ""
    reward_names: Annotated[
        str, Field(description="further names that trainers' requests may use for the reward: editreward,…")
    ] = ""
    api_keys_file: Annotated[
        Path | None, Field(description="file of API keys, reloaded when it changes; without it, no key is required")
    ] = None
    admin: Annotated[
        bool, Field(description="serve /v1/sleep, /v1/wake and /v1/reload; with API keys, for the scope admin")
    ] = False
    reload_root: Annotated[
        Path | None, Field(description="folder of the checkpoints that /v1/reload may load; without it, none")
    ] = None
    when_sleeping: Annotated[
        Literal["wait", "refuse"],
        Field(description="what requests do while the server sleeps: wait until their deadline, or get a 503"),
    ] = "wait"
    page: Annotated[bool, Field(description="show browsers a page at / to try edits on and to look at rewards")] = True
    keep_recent: Annotated[
        int, Field(ge=0, le=100_000, description="groups kept in memory, with pictures, for /v1/watch; 0 keeps none")
    ] = 0
    keep_recent_mb: Annotated[
        int, Field(ge=1, le=65_536, description="memory for what is kept for /v1/watch, in MB (10^6 bytes)")
    ] = 64
    log_format: Annotated[
        Literal["text", "json"], Field(description="format of log lines on stderr; one line per request")
    ] = "text"

    otlp_endpoint: Annotated[
        str | None, Field(description="http:// or https:// URL of an OpenTelemetry collector that gets the traces")
    ] = None

    max_body_bytes: Annotated[_Count, Field(description="largest request body, in bytes")] = 64 * MiB
    max_candidates: Annotated[_Count, Field(description="most candidates in one request")] = 1024
    max_requests: Annotated[_Count, Field(description="most requests that run at once, all callers")] = 4096
    max_instruction_chars: Annotated[_Count, Field(description="longest instruction, in characters")] = 8192
    max_image_pixels: Annotated[_Count, Field(description="largest image, in pixels by its header")] = 32_000_000
    max_bodies_bytes: Annotated[_Count, Field(description="budget of all request bodies, in bytes")] = 1024 * MiB
    body_timeout_s: Annotated[_Seconds, Field(description="seconds without a byte of the body before 408")] = 10.0
    body_total_timeout_s: Annotated[_Seconds, Field(description="seconds for a whole body before 408")] = 120.0
    max_queue: Annotated[_Count, Field(description="most candidates admitted and not yet finished, all callers")] = 4096
    max_batch_tokens: Annotated[
        _Count | None, Field(description="token budget of one batch; by default what fits a GPU, 16,384 on a CPU")
    ] = None
    max_decoded_bytes: Annotated[_Count, Field(description="budget of decoded image bytes in flight")] = 512 * MiB
    max_prepared_bytes: Annotated[_Count, Field(description="budget of resized image bytes in flight")] = 1024 * MiB
    preprocess_threads: Annotated[
        _Count, Field(le=_MAX_THREADS, description="threads that decode, resize and tokenize")
    ] = min(usable_cpus(), _MAX_THREADS)
    hang_timeout_s: Annotated[_Seconds, Field(description="seconds after which a silent device counts as hung")] = 120.0
    start_timeout_s: Annotated[
        _Seconds, Field(description="seconds that a worker may take to load, warm up and test itself")
    ] = 1800.0
    grace_s: Annotated[_Seconds, Field(description="seconds that running requests get on shutdown")] = 60.0

    cache_entries: Annotated[int, Field(ge=0, description="scores kept in this process; 0 keeps none")] = 16_384
    redis_url: Annotated[
        SecretStr | None,
        Field(description="redis:// or rediss:// URL of a Redis that replicas share"),
    ] = None
    redis_prefix: Annotated[str, Field(pattern=r"^[!-~]{0,64}$", description="prefix of all keys in Redis")] = "jrm:"
    redis_timeout_s: Annotated[
        float, Field(gt=0, le=10, description="the longest that Redis may delay a request, in seconds")
    ] = 0.1
    cache_ttl_s: Annotated[_Count, Field(description="seconds after which a score expires in Redis")] = 604_800

    explain_max_tokens: Annotated[_Count, Field(description="longest critique, in tokens")] = 1024
    explain_max_requests: Annotated[_Count, Field(description="most explain requests at once, all callers")] = 64
    explain_concurrency: Annotated[_Count, Field(description="critiques written at the same time")] = 16
    explain_context: Annotated[
        _Count, Field(description="longest prompt and critique together, in tokens; at most the model's")
    ] = 8192
    explain_gpu_share: Annotated[float, Field(gt=0, le=1, description="share of the GPU's memory for vLLM")] = 0.45
    explain_cache_gib: Annotated[
        float, Field(gt=0, allow_inf_nan=False, description="vLLM's cache on a CPU, in GiB")
    ] = 1.0

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_variables(cls, values: Any) -> Any:
        known = {PREFIX + name.upper() for name in cls.model_fields} | CLIENT_VARIABLES
        links = service_links(os.environ)
        names = (name for name in os.environ if name.upper().startswith(PREFIX) and name not in links)
        unknown = sorted(name for name in names if name.upper() not in known)
        if unknown:
            name = unknown[0].encode(errors="backslashreplace").decode()  # it need not be valid Unicode
            raise ValueError(f"unknown environment variable {name}; `jrm settings` lists the known ones")
        for name in links:  # JRM_PORT=tcp://…
            setting = name.removeprefix(PREFIX).lower()
            if isinstance(values, dict) and values.get(setting) == os.environ[name]:
                values.pop(setting)
        return values

    @field_validator("checkpoint", "api_keys_file", "reload_root", mode="before")
    @classmethod
    def _path_is_given(cls, path: Any) -> Any:
        if path == "":
            raise ValueError("is empty")
        return path

    @field_validator("redis_url")
    @classmethod
    def _redis_url_is_one(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None and not _is_redis_url(url.get_secret_value()):
            raise ValueError("must be redis://HOST:PORT/DATABASE, with rediss:// for TLS and special characters as %XX")
        return url

    @field_validator("otlp_endpoint")
    @classmethod
    def _otlp_endpoint_is_one(cls, url: str | None) -> str | None:
        if url is not None and not _is_http_url(url):
            raise ValueError("must be http://HOST:PORT or https://…; credentials go into OTEL_EXPORTER_OTLP_HEADERS")
        return url

    @field_validator("wires")
    @classmethod
    def _wires_are_known(cls, wires: str) -> str:
        names = _names(wires) if wires != "none" else []
        unknown = [name for name in names if name not in WIRES]
        if unknown:
            raise ValueError(f"no wire is called '{unknown[0][:64]}'; there are {', '.join(WIRES)}, or none")
        return wires

    @field_validator("reward_names")
    @classmethod
    def _reward_names_are_names(cls, names: str) -> str:
        for name in _names(names):
            if not re.fullmatch(r"[\w.:-]{1,64}", name, re.ASCII):
                raise ValueError(f"'{name[:64]}' is no name: letters, digits, dots, colons, hyphens and underscores")
        return names

    @field_serializer("redis_url")
    def _redact(self, url: SecretStr | None) -> str | None:
        """The URL without its secrets: user, password and options."""
        if url is None:
            return None
        parts = urlsplit(url.get_secret_value())
        _, credentials, address = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc="***@" * bool(credentials) + address, query="***" * bool(parts.query)))

    @model_validator(mode="after")
    def _request_fits_queue(self) -> Self:
        if self.max_candidates > self.max_queue:
            raise ValueError(
                f"max_candidates {self.max_candidates} could never be admitted: max_queue is {self.max_queue}"
            )
        return self

    @model_validator(mode="after")
    def _admin_is_on_for_reload(self) -> Self:
        if self.reload_root is not None and not self.admin:
            raise ValueError("reload_root has no effect without admin")
        return self

    @model_validator(mode="after")
    def _scaled_wires_are_on(self) -> Self:
        scaled = [pair.partition("=")[0] for pair in _names(self.wire_scale)]
        for pair in _names(self.wire_scale):
            name, _, scale = pair.partition("=")
            if scaled.count(name) > 1:
                raise ValueError(f"wire_scale: '{name[:64]}' is there twice")
            if scale not in ("raw", "normalized"):
                raise ValueError(f"wire_scale: '{pair[:64]}' is neither NAME=normalized nor NAME=raw")
            if name not in self.wire_names:
                raise ValueError(f"wire_scale: the wire '{name[:64]}' is not on; wires is {self.wires}")
        return self

    @property
    def wire_names(self) -> list[str]:
        """The wires that are on."""
        return [] if self.wires == "none" else _names(self.wires)

    @property
    def normalized_wires(self) -> list[str]:
        """The wires that send normalized rewards."""
        return [name for name in self.wire_names if f"{name}=normalized" in _names(self.wire_scale)]

    @property
    def reward_name_list(self) -> list[str]:
        """Names of the reward in addition to ``jrm`` and the checkpoint's own."""
        return _names(self.reward_names)

    @property
    def serves_score(self) -> bool:
        """Whether this process scores."""
        return "score" in self.serve.split(",")

    @property
    def serves_explain(self) -> bool:
        """Whether this process writes critiques."""
        return "explain" in self.serve.split(",")

    @property
    def devices(self) -> list[str]:
        """Device names as given, one worker each."""
        return self.device.split(",")


def _names(text: str) -> list[str]:
    """The names in a comma-separated list, each once."""
    return list(dict.fromkeys(name for piece in text.split(",") if (name := piece.strip())))


def _is_http_url(url: str) -> bool:
    """Whether it is an HTTP URL without credentials, since this setting is shown."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = "@" not in parts.netloc and not parts.query and not parts.fragment
    return bool(parts.scheme in ("http", "https") and parts.hostname and port != 0 and plain)


def _is_redis_url(url: str) -> bool:
    """Whether it is a Redis URL in which no part would be misread or ignored."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    known = parts.scheme in ("redis", "rediss") and parts.hostname and port != 0
    return bool(known and re.fullmatch(r"(/\d*)?", parts.path, re.ASCII) and not parts.fragment)
