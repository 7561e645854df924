"""A path is the image that it means, or none: no mask comes to another image of the same file name."""

import sys
import time
from collections import Counter
from typing import Any

import pytest

from pipeline.imports.names import CONTESTED, NO_IMAGE, Names
from schemas.campaigns import ImageRecord


def names(*file_names: str, root: str = "/data/root") -> Names:
    """Of a campaign of one source."""
    return Names(image(number, name, root) for number, name in enumerate(file_names, 1))


def image(number: int, name: str, root: str = "/data/root") -> ImageRecord:
    return ImageRecord(
        id=str(number), campaign_id="c", number=number, uri=f"{root}/{name}", file_name=name, sha256=f"{number:064x}",
        width=9, height=9, holdout=False,
    )  # fmt: skip


def found(of: Names, *paths: str) -> list[str]:
    """The file name of each path's image, or why it has none."""
    images = of.find_all({path: [path] for path in paths})
    return [image if isinstance(image, str) else image.file_name for image in images.values()]


VIDEOS = names("bear/00000.jpg", "bear/00001.jpg", "camel/00000.jpg")


@pytest.mark.parametrize(
    "path",
    [
        "bear/00000.jpg",
        "bear/00000.png",
        "labels/bear/00000.txt",
        "images/bear/00000.jpg",
        "labels/train/bear/00000.txt",
        "Annotations/480p/bear/00000.png",
        "bear\\00000.jpg",
        "C:\\videos\\bear\\00000.jpg",
        "/home/me/root/bear/00000",
    ],
)
def test_folders_tell_namesakes_apart(path: str) -> None:
    assert found(VIDEOS, path) == ["bear/00000.jpg"]


@pytest.mark.parametrize(
    "path", ["00000.jpg", "dog/00000.jpg", "dog/00001.jpg", "bear/00002.jpg", "bear", "", "/", ".."]
)
def test_what_is_no_image_or_could_be_several_is_none(path: str) -> None:
    assert found(VIDEOS, path) == [NO_IMAGE]


@pytest.mark.parametrize("path", ["00001.jpg", "labels/00001.txt", "train/images/00001.jpg"])
def test_a_path_without_folders_of_its_own_is_the_only_image_of_its_name(path: str) -> None:
    assert found(VIDEOS, path) == ["bear/00001.jpg"]


def test_an_image_that_the_campaign_lacks_is_not_its_namesake_in_another_folder() -> None:
    cameras = names("camA/0001.jpg", "train/0002.jpg")
    assert found(cameras, "camA/0001.jpg", "camB/0001.jpg") == ["camA/0001.jpg", NO_IMAGE]
    assert found(cameras, "camB/0001.jpg", "val/0002.txt") == [NO_IMAGE] * 2


def test_the_whole_path_goes_before_parts_of_it() -> None:
    mixed = names("a.jpg", "sub/a.jpg", "images/b.png", "masks/b.png", "c.d.jpg", "c.jpg", "e.jpg", "e.png")
    assert found(mixed, "a.jpg", "sub/a.txt") == ["a.jpg", "sub/a.jpg"]
    assert found(mixed, "labels/a.txt", "images/b.png", "c.d", "c.txt") == ["a.jpg", "images/b.png", "c.d.jpg", "c.jpg"]
    assert found(mixed, "e.png", "e.jpg", "e.txt") == ["e.png", "e.jpg", NO_IMAGE]


def test_of_several_paths_that_fit_an_image_the_best_one_has_it() -> None:
    one = names("a.jpg")
    assert found(one, "x/a.png", "a.png") == [CONTESTED, "a.jpg"]
    assert found(one, "x/a.png", "y/a.png") == [CONTESTED] * 2
    assert found(one, "x/a.png") == ["a.jpg"]
    flat = names("a.jpg", "b.jpg")
    assert found(flat, "first/a.png", "second/b.png") == ["a.jpg", "b.jpg"]


def test_of_a_source_s_folders_only_the_one_of_the_campaign_is_its_own() -> None:
    bear = names("00000.jpg", "00005.jpg", root="/data/JPEGImages/bear")
    assert found(bear, "bear/00000.png", "camel/00000.png") == ["00000.jpg", CONTESTED]
    assert found(bear, "bear/00000.png", "camel/00005.png") == ["00000.jpg", CONTESTED]
    assert found(bear, "00000.png", "00005.png") == ["00000.jpg", "00005.jpg"]


def test_sources_with_the_same_names_are_told_apart_by_their_uris_or_hashes() -> None:
    first, second = image(1, "a.jpg", "/data/s1"), image(2, "a.jpg", "/data/s2")
    both = Names([first, second])
    assert both.find("a.jpg") is None
    assert both.find("s1/a.jpg") == first and both.find("/elsewhere/s2/a.jpg") == second
    assert both.find(first.sha256, "a.jpg") == first and both.find("a.jpg", second.uri) == second
    assert both.find("f" * 64, "a.jpg") is None


def test_of_a_file_that_changed_the_newest_image_is_meant() -> None:
    old, new = image(1, "a.jpg"), image(2, "a.jpg")
    assert Names([old, new]).find("a.jpg") == new
    assert Names([old, new]).find(old.sha256) == old


def test_a_path_of_a_hundred_thousand_folders_takes_no_longer() -> None:
    """Copies of all its beginnings: a quarter of a minute, and a hundred times as long for ten times as many."""
    start = time.process_time()
    assert found(names("bear/00000.jpg"), "a/" * 100_000 + "bear/00000.jpg") == ["bear/00000.jpg"]
    assert time.process_time() - start < 5


@pytest.mark.parametrize("layout", ["p{}/CT/slice.jpg", "CT/p{}/slice.jpg", "p{}/CT/a/b/slice.jpg"])
def test_each_path_is_compared_with_a_few_images_however_many_there_are(layout: str) -> None:
    def calls(patients: int) -> int:
        """Of functions, to find all images."""
        paths = [layout.format(number) for number in range(patients)]
        of, counted = names(*paths), Counter[str]()

        def count(frame: Any, what: str, argument: Any) -> None:
            counted[what] += 1

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            images = found(of, *paths)
        finally:
            sys.setprofile(before)
        assert images == paths
        return counted["call"]

    assert calls(200) < 3 * calls(100)
