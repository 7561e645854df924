from contextlib import closing
from pathlib import Path
from uuid import uuid4

import pytest

from pipeline.campaigns import CampaignSpec, create_campaign
from pipeline.storage.database import open_database


@pytest.mark.parametrize("images", ["photos", "photos/*.jpg", "./photos/"])
def test_a_relative_source_is_the_same_place_from_another_folder(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    spec = CampaignSpec(id=str(uuid4()), name="c", images=images, model="toy-color")
    with closing(open_database(f"sqlite:///{tmp_path}/c.db")) as database:
        made = create_campaign(database, str(tmp_path / "storage"), spec)
        assert made.source_url == str(tmp_path / images)
        assert create_campaign(database, str(tmp_path / "storage"), spec) == made
