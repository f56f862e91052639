"""``primia``: the command line of users, operators and of the demonstration."""

from __future__ import annotations

import typer

from primia.cli import (
    dataset,
    demo,
    grid,
    identity,
    infer,
    models,
    nodes,
    privacy,
    programs,
    rounds,
    search,
    simulate,
)

EPILOG = "The grid of this directory is meant, or the services of PRIMIA_PROFILE (a TOML file)."


def create_app() -> typer.Typer:
    app = typer.Typer(
        name="primia",
        help="Federated training and encrypted inference on medical images.",
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.add_typer(grid.app, name="grid", help="The grid of one machine: every service, embedded.")
    app.add_typer(models.app, name="models", help="Models of the model owner.")
    app.add_typer(nodes.app, name="nodes", help="Data nodes that the model owner knows.")
    app.add_typer(dataset.app, name="dataset", help="Data sets of a data node.")
    app.add_typer(rounds.app, name="rounds", help="Federated training runs.")
    app.add_typer(search.app, name="search", help="Search for hyperparameters over a federation.")
    app.add_typer(privacy.app, name="privacy", help="What training has cost in privacy.")
    app.add_typer(programs.app, name="programs", help="Models of owners' own, to be approved.")
    app.add_typer(identity.app, name="identity", help="Keys and enrolment.")
    app.command("infer")(infer.infer)
    app.command("simulate")(simulate.simulate)
    app.command("token")(identity.token)
    app.command("docs")(identity.docs)
    app.command("demo")(demo.demo)
    return app


def main() -> None:
    create_app()()
