"""The command-line options that ``jrm score`` and ``jrm explain`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

Url: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        help="URL of the server; may be repeated, or hold several with commas.",
        envvar="JRM_URL",
        show_default=DEFAULT_URL,
    ),
]
Images: TypeAlias = Annotated[
    list[Path] | None,
    typer.Argument(help="The source image, then its edits.", show_default=False),
]
Source: TypeAlias = Annotated[
    list[Path] | None,
    typer.Option(help="A source image; repeated for several. Every argument is then an edit.", show_default=False),
]
NoSource: TypeAlias = Annotated[
    bool, typer.Option("--no-source", help="There is no source: for a text-to-image checkpoint.")
]
ApiKey: TypeAlias = Annotated[
    str | None, typer.Option(help="Sent as a bearer token.", envvar="JRM_API_KEY", show_default=False)
]


def split_images(
    images: list[Path] | None, source: list[Path] | None, no_source: bool
) -> tuple[list[Path], list[Path]]:
    """Return the sources and the edits of a command line. Raises typer.BadParameter for contradicting options."""
    if source and no_source:
        raise typer.BadParameter("--source and --no-source contradict each other")
    paths = images or []
    return (source or [], paths) if source or no_source else (paths[:1], paths[1:])
