"""Finished work on disk: what is kept, what is repaired, and what is refused."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from finecaption_hf.describing import JournalError, UnfinishedError
from finecaption_hf.describing.journal import MAX_PLACES, Journal, check_output

COUNTS = [2, 1, 3]
MANIFEST = {"format": 1, "input": {"fingerprint": "f", "regions": 6}, "options": {"seed": 0}}


def records(batch: int) -> list[dict[str, Any]]:
    return [
        {"image": f"{batch}.png", "region_index": n, "answers": {"color": "grün [1]"}} for n in range(COUNTS[batch])
    ]


def failed(batch: int) -> list[dict[str, Any]]:
    error = {"type": "MaskError", "message": "empty"}
    return [{"image": f"{batch}.png", "region_index": n, "error": error} for n in range(COUNTS[batch])]


def begun(output: Path, told: list[str] | None = None, **options: Any) -> tuple[Journal, list[int]]:
    journal = Journal(output, COUNTS)
    try:
        journal.open()
        if not options:
            assert journal.check(MANIFEST) is None
        return journal, journal.begin(MANIFEST, ([] if told is None else told).append, **options)
    except BaseException:
        journal.close()
        raise


def finished(output: Path) -> Path:
    journal, left = begun(output)
    for batch in left:
        journal.append(batch, records(batch))
    journal.finish()
    return output


def checked(output: Path, **changes: Any) -> Any:
    journal = Journal(output, COUNTS)
    try:
        journal.open()
        return journal.check({**MANIFEST, **changes})
    finally:
        journal.close()


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_batches_in_any_order_and_of_any_process_become_lines_in_input_order(tmp_path: Path) -> None:
    journal, left = begun(tmp_path / "out.jsonl")
    assert left == [0, 1, 2]
    other = Journal(tmp_path / "out.jsonl", COUNTS)
    other.join(1)
    journal.append(2, records(2))
    other.append(1, records(1))
    assert journal.newly_finished() == 1
    other.append(0, failed(0))
    assert journal.newly_finished() == 2
    assert journal.newly_finished() == 0
    result = journal.finish()
    assert lines(tmp_path / "out.jsonl") == failed(0) + records(1) + records(2)
    assert (result.regions, result.failed) == (6, 2)
    assert result.places[1] == "out.jsonl:2 (0.png, region 1): MaskError: empty"
    assert names(tmp_path) == {"out.jsonl", "out.jsonl.manifest.json"}
    assert checked(tmp_path / "out.jsonl") == result


@pytest.mark.parametrize("share", [0.01, 0.3, 0.99])
def test_a_torn_last_line_is_taken_away_and_told(tmp_path: Path, share: float) -> None:
    journal, _ = begun(tmp_path / "out.jsonl")
    journal.append(1, records(1))
    journal.append(0, records(0))
    journal.close()
    part = tmp_path / "out.jsonl.parts" / "part-0.jsonl"
    content = part.read_bytes()
    first = content.index(b"\n") + 1
    part.write_bytes(content[: first + 1 + int(share * (len(content) - first - 2))])
    told: list[str] = []
    journal, left = begun(tmp_path / "out.jsonl", told)
    assert left == [0, 2]
    assert len(told) == 1
    assert "Repaired part-0.jsonl" in told[0]
    assert part.read_bytes() == content[:first]
    for batch in left:
        journal.append(batch, records(batch))
    journal.finish()
    assert lines(tmp_path / "out.jsonl") == [*records(0), *records(1), *records(2)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\0\0\0\n", "the line is none of a finished batch"),
        (b'{"batch": 1}\n', "the line is none of a finished batch"),
        (b'{"batch": 9, "records": []}\n', "there is no batch 9"),
        (b'{"batch": 1, "records": []}\n', "batch 1 does not hold its 1 regions"),
        (b'{"batch": 1, "records": [{"image": "a"}]}\n', "neither answers nor an error"),
        (b'{"batch": 0, "records": [{"answers": {}}, {"answers": {}}]}\n', "a second time with another content"),
    ],
)
def test_other_damage_is_named_with_its_place(tmp_path: Path, line: bytes, message: str) -> None:
    journal, _ = begun(tmp_path / "out.jsonl")
    journal.append(0, records(0))
    journal.close()
    part = tmp_path / "out.jsonl.parts" / "part-0.jsonl"
    part.write_bytes(part.read_bytes() + line)
    with pytest.raises(JournalError, match=rf"part-0\.jsonl:2 is damaged: .*{message}.*--overwrite"):
        begun(tmp_path / "out.jsonl")
    _, left = begun(tmp_path / "out.jsonl", overwrite=True)
    assert left == [0, 1, 2]


def test_a_full_disk_leaves_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, _ = begun(tmp_path / "out.jsonl")
    journal.append(0, records(0))
    part = tmp_path / "out.jsonl.parts" / "part-0.jsonl"
    before, write, room = part.read_bytes(), os.write, [20]

    def short_of_room(handle: int, data: Any) -> int:
        taken = write(handle, bytes(data[: room[0]]))
        room[0] -= taken
        if not taken:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return taken

    monkeypatch.setattr(os, "write", short_of_room)
    with pytest.raises(UnfinishedError, match="No space left on device"):
        journal.append(1, records(1))
    assert room == [0]
    assert part.read_bytes() == before
    monkeypatch.undo()
    journal.append(1, records(1))
    journal.append(2, records(2))
    monkeypatch.setattr(os, "fsync", lambda handle: short_of_room(handle, b""))
    with pytest.raises(UnfinishedError):
        journal.finish()
    assert not (tmp_path / "out.jsonl").exists()
    monkeypatch.undo()
    journal.finish()
    assert len(lines(tmp_path / "out.jsonl")) == 6


def test_a_second_run_on_the_same_output_is_refused(tmp_path: Path) -> None:
    journal, _ = begun(tmp_path / "out.jsonl")
    with pytest.raises(JournalError, match="Another run is working on the same output"):
        begun(tmp_path / "out.jsonl")
    other = Journal(tmp_path / "out.jsonl", COUNTS)
    other.join(1)
    journal.close()
    # The main process is gone, but another one of its run may still write.
    with pytest.raises(JournalError, match="Another run is working on the same output"):
        begun(tmp_path / "out.jsonl")
    other.close()
    assert begun(tmp_path / "out.jsonl")[1] == [0, 1, 2]


@pytest.mark.parametrize("when", ["while it runs", "when it is finished"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"fingerprint": "g", "regions": 6}}, 'input: fingerprint was "f", now it is "g"'),
        ({"options": {"seed": 1}}, "options: seed was 0, now it is 1"),
        ({"model": {"dtype": "bfloat16"}}, "model was nothing, now it is"),
    ],
)
def test_work_of_another_command_is_refused(tmp_path: Path, when: str, changes: dict[str, Any], message: str) -> None:
    output = tmp_path / "out.jsonl"
    if when == "while it runs":
        begun(output)[0].close()
    else:
        finished(output)
    before = names(tmp_path)
    with pytest.raises(JournalError, match=rf"was made by another command\. {message}.*--overwrite"):
        checked(output, **changes)
    assert names(tmp_path) == before


def test_a_finished_output_that_was_changed_is_refused(tmp_path: Path) -> None:
    output = finished(tmp_path / "out.jsonl")
    content = output.read_bytes()
    for changed in (content[:-9], content + content, content.replace(b"1.png", b"2.png"), b"\xff\n"):
        output.write_bytes(changed)
        with pytest.raises(JournalError, match="changed, or cut off"):
            checked(output)
    output.unlink()
    assert begun(output)[1] == [0, 1, 2]


def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    with pytest.raises(JournalError, match=r"is there already, without out\.jsonl\.manifest\.json"):
        checked(output)
    assert names(tmp_path) == {"out.jsonl"}
    journal, left = begun(output, overwrite=True)
    assert output.read_text() == "mine"
    for batch in left:
        journal.append(batch, records(batch))
    journal.finish()
    assert len(lines(output)) == 6


def test_work_without_its_manifest_is_refused(tmp_path: Path) -> None:
    journal, _ = begun(tmp_path / "out.jsonl")
    journal.append(0, records(0))
    journal.close()
    (tmp_path / "out.jsonl.parts" / "manifest.json").unlink()
    with pytest.raises(JournalError, match=r"no manifest\.json, which says what it belongs to"):
        checked(tmp_path / "out.jsonl")


def test_an_output_that_cannot_be_made_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(JournalError, match="is no file"):
        check_output(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"does not exist\. Make it first"):
        check_output(tmp_path / "gone" / "out.jsonl")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="may not be written to"):
        check_output(tmp_path / "out.jsonl")


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "there" / "out.jsonl")
    finished(tmp_path / "link.jsonl")
    assert (tmp_path / "link.jsonl").is_symlink()
    assert len(lines(tmp_path / "there" / "out.jsonl")) == 6


def test_names_that_are_no_unicode_make_valid_lines(tmp_path: Path) -> None:
    journal, _ = begun(tmp_path / "out.jsonl")
    odd = [{**record, "image": "\udcff.png"} for record in records(1)]
    for batch, found in enumerate([records(0), odd, records(2)]):
        journal.append(batch, found)
    journal.finish()
    assert lines(tmp_path / "out.jsonl")[2]["image"] == "\udcff.png"


def test_of_many_failures_the_first_are_named_and_all_are_counted(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl", [50])
    journal.open()
    journal.begin(MANIFEST, print)
    error = {"type": "DataError", "message": "rows.jsonl:3: the line is no JSON"}
    journal.append(0, [{"image": None, "region_index": 0, "error": error}] * 50)
    result = journal.finish()
    assert (result.failed, len(result.places)) == (50, MAX_PLACES)
    assert result.places[4] == "out.jsonl:5: DataError: rows.jsonl:3: the line is no JSON"
