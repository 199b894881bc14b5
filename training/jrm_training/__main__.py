"""``python -m jrm_training``: what torchrun starts."""

import typer

from jrm_client.terminal import CommandGroup

from .annotate_command import annotate
from .evaluate_command import evaluate
from .train_commands import init, train, world

app = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False)
for command in (init, train, evaluate, world, annotate):
    app.command()(command)

if __name__ == "__main__":
    app()
