"""Scenes from wherever pixels and encodings come from, with the last ones kept in memory.

Knows two functions, one that reads pixels and one that may know an encoding already; what they look at is theirs.
"""

from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.adapters.scenes import AdapterImage, Scene, Turn
from pipeline.inference.preprocess import image_to_input
from pipeline.models._base import Encoding, InteractiveModel

ReadImage = Callable[[AdapterImage], NDArray[np.uint8]]
FindEncoding = Callable[[AdapterImage, bool], Encoding | None]
KeepEncoding = Callable[[AdapterImage, bool, Encoding], Encoding]


class CachedSource:
    """A `SceneSource`.

    Args:
        model: Encodes what is not known, and mirrored images. Adapters act after the cut, so any of them will do.
        read_image: Gives HWC uint8 RGB in the catalogue's pixel space.
        find_encoding: Gives the encoding of an image, mirrored or not, or None when it has to be computed.
        keep_encoding: Told what was computed; gives what is to be used (rounded as it will be found again).
        max_bytes: Of scenes kept in memory, least recently used ones go first.
        turn: Entered around each encoding, where heavy work takes turns.
    """

    def __init__(
        self,
        model: InteractiveModel,
        read_image: ReadImage,
        find_encoding: FindEncoding | None = None,
        keep_encoding: KeepEncoding | None = None,
        max_bytes: int = 512_000_000,
        turn: Turn = nullcontext,
    ) -> None:
        self._model = model
        self._read_image = read_image
        self._find = find_encoding or (lambda image, mirrored: None)
        self._keep = keep_encoding or (lambda image, mirrored, encoding: encoding)
        self._max_bytes = max_bytes
        self._turn = turn
        self._bytes = 0
        self._scenes: OrderedDict[tuple[str, bool, int | None], Scene] = OrderedDict()

    def scene(self, image: AdapterImage, mirrored: bool = False, max_side: int | None = None) -> Scene:
        """See `SceneSource.scene`."""
        key = (image.ref.sha256, mirrored, max_side)
        if key in self._scenes:
            self._scenes.move_to_end(key)
            return self._scenes[key]
        scene = self._make(image, mirrored, max_side)
        self._scenes[key] = scene
        self._bytes += _size_bytes(scene)
        while self._bytes > self._max_bytes and len(self._scenes) > 1:
            self._bytes -= _size_bytes(self._scenes.popitem(last=False)[1])
        return scene

    def _make(self, image: AdapterImage, mirrored: bool, max_side: int | None) -> Scene:
        pixels = self._read_image(image)
        if mirrored:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        encoding = None
        if self._model.cut == "image":
            encoding = self._find(image, mirrored)
            if encoding is None:
                encoding = self._keep(image, mirrored, encode_pixels(self._model, pixels, self._turn))
        scale = min(1.0, max_side / max(pixels.shape[:2])) if max_side else 1.0
        if scale < 1:
            size = (round(pixels.shape[1] * scale), round(pixels.shape[0] * scale))
            pixels = np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)
        return Scene(pixels, encoding, mirrored, scale)


def encode_pixels(model: InteractiveModel, pixels: NDArray[np.uint8], turn: Turn) -> Encoding:
    """The encoding of HWC uint8 RGB pixels as the store keeps it: float16, on the CPU."""
    device = next(model.parameters()).device
    with turn(), torch.no_grad():
        return Encoding(model.encode(image_to_input(model, pixels).to(device)).tensors).to("cpu", torch.float16)


def _size_bytes(scene: Scene) -> int:
    tensors = scene.encoding.tensors.values() if scene.encoding is not None else ()
    return scene.image.nbytes + sum(tensor.nbytes for tensor in tensors)
