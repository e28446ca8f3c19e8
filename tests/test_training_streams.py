"""Training on streams: the order, its parts in processes and workers, continuing after an end, and broken rows."""

import io
import itertools
import json
import signal
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
from accelerate.data_loader import IterableDatasetShard
from PIL import Image
from test_training_runner import OPTIONS, assert_equal, losses, small, start, start_together, weights
from torch.utils.data import DataLoader
from training_data import write_checkpoint, write_records
from typer.testing import CliRunner
from waiting import exit_code

from finecaption_hf.cli import app
from finecaption_hf.data import DataError
from finecaption_hf.training import STAGES, StageError
from finecaption_hf.training.recipes import Recipe
from finecaption_hf.training.runner import train
from finecaption_hf.training.streaming import ExampleStream

NUMBER, SHARDS = 11, 3


def rows(folder: Path, number: int = NUMBER) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Key, picture and the rest of a row."""
    for line in write_records(folder, number).read_text().splitlines():
        row = json.loads(line)
        picture = (folder / row.pop("image")).read_bytes()
        yield row["id"], picture, row


def write_shards(folder: Path, samples: list[tuple[str, bytes, dict[str, Any]]], shards: int = SHARDS) -> Path:
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"shard-{shard}.tar", "w") as archive:
            for key, picture, row in samples[shard::shards]:
                for ending, data in (("png", picture), ("json", json.dumps(row).encode())):
                    member = tarfile.TarInfo(f"{key}.{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture(scope="module", autouse=True)
def soon() -> Iterator[None]:
    """What datasets sleeps at the end of each pass over parquet files, for a fault of pyarrow's threads: 5 seconds."""
    with pytest.MonkeyPatch.context() as patches:
        patches.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same rows as shards of WebDataset, as parquet files and as a `datasets.IterableDataset`."""
    folder = tmp_path_factory.mktemp("rows")
    samples = list(rows(folder / "rows"))
    (folder / "parquet").mkdir()
    table = datasets.Dataset.from_list(
        [{"image": {"bytes": data, "path": None}, **row} for _, data, row in samples]
    ).cast_column("image", datasets.Image())
    for shard in range(SHARDS):
        table.shard(SHARDS, shard).to_parquet(folder / "parquet" / f"{shard}.parquet")
    files = sorted(map(str, (folder / "parquet").iterdir()))
    return {
        "webdataset": write_shards(folder / "shards", samples),
        "parquet": folder / "parquet",
        "pattern": f"{folder}/parquet/{{0..{SHARDS - 1}}}.parquet",
        "datasets": datasets.load_dataset(
            "parquet", data_files=files, split="train", streaming=True, cache_dir=str(folder / "cache")
        ),
    }


def ids(items: Any, number: int) -> list[Any]:
    return [example.id for example in itertools.islice(items, number)]


@pytest.mark.parametrize("kind", ["webdataset", "parquet", "pattern", "datasets"])
def test_a_pass_gives_each_example_once_in_the_order_of_its_seed(sources: dict[str, Any], kind: str) -> None:
    stream = ExampleStream(sources[kind], seed=1, buffer_size=4)
    given = ids(stream, 3 * NUMBER)
    passes = [given[start : start + NUMBER] for start in range(0, 3 * NUMBER, NUMBER)]
    every = sorted(map(str, range(NUMBER)))
    assert [sorted(each) for each in passes] == [every] * 3
    assert len({tuple(each) for each in (*passes, every, sorted(every, key=int))}) == 5
    assert ids(stream, 3 * NUMBER) == given
    assert ids(ExampleStream(sources[kind], seed=2, buffer_size=4), NUMBER) != passes[0]
    example = next(iter(stream))
    assert example.load().size == (256, 256) and example.regions[0].branches[0].answer
    stream.num_skipped = NUMBER + 2
    assert ids(stream, 5) == given[NUMBER + 2 : NUMBER + 7]


@pytest.mark.parametrize("kind", ["webdataset", "datasets"])
def test_processes_and_workers_share_the_same_order(sources: dict[str, Any], kind: str) -> None:
    """Through what accelerate makes of a stream: each example is in one batch of one process, whoever reads it."""
    stream = ExampleStream(sources[kind], buffer_size=4, batch_size=4)
    stream.num_skipped = 4
    expected = ids(stream, 24)
    for workers in (0, 2):
        found: dict[int, list[Any]] = {}
        for rank in range(2):
            shard = IterableDatasetShard(stream, batch_size=2, num_processes=2, process_index=rank)
            loader = DataLoader(shard, batch_size=2, num_workers=workers, collate_fn=list)
            for step, batch in enumerate(itertools.islice(loader, 6)):
                found.setdefault(step, []).extend(example.id for example in batch)
        assert [each for step in range(6) for each in found[step]] == expected


def test_whole_images_and_split_regions_are_those_of_the_place_in_the_stream(sources: dict[str, Any]) -> None:
    stream = ExampleStream(sources["webdataset"], buffer_size=4, whole_image_share=0.5, max_regions=1)
    items = list(itertools.islice(stream, 40))
    assert all(len(item.regions) == 1 for item in items)
    stream.num_skipped = 17
    assert list(itertools.islice(stream, 23)) == items[17:]
    stream = ExampleStream(sources["webdataset"], whole_image_share=0.5)
    whole = [any(region.mask is None for region in item.regions) for item in itertools.islice(stream, 40)]
    assert 8 < sum(whole) < 32


@pytest.fixture(scope="module")
def recipe(sources: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, embedded: Any) -> Recipe:
    """Dropout, so that random numbers matter; a pass is not a whole number of steps."""
    model = write_checkpoint(tmp_path_factory.mktemp("model"), embedded[1], text_config={"attention_dropout": 0.1})
    data = {"shards": {"path": str(sources["webdataset"]), "stream": True, "buffer_size": 4}}
    return Recipe(stages=(small(STAGES[3]),), model=str(model), data=data, num_samples=0)


def test_killed_training_continues_with_the_next_example_to_the_same_weights(recipe: Recipe, tmp_path: Path) -> None:
    options = {"max_steps": 5, "save_steps": 4}  # 16 examples at the checkpoint: in the second pass
    alone = start(recipe, tmp_path / "uninterrupted", options)
    assert exit_code(start(recipe, tmp_path / "killed", options, kill="step", number=5)) == -signal.SIGKILL
    assert exit_code(alone) == 0
    told: list[str] = []
    train(recipe, tmp_path / "killed", options={**OPTIONS, **options}, tell=told.append)
    assert any("Continuing from" in line and "checkpoint-4" in line for line in told)
    assert any(line.endswith(f"read as a stream, of {SHARDS} shards.") for line in told)
    assert_equal(weights(tmp_path / "killed"), weights(tmp_path / "uninterrupted"))


@pytest.mark.slow
def test_two_processes_train_on_a_stream_like_one(recipe: Recipe, tmp_path: Path, embedded: Any) -> None:
    model = write_checkpoint(tmp_path / "model", embedded[1])  # without dropout, which differs between processes
    recipe = replace(recipe, model=str(model))
    options = {"max_steps": 6, "save_steps": 6, "learning_rate": 1e-3, "dataloader_num_workers": 2}
    alone = start(recipe, tmp_path / "one", options)
    together = start_together(recipe, tmp_path / "two", 2, options)
    assert [exit_code(process) for process in (alone, *together)] == [0, 0, 0]
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


def test_a_broken_row_is_named_and_the_others_are_read_where_that_was_asked_for(tmp_path: Path) -> None:
    samples = list(rows(tmp_path / "rows", 4))
    samples[2][2]["regions"][0]["branches"] = []
    folder = write_shards(tmp_path / "shards", samples, shards=2)
    with pytest.raises(DataError, match=r"shard-0\.tar/2: .*branches"):
        ids(ExampleStream(folder), 4)
    stream = ExampleStream(folder, on_error="skip", rejects=tmp_path / "rejects.jsonl")
    with pytest.warns(UserWarning, match="1 of 2 examples of .*shard-0.tar are rejected"):
        assert sorted(ids(stream, 3)) == ["0", "1", "3"]
    (reject,) = map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert reject["where"] == "shard-0.tar/2" and "branches" in reject["reason"]
    Image.new("RGB", (4, 4)).save(tmp_path / "alone.png")
    nothing = write_shards(tmp_path / "nothing", [("0", (tmp_path / "alone.png").read_bytes(), {})], shards=1)
    with pytest.warns(UserWarning), pytest.raises(DataError, match="no example that can be used"):
        ids(ExampleStream(nothing, on_error="skip", rejects=tmp_path / "all.jsonl"), 1)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"max_steps": -1}, "Give --max-steps"),
        ({"eval_share": 0.5}, {}, "no share can be held out"),
        ({"data": {"a": {"path": "a.tar", "stream": True}, "b": "b.tar"}}, {}, "not mixed with others"),
    ],
)
def test_what_needs_a_length_is_refused(
    recipe: Recipe, tmp_path: Path, changes: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StageError, match=message):
        train(replace(recipe, **changes), tmp_path / "out", options={**OPTIONS, **options})


def test_command_reads_a_stream(recipe: Recipe, tmp_path: Path) -> None:
    data = f"shards={recipe.data['shards']['path']}"
    arguments = ["train", "--stage", "1", "--model", recipe.model, "--data", data, "--stream", "--use-cpu"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--output", str(tmp_path / "out")])
    assert done.exit_code == 2 and "Give --max-steps" in done.output
