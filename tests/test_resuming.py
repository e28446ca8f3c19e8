"""What is kept of interrupted work, what is repaired, and what is refused, whatever the work is."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from finecaption_hf.resuming import (
    EntryFile,
    ResumeError,
    UnfinishedError,
    check_same,
    files_fingerprint,
    read_manifest,
    read_seal,
    repair,
    seal,
    whole_file,
    write_json,
)

ENTRIES = [{"key": "a", "text": 'grün "1"\n\u2028'}, {"key": "\udcff.png"}, {"key": "c", "text": "x" * 200_000}]


def written(path: Path, *entries: dict[str, Any]) -> bytes:
    file = EntryFile(path)
    for entry in entries:
        file.append(entry)
    file.close()
    return path.read_bytes()


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]


def fill_disk(patches: pytest.MonkeyPatch, room: int) -> None:
    """Of the next call of `os.write` only so many bytes find room; from then on nothing does."""
    write, left = os.write, [room]

    def short_of_room(handle: int, data: Any) -> int:
        taken = write(handle, bytes(data[: left[0]]))
        left[0] -= taken
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken

    patches.setattr(os, "write", short_of_room)
    patches.setattr(os, "fsync", lambda handle: short_of_room(handle, b""))


# --- entries ---------------------------------------------------------------------------------------------------------


def test_entries_come_back_from_a_file_and_folder_that_were_not_there(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "entries.jsonl"
    assert written(path, ENTRIES[0]) + written(tmp_path / "others.jsonl", *ENTRIES[1:]) == written(path, *ENTRIES[1:])
    assert read(path) == ENTRIES


@pytest.mark.parametrize("share", [0, 0.3, 1])
@pytest.mark.parametrize("number", range(len(ENTRIES)))
def test_a_torn_last_line_is_taken_away_and_told(tmp_path: Path, number: int, share: float) -> None:
    """The last one is longer than the pieces in which its begin is looked for."""
    path, told = tmp_path / "e.jsonl", []
    whole = written(path, *ENTRIES[: number + 1])
    start = whole.rfind(b"\n", 0, -1) + 1
    path.write_bytes(whole[: start + 1 + int(share * (len(whole) - start - 2))])
    repair(path, told.append, "it is made again")
    assert path.read_bytes() == whole[:start]
    assert len(told) == 1 and told[0].startswith("Repaired e.jsonl: its last line was not written to the end (")
    assert told[0].endswith(" bytes); it is made again.")
    assert written(path, ENTRIES[number]) == whole
    repair(path, pytest.fail, "")
    assert path.read_bytes() == whole


def test_a_full_disk_keeps_whole_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "e.jsonl"
    file = EntryFile(path)
    file.append(ENTRIES[0])
    before = path.read_bytes()
    for change in (lambda: file.append(ENTRIES[2]), lambda: file.replace(ENTRIES)):
        with monkeypatch.context() as patches:
            fill_disk(patches, 20)
            with pytest.raises(UnfinishedError, match=rf"Nothing more .* {tmp_path} \(No space left .*Make room\."):
                change()
        assert path.read_bytes() == before
        assert os.listdir(tmp_path) == ["e.jsonl"]
    file.append(ENTRIES[2])
    assert read(path) == [ENTRIES[0], ENTRIES[2]]


def test_a_file_belongs_to_one_run_until_it_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    file = EntryFile(path)
    for _ in range(2):
        with pytest.raises(ResumeError, match=r"Another run is writing to .*e\.jsonl\. Wait for its end"):
            EntryFile(path)
        file.replace(ENTRIES)
    file.append(ENTRIES[0])
    file.close()
    assert EntryFile(path).is_there()
    assert read(path) == [*ENTRIES, ENTRIES[0]]


def test_a_folder_that_its_holder_takes_away_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, opened = tmp_path / "folder" / "e.jsonl", []
    open_file = os.open

    def taken_away_in_between(*args: Any) -> int:
        opened.append(args)
        if len(opened) == 1:
            path.parent.rmdir()  # before the file is opened
        handle = open_file(*args)
        if len(opened) == 2:
            path.unlink()  # before it is locked
        return handle

    monkeypatch.setattr(os, "open", taken_away_in_between)
    file = EntryFile(path)
    assert (len(opened), file.is_there()) == (3, True)


def test_a_file_takes_its_name_when_all_of_it_is_there(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as file:
        file.write(b"after")
        file.flush()
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["f"]
    with whole_file(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after" and os.listdir(tmp_path) == ["f"]


# --- manifests -------------------------------------------------------------------------------------------------------

MANIFEST = {
    "input": {"name": "a", "size": (2, 3)},
    "options": {"seed": 0, "top": {"p": 1.0}},
    "path": "/a" * 70,
    "stages": [{"name": "one", "rate": 1}],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"seed": 1, "top": {"p": 1.0}}}, "options: seed was 0, now it is 1"),
        (
            {"options": {"seed": 0, "top": {"p": 0.5, "k": 2}}},
            "top: p was 1.0, now it is 0.5; options: top: k was nothing",
        ),
        ({"input": {"size": [2, 3]}}, 'input: name was "a", now it is nothing'),
        (
            {"stages": [{"name": "one", "rate": 2}, {"name": "two"}]},
            'stages: 1: rate was 1, now it is 2; stages: 2 was nothing, now it is {"name": "two"}',
        ),
        ({"model": {"dtype": "x"}}, 'model was nothing, now it is {"dtype": "x"}'),
        ({"path": "/a" * 69 + "/b"}, r'was "(/a)+/\.\.\./a[a/]+/a", now it is "(/a)+/\.\.\./a[a/]+/b"'),
        ({name: 1 for name in "abcdefg"}, "d was nothing, now it is 1; and 3 more"),
    ],
)
def test_what_differs_from_then_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_json(tmp_path / "m.json", {**MANIFEST, "made_with": "not compared"})
    then = read_manifest(tmp_path / "m.json")
    check_same(then, MANIFEST, "out.jsonl")
    check_same(then, {"input": MANIFEST["input"]}, "out.jsonl")
    with pytest.raises(ResumeError, match=rf"^out\.jsonl was begun by another command\. .*{message}.*\. Do this\.$"):
        check_same(then, {**MANIFEST, **change}, "out.jsonl", "Do this.")


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000, "\0"])
def test_a_damaged_manifest_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.json").write_text(content)
    with pytest.raises(ResumeError, match=r"m\.json is damaged: .*another --output"):
        read_manifest(tmp_path / "m.json")


# --- seals -----------------------------------------------------------------------------------------------------------


def test_a_folder_that_lost_something_since_it_was_sealed_is_torn(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    files = [tmp_path / "a", tmp_path / "inner" / "b"]
    for file in files:
        file.write_bytes(b"12345")
    with pytest.raises(ResumeError, match=r"has no stage\.json: it was not written to its end"):
        read_seal(tmp_path)
    for _ in range(2):  # a second seal does not count the first
        seal(tmp_path, {"step": 3})
    assert read_seal(tmp_path) == {"step": 3, "files": {"a": 5, "inner/b": 5}}
    files[1].write_bytes(b"1234")
    with pytest.raises(ResumeError, match="is torn: inner/b has 4 bytes instead of 5"):
        read_seal(tmp_path)
    files[1].unlink()
    with pytest.raises(ResumeError, match="is torn: inner/b is missing"):
        read_seal(tmp_path)


# --- fingerprints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place", "differs"),
    [
        ("config.json", 5, True),
        ("model.safetensors", 3, True),
        ("model.safetensors", -1, True),
        ("README.md", 0, False),
    ],
)
def test_files_of_another_checkpoint_have_another_fingerprint(
    tmp_path: Path, name: str, place: int, differs: bool
) -> None:
    header = b'{"weight": {"dtype": "U8", "shape": [50], "data_offsets": [0, 50]}}'
    weights = len(header).to_bytes(8, "little") + header + bytes(50)
    for file, content in (("config.json", b'{"size": 3}'), ("model.safetensors", weights), ("README.md", b"# A")):
        (tmp_path / file).write_bytes(content)
    before = files_fingerprint(tmp_path)
    changed = bytearray((tmp_path / name).read_bytes())
    changed[place if name != "model.safetensors" or place < 0 else 8 + place] ^= 1
    (tmp_path / name).write_bytes(changed)
    assert (files_fingerprint(tmp_path) != before) == differs
