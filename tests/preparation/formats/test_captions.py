import base64
import io
import json
import pickle
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preparation.formats import FORMATS
from preparation.formats.rows import Row
from preparation.formats.tar_rows import TarRows
from preparation.reasons import RejectionReason
from preparation.source import Piece, ReaderOptions, Rejected


def write_part(folder, name, records, count=None):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.pkl").write_bytes(pickle.dumps(records))
    (folder / f"{name}.count").write_text(str(len(records) if count is None else count))


def test_coyo_parts(tmp_path, read, red, blue):
    first = [
        {
            "id": 11, "url": "http://a/1.jpg", "text": " A cat <image>. ", "clip_sim": 0.75,
            "image": base64.b64encode(red).decode(),
        },
        {"id": 12, "url": "http://a/2.jpg", "text": "二", "clip_sim": 0.5, "image": blue},
    ]  # fmt: skip
    write_part(tmp_path, "part-00000", first)
    write_part(tmp_path / "more", "part-00001", [{"text": "c", "image": red}])
    samples, rejected = read("captions", tmp_path)
    assert rejected == []
    assert [sample.record for sample in samples] == [
        {"document": "<image>\nc"},
        {"document": "<image>\nA cat <IMAGE>.", "id": "11"},
        {"document": "<image>\n二", "id": "12"},
    ]
    assert [sample.key for sample in samples] == [
        "more/part-00001.pkl#0", "part-00000.pkl#0", "part-00000.pkl#1",
    ]  # fmt: skip
    assert [sample.images[0].data for sample in samples] == [red, red, blue]
    assert [sample.similarity for sample in samples] == [None, (0.75,), (0.5,)]


def test_bad_parts_and_records(tmp_path, read, red):
    image = base64.b64encode(red).decode()
    write_part(
        tmp_path,
        "a",
        [
            {"text": "t", "image": "%%%"},
            {"text": "t", "image": None},
            {"text": "  ", "image": image},
            {"text": 5, "image": image},
            "no record",
            {"text": "good", "image": image, "clip_sim": float("nan")},
        ],
        count=5,
    )
    (tmp_path / "b.pkl").write_bytes(pickle.dumps([{"text": "cut", "image": image}])[:-20])
    (tmp_path / "c.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00exit\x85R.")
    (tmp_path / "d.pkl").write_bytes(pickle.dumps({"no": "list"}))
    samples, rejected = read("captions", tmp_path)
    assert [sample.record["document"] for sample in samples] == ["<image>\ngood"]
    assert samples[0].similarity is None
    assert [(item.key, item.reason) for item in rejected] == [
        ("a.count", RejectionReason.DAMAGED_FILE),
        ("a.pkl#0", RejectionReason.UNREADABLE_IMAGE),
        ("a.pkl#1", RejectionReason.MISSING_IMAGE),
        ("a.pkl#2", RejectionReason.EMPTY_TEXT),
        ("a.pkl#3", RejectionReason.INVALID_RECORD),
        ("a.pkl#4", RejectionReason.INVALID_RECORD),
        ("b.pkl", RejectionReason.DAMAGED_FILE),
        ("c.pkl", RejectionReason.UNSAFE_PICKLE),
        ("d.pkl", RejectionReason.DAMAGED_FILE),
    ]
    assert "5" in rejected[0].message
    assert "6" in rejected[0].message
    assert "os.system" in rejected[-2].message


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            else:
                member.type, member.linkname = content
                tar.addfile(member)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_webdataset_tars(tmp_path, read, red, blue, form):
    record = {"url": "http://a/1", "caption": "from json", "similarity": 0.25, "key": "000"}
    write_tar(
        tmp_path / "00000.tar",
        [
            ("./000.jpg", red),
            ("./000.json", json.dumps(record).encode()),
            ("./000.txt", b"text\n"),
            ("deep/001.json", json.dumps(record).encode()),
            ("deep/001.PNG", blue),
            ("002.webp", red),
            ("002.caption", "字".encode()),
        ],
        format=form,
    )
    pq.write_table(pa.table({"url": ["http://a/1"], "caption": ["x"]}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text('{"successes": 3}')
    samples, rejected = read("captions", tmp_path)
    assert rejected == []
    assert [sample.record["document"] for sample in samples] == [
        "<image>\ntext", "<image>\nfrom json", "<image>\n字",
    ]  # fmt: skip
    assert [sample.key for sample in samples] == [
        "00000.tar#./000", "00000.tar#deep/001", "00000.tar#002",
    ]  # fmt: skip
    assert [sample.record.get("id") for sample in samples] == ["000", "000", None]
    assert [sample.images[0].data for sample in samples] == [red, blue, red]
    assert [sample.similarity for sample in samples] == [(0.25,), (0.25,), None]


def test_names_that_come_back_get_keys_of_their_own(tmp_path, read, red):
    parts = [("0.jpg", red), ("0.txt", b"a"), ("1.jpg", red), ("1.txt", b"b")]
    write_tar(tmp_path / "a.tar", [*parts, *parts])
    samples, rejected = read("captions", tmp_path)
    assert rejected == []
    assert [sample.key for sample in samples] == [
        "a.tar#0", "a.tar#1", "a.tar#0~2", "a.tar#1~3",
    ]  # fmt: skip


def test_unsafe_members_are_rejected_and_nothing_is_written(tmp_path, read, red):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret.txt").write_text("secret")
    write_tar(
        tmp_path / "in" / "a.tar",
        [
            ("/etc/evil.txt", b"evil"),
            ("../evil.txt", b"evil"),
            ("x/../../evil.txt", b"evil"),
            ("a\\..\\..\\evil.txt", b"evil"),
            ("000.jpg", red),
            ("000.txt", (tarfile.SYMTYPE, str(tmp_path / "secret.txt"))),
            ("001.txt", (tarfile.LNKTYPE, "000.jpg")),
            ("002.txt", (tarfile.CHRTYPE, "")),
            ("003.txt", (tarfile.FIFOTYPE, "")),
            ("004.jpg", red),
            ("004.txt", b"good"),
        ],
    )
    samples, rejected = read("captions", tmp_path / "in")
    assert [sample.record["document"] for sample in samples] == ["<image>\ngood"]
    assert [item.reason for item in rejected] == [
        *[RejectionReason.UNSAFE_MEMBER] * 8,
        RejectionReason.INVALID_RECORD,
    ]
    assert [item.key.partition("#")[2] for item in rejected] == [
        "/etc/evil.txt", "../evil.txt", "x/../../evil.txt", "a\\..\\..\\evil.txt",
        "000.txt", "001.txt", "002.txt", "003.txt", "000",
    ]  # fmt: skip
    assert "secret" not in repr(samples) + repr([item.message for item in rejected[8:]])
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.tar", "in", "secret.txt"]


def tar_of(tmp_path, red):
    members = [("000.jpg", red), ("000.txt", b"t"), ("001.jpg", red * 50), ("001.txt", b"u")]
    write_tar(tmp_path / "a.tar", members)
    return (tmp_path / "a.tar").read_bytes()


def found_in(tmp_path, content):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    found = list(TarRows(tmp_path, [path]).read(Piece(path=path)))
    rows = [item.key for item in found if isinstance(item, Row)]
    return rows, [item.reason for item in found if isinstance(item, Rejected)]


def test_tars_that_are_cut_anywhere_are_damaged(tmp_path, red):
    content = tar_of(tmp_path, red)
    data_bytes = 4 * 512 + 2 * 512 + 2 * 512 + -(-len(red) * 50 // 512) * 512
    if len(red) <= 512:
        data_bytes -= 512
    assert found_in(tmp_path, content) == (["x.tar#000", "x.tar#001"], [])
    assert found_in(tmp_path, content[: data_bytes + 512]) == (["x.tar#000", "x.tar#001"], [])
    for size in range(600, data_bytes + 512, 300):
        rows, reasons = found_in(tmp_path, content[:size])
        assert reasons[-1] == RejectionReason.DAMAGED_FILE, size
        assert "x.tar#001" not in rows
    broken = content[:2560] + b"x" * 512 + content[3072:]
    assert RejectionReason.DAMAGED_FILE in found_in(tmp_path, broken)[1]
    assert found_in(tmp_path, content + content)[1] == [RejectionReason.DAMAGED_FILE]


def test_boastful_members_are_not_read(tmp_path, red):
    tar_of(tmp_path, red)
    bounded = TarRows(tmp_path, [tmp_path / "a.tar"], max_member_bytes=2000)
    found = list(bounded.read(Piece(path=tmp_path / "a.tar")))
    assert [item.key for item in found if isinstance(item, Rejected)] == ["a.tar#001.jpg"]
    header = tarfile.TarInfo("big.txt")
    header.size = 2**40
    found = found_in(tmp_path, header.tobuf() + b"x" * 512)
    assert found == ([], [RejectionReason.DAMAGED_FILE])


def test_img2dataset_parquet(tmp_path, read, red, blue):
    table = pa.table(
        {
            "url": ["http://a/1", "http://a/2", "http://a/3"],
            "key": ["000", "001", "002"],
            "status": ["success", "failed_to_download", "success"],
            "error_message": [None, "timed out", None],
            "caption": ["eins", "zwei", "drei"],
            "jpg": [red, None, blue],
            "exif": ["{}"] * 3,
        }
    )
    pq.write_table(table, tmp_path / "00000.parquet", row_group_size=2)
    samples, rejected = read("captions", tmp_path)
    assert [sample.record for sample in samples] == [
        {"document": "<image>\neins", "id": "000"},
        {"document": "<image>\ndrei", "id": "002"},
    ]
    assert [sample.images[0].data for sample in samples] == [red, blue]
    assert [sample.key for sample in samples] == ["00000.parquet#0", "00000.parquet#2"]
    assert [(item.key, item.reason) for item in rejected] == [
        ("00000.parquet#1", RejectionReason.MISSING_IMAGE)
    ]
    assert "timed out" in rejected[0].message
    pieces = FORMATS["captions"].make(tmp_path, ReaderOptions()).pieces()
    assert [(piece.first, piece.stop) for piece in pieces] == [(0, 1), (1, 2)]
    assert all(piece.size_bytes >= len(red) for piece in pieces)


def test_hub_parquet(tmp_path, read, red, blue):
    images = [
        {"bytes": red, "path": "1.jpg"},
        {"bytes": None, "path": "b.png"},
        {"bytes": None, "path": "c.png"},
        None,
    ]
    (tmp_path / "b.png").write_bytes(blue)
    pq.write_table(pa.table({"image": images, "text": list("abcd")}), tmp_path / "t.parquet")
    samples, rejected = read("captions", tmp_path / "t.parquet")
    assert [sample.record["document"] for sample in samples] == ["<image>\na", "<image>\nb"]
    assert [(image.name, image.data) for sample in samples for image in sample.images] == [
        ("1.jpg", red), ("b.png", blue),
    ]  # fmt: skip
    assert [item.reason for item in rejected] == [RejectionReason.MISSING_IMAGE] * 2


def test_lines_and_folder(tmp_path, read, write_lines, red):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(red)
    write_lines(
        tmp_path / "pairs" / "x.jsonl",
        [{"image": "a.jpg", "caption": "説明", "clip_sim": 0.5}, {"image": "a.jpg"}],
    )
    samples, rejected = read("captions", tmp_path / "pairs", image_folder=tmp_path / "images")
    assert [sample.record for sample in samples] == [{"document": "<image>\n説明"}]
    assert samples[0].similarity == (0.5,)
    assert samples[0].images[0].data == red
    assert [item.reason for item in rejected] == [RejectionReason.INVALID_RECORD]


def test_kinds_are_not_mixed(tmp_path, red):
    with pytest.raises(ValueError, match="no files"):
        FORMATS["captions"].make(tmp_path, ReaderOptions())
    write_part(tmp_path, "a", [])
    write_tar(tmp_path / "a.tar", [("0.jpg", red)])
    with pytest.raises(ValueError, match=r"\.pkl and \.tar"):
        FORMATS["captions"].make(tmp_path, ReaderOptions())
    (tmp_path / "b").mkdir()
    pq.write_table(pa.table({"jpg": [red]}), tmp_path / "b" / "t.parquet")
    with pytest.raises(ValueError, match="columns"):
        FORMATS["captions"].make(tmp_path / "b", ReaderOptions())
    (tmp_path / "c.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="no Parquet file"):
        FORMATS["captions"].make(tmp_path / "c.parquet", ReaderOptions())
