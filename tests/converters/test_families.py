import json

import pytest

from converters.families import FAMILIES, family_named, family_of
from launch.__main__ import main


def test_each_family_is_found_by_name_and_by_model_type(nemo, tmp_path):
    for name, entry in FAMILIES.items():
        family = family_named(name)
        assert (family.name, family.model_type) == (name, entry.model_type)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": entry.model_type}))
        assert type(family_of(tmp_path, "hf")) is type(family)
        assert "hf" in family.layouts


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            '{"model_type": "gpt2"}',
            "of type 'gpt2'; nvila_lite or mllama or llava or neva_llava or llava-jp is",
        ),
        ("{", "config.json is not JSON"),
        ("[]", "config.json is not a JSON object"),
        (None, "config.json does not exist; give a Hugging Face model directory"),
    ],
)
def test_other_directories_are_refused(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=f"^ckpt: .*{sentence}"):
        family_of(tmp_path, "ckpt")


def test_the_command_line_converts_either_family(nemo, write_nano_mllama, tmp_path, capsys):
    hf, checkpoint, out = (str(tmp_path / name) for name in ("hf", "ckpt", "out"))
    write_nano_mllama(tmp_path / "hf")
    assert main(["import", "--family", "mllama", "--hf", hf, "--out", checkpoint]) == 0
    assert main(["export", "--ckpt", checkpoint, "--out", out]) == 0
    assert main(["verify", "--hf", out, "--ckpt", checkpoint]) == 0
    assert "passed: True" in capsys.readouterr().out
    arguments = ["import", "--family", "nvila", "--hf", hf, "--out", str(tmp_path / "never")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: hf: ")
    assert "holds a model of type 'mllama'; nvila_lite is expected" in error
