"""``jrm calibrate``: fit ``reward.normalize``, write it into a checkpoint. Heavy imports happen inside the command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .errors import CheckpointError
from .options import AllowPipelineDrift


def calibrate(
    checkpoint: Annotated[Path, typer.Option(help="checkpoint folder; its manifest is changed")],
    scores: Annotated[Path, typer.Option(help="output of `jrm score --jsonl` for this checkpoint, 100 rows or more")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print the fitted scale, change nothing")] = False,
    allow_pipeline_drift: AllowPipelineDrift = False,
) -> None:
    """Fit reward.normalize on scores: the median becomes 0.5, the quartiles lie around 0.25 and 0.75."""
    from .model import calibration
    from .model.checkpoint import open_checkpoint
    from .model.preprocessing_version import require_pinned

    try:
        require_pinned(allow_drift=allow_pipeline_drift)
        opened = open_checkpoint(checkpoint)
        fitted = calibration.fit(calibration.read_rewards(scores, opened))
        typer.echo(f"{fitted.scores} scores: center {fitted.scale.center:g}, scale {fitted.scale.scale:g}")
        for level, (reward, normalized) in fitted.quantiles.items():
            typer.echo(f"{level:5.0%} of the rewards lie below {reward:.4g}, which becomes {normalized:.3f}")
        if dry_run:
            return
        written = calibration.write_scale(opened, fitted.scale)
    except CheckpointError as error:
        problems = error.problems
    except (OSError, ValueError) as error:
        problems = str(error).splitlines()
    else:
        typer.echo(
            f"wrote {calibration.MANIFEST}; the fingerprint was {opened.fingerprint} and is now {written.fingerprint}: "
            "clients that pin it, and caches of scores, treat this as another checkpoint"
        )
        return
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)
