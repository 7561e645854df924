"""Images of a campaign as they are looked through: a small picture of each, with its current masks."""

from datetime import datetime

from pydantic import BaseModel, ConfigDict

from schemas.masks import PackedMask


class BrowsedMask(BaseModel):
    """A current mask of a browsed image.

    Attributes:
        annotator: Who accepted it; None for an imported one.
        preview: The mask at the size of the image's preview.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    id: str
    category_number: int | None
    unsure: bool
    source: str
    annotator: str | None
    num_clicks: int
    area: int
    created_at: datetime
    preview: PackedMask


class BrowsedImage(BaseModel):
    """An image with its task's state and its current masks.

    Attributes:
        preview_size: (height, width) of the picture that the masks' previews lie over.
        num_masks: All its current masks; `masks` has the first of them.
        skip_reason: What whoever skipped it last said, empty where nothing; None: it is not skipped.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    id: str
    number: int
    file_name: str
    width: int
    height: int
    holdout: bool
    state: str
    preview_size: tuple[int, int]
    num_masks: int
    skip_reason: str | None = None
    masks: list[BrowsedMask]


class BrowsePage(BaseModel):
    """One page of images; `next` None: the last one.

    Attributes:
        count: Images that match on all pages.
        is_exact: False: there are more than `count`, nobody counted how many.
    """

    model_config = ConfigDict(frozen=True, ser_json_bytes="base64", val_json_bytes="base64")

    count: int
    is_exact: bool
    next: int | None
    results: list[BrowsedImage]
