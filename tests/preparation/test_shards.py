import subprocess
import tarfile

from preparation.shards import Place, ShardWriter, copy_samples
from preparation.source import Piece
from preparation.units import group_pieces

PARTS = {
    "a": [("json", b"{}"), ("0.jpg", b"x" * 700)],
    "b": [("json", b'{"b":1}')],
    "c": [("json", b"c" * 512), ("0.png", b""), ("1.jpg", b"y" * 3000)],
    "d": [("json", b"d" * 513)],
}


def write(folder, **options):
    folder.mkdir()
    writer = ShardWriter(folder, "000007", options.get("size", 10**6), options.get("most"))
    places = {key: writer.write(key, parts) for key, parts in PARTS.items()}
    writer.close()
    return places


def read(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_a_shard_is_a_plain_tar_without_traces_of_its_maker(tmp_path):
    write(tmp_path / "out")
    path = tmp_path / "out" / "000007-000.tar"
    expected = {
        f"{key}.{extension}": data for key, parts in PARTS.items() for extension, data in parts
    }
    assert read(path) == expected
    assert list(read(path)) == list(expected)
    listed = subprocess.run(["tar", "tvf", path], capture_output=True, text=True, check=True)
    assert listed.stderr == ""
    with tarfile.open(path) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.mode) == (0, 0, 0, 0o644)
            assert (member.uname, member.gname) == ("", "")
    assert path.stat().st_size % 10_240 == 0


def test_a_shard_ends_before_it_is_too_large_or_has_too_many_samples(tmp_path):
    places = write(tmp_path / "size", size=4000)
    # a has 512 + 512 + 512 + 1024 bytes, b 1024, c 3 * 512 + 512 + 3072, d 512 + 1024.
    assert places["a"] == Place(shard=0, offset=0, size=2560)
    assert places["b"] == Place(shard=0, offset=2560, size=1024)
    assert places["c"] == Place(shard=1, offset=0, size=5120)
    assert places["d"] == Place(shard=2, offset=0, size=1536)
    assert [place.shard for place in write(tmp_path / "most", most=3).values()] == [0, 0, 0, 1]
    assert sorted(read(tmp_path / "most" / "000007-001.tar")) == ["d.json"]


def test_a_copy_of_some_samples_equals_a_shard_of_these_alone(tmp_path):
    places = write(tmp_path / "all")
    kept = [(places[key].offset, places[key].size) for key in "abd"]
    copy_samples(tmp_path / "all" / "000007-000.tar", tmp_path / "copy.tar", kept)
    (tmp_path / "some").mkdir()
    writer = ShardWriter(tmp_path / "some", "u", 10**6, None)
    for key in "abd":
        writer.write(key, PARTS[key])
    writer.close()
    assert (tmp_path / "copy.tar").read_bytes() == (tmp_path / "some" / "u-000.tar").read_bytes()


def test_pieces_are_grouped_to_shards_and_large_ones_stand_alone(tmp_path):
    pieces = [Piece(path=tmp_path, size_bytes=size) for size in (40, 40, 20, 500, 10, 10, 90)]
    units = group_pieces(pieces, 100)  # nine tenths of it are filled
    sizes = [[piece.size_bytes for piece in unit.pieces] for unit in units]
    assert sizes == [[40, 40], [20], [500], [10, 10], [90]]
    assert [unit.number for unit in units] == [0, 1, 2, 3, 4]
    assert group_pieces([], 100) == []
