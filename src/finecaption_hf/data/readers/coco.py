"""RefCOCO, RefCOCO+ and RefCOCOg in COCO's form: images with a caption each, and annotations that belong to them.

The two lists lie apart in the file, so they are joined in a temporary index on disk; memory does not grow with them.
"""

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from ..examples import Branch, DataError, Example, Region, as_id, as_object, as_reference, as_text
from ..json_stream import JsonStream, open_json

_TABLES = """
CREATE TABLE images (at INTEGER PRIMARY KEY, id TEXT UNIQUE, file TEXT, caption TEXT);
CREATE TABLE annotations (at INTEGER PRIMARY KEY, image_id TEXT, id TEXT, mask TEXT);
"""
_INDICES = """
CREATE INDEX by_file ON images (file);
CREATE INDEX by_image ON annotations (image_id);
CREATE TABLE pictures AS SELECT file, MIN(at) AS first FROM images GROUP BY file ORDER BY first;
"""
_JOIN = """
SELECT pictures.rowid, images.file, images.at, images.caption, annotations.id, annotations.mask
FROM pictures CROSS JOIN images ON images.file = pictures.file LEFT JOIN annotations ON annotations.image_id = images.id
ORDER BY pictures.rowid, images.at, annotations.at
"""
_LOST = """
SELECT at, image_id FROM annotations
WHERE NOT EXISTS (SELECT 1 FROM images WHERE images.id = annotations.image_id) ORDER BY at
"""
# Of the join: picture, file, image, caption; then id (as JSON) and mask of an annotation, if there is one.
_JoinedRow = tuple[int, str, int, str, str, "str | None"]


def refcoco(path: str | os.PathLike[str], left_out: Counter[str]) -> Iterator[tuple[str, Any]]:
    """Read a file; all captions of one picture are one example, all captions of one mask one region of it.

    Yields:
        Where it stands, and an `Example`, or a `DataError` in its place.

    Raises:
        DataError: If the file is no JSON or holds no images and annotations.
    """
    name = os.fspath(path)
    with open_json(path) as file:
        # An empty name makes a database in a temporary file that nobody else sees and that goes with the connection.
        database = sqlite3.connect("", isolation_level=None)
        try:
            database.executescript(
                "PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE; PRAGMA cache_size=-16384;"
                + _TABLES
            )
            database.execute("BEGIN")
            yield from _fill(database, JsonStream(file, name), name)
            database.executescript(_INDICES)  # which ends the transaction first
            # One statement without sorting: pictures in their order, their captions, the masks of those.
            for _, rows in groupby(database.execute(_JOIN), key=lambda row: row[0]):
                yield from _examples(list(rows), name, left_out)
            for at, image_id in database.execute(_LOST):
                where = f"{name}: annotations[{at}]"
                yield where, DataError(where, f"there is no image with the id {image_id[:40]}.")
        finally:
            database.close()


def _fill(database: sqlite3.Connection, stream: JsonStream, name: str) -> Iterator[tuple[str, DataError]]:
    readers = {
        "images": (_image, "INSERT INTO images VALUES (?, ?, ?, ?)"),
        "annotations": (_annotation, "INSERT INTO annotations VALUES (?, ?, ?, ?)"),
    }
    found = set()
    for key in stream.names():
        if key not in readers:
            stream.skip()
            continue
        found.add(key)
        read, insert = readers[key]
        for at, entry in enumerate(stream.elements()):
            where = f"{name}: {key}[{at}]"
            try:
                database.execute(insert, (at, *read(entry)))
            except DataError as error:
                yield where, error.at(where)
            except sqlite3.Error as error:  # such as a second list of the same name, or a text that is too long
                yield where, DataError(where, f"it cannot be taken over ({error}).")
    stream.end()
    if missing := set(readers) - found:
        raise DataError(name, f"there is no list {' and no list '.join(sorted(missing))}. Is this COCO's form?")


def _image(entry: Any) -> tuple[str, str, str]:
    entry = as_object(entry, "image")
    return (
        _needed_id(entry, "id"),
        as_text(entry.get("file_name"), "file_name"),
        as_text(entry.get("caption"), "caption"),
    )


def _annotation(entry: Any) -> tuple[str, str, str]:
    entry = as_object(entry, "annotation")
    mask = as_reference(entry.get("segmentation"), "segmentation")
    if mask is None:
        raise DataError("segmentation", "it is missing.")
    try:
        text = json.dumps(mask, allow_nan=False, separators=(",", ":"))
        text.encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise DataError("segmentation", f"it is no region ({error}).") from error
    return _needed_id(entry, "image_id"), json.dumps(as_id(entry.get("id"))), text


def _needed_id(entry: dict[str, Any], key: str) -> str:
    found = as_id(entry.get(key))
    if found is None:
        raise DataError(key, "it is missing.")
    return str(found)  # by which both lists are joined


def _examples(rows: list[_JoinedRow], name: str, left_out: Counter[str]) -> Iterator[tuple[str, Any]]:
    """One picture: a row for each of its captions with each annotation of that (or with None)."""
    regions: dict[str, tuple[str, dict[str, None]]] = {}
    picture, first = rows[0][1:3]
    for at, group in groupby(rows, key=lambda row: row[2]):
        (_, _, _, caption, region_id, mask), *more = group
        if mask is None or more:
            where = f"{name}: images[{at}]"
            amount = "no annotation" if mask is None else "several annotations"
            yield where, DataError(where, f"its caption has {amount}; exactly one is needed.")
            continue
        captions = regions.setdefault(mask, (region_id, {}))[1]
        left_out["repeated captions of a mask"] += caption in captions
        captions[caption] = None
    if regions:
        where = f"{name}: images[{first}]"
        try:
            found = [
                Region(json.loads(mask), tuple(Branch(text, "region") for text in captions), json.loads(region_id))
                for mask, (region_id, captions) in regions.items()
            ]
            yield where, Example(picture, tuple(found), where=where)
        except DataError as error:
            yield where, error.at(where)
