"""Start a server, score edits of one photograph through the SDK, print the rewards, stop the server.

Run it with ``make demo``; extra arguments go to ``jrm serve`` (for example ``--checkpoint DIR``).
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.table import Table

from jrm_client import GroupScores, JRMClient
from make_edits import INSTRUCTION, PHOTO, edits

JRM = Path(sys.executable).with_name("jrm")


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """URL of a server of our own on a free port, which ends with the block."""
    command = [str(JRM), "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.match(r"ready: .* at (http://\S+),", line):
                    yield found[1]
                    return
            raise SystemExit("the server did not become ready")
        finally:
            process.terminate()


def table(names: list[str], group: GroupScores) -> Table:
    """One row per candidate, best first."""
    dimensions = list(group.scores[0].dimensions)
    model = group.scores[0].model
    caption = "random weights: the numbers mean nothing" if "untrained" in model else "mean ± standard deviation"
    shown = Table(title=f"{model}: “{INSTRUCTION}”", caption=caption)
    for header in ("candidate", *dimensions, "reward"):
        shown.add_column(header, justify="left" if header == "candidate" else "right")
    for index in reversed(group.rewards.argsort()):
        score = group.scores[index]
        cells = [_number(score.dimensions[name].mean, score.dimensions[name].std) for name in dimensions]
        shown.add_row(names[index], *cells, _number(score.reward, score.reward_std))
    return shown


def _number(mean: float, std: float | None) -> str:
    return f"{mean:+.3f}" + (f" ± {std:.3f}" if std is not None else "")


def main() -> None:
    """Score every edit of the photograph as one group."""
    candidates = edits(Image.open(PHOTO))
    with server(*sys.argv[1:]) as url, JRMClient(url) as client:
        group = client.score_group(PHOTO, INSTRUCTION, list(candidates.values()))
        Console().print(table(list(candidates), group))


if __name__ == "__main__":
    main()
