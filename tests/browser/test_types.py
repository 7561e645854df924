"""The page's scripts are typed (JSDoc) and their types are right."""

import shutil
import subprocess
from pathlib import Path

from tests.conftest import need

STATIC = Path(__file__).parents[2] / "workers" / "api" / "static" / "js"
OPTIONS = ["--checkJs", "--allowJs", "--noEmit", "--strict", "--target", "es2022", "--module", "es2022"]
LIBRARIES = ["--moduleResolution", "node", "--lib", "es2022,dom,dom.iterable"]


def test_types_of_the_page_hold() -> None:
    need("browser", shutil.which("tsc") is not None, "there is no TypeScript compiler (node-typescript)")
    files = [str(Path(__file__).with_name("dom.d.ts")), *sorted(str(path) for path in STATIC.rglob("*.js"))]
    found = subprocess.run(["tsc", *OPTIONS, *LIBRARIES, *files], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stdout
