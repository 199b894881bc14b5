"""``jrm serve | settings | inspect | golden``, and the two imports. Heavy modules are imported inside the commands."""

from __future__ import annotations

import base64
import inspect as python_inspect
import io
import json
import logging
import os
import shlex
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError

from jrm_client.terminal import print_json, print_table

from .errors import CheckpointError, ExplainSetupError, KeysError, MissingExtra, RedisURLError, TracesError
from .import_commands import import_editreward as import_editreward
from .import_commands import import_hpsv3 as import_hpsv3
from .options import AllowPipelineDrift
from .service_links import service_links
from .settings import PREFIX, Settings

if TYPE_CHECKING:
    from .score_runtime import Parts
    from .scoring.types import ServedModel

logger = logging.getLogger(__name__)


def _settings_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one flag per setting, so that flags, environment variables and docs cannot drift apart."""
    parameters = []
    for name, field in Settings.model_fields.items():
        help_text = f"{field.description} (environment: {PREFIX}{name.upper()}; default: {field.default})"
        annotation = Annotated[
            str | None, typer.Option(f"--{name.replace('_', '-')}", help=help_text, show_default=False)
        ]
        parameters.append(
            python_inspect.Parameter(name, python_inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
        )
    command.__signature__ = python_inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


def _read_settings(flags: dict[str, str | None]) -> Settings:
    try:
        return Settings(**{name: value for name, value in flags.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        problems = [
            (".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, "))
            for problem in error.errors(include_url=False)
        ]
        _fail([f"{field}: {message}" if field else message for field, message in problems], code=2)


def _ignored_variables() -> str | None:
    links = service_links(os.environ)
    if not links:
        return None
    return f"ignored, because Kubernetes or Docker sets them for services of such names: {', '.join(links)}"


def _fail(lines: list[str], *, code: int = 1) -> NoReturn:
    for line in lines:
        typer.echo(f"error: {line}", err=True)
    raise typer.Exit(code)


@_settings_flags
def serve(**flags: str | None) -> None:
    """Serve a checkpoint over HTTP."""
    run(_read_settings(flags))


def run(settings: Settings, load: Callable[[], Parts] | None = None) -> NoReturn:
    """Serve until a signal; then exit, with 0 after a normal stop and 1 after a failure. ``load``: see create_app."""
    # With it, prometheus_client would keep its numbers in files, as servers of several processes need.
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)

    from . import logs
    from .app import create_app
    from .server import Server, listen

    logs.configure(settings.log_format)
    if note := _ignored_variables():
        logger.info(note)
    failures: list[BaseException] = []

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    def ready(model: ServedModel) -> None:
        server.open()
        _announce(url, model)

    try:
        app = create_app(settings, load=load, on_ready=ready, on_failed=failed)
    except (CheckpointError, ExplainSetupError, KeysError, MissingExtra, RedisURLError, TracesError) as error:
        _fail(error.problems)
    shared = settings.reuse_port
    server = Server(app, host=settings.host, port=settings.port, grace_s=settings.grace_s, reuse_port=shared)
    try:  # before loading, so that a port in use is reported at once
        listener = listen(settings.host, settings.port, reuse_port=shared)
    except OSError as error:
        _fail([str(error)])
    host, port = listener.getsockname()[:2]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    typer.echo(f"starting on {url}")
    server.run(sockets=[listener])
    for failure in failures:
        for problem in getattr(failure, "problems", None) or [str(failure)]:
            typer.echo(f"error: {problem}", err=True)
    _exit(1 if failures else 0)


def _exit(code: int) -> NoReturn:
    """End the process even if a thread cannot be stopped, because it still loads or hangs on its device.

    A normal interpreter shutdown would abort under such a thread, and a clean stop would look like a crash.
    """
    if any(thread.daemon and thread.name.startswith("jrm-") for thread in threading.enumerate()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    raise SystemExit(code)


def _announce(url: str, model: ServedModel) -> None:
    typer.echo(f"ready: {model.name} (fingerprint {model.fingerprint}) at {url}, API at {url}/docs. Try:\n")
    typer.echo(f"{curl_line(url, model)}\n")
    sys.stdout.flush()


def curl_line(url: str, model: ServedModel) -> str:
    """A self-contained ``curl`` command that scores one made-up edit, so that it works from any folder."""
    request = {"source": _square("red"), "edited": _square("blue"), "instruction": "make the red square blue"}
    if model.description.get("image", {}).get("max_sources") == 0:
        request = {"edited": _square("blue"), "instruction": "a blue square"}
    return f"curl -s {url}/score -H 'content-type: application/json' -d {shlex.quote(json.dumps(request))}"


def _square(color: str) -> str:
    from PIL import Image

    image = Image.new("RGB", (64, 64), "white")
    image.paste(color, (16, 16, 48, 48))
    buffer = io.BytesIO()
    image.quantize(4).save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


@_settings_flags
def settings(**flags: str | None) -> None:
    """Print the settings in force as JSON, secrets redacted."""
    in_force = _read_settings(flags)
    if note := _ignored_variables():
        typer.echo(f"note: {note}", err=True)
    typer.echo(json.dumps(in_force.model_dump(mode="json"), indent=2))  # ASCII: a path need not be valid Unicode


def inspect(
    checkpoint: Annotated[Path, typer.Argument(help="checkpoint folder")],
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    expect: Annotated[
        str | None, typer.Option(help="fail unless this is its fingerprint", metavar="FINGERPRINT", show_default=False)
    ] = None,
    allow_pipeline_drift: AllowPipelineDrift = False,
) -> None:
    """Describe a checkpoint, or print every problem that keeps it from being served."""
    from .model import golden
    from .model.checkpoint import open_checkpoint
    from .model.checkpoint_source import describe
    from .model.preprocessing_version import require_pinned

    try:
        require_pinned(allow_drift=allow_pipeline_drift)
        opened = open_checkpoint(checkpoint)
        tests = golden.read(opened)
        if tests is not None:
            golden.require_fingerprint(tests, opened)
    except CheckpointError as error:
        _fail(error.problems)
    if expect is not None and opened.fingerprint != expect:
        _fail([f"{checkpoint}: the fingerprint is {opened.fingerprint}, expected {expect}"])
    facts = {"name": opened.manifest.name, "fingerprint": opened.fingerprint, **describe(opened)}
    facts["golden"] = tests and {"cases": len(tests.cases), "tolerance": tests.tolerance.model_dump()}
    if as_json:
        print_json(facts, indent=2)
    else:
        _print_facts(facts)


def record_golden(
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder; reward/golden.json is written into it")],
    pairs: Annotated[
        Path | None,
        typer.Option(
            help='JSONL file of {"source": path or list of paths, "edited": path, "instruction": text}',
            show_default="a few drawn scenes",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="where to compute them, in float32")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="replace existing golden scores")] = False,
    allow_pipeline_drift: AllowPipelineDrift = False,
) -> None:
    """Record the golden scores that the server compares at start-up."""
    from .model import golden, golden_recording
    from .model.checkpoint import open_checkpoint
    from .model.devices import resolve_device
    from .model.preprocessing_version import require_pinned

    try:
        require_pinned(allow_drift=allow_pipeline_drift)
        opened = open_checkpoint(checkpoint)
        if (checkpoint / golden.FILE).exists() and not force:
            _fail([f"{golden.FILE}: is there already; --force replaces it"])
        examples = (
            golden_recording.drawn_examples(opened.manifest.max_sources)
            if pairs is None
            else golden_recording.read_examples(pairs)
        )
        recorded = golden_recording.record(opened, examples, device=resolve_device(device))
    except CheckpointError as error:
        _fail(error.problems)
    except (OSError, ValueError) as error:
        _fail(str(error).splitlines())
    allowed = ", ".join(f"{dtype} {value:g}" for dtype, value in recorded.tolerance)
    typer.echo(f"wrote {golden.FILE}: {len(recorded.cases)} cases of {recorded.fingerprint}, tolerance {allowed}")


def _print_facts(facts: dict[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column()
    for key, value in facts.items():
        table.add_row(key, Text(_plain(value)))
    print_table(table)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_plain(item).replace(chr(10), ', ')}" for key, item in value.items())
    if isinstance(value, list):
        return "\n".join(_plain(item).replace("\n", ", ") for item in value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
