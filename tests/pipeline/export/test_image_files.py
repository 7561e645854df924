"""Names of image files in snapshots."""

import pytest

from pipeline.export.image_files import image_name
from pipeline.export.tables import ExportImage
from pipeline.ingest.decode import FORMATS


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_that_is_read_has_a_name(format: str) -> None:
    image = ExportImage(
        id="a", number=7, uri="", file_name="", sha256="", group_key="", holdout=False, width=1, height=1,
        format=format, items=0, split="train",
    )  # fmt: skip
    name = image_name(image)
    assert name.startswith("000007.") and name.rpartition(".")[2][:3] in format.lower().replace("jpeg", "jpg")
