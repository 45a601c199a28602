"""`notecast connectors`: the tools that notes come from."""

from __future__ import annotations

import typer

from pipeline.cli.shell import AsJson, Connectors, Data, show_rows
from pipeline.settings import load_settings

app = typer.Typer()


connectors_app = typer.Typer(help="The tools that notes come from.", no_args_is_help=True)
app.add_typer(connectors_app, name="connectors", rich_help_panel="Operate")


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
