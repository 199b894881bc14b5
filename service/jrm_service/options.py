"""Command-line options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

AllowPipelineDrift = Annotated[
    bool,
    typer.Option(
        "--allow-pipeline-drift",
        envvar="JRM_ALLOW_PIPELINE_DRIFT",
        help="Accept libraries that produce other pixels or token ids; the fingerprint is then another one.",
    ),
]
