"""Start a server, score edits of one picture through the SDK, print the rewards, stop the server.

Run it with ``make demo``: a drawn scene, which is what the bundled checkpoint knows. Arguments go to ``jrm serve``;
with ``--checkpoint DIR`` the picture is a photograph.
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

import draw_scene
import make_edits
from jrm_client import GroupScores, JRMClient

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


def table(instruction: str, names: list[str], group: GroupScores) -> Table:
    """One row per candidate, best first."""
    dimensions = list(group.scores[0].dimensions)
    model = group.scores[0].model
    shown = Table(title=f"{model}: “{instruction}”", caption="mean ± standard deviation")
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
    """Score every edit of the picture as one group."""
    if "--checkpoint" in sys.argv:
        source, instruction = Image.open(make_edits.PHOTO).convert("RGB"), make_edits.INSTRUCTION
        candidates = make_edits.edits(source)
    else:
        source, instruction, candidates = draw_scene.source(), draw_scene.INSTRUCTION, draw_scene.edits()
    with server(*sys.argv[1:]) as url, JRMClient(url) as client:
        group = client.score_group(source, instruction, list(candidates.values()))
        Console().print(table(instruction, list(candidates), group))


if __name__ == "__main__":
    main()
