"""Making a campaign: publish its model's weights by digest into the storage and write the row.

Knows models and storage. Images are registered by `pipeline.ingest.scan` afterwards, masks by `pipeline.imports`.
"""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field

from pipeline.embeddings.key import key_of_model
from pipeline.imports.read import categories_of
from pipeline.ingest.sources import is_image_name
from pipeline.models import create_model, default_weights_path
from pipeline.storage import adapters, campaigns
from pipeline.storage.database import Database
from pipeline.storage.files import kind, open_storage, storage_error, with_retry
from pipeline.storage.weights import has_model, load_model_by_digest, publish_model
from schemas.campaigns import CampaignRecord, CampaignSettings
from schemas.errors import BadInputError, NotFoundError


class CampaignSpec(BaseModel):
    """What a new campaign is made from.

    Attributes:
        id: Client-made UUID; creating again with it gives the same campaign.
        images: URL of the source; a relative path counts from where the campaign is made.
        annotations: URL of masks that are imported and count as they are; a COCO file's categories come first.
        model: Model id, pinned with the digest of its weights.
        checkpoint: Path of a .safetensors file on this machine; None: the weights that ship today.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    name: str = Field(min_length=1, max_length=200)
    images: str
    labels: tuple[str, ...] = ()
    annotations: str | None = None
    model: str = "default"
    checkpoint: str | None = None
    settings: CampaignSettings = CampaignSettings()


def create_campaign(database: Database, storage_url: str, spec: CampaignSpec) -> CampaignRecord:
    """Make a campaign; doing it again with the same id gives the one that is there.

    Raises:
        NotFoundError: Unknown model, or one without weights.
        BadCheckpointError: The checkpoint is missing, corrupt, or of another model.
        BadInputError: There is nothing at the source.
        BadAnnotationsError: The annotations cannot be read.
        ConflictError: Another campaign has this name.
    """
    known = _existing(database, spec.id)
    if known is not None:
        return known
    require_source(spec.images)
    labels = [*spec.labels, *(categories_of(spec.annotations) if spec.annotations else [])]
    checkpoint = Path(spec.checkpoint) if spec.checkpoint else None
    digest, uri = publish_model(storage_url, spec.model, checkpoint)
    model = load_model_by_digest(storage_url, digest)
    size = (checkpoint or default_weights_path(spec.model)).stat().st_size
    with database.begin() as conn:
        adapters.register_model(conn, digest, model.model_id, uri, size)
        record = campaigns.create_campaign(
            conn,
            campaign_id=spec.id,
            name=spec.name,
            source_url=_from_anywhere(spec.images),
            model_id=model.model_id,
            model_digest=digest,
            model_key=key_of_model(model, spec.settings.window),
            labels=labels,
            settings=spec.settings,
        )
    # From here on `gc` sees that they are needed; it may have removed them as nobody's until then.
    if not has_model(storage_url, digest):
        publish_model(storage_url, spec.model, checkpoint)
    return record


def _existing(database: Database, campaign_id: str) -> CampaignRecord | None:
    try:
        with database.connect() as conn:
            return campaigns.get_campaign(conn, campaign_id)
    except NotFoundError:
        return None


def _from_anywhere(url: str) -> str:
    """A source as the same place for whoever looks there later, from another folder: paths as absolute."""
    return url if "://" in url else open_storage(url)[1]


def require_source(url: str) -> None:
    """Check that there is something at a source, and, if it is one file, that this is an image by its name.

    Raises:
        BadInputError: There is not, or the URL is of no use.
        BusyError: The storage cannot be reached.
        ForbiddenError: It refuses the credentials, or there are none.
    """
    fs, root = open_storage(url)
    try:
        found = with_retry(fs, lambda: kind(fs, root))
    except OSError as error:
        raise storage_error(error, f"Looking at {url}") from error
    if found is None and not any(character in root for character in "*?["):
        raise BadInputError(f"There is nothing at {url!r}. Give an existing folder, glob or file.")
    if found == "file" and not is_image_name(root):
        raise BadInputError(f"{url!r} is a file, and no image by its name. Give the folder of the images.")


def is_encoded_once(model_id: str) -> bool:
    """Whether a model's encodings of whole images can be stored (cut "image"); its weights are not made."""
    with torch.device("meta"):
        return create_model(model_id).cut == "image"
