"""The options that the client's commands share."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

DEFAULT_URL = "http://127.0.0.1:8000"

Url: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(help="The server; several with commas, or repeated.", envvar="JRM_URL", show_default=DEFAULT_URL),
]
ApiKey: TypeAlias = Annotated[
    str | None, typer.Option(help="Sent as a bearer token.", envvar="JRM_API_KEY", show_default=False)
]
