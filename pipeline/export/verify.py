"""Checking a snapshot or delta: every file against the manifest, its labels against themselves; needs no catalogue."""

import io
import os
from collections.abc import Iterator
from itertools import dropwhile, takewhile
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel

from pipeline.export.manifest import DELTA_FORMAT, MANIFEST, read_manifest
from pipeline.masks.rle import decode_runs, runs_box
from pipeline.storage.files import is_local, join, leaves_root, read_bytes, require_no_pipe, sha256_stored, with_retry
from schemas.arrow import TABLES
from schemas.errors import ClickloopError

MAX_PROBLEMS, MAX_CHARACTERS = 50, 1000
_IMAGES, _ANNOTATION = b'"images":[\n', b'{"id":'
"""Lines of `pipeline.export.coco`: the one behind the annotations, and what each of these begins with."""
_ALWAYS = {
    "coco": "coco/instances.json",
    "hf": "hf/README.md",
    "lvis": "lvis/instances.json",
    "yolo-seg": "yolo-seg/data.yaml",
}
"""A file that each format has, whatever is in the snapshot; of the others the masks are counted."""
_UNDECODABLE = (OSError, UnidentifiedImageError)
"""What Arrow and Pillow raise on damaged content, without an errno."""


class VerifyReport(BaseModel):
    """What a check came to.

    Attributes:
        ok: There is no problem.
        problems: What is wrong, at most `MAX_PROBLEMS` lines, each of `MAX_CHARACTERS` and what it takes to print them.
        since_snapshot: Number of the snapshot that it is a delta of; None: it is whole.
        counts: As the manifest says.
        files: Files that were read and compared.
        masks: Masks that were checked.
        unlisted: Files beside those of the manifest; no problem, but not part of the snapshot.
    """

    ok: bool = False
    url: str = ""
    snapshot_number: int = 0
    since_snapshot: int | None = None
    problems: list[str] = []
    counts: dict[str, int] = {}
    files: int = 0
    masks: int = 0
    unlisted: list[str] = []


def verify_snapshot(url: str) -> VerifyReport:
    """Check a snapshot: files present with their bytes and sha256, counts, ids, and each mask's size, area and box.

    Of a delta likewise what it holds, and that its tombstones are there and name nothing that it holds.

    Raises:
        NotFoundError: There is no manifest.
        CorruptDataError: The manifest is not one.
        BadInputError: It was written by a newer version.
    """
    fs, root, manifest = read_manifest(url)
    check = _Check(fs, root, manifest)
    try:
        check.run()
    except (KeyError, TypeError, ValueError, AttributeError, pa.ArrowInvalid) as error:
        check.problem(f"{check.part}: malformed: {type(error).__name__}: {error}")
    except OSError as error:
        if type(error) not in _UNDECODABLE or error.errno is not None:  # a storage that does not answer
            raise
        check.problem(f"{check.part}: malformed: {error}")
    return VerifyReport(
        ok=not check.problems,
        url=url,
        snapshot_number=manifest.get("snapshot", {}).get("number", 0),
        since_snapshot=check.since,
        problems=check.problems[:MAX_PROBLEMS],
        counts=manifest.get("counts", {}),
        files=len(check.sound),
        masks=check.masks,
        unlisted=check.unlisted(),
    )


class _Check:
    def __init__(self, fs: AbstractFileSystem, root: str, manifest: dict[str, Any]) -> None:
        self.fs = fs
        self.root = root
        self.manifest = manifest
        self.problems: list[str] = []
        self.sound: dict[str, dict[str, Any]] = {}
        self.masks = 0
        self.image_ids: set[int] = set()
        self.annotation_ids: set[int] = set()
        self.since: int | None = None
        self.part = MANIFEST
        """What is looked into."""

    def problem(self, text: str) -> None:
        text = text[:MAX_CHARACTERS]
        self.problems.append(text if text.isprintable() else repr(text)[1:-1])  # a name may hold codes of terminals

    def run(self) -> None:
        for file in self.manifest["files"]:
            self._check_file(file)
        counts, formats = self.manifest["counts"], self.manifest["formats"]
        for form in formats:
            if form in _ALWAYS:
                self._require_listed(_ALWAYS[form])
        areas: dict[int, int] = {}
        if "parquet" in formats:
            sizes = {row["image_id"]: (row["height"], row["width"]) for row in self._table("images")}
            self._expect("images", len(sizes), counts.get("images"))
            areas = self._check_masks("parquet", self._table("annotations"), sizes)
            self._expect("clicks", sum(1 for _ in self._table("clicks")), counts.get("clicks"))
        if "coco" in formats:
            areas = self._check_coco("coco")
        if "lvis" in formats:
            areas = self._check_coco("lvis")
        if "png" in formats:
            self._check_pngs(areas)
        if self.manifest["format"] == DELTA_FORMAT:
            self._check_delta()

    def unlisted(self) -> list[str]:
        listed = {file.get("path") for file in self.manifest.get("files", [])} | {MANIFEST}
        start = len(self.root.rstrip("/")) + 1
        return sorted(path[start:] for path in self._paths() if path[start:] not in listed)

    def _paths(self) -> Iterator[str]:
        """Of all files and links; locally not by `find`, which remembers the facts of each until the last."""
        if is_local(self.fs):
            for folder, inner, names in os.walk(self.root):
                yield from (join(folder, name) for name in names)
                yield from (path for name in inner if os.path.islink(path := join(folder, name)))
        else:
            self.fs.invalidate_cache()
            yield from with_retry(self.fs, lambda: self.fs.find(self.root))

    def _check_file(self, file: dict[str, Any]) -> None:
        name = file["path"]
        if leaves_root(name):
            self.problem(f"{name}: a path that leaves the snapshot")
            return
        path = join(self.root, name)
        try:
            require_no_pipe(self.fs, path)
            digest, size = sha256_stored(self.fs, path)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            self.problem(f"{name}: missing")
            return
        if size != file["bytes"]:
            self.problem(f"{name}: {size} bytes, the manifest says {file['bytes']}")
        elif digest != file["sha256"]:
            self.problem(f"{name}: its sha256 is not that of the manifest")
        else:
            self.sound[name] = file

    def _require_listed(self, name: str) -> None:
        """Of a file that is damaged or missing it is said already."""
        if name not in self.sound and all(file["path"] != name for file in self.manifest["files"]):
            self.problem(f"{name}: not among the files of the manifest")

    def _expect(self, what: str, found: int, said: int | None) -> None:
        if found != said:
            self.problem(f"{what}: {found} found, the manifest says {said}")

    def _table(self, table: str) -> Iterator[dict[str, Any]]:
        """Rows of a table without its images."""
        columns = [name for name in TABLES[table].names if name not in {"image", "objects"}]
        for name, facts in self.sound.items():
            if not name.startswith(f"parquet/{table}-"):
                continue
            self.part = name
            with self.fs.open(join(self.root, name), "rb") as file:
                parquet = pq.ParquetFile(file)
                self._expect(f"{name}: rows", parquet.metadata.num_rows, facts.get("rows"))
                for batch in parquet.iter_batches(5000, columns=columns):
                    yield from batch.to_pylist()

    def _check_masks(
        self, where: str, rows: Iterator[dict[str, Any]], sizes: dict[int, tuple[int, int]]
    ) -> dict[int, int]:
        """Check masks; their areas by id."""
        categories = {category["id"] for category in self.manifest["categories"]} | {0}
        areas: dict[int, int] = {}
        for row in rows:
            what = f"{where}: annotation {row['id']}"
            if row["id"] < 1 or row["id"] in areas:
                self.problem(f"{what}: ids must be unique and at least 1")
            areas[row["id"]] = int(row["area"])
            if row["category_id"] not in categories:
                self.problem(f"{what}: category {row['category_id']} is not one of the snapshot")
            if row["iscrowd"]:
                self.problem(f"{what}: iscrowd is set")
            size = tuple(row["segmentation"]["size"])
            if sizes.get(row["image_id"]) != size:
                self.problem(f"{what}: mask of size {size}, image of size {sizes.get(row['image_id'])}")
                continue
            try:
                runs = decode_runs(row["segmentation"]["counts"])
            except ClickloopError as error:
                self.problem(f"{what}: {error.message}")
                continue
            if runs.min() < 0 or runs.sum() != size[0] * size[1] or runs[1::2].sum() != row["area"]:
                self.problem(f"{what}: its runs do not fit its size {size} and area {row['area']}")
                continue
            x0, y0, x1, y1 = runs_box(runs, size)
            if list(row["bbox"]) != [x0, y0, x1 - x0, y1 - y0]:
                self.problem(f"{what}: its bbox is {row['bbox']}, that of its mask {[x0, y0, x1 - x0, y1 - y0]}")
        self._expect(f"{where}: annotations", len(areas), self.manifest["counts"].get("annotations"))
        self.masks = max(self.masks, len(areas))
        self.image_ids |= sizes.keys()
        self.annotation_ids |= areas.keys()
        return areas

    def _check_coco(self, form: str) -> dict[int, int]:
        name = f"{form}/instances.json"
        if name not in self.sound:
            return {}
        coco, annotations = self._read_coco(name)
        sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
        self._expect(f"{form}: images", len(sizes), self.manifest["counts"].get("images"))
        known = {category["id"] for category in coco["categories"]}
        return self._check_masks(form, self._of_known(form, annotations, known), sizes)

    def _of_known(self, form: str, annotations: Iterator[dict[str, Any]], known: set[int]) -> Iterator[dict[str, Any]]:
        for annotation in annotations:
            if annotation["category_id"] not in known:
                self.problem(f"{form}: annotation {annotation['id']}: its category is not in the file")
            yield annotation

    def _read_coco(self, name: str) -> tuple[dict[str, Any], Iterator[dict[str, Any]]]:
        """A COCO file without its annotations, and these one by one.

        As exports write it, each has a line, before the images: a million of them take no memory. Any other file is
        read whole.
        """
        self.part = name
        behind = b"".join(dropwhile(_IMAGES.__ne__, self._lines(name)))
        coco = orjson.loads(b"{" + behind if behind else read_bytes(self.fs, join(self.root, name)))
        if "annotations" in coco:
            return coco, iter(coco["annotations"])
        before = takewhile(_IMAGES.__ne__, self._lines(name))
        return coco, (orjson.loads(line.rstrip(b"],\n")) for line in before if line.startswith(_ANNOTATION))

    def _lines(self, name: str) -> Iterator[bytes]:
        with self.fs.open(join(self.root, name), "rb") as file, io.BufferedReader(file, 1 << 20) as lines:
            yield from lines

    def _check_delta(self) -> None:
        """Check what a delta says is gone."""
        delta, counts = self.manifest["delta"], self.manifest["counts"]
        self.since = delta["since"]["number"]
        name = delta["tombstones"]
        if name not in self.sound:
            self._require_listed(name)
            return
        self.part = name
        tombstones = orjson.loads(read_bytes(self.fs, join(self.root, name)))
        for what, held in (("images", self.image_ids), ("annotations", self.annotation_ids)):
            gone = [entry["id"] for entry in tombstones[what]]
            self._expect(f"tombstones: {what}", len(gone), counts.get(f"removed_{what}"))
            if len(set(gone)) < len(gone) or min(gone, default=1) < 1:
                self.problem(f"tombstones: {what}: ids must be unique and at least 1")
            if both := sorted(held & set(gone)):
                self.problem(f"tombstones: {what}: {both[0]} is said to be gone, and is there")

    def _check_pngs(self, areas: dict[int, int]) -> None:
        names = [name for name in self.sound if name.startswith("masks/") and name.endswith(".png")]
        self._expect("png: masks", len(names), self.manifest["counts"].get("annotations"))
        for name in names:
            self.part = name
            try:
                with Image.open(io.BytesIO(read_bytes(self.fs, join(self.root, name))), formats=["PNG"]) as image:
                    area = image.convert("1").histogram()[255]
            except Image.DecompressionBombError:
                self.problem(f"{name}: too large to be checked")
                continue
            except UnidentifiedImageError:
                self.problem(f"{name}: malformed: no PNG file")
                continue
            number = int(name.rpartition("/")[2].removesuffix(".png"))
            if areas and areas.get(number) != area:
                self.problem(f"{name}: {area} pixels, its annotation says {areas.get(number)}")
        if not areas:
            self.masks = len(names)
