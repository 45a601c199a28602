"""The `notecast` command: one module a theme, `shell` is what they share."""

from __future__ import annotations

import sys

import typer
from rich.markup import escape

from pipeline.cli import connectors, fake, operate, run, set_up, use
from pipeline.cli.shell import errors
from pipeline.errors import PipelineError

app = typer.Typer(
    name="notecast",
    help="Meeting notes in; a voice people can hear while it is still being spoken, out.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for theme in (run, use, operate, connectors, set_up):
    app.add_typer(theme.app)
connectors.connectors_app.command("fake")(fake.connectors_fake)


def main() -> None:
    """Run the command line; errors are one sentence with a cause and a cure."""
    from connectors.errors import ConnectorError
    from engine.errors import EngineError
    from pipeline.endpoints import BadEndpoints
    from streaming.errors import StreamingError

    try:
        app()
    except (PipelineError, ConnectorError, EngineError, BadEndpoints, StreamingError) as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
