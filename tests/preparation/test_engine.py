"""Whole runs over small sources: what is kept, what is left out and why, and what is refused."""

import errno
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

import preparation.shards
from preparation.engine import Preparation, PreparationFailed, TaskNumber
from preparation.formats import FORMATS
from preparation.options import FilterOptions
from tests.preparation.toy_source import (
    caption,
    chat,
    contents,
    encoded,
    picture,
    rejected_of,
    request,
    run,
    samples_of,
    write_llava_source,
    write_mixed_source,
    write_source,
)

ROOT = Path(__file__).resolve().parents[2]


def test_samples_arrive_as_they_were_and_in_order(tmp_path):
    jpeg, png, tiff = encoded(picture(1)), encoded(picture(2), "PNG"), encoded(picture(3), "TIFF")
    source = write_source(
        tmp_path / "source",
        [
            [caption("猫です", jpeg, id="first"), chat("Q", "A", jpeg, png, max_tiles=2)],
            [caption("plain text", licence="MIT"), caption("tiff", tiff)],
        ],
    )
    figures = run(request(source, tmp_path / "out"))
    assert figures["samples_kept"] == 4
    samples = samples_of(tmp_path / "out")
    assert samples[0] == (
        {
            "document": "<image>\n猫です",
            "id": "first",
            "images": ["0.jpg"],
            "licence": "CC0-1.0",
            "max_tiles": 3,
            "source_key": "000.json#0",
        },
        {"0.jpg": jpeg},
    )
    record, images = samples[1]
    assert record["conversations"][1] == {"from": "gpt", "value": "A"}
    assert (record["images"], record["max_tiles"]) == (["0.jpg", "1.png"], 2)
    assert images == {"0.jpg": jpeg, "1.png": png}
    assert samples[2][0]["licence"] == "MIT"
    assert "images" not in samples[2][0]
    assert samples[3][0]["images"] == ["0.png"]
    stored = Image.open(io.BytesIO(samples[3][1]["0.png"]))
    assert stored.tobytes() == picture(3).tobytes()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["licences"] == {"CC0-1.0": 3, "MIT": 1}


def test_the_json_part_is_compact_and_sorted(tmp_path):
    source = write_source(tmp_path / "source", [[caption("é", id="x")]])
    run(request(source, tmp_path / "out", max_tiles=0, licence="own"))
    with tarfile.open(next((tmp_path / "out").glob("*.tar"))) as tar:
        data = tar.extractfile(tar.next()).read()
    expected = '{"document":"é","id":"x","licence":"own","source_key":"000.json#0"}'
    assert data == expected.encode()


def test_duplicates_are_dropped_over_all_units_and_the_first_is_kept(tmp_path):
    image, other = encoded(picture(1)), encoded(picture(2))
    source = write_source(
        tmp_path / "source",
        [
            [caption("a", image), caption("b", image), caption("text")],
            [caption("a", image, id="another name"), caption("a", other)],
            [caption("text"), caption("a", image)],
        ],
    )
    figures = run(request(source, tmp_path / "out", samples_per_shard=2))
    kept = ["000.json#0", "000.json#1", "000.json#2", "001.json#1"]
    assert [sample[0]["source_key"] for sample in samples_of(tmp_path / "out")] == kept
    lines = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "key": key,
            "reason": "duplicate",
            "message": f"It has the same text and images as {first}.",
        }
        for key, first in (
            ("001.json#0", "000.json#0"),
            ("002.json#0", "000.json#2"),
            ("002.json#1", "000.json#0"),
        )
    ]
    assert figures["rejected"] == {"duplicate": 3}


def test_near_duplicates_are_dropped_when_asked_for(tmp_path):
    first = encoded(picture(1, (320, 240)), quality=95)
    again = encoded(picture(1, (320, 240)).resize((160, 120)), "PNG")
    white = encoded(Image.new("RGB", (64, 64), "white"))
    source = write_source(
        tmp_path / "source",
        [
            [caption("a", first), caption("b", again), caption("w", white)],
            [caption("v", white), chat("Q", "A", again, encoded(picture(2))), caption("text")],
        ],
    )
    run(request(source, tmp_path / "all"))
    assert rejected_of(tmp_path / "all") == []
    run(request(source, tmp_path / "out", filters=FilterOptions(near_duplicate_bits=4)))
    assert rejected_of(tmp_path / "out") == [("000.json#1", "near_duplicate")]
    assert "same pictures as 000.json#0" in (tmp_path / "out" / "rejected.jsonl").read_text()


def test_the_output_does_not_depend_on_jobs_or_tasks(tmp_path, monkeypatch):
    monkeypatch.setattr("preparation.units._MOST_PIECES", 1)  # so that each file is a unit
    source = write_llava_source(tmp_path / "source")
    options = {
        "filters": FilterOptions(near_duplicate_bits=0),
        "samples_per_shard": 4,
        "split": (0.5, 0.5),
    }

    def run_llava(name, jobs=1, **how):
        request_ = request(source, tmp_path / name, jobs=jobs, **options)
        return Preparation(FORMATS["llava"], request_, io.StringIO()).run(**how)

    run_llava("one")
    run_llava("two", jobs=2)
    for index in (2, 0, 1):
        run_llava("tasks", task=TaskNumber(index, 3))
    run_llava("tasks", jobs=2, finish_only=True)
    expected = contents(tmp_path / "one")
    assert contents(tmp_path / "two") == expected
    assert contents(tmp_path / "tasks") == expected
    report = json.loads(expected["report.json"])
    assert report["samples_read"] == 6 * 13
    # Of eight pictures three are the same in all files: those whose number is 0, 3 or 6; and
    # number + file (1, 4, 7) and number + 2 * file (2, 5) give some again.
    seeds, new = set(), 0
    for file in range(6):
        for number in range(8):
            seed = number + file * (number % 3)
            new += seed not in seeds
            seeds.add(seed)
    assert report["samples_kept"] == new + 1 + 6
    assert report["rejected"] == {
        "duplicate": 5,
        "invalid_record": 6,
        "missing_image": 6,
        "near_duplicate": 6 * 8 - new,
        "unreadable_image": 6,
    }
    assert sum(report["split_samples"].values()) == report["samples_kept"]
    assert report["split_samples"]["val"] > 0


def test_finishing_is_refused_while_units_are_missing(tmp_path, monkeypatch):
    source = write_mixed_source(tmp_path / "source")
    monkeypatch.setattr("preparation.units._MOST_PIECES", 2)
    options = request(source, tmp_path / "out")
    run(options, task=TaskNumber(0, 2))
    with pytest.raises(ValueError, match="^finish: 1 of 3 units are missing, the first is 000001"):
        run(options, finish_only=True)
    run(options, task=TaskNumber(1, 2))
    run(options, finish_only=True)


def test_a_finished_folder_is_left_alone(tmp_path):
    source = write_mixed_source(tmp_path / "source", files=1)
    out = tmp_path / "out"
    first = run(request(source, out))
    before = {name: (out / name).stat().st_mtime_ns for name in contents(out)}
    again = run(request(source, out, jobs=2))
    assert again.pop("already_finished")
    assert again == first
    assert {name: (out / name).stat().st_mtime_ns for name in contents(out)} == before
    with pytest.raises(ValueError, match=r"^filters: .* begun with max_text_characters=5000"):
        run(request(source, out, filters=FilterOptions(max_text_characters=10)))
    assert {name: (out / name).stat().st_mtime_ns for name in contents(out)} == before


def test_what_is_not_ours_is_refused_and_kept(tmp_path):
    source = write_mixed_source(tmp_path / "source", files=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("keep")
    with pytest.raises(ValueError, match="^out: .* holds file, which prepare did not write"):
        run(request(source, tmp_path / "mine"))
    assert contents(tmp_path / "mine") == {"file": b"keep"}
    (tmp_path / "mine" / "report.json").write_text('{"of": "another program"}')
    with pytest.raises(ValueError, match="is not a report of prepare"):
        run(request(source, tmp_path / "mine"))
    with pytest.raises(ValueError, match="^out: .* is a file"):
        run(request(source, tmp_path / "mine" / "file"))
    with pytest.raises(ValueError, match="^out: .* cannot be written to"):
        run(request(source, tmp_path / "mine" / "file" / "deeper"))


def test_a_folder_that_was_begun_is_taken_up_only_with_the_same_request(tmp_path):
    source = write_mixed_source(tmp_path / "source")
    out = tmp_path / "out"
    run(request(source, out), task=TaskNumber(0, 2))
    with pytest.raises(ValueError, match="^split: .* was begun with"):
        run(request(source, out, split=(0.9, 0.1)))
    (source / "000.json").write_text("[]")
    with pytest.raises(ValueError, match="^source: its files are not those"):
        run(request(source, out))


def test_two_runs_in_one_folder_are_refused(tmp_path):
    source = write_mixed_source(tmp_path / "source", files=1)
    out = tmp_path / "out"
    run(request(source, out), task=TaskNumber(0, 1))
    # Locks are those of processes.
    script = (
        "import sys, pathlib, preparation.work_folder as w\n"
        "with w.WorkFolder(pathlib.Path(sys.argv[1])).lock(exclusive=False):\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(out)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match="^out: another prepare is at work in"):
            run(request(source, out))
        run(request(source, out), task=TaskNumber(0, 1))
        other.kill()
    run(request(source, out))


def test_a_full_disk_ends_with_one_sentence_and_can_be_taken_up(tmp_path, monkeypatch):
    source = write_mixed_source(tmp_path / "source")
    monkeypatch.setattr("preparation.units._MOST_PIECES", 2)
    run(request(source, tmp_path / "clean"))
    writes = []

    def full(name: str, data: bytes) -> bytes:
        writes.append(name)
        if len(writes) == 40:
            raise OSError(errno.ENOSPC, "No space left on device")
        return member(name, data)

    member = preparation.shards._member
    monkeypatch.setattr(preparation.shards, "_member", full)
    with pytest.raises(PreparationFailed, match="^no space is left for .* start again to go on$"):
        run(request(source, tmp_path / "out"))
    assert not list((tmp_path / "out").glob(".prepare/units/*partial*"))
    assert list((tmp_path / "out").glob(".prepare/units/000000"))
    run(request(source, tmp_path / "out"))
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


def test_a_disk_that_is_too_small_is_refused_before(tmp_path, monkeypatch):
    source = write_mixed_source(tmp_path / "source")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("preparation.engine.shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="^out: .* has 0.0 GB free"):
        run(request(source, tmp_path / "out"))
    run(request(source, tmp_path / "out", check_free_space=False))


def test_a_source_of_which_nothing_stays_is_a_failure(tmp_path):
    source = write_source(tmp_path / "source", [[caption("")]])
    with pytest.raises(PreparationFailed, match="no sample is left; 1 were rejected: empty_text 1"):
        run(request(source, tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="^source: .* holds nothing to read"):
        run(request(tmp_path / "empty", tmp_path / "other"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"jobs": 0}, "jobs: 0"),
        ({"shard_megabytes": 0}, "shard_megabytes: 0"),
        ({"split": (1.0, -1.0)}, "split: "),
        ({"split": (0.0,)}, "split: "),
        ({"max_tiles": -1}, "max_tiles: -1"),
    ],
)
def test_wrong_options_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        request(tmp_path, tmp_path / "out", **changes)


@pytest.mark.parametrize("text", ["2/2", "1", "a/3", "-1/2", "/"])
def test_wrong_tasks_are_refused(text):
    with pytest.raises(ValueError, match="^task: "):
        TaskNumber.parse(text)
