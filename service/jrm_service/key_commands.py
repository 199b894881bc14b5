"""``jrm key new | list``: the keys file of a server, from the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.table import Table

from jrm_client.terminal import print_table

from .api import keyfile
from .api.keys import SCOPES, Key, digest, is_name, new_secret, read_scopes
from .errors import KeysError

app = typer.Typer(
    help="API keys of a server: make one, list them.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,  # locals hold keys
)

_File = Annotated[Path, typer.Option("--file", help="The server's keys file.", envvar="JRM_API_KEYS_FILE")]


@app.command()
def new(
    name: Annotated[str, typer.Option(help="Name of its user; shown in the server's logs.")],
    file: _File,
    requests: Annotated[
        int | None, typer.Option(min=1, max=999_999_999, help="Most requests at once.", show_default="no limit")
    ] = None,
    candidates_per_minute: Annotated[
        int | None, typer.Option(min=1, max=999_999_999, help="Most candidates per minute.", show_default="no limit")
    ] = None,
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"What else it is allowed: {', '.join(SCOPES)}. Repeatable.", show_default="only scores"),
    ] = None,
) -> None:
    """Print a new key, once, and add its hash to the keys file.

    A running server accepts it from then on. Only the key is printed to stdout: KEY=$(jrm key new --name trainer-a).
    """
    if not is_name(name):
        raise typer.BadParameter("1 to 64 letters, digits, dots, dashes and underscores", param_hint="--name")
    try:
        scopes = read_scopes(",".join(scope)) if scope else ()
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--scope") from None
    secret = new_secret()
    try:
        keyfile.append(file, Key(name, digest(secret.encode()), requests, candidates_per_minute, scopes))
    except KeysError as error:
        _fail(error.problems)
    except OSError as error:
        _fail([f"{file}: {error.strerror}"])
    typer.echo(secret)
    typer.echo(f"added {name} to {file}; the key above is not stored anywhere, only its hash", err=True)


@app.command("list")
def list_keys(file: _File) -> None:
    """List the file's keys: names, beginnings of their hashes, limits and scopes, but never a key."""
    try:
        keys = keyfile.read(file)
    except KeysError as error:
        _fail(error.problems)
    table = Table("name", "sha256", "requests", "candidates per minute", "scope", box=None, pad_edge=False)
    for key in keys:
        limits = ("no limit" if limit is None else f"{limit:,}" for limit in (key.requests, key.candidates_per_minute))
        table.add_row(key.name, f"{key.digest.hex()[:12]}…", *limits, ", ".join(key.scopes))
    print_table(table)


def _fail(problems: list[str]) -> NoReturn:
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    raise typer.Exit(1)
