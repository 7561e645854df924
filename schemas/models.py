"""Ids of the models, for those who check one without loading torch; `pipeline.models` makes them (a test compares)."""

from schemas.errors import NotFoundError

MODEL_ALIASES = {"default": "fdrn-compact"}
MODEL_IDS = (
    "adaptiveclick-base-448",
    "adaptiveclick-huge-448",
    "fdrn-b0-segformerb0",
    "fdrn-b0-segformerb3",
    "fdrn-b1-segformerb0",
    "fdrn-compact",
    "fdrn-h1-hrnet18",
    "fdrn-h2-hrnet18",
    "fdrn-h2-hrnet18s",
    "fdrn-h2-hrnet18s-focal",
    "icmformer-base-448",
    "icmformer-huge-448",
    "icmformer-large-448",
    "icmformer-swin-base-384",
    "icmformer-swin-small-224",
    "ritm-hrnet18",
    "ritm-hrnet18s",
    "ritm-hrnet32",
    "segformer-b0-448",
    "segformer-b3-448",
    "simpleclick-base-448",
    "simpleclick-huge-448",
    "simpleclick-large-448",
    "simpleclick-xtiny-448",
    "toy-color",
)
MODEL_FAMILIES = ("clickadapter-", "fdrn-timm:")
"""Prefixes of ids that name a member: a host model, a timm backbone."""
SHIPPED_MODELS = ("fdrn-compact", "toy-color")
"""Models whose weights come with the package."""


def resolve_model_id(model_id: str) -> str:
    """The id behind an id or alias. A family's member is not looked up.

    Raises:
        NotFoundError: No such model.
    """
    resolved = MODEL_ALIASES.get(model_id, model_id)
    if resolved not in MODEL_IDS and not any(resolved.startswith(own) and resolved != own for own in MODEL_FAMILIES):
        known = [*sorted(MODEL_ALIASES), *MODEL_IDS, *(f"{prefix}..." for prefix in MODEL_FAMILIES)]
        raise NotFoundError(f"Unknown model {model_id!r}. Known: {', '.join(known)}.")
    return resolved


def checked_model_id(model_id: str, has_checkpoint: bool) -> str:
    """The id behind an id or alias of a new campaign's model.

    Args:
        model_id: Or an alias.
        has_checkpoint: Whether weights come with it; else they must ship.

    Raises:
        NotFoundError: No such model, or one that ships no weights and got none.
    """
    resolved = resolve_model_id(model_id)
    if not has_checkpoint and resolved not in SHIPPED_MODELS:
        raise NotFoundError(
            f"No weights ship with {model_id!r}. Name a checkpoint; the models with weights are "
            f"{', '.join(SHIPPED_MODELS)}."
        )
    return resolved
