"""``jrm explain``: the critique of one edit in the terminal, and its regions on the image."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.live import Live

from .aio import DEFAULT_TIMEOUT
from .client import JRMClient
from .errors import JRMError
from .explain_report import Critiques, critique
from .explanations import ExplainEvent, Explanation
from .options import DEFAULT_URL, ApiKey, Images, NoSource, Source, Url, split_images
from .protocol import DEFAULT_MAX_TOKENS
from .terminal import console, print_json
from .wire import source_value


def explain(
    images: Images,
    instruction: Annotated[
        str, typer.Option("--instruction", "-i", help="The edit that was asked for.", show_default=False)
    ],
    source: Source = None,
    no_source: NoSource = False,
    dimension: Annotated[
        list[str] | None,
        typer.Option(help="What to explain; may be repeated.", show_default="all dimensions of the checkpoint"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Limit for each dimension.")] = DEFAULT_MAX_TOKENS,
    out: Annotated[
        Path | None,
        typer.Option(help="Where the edit with its regions drawn on it goes (PNG).", show_default="EDIT.explained.png"),
    ] = None,
    stream: Annotated[bool, typer.Option(help="Print the critique while it is written.")] = True,
    url: Url = None,
    api_key: ApiKey = None,
    timeout: Annotated[float, typer.Option(help="Seconds for the call.")] = DEFAULT_TIMEOUT,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what is right and wrong with an edit, in words and regions.

    jrm explain source.png edit.png -i "make the car red"

    The regions are drawn on a copy of the edit, saved beside it; --out names another file, which is written even if
    there are no regions. With regions in several dimensions there is a file for each, with the dimension in its name.

    Exit status: 0 if everything was explained, 1 if not, 2 for wrong usage.
    """
    sources, edits = split_images(images, source, no_source)
    if len(edits) != 1:
        raise typer.BadParameter("expected SOURCE EDITED --instruction TEXT")
    [edited] = edits
    if not edited.name:
        raise typer.BadParameter(f"{edited}: not a file")
    overlay = out or edited.with_name(f"{edited.stem}.explained.png")
    _check_output(overlay, [*sources, edited])
    try:
        with JRMClient(url or DEFAULT_URL, api_key=api_key, timeout=timeout) as client:
            if stream and not as_json:
                explanations = _show_stream(
                    client.explain_stream(
                        sources or None, edited, instruction, dimensions=dimension or None, max_tokens=max_tokens
                    )
                )
            else:
                explanations = client.explain(
                    sources or None, edited, instruction, dimensions=dimension or None, max_tokens=max_tokens
                )
                if not as_json:
                    shown = [critique(name, explanation) for name, explanation in explanations.items()]
                    console().print(*shown, sep="")
        overlays = _write_overlays(explanations, sources, edited, overlay, always=out is not None)
    except BrokenPipeError:
        raise  # stdout was closed
    except (JRMError, OSError, ValueError) as error:
        typer.echo(f"jrm explain: {error}", err=True)
        raise typer.Exit(1) from None
    if as_json:
        _print_json(sources, edited, instruction, explanations, overlays)
    else:
        for path in overlays.values():
            typer.echo(f"overlay: {path}")
    if any(explanation.status == "error" for explanation in explanations.values()):
        raise typer.Exit(1)


def _check_output(overlay: Path, inputs: Sequence[Path]) -> None:
    """Refuse a path that cannot be written; called before anything is sent, since a critique takes long."""
    if not overlay.parent.is_dir():
        raise typer.BadParameter(f"--out {overlay}: there is no such folder")
    if overlay.is_dir():
        raise typer.BadParameter(f"--out {overlay}: is a folder")
    if not os.access(overlay if overlay.exists() else overlay.parent, os.W_OK):
        raise typer.BadParameter(f"--out {overlay}: cannot be written")
    if overlay.exists() and any(path.exists() and overlay.samefile(path) for path in inputs):
        raise typer.BadParameter(f"--out {overlay}: that is an input, which is never overwritten")


def _show_stream(events: Generator[ExplainEvent, None, None]) -> dict[str, Explanation]:
    critiques = Critiques()
    with contextlib.closing(events):
        critiques.add(next(events))  # a refusal is raised here, before anything is shown
        with Live(critiques, console=console(), refresh_per_second=8):
            for event in events:
                critiques.add(event)
    return critiques.explanations


def _write_overlays(
    explanations: Mapping[str, Explanation], sources: Sequence[Path], edited: Path, path: Path, *, always: bool
) -> dict[str, Path]:
    """Return the files that were written, by dimension."""
    drawn = [name for name, explanation in explanations.items() if explanation.edit_regions]
    if always and not drawn:
        drawn = [name for name, explanation in explanations.items() if explanation.status != "error"][:1]
    written = {name: path if len(drawn) == 1 else path.with_stem(f"{path.stem}.{name}") for name in drawn}
    for name, target in written.items():
        _check_output(target, [*sources, edited])
        explanations[name].overlay(edited).save(target, "PNG")
    return written


def _print_json(
    sources: Sequence[Path],
    edited: Path,
    instruction: str,
    explanations: Mapping[str, Explanation],
    overlays: Mapping[str, Path],
) -> None:
    document = {
        "source": source_value([str(path) for path in sources]),
        "edited": str(edited),
        "instruction": instruction,
        "explanations": {
            name: explanation.model_dump(mode="json", exclude_none=True) for name, explanation in explanations.items()
        },
        "overlays": {name: str(path) for name, path in overlays.items()},
    }
    print_json(document)
