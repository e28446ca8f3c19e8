"""Finished batches on disk: what is kept, what is repaired, and what is refused."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from finecaption_hf.describing import ResumeError, UnfinishedError
from finecaption_hf.describing.entries import MAX_PLACES, Entries, check_output

COUNTS = [2, 1, 3]
MANIFEST = {"format": 1, "input": {"fingerprint": "f", "regions": 6}, "options": {"seed": 0}}


def records(batch: int, **fields: Any) -> list[dict[str, Any]]:
    fields = fields or {"answers": {"color": "grün [1]"}}
    return [{"image": f"{batch}.png", "region_index": n, **fields} for n in range(COUNTS[batch])]


def begun(output: Path, told: list[str] | None = None, **options: Any) -> tuple[Entries, list[int]]:
    entries = Entries(output, COUNTS)
    try:
        entries.open()
        if not options:
            assert entries.check(MANIFEST) is None
        return entries, entries.begin(MANIFEST, ([] if told is None else told).append, **options)
    except BaseException:
        entries.close()
        raise


def finished(output: Path, **options: Any) -> Path:
    entries, left = begun(output, **options)
    for batch in left:
        entries.append(batch, records(batch))
    entries.finish()
    return output


def checked(output: Path, **changes: Any) -> Any:
    entries = Entries(output, COUNTS)
    try:
        entries.open()
        return entries.check({**MANIFEST, **changes})
    finally:
        entries.close()


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_batches_in_any_order_and_of_any_process_become_lines_in_input_order(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    output = tmp_path / "there" / "out.jsonl"
    (tmp_path / "link.jsonl").symlink_to(output)
    error = {"type": "MaskError", "message": "empty"}
    entries, left = begun(tmp_path / "link.jsonl")
    assert left == [0, 1, 2]
    other = Entries(tmp_path / "link.jsonl", COUNTS)
    other.join(1)
    entries.append(2, records(2))
    other.append(1, records(1))
    assert entries.newly_finished() == 1
    other.append(0, records(0, error=error))
    assert entries.newly_finished() == 2
    assert entries.newly_finished() == 0
    result = entries.finish()
    assert (tmp_path / "link.jsonl").is_symlink()
    assert lines(output) == records(0, error=error) + records(1) + records(2)
    assert (result.regions, result.failed) == (6, 2)
    assert result.places[1] == "out.jsonl:2 (0.png, region 2): MaskError: empty"
    assert names(output.parent) == {"out.jsonl", "out.jsonl.manifest.json"}
    assert checked(output) == result


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"\0\0\0\n", "the line is none of a finished batch"),
        (b'{"batch": 1}\n', "the line is none of a finished batch"),
        (b'{"batch": 9, "records": []}\n', "there is no batch 9"),
        (b'{"batch": 1, "records": []}\n', "batch 1 does not hold its 1 regions"),
        (b'{"batch": 1, "records": [{"image": "a"}]}\n', "neither answers nor an error"),
        (b'{"batch": 0, "records": [{"answers": {}}, {"answers": {}}]}\n', "a second time with another content"),
        (b'{"batch": 1, "reco', None),
    ],
)
def test_damage_is_named_with_its_place_and_a_torn_line_repaired(
    tmp_path: Path, line: bytes, message: str | None
) -> None:
    output = tmp_path / "out.jsonl"
    entries, _ = begun(output)
    entries.append(0, records(0))
    entries.close()
    part, told = tmp_path / "out.jsonl.parts" / "part-0.jsonl", []
    part.write_bytes(part.read_bytes() + line)
    if message is None:
        entries, left = begun(output, told)
        assert left == [1, 2]
        assert [line.endswith("the regions of that batch are described again.") for line in told] == [True]
        entries.close()
        return
    with pytest.raises(ResumeError, match=rf"part-0\.jsonl:2 is damaged: .*{message}.*--overwrite"):
        begun(output)
    assert begun(output, overwrite=True)[1] == [0, 1, 2]


def test_a_full_disk_at_the_end_leaves_what_was_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out.jsonl"
    entries, left = begun(output)
    for batch in left:
        entries.append(batch, records(batch))

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnfinishedError, match="No space left on device"):
        entries.finish()
    assert not output.exists()
    monkeypatch.undo()
    entries.finish()
    assert len(lines(output)) == 6


def test_a_second_run_on_the_same_output_is_refused(tmp_path: Path) -> None:
    entries, _ = begun(tmp_path / "out.jsonl")
    with pytest.raises(ResumeError, match="Another run is writing to"):
        begun(tmp_path / "out.jsonl")
    other = Entries(tmp_path / "out.jsonl", COUNTS)
    other.join(1)
    entries.close()
    # The main process is gone, but another one of its run may still write.
    with pytest.raises(ResumeError, match="Another run is writing to"):
        begun(tmp_path / "out.jsonl")
    other.close()
    assert begun(tmp_path / "out.jsonl")[1] == [0, 1, 2]


@pytest.mark.parametrize("is_finished", [False, True])
def test_work_of_another_command_is_refused(tmp_path: Path, is_finished: bool) -> None:
    output = tmp_path / "out.jsonl"
    if is_finished:
        finished(output)
    else:
        begun(output)[0].close()
    before = names(tmp_path)
    with pytest.raises(ResumeError, match=r"another command\. options: seed was 0, now it is 1\. .*--overwrite"):
        checked(output, options={"seed": 1})
    assert names(tmp_path) == before


def test_a_finished_output_that_was_changed_is_refused(tmp_path: Path) -> None:
    output = finished(tmp_path / "out.jsonl")
    content = output.read_bytes()
    for changed in (content[:-9], content + content, content.replace(b"1.png", b"2.png"), b"\xff\n"):
        output.write_bytes(changed)
        with pytest.raises(ResumeError, match="changed, or cut off"):
            checked(output)
    output.unlink()
    assert begun(output)[1] == [0, 1, 2]


def test_files_of_others_are_not_written_over(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.write_text("mine")
    with pytest.raises(ResumeError, match=r"is there already, without out\.jsonl\.manifest\.json"):
        checked(output)
    assert names(tmp_path) == {"out.jsonl"}
    begun(output, overwrite=True)[0].close()
    assert output.read_text() == "mine"
    assert len(lines(finished(output, overwrite=True))) == 6
    entries, _ = begun(tmp_path / "other.jsonl")
    entries.append(0, records(0))
    entries.close()
    (tmp_path / "other.jsonl.parts" / "manifest.json").unlink()
    with pytest.raises(ResumeError, match=r"no manifest\.json, which says what it belongs to"):
        checked(tmp_path / "other.jsonl")


def test_an_output_that_cannot_be_made_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ResumeError, match="is no file"):
        check_output(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"does not exist\. Make it first"):
        check_output(tmp_path / "gone" / "out.jsonl")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(PermissionError, match="may not be written to"):
        check_output(tmp_path / "out.jsonl")


def test_of_many_failures_the_first_are_named_and_all_are_counted(tmp_path: Path) -> None:
    entries = Entries(tmp_path / "out.jsonl", [50])
    entries.open()
    entries.begin(MANIFEST, print)
    error = {"type": "DataError", "message": "rows.jsonl:3: the line is no JSON"}
    entries.append(0, [{"image": None, "region_index": 0, "error": error}] * 50)
    result = entries.finish()
    assert (result.failed, len(result.places)) == (50, MAX_PLACES)
    assert result.places[4] == "out.jsonl:5: DataError: rows.jsonl:3: the line is no JSON"
