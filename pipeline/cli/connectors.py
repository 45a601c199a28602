"""`notecast connectors`: the tools that notes come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cli.shell import (
    AsJson,
    Connectors,
    Data,
    actor,
    console,
    opened,
    print_json,
    show_rows,
    show_table,
)
from pipeline.settings import load_settings

app = typer.Typer()


connectors_app = typer.Typer(help="The tools that notes come from.", no_args_is_help=True)
app.add_typer(connectors_app, name="connectors", rich_help_panel="Operate")

Endpoint = Annotated[str, typer.Argument(metavar="ENDPOINT", help="Its name in connectors.toml.")]
OneEndpoint = Annotated[
    str, typer.Argument(metavar="[ENDPOINT]", help="Its name in connectors.toml; all without one.")
]


@connectors_app.command("list")
def connectors_list(
    connectors: Connectors = None, data: Data = None, as_json: AsJson = False
) -> None:
    """List endpoints, and check that connectors.toml can be used."""
    from pipeline.services import Services, connectors_file

    settings = load_settings(data=data, connectors=connectors)
    found = [
        {"endpoint": one.name, "connector": one.connector.name, "hook": f"/hooks/{one.address}"}
        for one in Services(settings).endpoints.values()
    ]
    show_rows(f"Endpoints of {connectors_file(settings) or 'no connectors.toml'}", found, as_json)


@connectors_app.command("check")
def connectors_check(
    endpoint: OneEndpoint = "",
    connectors: Connectors = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Ask each tool: do the columns exist, may we read and write, what would be spoken?"""
    from pipeline import connector_tools
    from pipeline.services import Services

    services = Services(load_settings(data=data, connectors=connectors))
    wanted = [services.named_endpoint(endpoint)] if endpoint else services.endpoints.values()
    found = [connector_tools.check(one) for one in wanted]
    crowded = connector_tools.crowded_schedules(services)
    if as_json:
        print_json([one.to_dict() for one in found])
    else:
        for one in found:
            _show_checked(one)
        for remark in crowded:
            console.print(f"remark: {remark}", markup=False, highlight=False)
    if any(one.problems for one in found):
        raise typer.Exit(1)


def _show_checked(one: Any) -> None:
    columns = [(column.name, column.id, column.kind) for column in one.columns]
    if columns:
        show_table(f"Columns of {one.endpoint}", ("column", "id", "holds"), columns)
    if one.reads:
        show_table(f"What {one.endpoint} would read", ("field", "value"), one.reads)
    if one.writes:
        show_table(f"What {one.endpoint} would write", ("column", "value"), one.writes)
    for problem in one.problems:
        console.print("[red]problem[/red]", end=" ")
        console.print(problem, markup=False, highlight=False)
    for remark in one.remarks:
        console.print(f"remark: {remark}", markup=False, highlight=False)
    if not one.problems:
        console.print(f"{one.endpoint}: good", markup=False, highlight=False)


@connectors_app.command("status")
def connectors_status(
    endpoint: OneEndpoint = "", data: Data = None, as_json: AsJson = False
) -> None:
    """When each endpoint was heard, walked and renewed last; what waits, and what is wrong."""
    from pipeline import connector_tools

    with opened(data) as services:
        found = connector_tools.status(services, endpoint)
        if as_json:
            print_json(found)
            return
        show_table(
            "Endpoints",
            ("endpoint", "last hook", "last walk", "lag", "next upkeep", "rows waiting", "wrong"),
            [
                (
                    one["endpoint"],
                    one["heard"],
                    one["walked"],
                    one["lag"],
                    one["next_upkeep"],
                    one["waiting"],
                    "\n".join(alarm["message"] for alarm in one["alarms"]),
                )
                for one in found
            ],
        )
        secrets = [(one["endpoint"], secret) for one in found for secret in one["secrets"]]
        if secrets:
            show_table(
                "Secrets",
                ("endpoint", "secret", "state", "last verified", "value"),
                [
                    (name, secret["label"], secret["state"], secret["verified"], secret["value"])
                    for name, secret in secrets
                ],
            )
        if any(secret["state"] == "pending" for _, secret in secrets):
            console.print("accept one with: notecast connectors rotate ENDPOINT --accept")


@connectors_app.command("backfill")
def connectors_backfill(
    endpoint: Endpoint,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what a walk would find; change nothing.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Begin at the first row, not where the last walk ended.")
    ] = False,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Look through the table for rows that are ready and were missed."""
    from pipeline import connector_tools

    with opened(data) as services:
        if dry_run:
            found = connector_tools.preview(services, endpoint, everything=everything)
            show_rows(f"What a walk over {endpoint} would find", found, as_json)
            return
        outcome = connector_tools.backfill(
            services, endpoint, actor=actor(), everything=everything, console=console
        )
    if as_json:
        print_json(outcome)
    else:
        text = f"{endpoint}: walked, {outcome['found']} rows are new"
        console.print(text, markup=False, highlight=False)


@connectors_app.command("replay")
def connectors_replay(
    fixture: Annotated[Path, typer.Argument(help="A fixture, or a file with a body.")],
    to: Annotated[str, typer.Option("--to", help="Address: http://localhost:8080/hooks/NAME.")],
    connectors: Connectors = None,
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Sign a fixture with an endpoint's own secret and post it to a running server."""
    from pipeline import connector_tools
    from pipeline.services import Services

    services = Services(load_settings(data=data, connectors=connectors))
    outcome = connector_tools.replay(services, fixture, to)
    if as_json:
        print_json(outcome)
    else:
        text = f"{outcome['status']} {outcome['answer']}"
        console.print(text, markup=False, highlight=False)
    if outcome["status"] >= 400:
        raise typer.Exit(1)


@connectors_app.command("rotate")
def connectors_rotate(
    endpoint: Endpoint,
    accept: Annotated[
        bool, typer.Option("--accept", help="Accept a secret that a handshake left.")
    ] = False,
    retire: Annotated[
        str, typer.Option("--retire", metavar="LABEL", help="Forget an accepted secret.")
    ] = "",
    label: Annotated[
        str, typer.Option("--label", help="Which pending secret, if there are several.")
    ] = "",
    data: Data = None,
    as_json: AsJson = False,
) -> None:
    """Change over to another secret: make one, accept a pending one, or forget an old one.

    Without an option a new secret is printed, with what to do with it.
    """
    from pipeline import connector_tools

    with opened(data) as services:
        if accept:
            done = connector_tools.accept_secret(services, endpoint, label, actor=actor())
        elif retire:
            done = connector_tools.retire_secret(services, endpoint, retire, actor=actor())
        else:
            done = connector_tools.new_secret(services, endpoint)
    if as_json:
        print_json(done)
        return
    for line in done["steps"]:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
