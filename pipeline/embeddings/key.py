"""The key that says which embeddings fit which model: everything that their bytes depend on besides the image."""

import hashlib
import json
from collections.abc import Mapping

from pipeline.embeddings.codec import DTYPE, LAYOUT
from pipeline.inference.preprocess import PREPROCESSING
from pipeline.ingest.decode import DECODER
from pipeline.models._base import InteractiveModel
from schemas.predictions import Window

KEY_LENGTH = 24


def encoder_digest(model: InteractiveModel) -> str:
    """sha256 (hex) of the weights that `encode` reads: names, types, shapes and bytes.

    What an adapter replaces lies after the cut and is not among them, so adapted models have the same digest.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(model.encoder_state_prefixes):
            array = tensor.detach().cpu().contiguous()
            digest.update(f"{name}:{array.dtype}:{tuple(array.shape)}:".encode())
            digest.update(array.numpy().tobytes())
    return digest.hexdigest()


def model_key(encoder: str, facts: Mapping[str, str | int]) -> str:
    """Key of a model's embeddings.

    Args:
        encoder: Of `encoder_digest`.
        facts: What else the bytes depend on: decoder, preprocessing, image size, dtype, layout, ...

    Returns:
        24 hex characters.
    """
    text = json.dumps({"encoder": encoder, **facts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_LENGTH]


def key_of_model(model: InteractiveModel, window: Window | None = None) -> str:
    """Key of the embeddings that a model writes and reads with this version of the product.

    Args:
        model: With its weights.
        window: Of the campaign's images, see `schemas.campaigns.CampaignSettings`.
    """
    facts: dict[str, str | int] = {
        "model_id": model.model_id,
        "image_size": model.image_size,
        "decoder": DECODER,
        "preprocessing": PREPROCESSING,
        "dtype": DTYPE,
        "layout": LAYOUT,
    }
    if window is not None:
        facts["window"] = json.dumps(window)
    return model_key(encoder_digest(model), facts)
