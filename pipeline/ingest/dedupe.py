"""Near-duplicates by a 64-bit perceptual hash: groups of images that must not straddle the hold-out.

A group has a leader, its first image; an image joins the group of the first image with its very hash, else that of the
nearest leader within the threshold. Chains do not grow: members are not compared with, but for equality. A group's key
never changes, so neither does the side of the hold-out that its images are on. Exact duplicates are found by sha256,
elsewhere.

Hash: DCT hash as in Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010), sec. 3.2.1.
"""

from collections.abc import Iterable

import cv2
import numpy as np
from numpy.typing import NDArray

MAX_DISTANCE = 6
"""Bits that may differ. Unrelated photographs differ in about 32."""
_BIT_COUNTS = np.array([bin(value).count("1") for value in range(1 << 16)], np.uint8)


def perceptual_hash(image: NDArray[np.uint8]) -> str:
    """64-bit hash of an HWC uint8 RGB image, 16 hex characters: signs of the 8x8 low frequencies about their median."""
    shrunk = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(shrunk, cv2.COLOR_RGB2GRAY).astype(np.float32)
    low = cv2.dct(grey)[1:9, 1:9].round(3).ravel()
    return np.packbits(low > np.median(low)).tobytes().hex()


class GroupIndex:
    """A campaign's groups.

    Args:
        images: (hash, group key) of each image, in the order of their registration. The first of a group leads it: the
            one that gave the key or, where that was purged, the next one.
        max_distance: Bits that may differ.
    """

    def __init__(self, images: Iterable[tuple[str, str]] = (), max_distance: int = MAX_DISTANCE) -> None:
        self.max_distance = max_distance
        self._known: dict[str, str] = {}
        leaders: dict[str, str] = {}
        for phash, key in images:
            self._known.setdefault(phash, key)
            leaders.setdefault(key, phash)
        self._keys = list(leaders)
        self._hashes = np.zeros(max(1024, 2 * len(leaders)), np.uint64)
        self._hashes[: len(leaders)] = [int(phash, 16) for phash in leaders.values()]

    def assign(self, phash: str, sha256: str) -> str:
        """The group key of an image: that of an equal hash, else of the nearest leader within the threshold, else its
        own sha256."""
        if phash not in self._known:
            self._known[phash] = self._nearest_or_new(phash, sha256)
        return self._known[phash]

    def _nearest_or_new(self, phash: str, sha256: str) -> str:
        value, count = np.uint64(int(phash, 16)), len(self._keys)
        if count:
            differing = (self._hashes[:count] ^ value).view(np.uint16).reshape(count, 4)
            distances = _BIT_COUNTS[differing].sum(1)
            nearest = int(distances.argmin())
            if distances[nearest] <= self.max_distance:
                return self._keys[nearest]
        if count == self._hashes.size:
            self._hashes = np.concatenate([self._hashes, np.zeros_like(self._hashes)])
        self._hashes[count] = value
        self._keys.append(sha256)
        return sha256
