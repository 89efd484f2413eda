import base64
import gzip
import io
import json
import pickle
import tarfile

import numpy as np
import pytest

from preparation.formats import FORMATS
from preparation.reasons import RejectionReason
from preparation.source import ReaderOptions


@pytest.fixture
def shot(picture):
    """Bytes of one of many images, all different."""
    return lambda number: picture((number * 8, 0, 0), "PNG")


@pytest.fixture
def info(shot):
    return lambda number, **rest: {
        "image_name": f"{number}.png",
        "image_base64": base64.b64encode(shot(number)).decode(),
        **rest,
    }


def write_part(folder, name, documents):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.pkl").write_bytes(pickle.dumps(documents))
    (folder / f"{name}.count").write_text(str(len(documents)))


def test_parts_in_any_folder(tmp_path, read, info, shot):
    first = {
        "url": "http://a/1",
        "text_list": ["One <image>.", "Two.", "Three."],
        "image_info": [
            info(0, matched_text_index=2, matched_sim=0.9),
            info(1, matched_text_index=0, matched_sim=0.9),
            info(2, matched_text_index=2, matched_sim=0.9),
        ],
        "similarity_matrix": [[0.0, 0.1, 0.2], [0.3, 0.9, 0.1], [0.1, 0.1, 0.4]],
    }
    second = {
        "docId": "d2",
        "url": "http://a/2",
        "text_list": ["A", "B"],
        "image_info": [info(3), info(4)],
        "similarity_matrix": np.array([[0.2, 0.5], [0.6, 0.1]], dtype=np.float32),
    }
    write_part(tmp_path / "x" / "y", "part-1", [first])
    write_part(tmp_path, "part-0", [second])
    samples, rejected = read("interleaved", tmp_path)
    assert rejected == []
    assert [sample.key for sample in samples] == ["part-0.pkl#0", "x/y/part-1.pkl#0"]
    assert [sample.record for sample in samples] == [
        {"document": "<image>\nA<image>\nB", "id": "d2"},
        {
            "document": "<image>\nOne <IMAGE>. Two.<image>\n<image>\nThree.",
            "id": "http://a/1",
        },
    ]
    images = [[image.data for image in sample.images] for sample in samples]
    assert images == [[shot(4), shot(3)], [shot(1), shot(0), shot(2)]]
    assert samples[0].similarity == pytest.approx((0.6, 0.5))
    # The index is the record's; the similarity is the matrix's at that index.
    assert samples[1].similarity == (0.3, 0.2, 0.4)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_the_most_similar_images_are_kept(tmp_path, read, info, shot, suffix):
    similarities = [0.3, 0.9, 0.1, 0.8, 0.7, 0.2, 0.6, 0.5]
    document = {
        "text_list": [str(number) for number in range(9)],
        "image_info": [
            info(number, matched_text_index=7 - number, matched_sim=similarity)
            for number, similarity in enumerate(similarities)
        ],
    }
    line = json.dumps(document).encode() + b"\n"
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(line) if suffix.endswith("gz") else line)
    for max_images, kept in ((None, [7, 6, 4, 3, 1, 0]), (2, [3, 1]), (20, list(range(8))[::-1])):
        [sample], rejected = read("interleaved", path, max_images=max_images)
        assert rejected == []
        assert [image.data for image in sample.images] == [shot(number) for number in kept]
        assert sample.similarity == tuple(similarities[number] for number in kept)
        sentences = sample.record["document"].replace("<image>\n", " *").split()
        assert [7 - int(word[1:]) for word in sentences if word.startswith("*")] == kept


def test_images_behind_the_text_take_no_place_of_others(tmp_path, read, info, shot, write_lines):
    document = {
        "text_list": ["A", "B", " "],
        "image_info": [info(0, matched_text_index=2), info(1, matched_text_index=1)],
        "similarity_matrix": [[0.1, 0.1, 0.9], [0.1, 0.5, 0.1]],
    }
    path = write_lines(tmp_path / "a.jsonl", [document])
    [sample], rejected = read("interleaved", path, max_images=1)
    assert rejected == []
    assert sample.record["document"] == "A<image>\nB"
    assert [image.data for image in sample.images] == [shot(1)]
    assert sample.similarity == (0.5,)


def test_images_and_rows_that_do_not_fit(tmp_path, read, info, shot, write_lines):
    texts = ["A", "B"]
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            # Fewer rows than images: the last has an index, the one before has none.
            {
                "text_list": texts,
                "image_info": [info(0), info(1), info(2, matched_text_index=1)],
                "similarity_matrix": [[0.9, 0.1]],
            },
            # More rows than images: which are theirs?
            {
                "text_list": texts,
                "image_info": [info(3)],
                "similarity_matrix": [[0.9, 0.1], [0.1, 0.9]],
            },
            # An index that leads nowhere gives way to the row.
            {
                "text_list": texts,
                "image_info": [info(4, matched_text_index=2), info(5, matched_text_index=-1)],
                "similarity_matrix": [[0.1, 0.9]],
            },
        ],
    )
    samples, rejected = read("interleaved", path)
    assert [sample.record["document"] for sample in samples] == [
        "<image>\nA<image>\nB",
        "A B",
        "A<image>\nB",
    ]
    assert [[image.data for image in sample.images] for sample in samples] == [
        [shot(0), shot(2)], [], [shot(4)],
    ]  # fmt: skip
    assert [sample.similarity for sample in samples] == [None, None, (0.9,)]
    assert [(item.key, item.reason) for item in rejected] == [
        (f"{samples[0].key}/image-1", RejectionReason.UNPLACED_IMAGE),
        (f"{samples[1].key}/image-0", RejectionReason.UNPLACED_IMAGE),
        (f"{samples[2].key}/image-1", RejectionReason.UNPLACED_IMAGE),
    ]
    assert "-1" in rejected[2].message


def test_placeholders_of_momiji_say_where_images_stood(tmp_path, read, info, shot, write_lines):
    document = {
        "docId": "d",
        "url": "http://a",
        "text": "...",
        "text_list": [
            "[[IMAGE: u0]]",
            "一文目。",
            "二文目[[IMAGE: u1]]の途中[[IMAGE: u2]]。",
            "三文目。[[IMAGE: u3]]",
            "[[IMAGE: u4]][[IMAGE: gone]]",
        ],
        "image_info": [
            info(number, url=f"u{number}", placeholder=f"[[IMAGE: u{number}]]")
            for number in range(5)
        ],
    }
    path = write_lines(tmp_path / "a.jsonl", [document])
    [sample], rejected = read("interleaved", path)
    assert rejected == []
    # The marker that belongs to no image keeps u3 and u4 from being the end of the document.
    assert sample.record["document"] == (
        "<image>\n一文目。 二文目<image>\nの途中<image>\n。 三文目。<image>\n<image>\n"
        "[[IMAGE: gone]]"
    )
    document["text_list"][-1] = "[[IMAGE: u4]]"
    path = write_lines(tmp_path / "a.jsonl", [document])
    [sample], rejected = read("interleaved", path)
    assert rejected == []
    assert (
        sample.record["document"] == "<image>\n一文目。 二文目<image>\nの途中<image>\n。 三文目。"
    )
    assert [image.data for image in sample.images] == [shot(0), shot(1), shot(2)]


def test_momiji_without_text_says_what_to_run(tmp_path, read, info, write_lines):
    public = {"docId": "d", "url": "http://a", "image_info": [{"url": "u", "placeholder": "p"}]}
    path = tmp_path / "1707.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(public).encode()))
    with pytest.raises(ValueError, match="momiji_generator"):
        FORMATS["interleaved"].make(path, ReaderOptions())
    good = {"text_list": ["A"], "image_info": [info(0, matched_text_index=0)]}
    lines = write_lines(tmp_path / "a.jsonl", [good, public])
    samples, rejected = read("interleaved", lines)
    assert len(samples) == 1
    assert rejected[0].reason == RejectionReason.INVALID_RECORD
    assert "retrieve_text_from_jsonl.py" in rejected[0].message


def test_images_from_a_folder(tmp_path, read, shot, write_lines):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(shot(0))

    def document(*names):
        infos = [{"image_name": name, "matched_text_index": 0} for name in names]
        return {"text_list": ["A"], "image_info": infos}

    path = write_lines(
        tmp_path / "a.jsonl",
        [
            document("0.png", "gone.png"),
            document("gone.png"),
            document("../a.jsonl"),
            {"text_list": ["A"], "image_info": [{"raw_url": "u", "matched_text_index": 0}]},
            document(),
        ],
    )
    samples, rejected = read("interleaved", path, image_folder=tmp_path / "images")
    assert [sample.record["document"] for sample in samples] == ["<image>\nA", "A"]
    assert samples[0].images[0].data == shot(0)
    assert [item.reason for item in rejected] == [
        RejectionReason.MISSING_IMAGE,
        RejectionReason.MISSING_IMAGE,
        RejectionReason.UNSAFE_MEMBER,
        RejectionReason.MISSING_IMAGE,
    ]
    assert rejected[0].key == f"{samples[0].key}/image-1"


def test_bad_documents(tmp_path, read, info, write_lines):
    path = write_lines(
        tmp_path / "a.jsonl",
        [
            {"text_list": ["A"], "image_info": [info(0, matched_text_index=0)]},
            {"text_list": ["A", 3], "image_info": []},
            {"text_list": "A", "image_info": []},
            {"text_list": [" "], "image_info": []},
            {"text_list": ["A"], "image_info": "x"},
            {"text_list": ["A"], "image_info": [3]},
            {"text_list": ["A"], "image_info": [{"image_base64": "?", "matched_text_index": 0}]},
        ],
    )
    samples, rejected = read("interleaved", path)
    assert len(samples) == 1
    assert [item.reason for item in rejected] == [
        RejectionReason.INVALID_RECORD,
        RejectionReason.INVALID_RECORD,
        RejectionReason.EMPTY_TEXT,
        RejectionReason.INVALID_RECORD,
        RejectionReason.INVALID_RECORD,
        RejectionReason.UNREADABLE_IMAGE,
    ]


def test_documents_in_tars(tmp_path, read, shot):
    document = {
        "text_list": ["A", "B"],
        "image_info": [{"matched_text_index": 1}, {"matched_text_index": 0}],
    }
    parts = {"d.json": json.dumps(document).encode(), "d.0.png": shot(0), "d.1.png": shot(1)}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in parts.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    [sample], rejected = read("interleaved", tmp_path)
    assert rejected == []
    assert sample.record["document"] == "<image>\nA<image>\nB"
    assert [image.data for image in sample.images] == [shot(1), shot(0)]


def test_gzipped_bombs_and_cut_files(tmp_path, read, info):
    good = json.dumps({"text_list": ["A"], "image_info": [info(0, matched_text_index=0)]}).encode()
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(good + b"\n")
        for _ in range(70):
            stream.write(b" " * 1024 * 1024)
        stream.write(b"\n" + good + b"\n")
    assert path.stat().st_size < 1024 * 1024
    samples, rejected = read("interleaved", path)
    assert [sample.key for sample in samples] == ["a.jsonl.gz#0", "a.jsonl.gz#2"]
    assert [item.reason for item in rejected] == [RejectionReason.INVALID_RECORD]
    assert "longer than" in rejected[0].message
    path.write_bytes(gzip.compress((good + b"\n") * 2)[:-12])
    samples, rejected = read("interleaved", path)
    assert [item.reason for item in rejected] == [RejectionReason.DAMAGED_FILE]


def test_other_sources_are_refused(tmp_path, write_lines):
    make = FORMATS["interleaved"].make
    with pytest.raises(ValueError, match="no files"):
        make(tmp_path, ReaderOptions())
    write_lines(tmp_path / "a.jsonl", [{"text": "a"}])
    with pytest.raises(ValueError, match="image_info"):
        make(tmp_path, ReaderOptions())
