"""The papers' losses by name: what each published run minimises, on any model where it makes sense."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from pipeline.models._base import Encoding, InteractiveModel
from pipeline.models.adaptiveclick import AdaptiveClick
from pipeline.models.layers.rois import align_rois
from pipeline.training.losses import afl, bce, boundary_nfl, dice, nfl, poly, soft_iou, trimap
from pipeline.training.set_loss import set_loss
from schemas.clicks import Click
from schemas.errors import BadInputError

Outputs = dict[str, Tensor]
COARSE_WEIGHT = 0.4


def _nfl(outputs: Outputs, target: Tensor) -> Tensor:
    loss = nfl(outputs["mask"], target).mean()
    return loss + COARSE_WEIGHT * bce(outputs["coarse"], target).mean() if "coarse" in outputs else loss


def _focal_click(outputs: Outputs, target: Tensor) -> Tensor:
    """NFL on the coarse mask, BCE on the trimap and boundary NFL on the refined mask, both in the focus region."""
    loss = nfl(outputs["mask"], target).mean()
    if "focus" not in outputs:
        return loss
    size = (outputs["focus"].shape[2], outputs["focus"].shape[3])
    focused = (align_rois((target == 1).to(loss.dtype), outputs["boxes"], size) > 0.5).to(loss.dtype)
    return loss + bce(outputs["trimap"], trimap(focused)).mean() + boundary_nfl(outputs["focus"], focused).mean()


def _plain(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Outputs, Tensor], Tensor]:
    return lambda outputs, target: loss(outputs["mask"], target).mean()


LOSSES: dict[str, Callable[[Outputs, Tensor], Tensor]] = {
    "nfl": _nfl,
    "focal-click": _focal_click,
    "nfl-dice": lambda outputs, target: (nfl(outputs["mask"], target) + dice(outputs["mask"], target)).mean(),
    "afl": _plain(afl),
    "bce": _plain(bce),
    "poly": _plain(poly),
    "dice": _plain(dice),
    "soft-iou": _plain(soft_iou),
}
"""Name -> loss of (`InteractiveModel.training_outputs`, target): RITM and its descendants ("nfl", with the coarse mask
where the model has one), FocalClick and FDRN's starred variants, ClickAdapter ("nfl-dice", ours: its paper states
none), and drop-ins, AdaptiveClick's AFL among them (its Tables VIII and IX)."""
SET_LOSS = "adaptiveclick"


def training_loss(
    name: str,
    model: InteractiveModel,
    encoding: Encoding,
    clicks: Sequence[Sequence[Click]],
    previous: Tensor,
    target: Tensor,
    crops: Tensor | None = None,
    rois: Tensor | None = None,
) -> Tensor:
    """The loss of one forward pass.

    Args:
        name: Of `LOSSES`, or "adaptiveclick".
        model: In training mode.
        encoding: See `InteractiveModel.refine`, as for the following.
        clicks: See there.
        previous: See there.
        target: (B, 1, h, w): 1 object, 0 not, -1 doesn't count.
        crops: See there.
        rois: See there.

    Returns:
        Scalar.

    Raises:
        BadInputError: The model has no queries for the set loss.
    """
    if name == SET_LOSS:
        if not isinstance(model, AdaptiveClick):
            raise BadInputError(f"The loss {name!r} is for AdaptiveClick's queries; {model.model_id} has none.")
        return set_loss(model.refine_layers(encoding, clicks, previous), target)
    outputs = model.training_outputs(encoding, clicks, previous, crops, rois)
    outputs = {key: value.float() for key, value in outputs.items()}
    return LOSSES[name](outputs, F.interpolate(target.float(), size=outputs["mask"].shape[2:], mode="nearest"))
