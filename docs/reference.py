"""Write docs/reference.md from the code: settings, errors, events, commands. `python docs/reference.py [--check]`."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flows.cli import build_parser
from schemas.errors import ClickloopError
from schemas.events import PAYLOADS
from schemas.settings import Settings
from workers.api.errors import STATUS

PAGE = Path(__file__).with_name("reference.md")


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


def _errors(cls: type[ClickloopError]) -> list[type[ClickloopError]]:
    return [cls, *(e for sub in cls.__subclasses__() for e in _errors(sub))]


def _commands(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """Every leaf command with its options, depth first."""
    groups: list[Any] = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    if not groups:
        return [(parser.prog, parser.format_usage().replace("usage: ", "").strip())]
    return [row for sub in groups[0].choices.values() for row in _commands(sub)]


def render() -> str:
    """The page as Markdown."""
    lines = ["# Reference", "", "Written by `python docs/reference.py`; compared with the code by the tests.", ""]
    lines += ["## Settings", "", "Environment variables, or keys (without the prefix, lower case) of the TOML file"]
    lines += ["that `CLICKLOOP_CONFIG` names.", "", "| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        shown = json.dumps(field.default) if isinstance(field.default, list) else field.default
        default = "" if shown in ("", None) else f"`{shown}`"
        lines.append(f"| `CLICKLOOP_{name.upper()}` | {default} | {_one_line(field.description)} |")
    lines += ["", "## Errors", "", 'Over HTTP: `{"error": {"code", "message", "details"}}`.', ""]
    lines += ["| code | HTTP status | class |", "|---|---|---|"]
    lines += [f"| `{e.code}` | {STATUS.get(e.code, 500)} | `{e.__name__}` |" for e in _errors(ClickloopError)]
    lines += ["", "## Events", "", "| kind | payload | meaning |", "|---|---|---|"]
    for kind, payload in PAYLOADS.items():
        fields = ", ".join(f"`{f}`" for f in payload.model_fields if f != "v")
        lines.append(f"| `{kind}` | {fields} | {_one_line((payload.__doc__ or '').split(chr(10) + chr(10))[0])} |")
    lines += ["", "## Commands", ""]
    for _, usage in _commands(build_parser()):
        lines += ["```", usage, "```"]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    if "--check" in sys.argv:
        return 0 if PAGE.read_text() == render() else 1
    PAGE.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
