import hashlib

import numpy as np

from pipeline.masks.digest import mask_digest


def test_digest_is_of_size_box_and_row_major_bits_of_the_box() -> None:
    mask = np.zeros((5, 7), np.bool_)
    mask[2:4, 3:6] = [[1, 0, 1], [0, 0, 1]]
    assert mask_digest(mask) == hashlib.sha256(b"5x7:3,2,6,4:" + bytes([0b10100100])).hexdigest()
    assert mask_digest(np.zeros((5, 7), np.bool_)) == hashlib.sha256(b"5x7:0,0,0,0:").hexdigest()


def test_size_and_every_pixel_count() -> None:
    mask = np.zeros((4, 6), np.bool_)
    digests = {mask_digest(mask), mask_digest(mask.reshape(6, 4)), mask_digest(mask.reshape(2, 12))}
    for row in range(4):
        for column in range(6):
            other = mask.copy()
            other[row, column] = True
            digests.add(mask_digest(other))
    assert len(digests) == 3 + 24


def test_memory_layout_does_not_count() -> None:
    mask = np.random.default_rng(0).random((30, 50)) > 0.5
    assert mask_digest(np.asfortranarray(mask)) == mask_digest(mask) == mask_digest(np.pad(mask, 3)[3:-3, 3:-3])
