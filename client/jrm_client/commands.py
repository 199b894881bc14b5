"""The commands of ``jrm`` that come from other packages, found by entry point and imported only when needed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import typer

from .terminal import CommandGroup

GROUP = "jrm.commands"

# The extra that installs what a command needs: by the missing module, else by the package that the command is in.
_EXTRA_OF_MODULE = {"vllm": "explain"}
_EXTRA_OF_PACKAGE = {"jrm_service": "service", "jrm_training": "train"}


class Commands(CommandGroup):
    """A command group that also has the entry points of ``jrm.commands``.

    They are plain functions with typer parameters, or a ``typer.Typer`` with commands of its own. A command that cannot
    be imported, or a function that lacks a module while it runs, says which extra installs it and exits with 1.
    """

    # Typer vendors click from 0.27 on and depends on it before: neither's types can be named here.
    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the built-in commands, then of the others."""
        own = super().list_commands(ctx)
        return [*own, *(name for name in sorted(_points()) if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, importing it if it is not built in; None for an unknown name."""
        own = super().get_command(ctx, cmd_name)
        point = _points().get(cmd_name)
        return own if own is not None or point is None else _load(point)


@functools.cache
def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def _load(point: EntryPoint) -> Any:
    app = typer.Typer(add_completion=False)
    try:
        function = point.load()
    except ModuleNotFoundError as error:
        message = _missing(point, error)

        def unavailable() -> None:
            typer.echo(message, err=True)
            raise typer.Exit(1)

        anything = {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command(point.name, help=f"Not installed. {message}", context_settings=anything)(unavailable)
    else:
        if isinstance(function, typer.Typer):
            return typer.main.get_group(function)
        app.command(point.name)(_guarded(function, point))
    return typer.main.get_command(app)


def _guarded(function: Callable[..., Any], point: EntryPoint) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ModuleNotFoundError as error:
            typer.echo(_missing(point, error), err=True)
            raise typer.Exit(1) from None

    return run


def _missing(point: EntryPoint, error: ModuleNotFoundError) -> str:
    module = (error.name or "").partition(".")[0]
    extra = _EXTRA_OF_MODULE.get(module) or _EXTRA_OF_PACKAGE.get(point.module.partition(".")[0])
    if extra is None:
        return f"jrm {point.name} needs the Python module {module}, which is not installed"
    return f"jrm {point.name} needs {module}: pip install 'jrm-serve[{extra}]'"
