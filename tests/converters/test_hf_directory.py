import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoImageProcessor, AutoTokenizer, GenerationConfig, SiglipImageProcessor

from converters.hf_directory import (
    CODE_FILES,
    check_directory_name,
    make_image_processor,
    write_assets,
)
from converters.neva_directory import CODE_FILES as NEVA_CODE_FILES
from launch.quickstart.parents import train_tokenizer
from models.hf_code.configuration_nvila_lite import NVILALiteConfig

# Runs outside of the repository, so only the directory's own code can be imported.
LOAD_AND_ANSWER = """
import json, sys
import numpy as np, torch
from PIL import Image
from transformers import (
    AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
)
directory, answer_file = sys.argv[1:]
trust = {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(directory, **trust)
pixels = np.random.default_rng(0).integers(0, 256, (56, 168, 3), dtype=np.uint8)
messages = [{"role": "user", "content": [
    {"type": "image", "image": Image.fromarray(pixels)},
    {"type": "text", "text": "数字を左から順に読んでください。"},
]}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True
)
answers = []
for auto_class in (AutoModelForImageTextToText, AutoModel, AutoModelForCausalLM):
    model, report = auto_class.from_pretrained(directory, output_loading_info=True, **trust)
    assert not any(report.values()), report
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    answers.append(output[0].tolist())
result = {
    "answers": answers,
    "model": type(model).__module__,
    "processor": type(processor).__module__,
    "config": type(AutoConfig.from_pretrained(directory, **trust)).__name__,
    "max_tiles": processor.max_tiles,
    "ours": [name for name in sys.modules if name.split(".")[0] in ("models", "converters")],
}
with open(answer_file, "w") as file:
    json.dump(result, file)
"""


@pytest.fixture(scope="module")
def exported(write_nano_directory, tmp_path_factory):
    directory = tmp_path_factory.mktemp("export") / "nano"
    model = write_nano_directory(directory, max_tiles=9, tied=False)
    return directory, model


def test_directory_works_with_transformers_alone(exported, nano_tokenizer, tmp_path):
    import numpy as np
    from PIL import Image

    from models.hf_code.processing_nvila_lite import NVILALiteProcessor

    directory, model = exported
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(
        [sys.executable, "-P", "-c", LOAD_AND_ANSWER, directory, tmp_path / "answer.json"],
        cwd=tmp_path,
        env=environment,
        check=True,
    )
    result = json.loads((tmp_path / "answer.json").read_text())
    assert result["model"] == "transformers_modules.nano.modeling_nvila_lite"
    assert result["processor"] == "transformers_modules.nano.processing_nvila_lite"
    assert result["config"] == "NVILALiteConfig"
    assert result["max_tiles"] == 9
    assert result["ours"] == []
    copied = {path.name for path in (tmp_path / "modules").rglob("*_nvila_lite.py")}
    assert copied == set(CODE_FILES)

    # The same question to the model that was saved, here.
    pixels = np.random.default_rng(0).integers(0, 256, (56, 168, 3), dtype=np.uint8)
    processor = NVILALiteProcessor(make_image_processor(model.config), nano_tokenizer, downsample=2)
    text = processor.apply_chat_template(
        [{"role": "user", "content": "<image>\n数字を左から順に読んでください。"}],
        add_generation_prompt=True,
    )
    inputs = processor(text, Image.fromarray(pixels))
    model.generation_config = GenerationConfig.from_pretrained(directory)
    expected = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0].tolist()
    assert result["answers"] == [expected] * 3


def test_chat_template_is_in_both_places(exported, nano_tokenizer):
    directory, _ = exported
    jinja = (directory / "chat_template.jinja").read_text(encoding="utf-8")
    tokenizer_config = json.loads((directory / "tokenizer_config.json").read_text("utf-8"))
    assert jinja == tokenizer_config["chat_template"] == nano_tokenizer.chat_template


def test_tokenizer_and_image_processor_load_by_themselves(exported, nano_tokenizer):
    directory, model = exported
    tokenizer = AutoTokenizer.from_pretrained(directory)
    text = "<image>\n数字 3<|im_end|>"
    assert tokenizer.encode(text) == nano_tokenizer.encode(text)
    assert tokenizer.encode("<image>") == [model.config.image_token_id]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    image_processor = AutoImageProcessor.from_pretrained(directory, use_fast=False)
    assert isinstance(image_processor, SiglipImageProcessor)
    assert image_processor.size == {"height": 56, "width": 56}
    assert image_processor.image_mean == image_processor.image_std == [0.5, 0.5, 0.5]
    assert image_processor.resample == 3


def test_files_name_what_readers_look_for(exported, nano_tokenizer):
    directory, model = exported
    config = json.loads((directory / "config.json").read_text())
    assert config["architectures"] == ["NVILALiteForConditionalGeneration"]
    assert config["model_type"] == "nvila_lite"
    assert config["image_token_id"] == nano_tokenizer.convert_tokens_to_ids("<image>")
    assert config["text_config"]["vocab_size"] == len(nano_tokenizer)
    assert config["text_config"]["rms_norm_eps"] == 1e-6
    assert config["vision_config"]["vision_use_head"] is False
    assert {name.split(".")[0] for name in config["auto_map"]} == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForImageTextToText",
    }
    for reference in config["auto_map"].values():
        assert f"{reference.split('.')[0]}.py" in CODE_FILES
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation["eos_token_id"] == nano_tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert generation["pad_token_id"] == nano_tokenizer.convert_tokens_to_ids("<|endoftext|>")


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_survive_the_configuration(
    make_nano_config, nano_tokenizer, tmp_path, tied
):
    write_assets(tmp_path, make_nano_config(tied=tied), nano_tokenizer)
    config = NVILALiteConfig.from_pretrained(tmp_path)
    assert config.tie_word_embeddings is config.text_config.tie_word_embeddings is tied


def test_code_is_self_contained():
    source = Path(__file__).parents[2] / "models" / "hf_code"
    everything = {path.name for path in source.glob("*.py")} - {"__init__.py"}
    assert everything == {*CODE_FILES, *NEVA_CODE_FILES}
    for files in (CODE_FILES, NEVA_CODE_FILES):
        for name in files:
            imported = re.findall(r"^from \.(\w+) import", (source / name).read_text(), re.M)
            assert {f"{module}.py" for module in imported} <= set(files), name


def test_a_dot_in_the_name_is_refused():
    check_directory_name(Path("/some.where/model_v1"))
    with pytest.raises(ValueError, match=r"'model.v1' is not allowed"):
        check_directory_name(Path("/somewhere/model.v1"))


def test_what_does_not_fit_is_refused(make_nano_config, nano_tokenizer, tmp_path):
    config = make_nano_config()
    with pytest.raises(ValueError, match="image_token_id=374 of the configuration must be"):
        write_assets(tmp_path, config, train_tokenizer())
    wrong = make_image_processor(config)
    wrong.image_mean = [0.4, 0.5, 0.5]
    with pytest.raises(ValueError, match="image_mean="):
        write_assets(tmp_path, config, nano_tokenizer, wrong)
    config.text_config.vocab_size -= 1
    with pytest.raises(ValueError, match="375 tokens for a vocabulary of 374"):
        write_assets(tmp_path, config, nano_tokenizer)
    bare = train_tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        write_assets(tmp_path, config, bare)
    assert list(tmp_path.iterdir()) == []
