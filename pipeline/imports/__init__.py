"""Annotations that other tools made, as masks of a campaign: one reader per format, one way to store what they find.

A reader yields what it found and what it left out, with the reason; nothing is stored before everything was read once.
"""

from pipeline.imports.found import Dropped, Found
from pipeline.imports.names import Names
from pipeline.imports.read import read_source
from pipeline.imports.store import import_masks, import_source

__all__ = ["Dropped", "Found", "Names", "import_masks", "import_source", "read_source"]
