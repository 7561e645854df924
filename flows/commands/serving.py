"""serve and workers: the processes that stay."""

import argparse

from flows.commands.options import Nouns, command, settings_of
from flows.commands.terminal import Terminal


def register(nouns: Nouns, common: argparse.ArgumentParser) -> None:
    """Add the commands."""
    parser = command(nouns, common, "serve", serve, "run everything on this machine: labeling page, API, actors, flows")
    parser.add_argument("--host", help="address to listen on (127.0.0.1); others require tokens")
    parser.add_argument("--port", type=int, help="port to listen on (8700); 0 for any free one")
    command(nouns, common, "workers", workers, "own the actors in the Ray cluster that CLICKLOOP_RAY_ADDRESS names")


def serve(args: argparse.Namespace) -> int:
    """Run the supervisor until SIGTERM or Ctrl-C."""
    from flows import supervisor

    terminal = Terminal.of(args)
    return supervisor.serve(
        settings_of(args, host=args.host, port=args.port),
        on_ready=lambda url: terminal.result({"url": url}, [f"Serving at {url} (Ctrl-C ends it)."]),
    )


def workers(args: argparse.Namespace) -> int:
    """Run the owner of the actors."""
    from workers import cluster

    return cluster.own(settings_of(args))
