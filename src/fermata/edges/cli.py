"""The command `fermata`: serve, worker, demo, keys, version."""

import asyncio
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

import fermata
from fermata.edges.cli_keys import keys, link
from fermata.edges.options import read_settings, settings_options
from fermata.kit.errors import ErrorKind, FermataError

#: Exit statuses by kind of error; anything else is 1. The numbers are those of sysexits(3).
EXIT: dict[ErrorKind, int] = {
    ErrorKind.INVALID: 64,
    ErrorKind.NOT_FOUND: 66,
    ErrorKind.UPSTREAM: 69,
    ErrorKind.UNAVAILABLE: 69,
    ErrorKind.INTERNAL: 70,
    ErrorKind.TIMEOUT: 75,
    ErrorKind.UNAUTHENTICATED: 77,
    ErrorKind.FORBIDDEN: 77,
}


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cli() -> None:
    """Sandboxed agent sessions on your own machine."""


@cli.command()
@settings_options
@click.option("--host", help="Address to listen on. Default: 127.0.0.1")
@click.option("--port", help="Port to listen on. Default: 8000")
def serve(config: Path | None, **flags: str | None) -> None:
    """Start the server."""
    from fermata.edges.http.server import serve as serve_http

    serve_http(read_settings(config, **flags))


@cli.command()
@settings_options
def worker(config: Path | None, **flags: str | None) -> None:
    """Work on turns and sandboxes beside other processes, without HTTP. Needs PostgreSQL."""
    from fermata.edges.worker import work

    run(work(read_settings(config, **flags)))


@cli.command()
@click.option("--keep", is_flag=True, help="Leave the data directory in place at the end.")
def demo(keep: bool) -> None:
    """Play the whole journey against a server started for it, with times."""
    from fermata.edges.demo import play

    sys.exit(play(keep=keep))


cli.add_command(keys)
cli.add_command(link)


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"fermata {fermata.__version__}")


def main() -> None:
    try:
        cli(standalone_mode=False)
    except FermataError as error:
        click.echo(f"fermata: {error.message}", err=True)
        sys.exit(EXIT.get(error.kind, 1))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)


if __name__ == "__main__":
    main()
