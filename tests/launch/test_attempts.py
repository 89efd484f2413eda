"""What the jobs of a run have written down about their attempts."""

import json

from launch.attempts import attempts_file, bad_nodes, read_attempts

DAY = 24 * 3600
LINES = [
    {"time": 1000, "job": "7", "restart": 0, "nodes": ["n1", "n2"], "checkpoints": 1},
    {"time": 1100, "job": "7", "restart": 0, "end": 137, "progress": True, "bad_nodes": ["n2"]},
    {"time": 9000, "job": "7", "restart": 1, "end": None, "progress": True, "bad_nodes": ["n4"]},
    {"time": 9500, "job": "7", "restart": 2, "end": 1, "progress": False, "bad_nodes": ["n2"]},
]


def test_nodes_are_bad_for_a_day(tmp_path):
    path = attempts_file(tmp_path)
    assert read_attempts(path) == bad_nodes(path) == []
    path.parent.mkdir()
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    assert read_attempts(path) == LINES
    assert bad_nodes(path, now=1000 + DAY) == ["n2", "n4"]
    assert bad_nodes(path, now=9200 + DAY) == ["n2"]
    assert bad_nodes(path, now=9501 + DAY) == bad_nodes(path) == []
