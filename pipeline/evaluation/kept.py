"""Results of an evaluation on disk, object by object, so that one that was cut off goes on where it was."""

import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from schemas.evaluation import SampleResult


class KeptResults:
    """A file of JSON lines. Those of other settings are passed over and stay; a torn last line goes.

    Args:
        path: The file; made with the first result.
        settings: All that results depend on; JSON.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings = sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(sum(len(line) for line in lines[:-1]))
            del lines[-1]
        rows = [json.loads(line) for line in lines]
        own = [SampleResult.model_validate(row["result"]) for row in rows if row["settings"] == self._settings]
        self._known = {result.sample_id: result for result in own}

    def get(self, sample_id: str) -> SampleResult | None:
        """An object's result, None while there is none."""
        return self._known.get(sample_id)

    def add(self, result: SampleResult) -> None:
        """Write down one more."""
        self._known[result.sample_id] = result
        row = {"settings": self._settings, "result": result.model_dump(mode="json")}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
