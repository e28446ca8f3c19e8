"""The finished batches of a run on disk, and the output that they become.

While a run goes on there is `OUTPUT.parts/` with `manifest.json`, which says what the work belongs to, and one
`part-<rank>.jsonl` for each process, to which it appends an entry per finished batch. At the end they are merged in
input order: `OUTPUT` appears as a whole, and the manifest stays beside it as `OUTPUT.manifest.json`. An output that is
not JSON Lines is made of the merged records, which stay beside it as `OUTPUT.records.jsonl`.
"""

import hashlib
import json
import os
import re
import shutil
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data.errors import DataError
from ..resuming import (
    EntryFile,
    ResumeError,
    UnfinishedError,
    check_same,
    read_manifest,
    repair,
    to_line,
    whole_file,
    write_json,
    writing_into,
)
from .outputs import Output, is_folder, name_output

_REMEDY = "Give the same as then, another --output, or --overwrite to start anew."


@dataclass(frozen=True)
class Result:
    """What a finished output holds.

    Attributes:
        regions, failed (`int`): records, and those among them that hold an error, of the region or of a question.
        places (`list[str]`): the first failures with their reasons.
        records (`Path`): the JSON Lines with all of them; the output itself, or beside it.
    """

    regions: int
    failed: int
    places: list[str]
    records: Path


MAX_PLACES = 20
"""Failures that are named; of more, the number is told."""


def check_output(output: str | os.PathLike[str], output_format: str | None = None) -> None:
    """Find out whether an output can be made there, before anything costly.

    Args:
        output, output_format: as for `describe_dataset`.

    Raises:
        OSError, ValueError: If it cannot, or its form is unknown.
    """
    _check_place(Path(os.path.realpath(output)), is_folder(name_output(Path(output), output_format)))


def _check_place(path: Path, is_folder: bool | None) -> None:
    if path.exists() and not path.is_file() and is_folder is False:
        raise ResumeError(f"{path} is no file. Give the name of a file to make, such as captions.jsonl.")
    if path.exists() and not path.is_dir() and is_folder:
        raise ResumeError(f"{path} is no folder. Give the name of a folder to make.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"The folder {path.parent} of the output does not exist. Make it first.")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"The folder {path.parent} of the output may not be written to.")


class Entries:
    """The work on one output.

    Args:
        output: the file or folder that is to be made.
        region_counts (`Sequence[int]`): the number of regions of each batch.
        form: what makes it of the records; `None` means that it is JSON Lines.

    Attributes:
        output, records (`Path`): what is made, and the JSON Lines, which may be the same.
    """

    def __init__(
        self, output: str | os.PathLike[str], region_counts: Sequence[int], form: Output | None = None
    ) -> None:
        self.output = Path(os.path.realpath(output))  # a link is to stay one
        self.form = form
        self.records = self.output if form is None else self._beside(".records.jsonl")
        self.folder = self._beside(".parts")
        self.final_manifest = self._beside(".manifest.json")
        self.region_counts = region_counts
        self._manifest = self.folder / "manifest.json"
        # What is made of the records, and the folders that it takes the place of, until those are gone.
        self._made, self._replaced = self.folder / "made", self.folder / "replaced"
        self._own: EntryFile | None = None
        self._seen: dict[Path, int] = {}

    def _beside(self, end: str) -> Path:
        return self.output.with_name(self.output.name + end)

    # --- the main process ---------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Take hold of the output for this run, before anything costly.

        Raises:
            ResumeError: If another run works on it.
            OSError: If it cannot be written.
        """
        _check_place(self.output, self.form is not None and self.form.is_folder)
        self._refuse_folders_of_others()
        self.join(0)
        for path in self._parts()[1:]:  # a process of a run that was ended may still be there
            EntryFile(path).close()

    def check(self, wanted: Mapping[str, Any]) -> Result | None:
        """Compare what is on disk with what is asked for.

        Args:
            wanted: the manifest, or a part of it.

        Returns:
            `Result` if the output is finished, else None.

        Raises:
            ResumeError: If it belongs to another run, or is damaged.
        """
        if self._manifest.is_file():
            check_same(read_manifest(self._manifest), wanted, self.folder, _REMEDY)
            return None
        if self.final_manifest.is_file() and self.output.exists() and self.records.is_file():
            manifest = read_manifest(self.final_manifest)
            check_same(manifest, wanted, self.output, _REMEDY)
            return self._finished(manifest)
        for path in (self.records, *self._places()):
            if path.exists() and not self.final_manifest.is_file():
                raise ResumeError(
                    f"{path} is there already, without {self.final_manifest.name}, so it was not made by this "
                    "command. Give another name, or --overwrite."
                )
        if self._holds_entries():
            raise ResumeError(
                f"{self.folder} has finished work but no manifest.json, which says what it belongs to. Put it back, or "
                "give --overwrite to start anew."
            )
        return None

    def begin(self, manifest: Mapping[str, Any], tell: Callable[[str], None], *, overwrite: bool = False) -> list[int]:
        """Start, or go on, after `check`.

        Args:
            manifest: all of it.
            tell: gets a line about what was repaired.
            overwrite: forget what was finished.

        Returns:
            The numbers of the batches that are not finished.

        Raises:
            ResumeError: If a part is damaged other than by an end in the middle of its last line.
        """
        if overwrite:
            self._forget()
        places = self._scan(tell)
        if not self._manifest.is_file():
            write_json(self._manifest, manifest)
        self._seen = {path: path.stat().st_size for path in self._parts()}
        return [batch for batch in range(len(self.region_counts)) if places.part[batch] < 0]

    def reopen(self) -> None:
        """Take a finished output up again, with all of its batches in which nothing failed; then comes `begin`.

        As long as there is no manifest of the parts, the finished output counts.
        """
        self._forget()
        with open(self.records, "rb") as file:
            for batch, count in enumerate(self.region_counts):
                records = [json.loads(file.readline()) for _ in range(count)]
                if not any("error" in record or "errors" in record for record in records):
                    self.append(batch, records)

    def newly_finished(self) -> int:
        """The regions that other processes finished since the last call."""
        regions = 0
        for path in self._parts()[1:]:
            start = self._seen.get(path, 0)
            with open(path, "rb") as file:
                file.seek(start)
                data = file.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._seen[path] = start + len(whole)
            for match in re.finditer(rb'^\{"batch": (\d+)', whole, re.MULTILINE):
                regions += self.region_counts[int(match[1])]
        return regions

    def finish(self) -> Result:
        """Merge the parts; the output appears as a whole.

        Raises:
            ResumeError: If a batch is missing or damaged.
            UnfinishedError: If it cannot be written; the parts stay.
        """
        places = self._scan(lambda line: None)
        if missing := sum(part < 0 for part in places.part):
            raise ResumeError(f"{missing} batches are not finished in {self.folder}. The same command goes on.")
        digest, tally = hashlib.sha256(), _Tally(self.records)
        with whole_file(self.records) as file:
            for records in places.read():
                for record in records:
                    line = to_line(record)
                    digest.update(line)
                    tally.add(record)
                    file.write(line)
            size = file.tell()
            # The manifest of what is being replaced must not be taken for that of what replaces it.
            if self.form is None:
                self.final_manifest.unlink(missing_ok=True)
        self._refuse_folders_of_others()
        result: dict[str, Any] = {"regions": tally.regions, "failed": tally.failed}
        result |= {"bytes": size, "sha256": digest.hexdigest()}
        if self.form is not None:
            result["made"] = self._make(self.form)
        needless = self._made_before() - set(result.get("made", ()))
        # It comes before what it tells of: a folder that no manifest tells of is another's.
        write_json(self.final_manifest, {**read_manifest(self._manifest), "result": result})
        self._put_in_place(needless)
        self.discard()
        return tally.result()

    def _make(self, form: Output) -> dict[str, str]:
        """Make the output of the records, in the folder of parts; gives the digest of all that belongs to it."""
        for folder in (self._made, self._replaced):
            shutil.rmtree(folder, ignore_errors=True)
        with writing_into(self.output.parent):
            self._made.mkdir()
            try:
                form.write(partial(_read_records, self.records), self._made / self.output.name)
            except DataError as error:
                raise UnfinishedError(f"{self.output.name} cannot be made: {error}") from error
            return {path.name: _digest(path, sync=True) for path in sorted(self._made.iterdir())}

    def _put_in_place(self, needless: Collection[str]) -> None:
        """Give what was made its name, the output last. A folder is not replaced in one step: for a moment it is away.

        Args:
            needless: folders of an earlier output that this one has not.
        """
        made = sorted(self._made.iterdir()) if self._made.is_dir() else []
        with writing_into(self.output.parent):
            for path in sorted(made, key=lambda path: path.name == self.output.name):
                place = self.output.with_name(path.name)
                if place.is_dir():
                    self._replaced.mkdir(exist_ok=True)
                    os.replace(place, self._replaced / place.name)
                os.replace(path, place)
            for place in self._places():
                if place.name in needless and place.is_dir():
                    shutil.rmtree(place)

    def _made_before(self) -> set[str]:
        """The names of what the manifest of a finished output tells of."""
        manifest = read_manifest(self.final_manifest) if self.final_manifest.is_file() else {}
        return set(manifest.get("result", {}).get("made", ()))

    def _refuse_folders_of_others(self) -> None:
        known = self._made_before()
        for place in self._places():
            if place.is_dir() and place.name not in known:
                raise ResumeError(f"This command did not make the folder {place}. Move it, or give another name.")

    def _places(self) -> list[Path]:
        """What is made of the records: the output, and the folder beside it if it may need one."""
        beside = None if self.form is None else self.form.beside(self.output)
        return [self.output] if beside is None else [beside, self.output]

    def discard(self) -> None:
        """Take the folder of parts away; without its manifest, nothing in it counts any more."""
        self._forget()
        self.close()

    # --- every process ------------------------------------------------------------------------------------------------

    def join(self, rank: int) -> None:
        """Open the part of a process; of one that is not the main one, after `begin`."""
        self._own = EntryFile(self.folder / f"part-{rank}.jsonl")

    def append(self, batch: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Keep a finished batch.

        Raises:
            UnfinishedError: If it cannot be written; what was kept before is as it was.
        """
        assert self._own is not None
        assert len(records) == self.region_counts[batch]
        self._own.append({"batch": batch, "records": list(records)})

    def close(self) -> None:
        """Let go of the output. A folder of parts in which nothing is kept goes, too."""
        if self._own is None:
            return
        # While the main process holds its part, no other run begins here.
        is_main = self._own.path.name == "part-0.jsonl" and self._own.is_there()
        if is_main and not self._manifest.exists() and not self._holds_entries():
            shutil.rmtree(self.folder, ignore_errors=True)
        self._own.close()
        self._own = None

    # --- what is on disk ----------------------------------------------------------------------------------------------

    def _parts(self) -> list[Path]:
        """That of the main process comes first."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(path for path in paths if re.fullmatch(r"part-\d+\.jsonl", path.name))

    def _holds_entries(self) -> bool:
        return any(path.stat().st_size for path in self._parts())

    def _forget(self) -> None:
        self._manifest.unlink(missing_ok=True)
        for path in self._parts():
            os.truncate(path, 0)

    def _scan(self, tell: Callable[[str], None]) -> "_Places":
        """Where each finished batch is. A last line that was not written to its end is taken away."""
        places = _Places(self._parts(), len(self.region_counts))
        for number, path in enumerate(places.paths):
            repair(path, tell, "the regions of that batch are described again")
            offset = 0
            with open(path, "rb") as file:
                for index, line in enumerate(file, start=1):
                    batch = self._checked(line, f"{path}:{index}")
                    if places.part[batch] < 0:
                        places.part[batch], places.offset[batch] = number, offset
                    elif places.line(batch) != line:
                        raise _damaged(f"{path}:{index}", f"batch {batch} is there a second time with another content")
                    offset += len(line)
        return places

    def _checked(self, line: bytes, where: str) -> int:
        try:
            entry = json.loads(line)
            batch, records = entry["batch"], entry["records"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise _damaged(where, f"the line is none of a finished batch ({type(error).__name__}: {error})") from error
        if not isinstance(batch, int) or not 0 <= batch < len(self.region_counts):
            raise _damaged(where, f"there is no batch {batch!r:.40}")
        if not isinstance(records, list) or len(records) != self.region_counts[batch]:
            raise _damaged(where, f"batch {batch} does not hold its {self.region_counts[batch]} regions")
        for record in records:
            if not isinstance(record, dict) or ("answers" in record) == ("error" in record):
                raise _damaged(where, f"a record of batch {batch} has neither answers nor an error, or both")
        return batch

    def _finished(self, manifest: Mapping[str, Any]) -> Result:
        digest, tally = hashlib.sha256(), _Tally(self.records)
        with open(self.records, "rb") as file:
            for line in file:
                digest.update(line)
                try:
                    tally.add(json.loads(line))
                except (ValueError, AttributeError):
                    break
        result = manifest.get("result", {})
        changed = [self.records] if result.get("sha256") != digest.hexdigest() else []
        for name, made in result.get("made", {}).items():
            path = self.output.with_name(name)
            if not path.exists() or _digest(path) != made:
                changed.append(path)
        if changed:
            raise ResumeError(
                f"{changed[0]} is not any more what was written: it was changed, or cut off. Put the right one back, "
                "or give --overwrite to start anew."
            )
        return tally.result()


class _Places:
    """Which part holds a batch, and where in it."""

    def __init__(self, paths: list[Path], num_batches: int) -> None:
        self.paths = paths
        self.part = array("q", [-1]) * num_batches
        self.offset = array("q", [0]) * num_batches

    def line(self, batch: int) -> bytes:
        with open(self.paths[self.part[batch]], "rb") as file:
            file.seek(self.offset[batch])
            return file.readline()

    def read(self) -> Iterator[list[dict[str, Any]]]:
        """The records of all batches, in their order."""
        with ExitStack() as opened:
            files = [opened.enter_context(open(path, "rb")) for path in self.paths]
            for part, offset in zip(self.part, self.offset, strict=True):
                files[part].seek(offset)
                yield json.loads(files[part].readline())["records"]


class _Tally:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.regions = self.failed = 0
        self.places: list[str] = []

    def add(self, record: Mapping[str, Any]) -> None:
        self.regions += 1
        error = record.get("error") or next(iter(record.get("errors", {}).values()), None)
        if error is None:
            return
        self.failed += 1
        if len(self.places) < MAX_PLACES:
            where = f"{self.path.name}:{self.regions}"
            if record.get("image") is not None:
                where += f" ({record['image']}, region {record['region_index'] + 1})"
            self.places.append(f"{where}: {error['type']}: {error['message']}")

    def result(self) -> Result:
        return Result(self.regions, self.failed, self.places, self.path)


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as file:
        yield from map(json.loads, file)


def _digest(path: Path, *, sync: bool = False) -> str:
    """The SHA-256 of a file, or of a folder with the names of all files in it.

    Args:
        sync: whether to see to it that all of it is on disk.
    """
    digest = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        if file != path:
            digest.update(file.relative_to(path).as_posix().encode("utf-8", "surrogateescape") + b"\0")
        with open(file, "rb") as opened:
            if sync:
                os.fsync(opened.fileno())
            content = hashlib.sha256()
            while block := opened.read(2**20):
                content.update(block)
            digest.update(content.digest())
    return digest.hexdigest()


def _damaged(where: str, reason: str) -> ResumeError:
    return ResumeError(f"{where} is damaged: {reason}. Mend it, or give --overwrite to start anew.")
