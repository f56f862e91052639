"""``primia identity create | show``, ``primia token``, ``primia docs``"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast, get_args

import typer

from primia.chassis.identity import MAX_LIFETIME, Identity, Role, pages_audience
from primia.cli import output, profile
from primia.errors import InvalidInput, NotFound

app = typer.Typer(no_args_is_help=True)


@app.command()
@output.guarded
def create(
    name: str,
    role: Annotated[str, typer.Argument(help=", ".join(get_args(Role)))],
    key: Annotated[Path, typer.Option(help="where the private key goes")],
    url: Annotated[str | None, typer.Option(help="the service's address")] = None,
) -> None:
    """Make a key and print the enrolment that the others put into their principals directory."""
    if role not in get_args(Role):
        raise InvalidInput(f"There is no role {role}.", hint=f"One of {', '.join(get_args(Role))}.")
    identity = Identity.fresh(name)
    principal = identity.principal(cast(Role, role), url)
    identity.save(key)
    typer.echo(principal.model_dump_json(indent=2, exclude_none=True))


@app.command()
@output.guarded
def show(name: str, role: str, key: Annotated[Path, typer.Option()]) -> None:
    """Print the enrolment of an existing key."""
    principal = Identity.load(key, name).principal(cast(Role, role))
    typer.echo(principal.model_dump_json(indent=2, exclude_none=True))


@output.guarded
def token(
    service: Annotated[str, typer.Argument(help="the service that the token is for")],
    seconds: Annotated[int, typer.Option(min=1, max=MAX_LIFETIME)] = 300,
) -> None:
    """Print a bearer token for one service."""
    typer.echo(profile.load().identity().token(service, seconds))


@output.guarded
def docs(service: Annotated[str, typer.Argument(help="the service whose pages to open")]) -> None:
    """Print an address that opens the OpenAPI pages of a service in a browser."""
    known = profile.load()
    for each in known.services():
        if each.name == service:
            token = known.identity().token(pages_audience(service), MAX_LIFETIME)
            typer.echo(f"{each.url}/sign-in?token={token}")
            return
    names = ", ".join(each.name for each in known.services())
    raise NotFound(f"There is no service {service}.", hint=f"Known: {names}.")
