import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import models.hf_code as hf_code
from models.remote_code import require_known_code

REMEDY = "--trust-remote-code"


@pytest.fixture
def directory(tmp_path):
    for file in Path(hf_code.__path__[0]).glob("*.py"):
        shutil.copy(file, tmp_path)
    auto_map = {"AutoConfig": "configuration_nvila_lite.NVILALiteConfig"}
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": auto_map}))
    return tmp_path


def refusal(directory):
    with pytest.raises(ValueError, match="^hf: ") as error:
        require_known_code(directory)
    return str(error.value)


def test_our_copies_are_known(directory):
    (directory / "list.json").write_text("[1]")
    require_known_code(directory)


def test_one_changed_byte_is_refused(directory):
    file = directory / "modeling_nvila_lite.py"
    file.write_bytes(file.read_bytes() + b"\n")
    sentence = refusal(directory)
    assert str(file) in sentence
    assert REMEDY in sentence


def test_a_further_file_is_refused(directory):
    (directory / "sitecustomize.py").touch()
    assert "sitecustomize.py is not a copy" in refusal(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "auto_map", [{"AutoConfig": "some/one--a.B"}, {"AutoTokenizer": ["some/one--a.B", None]}]
)
def test_code_from_elsewhere_is_refused(directory, name, auto_map):
    (directory / name).write_text(json.dumps({"auto_map": auto_map}))
    sentence = refusal(directory)
    assert f"{name} refers to code outside of the directory" in sentence
    assert REMEDY in sentence


def test_an_adapter_is_refused_because_transformers_loads_its_base(directory):
    (directory / "adapter_config.json").write_text('{"base_model_name_or_path": "some/one"}')
    assert "refers to another model" in refusal(directory)


@pytest.mark.parametrize("content", [b"{", b'{"a": "\xe9"}'])
def test_a_broken_json_file_is_named(directory, content):
    (directory / "preprocessor_config.json").write_bytes(content)
    assert "preprocessor_config.json is not JSON" in refusal(directory)


def test_only_the_standard_library_is_loaded():
    script = (
        "import sys, models.remote_code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
