"""Interactive models behind one contract (`_base`). Import the names below; modules register themselves by import."""

from pipeline.models import (  # noqa: F401
    adaptiveclick,
    clickadapter,
    fdrn,
    fdrn_published,
    icmformer,
    icmformer_swin,
    ritm,
    segformer,
    simpleclick,
    toy,
)
from pipeline.models._checkpoint import (
    begin_model,
    convert_checkpoint,
    default_weights_path,
    load_model,
    read_metadata,
    save_checkpoint,
    weights_digest,
)
from pipeline.models._registry import create_model, list_families, list_models, outline_of
from schemas.models import resolve_model_id

__all__ = [
    "begin_model",
    "convert_checkpoint",
    "create_model",
    "default_weights_path",
    "list_families",
    "list_models",
    "load_model",
    "outline_of",
    "read_metadata",
    "resolve_model_id",
    "save_checkpoint",
    "weights_digest",
]
