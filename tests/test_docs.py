"""The generated reference is up to date, links resolve, and requests that the pages show are taken."""

import re
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

from schemas.requests import checked
from workers.api.routes.requests import NewRequest

ROOT = Path(__file__).resolve().parent.parent


def test_reference_page_is_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, "docs/reference.py", "--check"], cwd=ROOT, check=False, timeout=60)
    assert done.returncode == 0, "run: python docs/reference.py"


def test_relative_links_of_the_pages_resolve() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    links = [(p, t) for p in pages for t in re.findall(r"\]\((?!https?:|#)([^)#]+)", p.read_text())]
    assert links
    assert [(p.name, t) for p, t in links if not (p.parent / t).exists()] == []


def test_requests_that_the_pages_show_are_taken() -> None:
    pages = "".join(path.read_text() for path in (ROOT / "docs").rglob("*.md"))
    shown = re.findall(r"`(\{[^`]*\"kind\": [^`]*\})`", pages)
    assert len(shown) >= 3
    for text in shown:
        new = NewRequest.model_validate_json(text.replace('"UUID"', f'"{uuid4()}"').replace('"KIND"', '"head"'))
        checked(new.kind, new.payload)
