"""The contract of every interactive model: encode what no click can change, then refine per click.

Knows nothing about image pixels: clicks, previous mask, crops and logits live in crop pixels (the network input after
ZoomIn); only `pipeline.inference.Predictor` knows the image.
"""

# B batch, K candidates, C channels, H/W encoded image px, h/w crop px

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from schemas.clicks import Click
from schemas.errors import BadInputError
from schemas.requests import AdapterKind


class Encoding:
    """A named set of tensors with a leading batch axis: all that a model computes from the image alone.

    Args:
        tensors: Name to tensor; every tensor has the same first axis.
        images: (B, 3, H, W) what was encoded, kept beside the tensors so that `refine` may be called without crops; it
            is never saved.

    Raises:
        ValueError: There is no tensor, or the batch axes differ.
    """

    def __init__(self, tensors: Mapping[str, Tensor], images: Tensor | None = None) -> None:
        if not tensors or len({t.shape[0] for t in tensors.values()}) != 1:
            raise ValueError("An encoding needs at least one tensor, and all need the same leading batch axis.")
        self.tensors = dict(tensors)
        self.images = images

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    @property
    def batch_size(self) -> int:
        """Number of images."""
        return next(iter(self.tensors.values())).shape[0]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "Encoding":
        """Move and cast every tensor."""
        images = None if self.images is None else self.images.to(device=device)
        return Encoding({name: t.to(device=device, dtype=dtype) for name, t in self.tensors.items()}, images)

    def select(self, index: int) -> "Encoding":
        """One image of the batch, keeping the batch axis (of length 1)."""
        images = None if self.images is None else self.images[index : index + 1]
        return Encoding({name: t[index : index + 1] for name, t in self.tensors.items()}, images)

    @staticmethod
    def stack(encodings: Sequence["Encoding"]) -> "Encoding":
        """Concatenate encodings of equal shapes along the batch axis."""
        kept = [e.images for e in encodings if e.images is not None]
        images = torch.cat(kept) if len(kept) == len(encodings) else None
        return Encoding({name: torch.cat([e[name] for e in encodings]) for name in encodings[0].tensors}, images)

    def save(self, path: str | Path) -> None:
        """Write as safetensors, uncompressed."""
        save_file({name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}, path)

    @staticmethod
    def load(path: str | Path) -> "Encoding":
        """Read what `save` wrote."""
        with safe_open(path, framework="pt") as file:
            return Encoding({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118


@dataclass(frozen=True)
class Prediction:
    """What a refine step gives.

    Attributes:
        logits: (B, K, h, w) float, before the sigmoid, at crop size. Index 0 is the model's official single output.
        scores: (B, K) estimated quality in [0, 1]; ones where the model has none.
        query_ids: K stable ids of the candidates, used to average flipped candidates.
        is_ranked: False: the candidates after the first are raw queries in their own order; whoever shows them keeps
            the distinct ones by falling score (after the average over views, which needs the common order).
    """

    logits: Tensor
    scores: Tensor
    query_ids: tuple[int, ...] = (0,)
    is_ranked: bool = True


@dataclass(frozen=True)
class HostShape:
    """What a branch beside a host must know of its features.

    Attributes:
        early_dim: Channels of `HostFeatures.early`.
        dim: Channels of `HostFeatures.final`.
        num_heads: Heads of attention on it.
        pyramid_dims: Channels of each map of `HostFeatures.pyramid`, finest first.
    """

    early_dim: int
    dim: int
    num_heads: int
    pyramid_dims: tuple[int, ...]


@dataclass(frozen=True)
class HostFeatures:
    """What a model gives to a branch beside it in one refine step.

    Attributes:
        early: (B, E, h, w) low-level features, at 1/16 or finer.
        final: (B, C, h, w) features that the whole crop and the clicks went into, at 1/16.
        pyramid: Maps at 1/4, 1/8, ... of the crop.
        logits: (B, 1, H, W) its own output at crop size.
    """

    early: Tensor
    final: Tensor
    pyramid: list[Tensor]
    logits: Tensor


class InteractiveModel(nn.Module):
    """Base of all models.

    Attributes:
        model_id: The id it is registered under.
        cut: "image": encode sees the whole image once and may be stored; "crop": encode sees the ZoomIn crop.
        input_size: (h, w) of the network input after ZoomIn.
        input_side: Where crops keep their shape: their longer side in pixels; None: every crop becomes `input_size`.
        skip_clicks: So many first clicks, and any click while the mask is empty, see the whole image unscaled instead
            of a crop; -1: none do.
        image_size: Longest side in pixels of the image given to encode, for cut "image" (both sides are rounded to
            multiples of 32); unused for cut "crop".
        encoder_state_prefixes: Names in the state dict that begin with one of these are what `encode` reads; they are
            part of the key of stored embeddings.
        official_class: Class path that official checkpoints of this architecture name; empty where there are none.
    """

    cut: ClassVar[Literal["image", "crop"]] = "crop"
    encoder_state_prefixes: ClassVar[tuple[str, ...]] = ("",)
    official_class: ClassVar[str] = ""
    model_id: str = ""
    input_size: tuple[int, int] = (448, 448)
    input_side: int | None = None
    skip_clicks: int = -1
    image_size: int = 512

    def encode(self, images: Tensor) -> Encoding:
        """Compute what clicks cannot change.

        Args:
            images: (B, 3, H, W) float32 RGB in [0, 1]: the whole image at the model's image size (cut "image") or the
                network input (cut "crop").
        """
        raise NotImplementedError

    def refine(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> Prediction:
        """Predict the mask of the clicked object.

        Args:
            encoding: Of B images.
            clicks: One list per image, in the order made, in crop pixels.
            previous: (B, 1, h, w) soft probability in [0, 1] of the previous step, zeros at first.
            crops: (B, 3, h, w) float32 RGB in [0, 1]; None means the image given to encode.
            rois: (B, 4) float (y0, x0, y1, x1), pixel edges, half-open, as fractions of the encoded image; None = the
                whole image. Refused by models with cut "crop".
        """
        raise NotImplementedError

    def training_outputs(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """What a training loss may look at; arguments as for `refine`.

        Returns:
            "mask": (B, 1, h, w) logits at crop size; further outputs by name where a model's published loss has them.
        """
        return {"mask": self.refine(encoding, clicks, previous, crops, rois).logits[:, :1]}

    def host_shape(self) -> HostShape:
        """Shape of what `host_features` gives.

        Raises:
            BadInputError: Nothing can be attached to this model.
        """
        raise BadInputError(f"{self.model_id or type(self).__name__} hosts no adapter branch.")

    def host_features(
        self,
        encoding: Encoding,
        clicks: Sequence[Sequence[Click]],
        previous: Tensor,
        crops: Tensor | None = None,
        rois: Tensor | None = None,
    ) -> HostFeatures:
        """`refine`, with the features that a branch beside it reads; arguments as there."""
        raise NotImplementedError

    def refuse_rois(self, rois: Tensor | None) -> None:
        """For models of cut "crop", which see nothing but the crop.

        Raises:
            ValueError: There are rois.
        """
        if rois is not None:
            raise ValueError(f"{self.model_id} has cut 'crop': it encodes crops and takes no rois.")

    @classmethod
    def remap_official(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of an official checkpoint under our names.

        Drops what the official code saves and never uses, and nothing else, so that the strict check of what is left
        names everything that does not fit.
        """
        return dict(state)

    def options_from_official(self, state: Mapping[str, Tensor]) -> dict[str, Any]:
        """Options of the builder under which this checkpoint fits, where one id stands for several published sizes."""
        return {}

    def official_settings(self) -> Mapping[str, Any]:
        """What the official class must have been told for its network to be this one, as far as neither names nor
        shapes of weights show it: parameters of its constructor by name, nested as they are there."""
        return {}

    def default_adapter(self, masks: int) -> AdapterKind:
        """Kind of adapter that retraining makes of so many masks unless told otherwise."""
        return "head"

    def adapter_parameter_names(self, kind: str) -> tuple[str, ...]:
        """Names (as in `named_parameters`) of what an adapter of a kind replaces; everything else stays as it is.

        All of them act after the cut, so an adapter never invalidates an embedding.

        Args:
            kind: "head": the decoder and the last block before it; "affine": scales and shifts of norms; "full": all of
                it; "lora": weights that get low-rank additions, where a model chooses them.

        Raises:
            BadInputError: The model has no adapter of that kind.
        """
        raise BadInputError(f"Model {self.model_id or type(self).__name__} has no adapter of kind {kind!r}.")


class ModelAround(InteractiveModel):
    """Base of models that change the refine step of another one: they encode as it does, on images of its sizes.

    Args:
        base: Left as it is.
    """

    def __init__(self, base: InteractiveModel) -> None:
        super().__init__()
        self.base = base
        self.cut = base.cut  # type: ignore[misc]  # the base's, not the class's
        self.encoder_state_prefixes = tuple(f"base.{own}" for own in base.encoder_state_prefixes)  # type: ignore[misc]
        self.model_id, self.input_size, self.image_size = base.model_id, base.input_size, base.image_size
        self.input_side, self.skip_clicks = base.input_side, base.skip_clicks

    def encode(self, images: Tensor) -> Encoding:
        """The base's."""
        return self.base.encode(images)
