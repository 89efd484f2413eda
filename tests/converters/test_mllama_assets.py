"""The small files of an MLlama directory: derived from the others, or refused."""

import json
import shutil

import pytest

pytestmark = pytest.mark.usefixtures("nemo")

PLACES = ("chat_template.jinja", "chat_template.json", "tokenizer_config.json")
DERIVED = (
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "special_tokens_map.json",
    "generation_config.json",
)


@pytest.fixture(scope="module")
def whole(write_nano_mllama, tmp_path_factory):
    """The small files of a directory, complete."""
    from converters.import_hf import copy_assets
    from converters.mllama_assets import complete_assets

    folder = tmp_path_factory.mktemp("whole")
    write_nano_mllama(folder / "hf")
    (folder / "assets").mkdir()
    copy_assets(folder / "hf", folder / "assets")
    complete_assets(folder / "assets", "here")
    return folder / "assets"


@pytest.fixture
def assets(whole, tmp_path):
    """A copy that may be changed."""
    shutil.copytree(whole, tmp_path / "assets")
    return tmp_path / "assets"


def templates(folder):
    """What each place holds."""
    return {
        (folder / "chat_template.jinja").read_text(encoding="utf-8"),
        json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"],
        json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["chat_template"],
    }


def test_the_template_is_in_all_places(whole, mllama_tokenizer):
    assert templates(whole) == {mllama_tokenizer.chat_template}


@pytest.mark.parametrize("place", PLACES)
def test_the_template_is_found_in_any_place(assets, place, mllama_tokenizer):
    """The published directories have it in two, older ones in one."""
    from converters.mllama_assets import complete_assets

    path = assets / "tokenizer_config.json"
    for name in PLACES[:2]:
        if name != place:
            (assets / name).unlink()
    if place != "tokenizer_config.json":
        content = json.loads(path.read_text())
        del content["chat_template"]
        path.write_text(json.dumps(content))
    complete_assets(assets, "here")
    assert templates(assets) == {mllama_tokenizer.chat_template}


def test_where_templates_differ_the_one_that_transformers_uses_wins(assets):
    from transformers import AutoProcessor

    from converters.mllama_assets import complete_assets

    (assets / "chat_template.json").write_text(json.dumps({"chat_template": "older"}))
    (assets / "chat_template.jinja").write_text("newer")
    assert AutoProcessor.from_pretrained(assets).chat_template == "older"
    complete_assets(assets, "here")
    assert templates(assets) == {"older"}


def test_no_template_anywhere_is_refused(assets):
    from converters.mllama_assets import complete_assets

    for name in PLACES[:2]:
        (assets / name).unlink()
    path = assets / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["chat_template"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="hf: here has no chat template; add chat_template.jinja"):
        complete_assets(assets, "here")


def test_what_the_published_directories_lack_is_made(assets, whole):
    from transformers import AutoProcessor, AutoTokenizer, GenerationConfig, MllamaProcessor

    from converters.mllama_assets import complete_assets

    for name in DERIVED:
        (assets / name).unlink()
    complete_assets(assets, "here")
    assert {path.name for path in assets.iterdir()} == {path.name for path in whole.iterdir()}
    processor_config = json.loads((assets / "processor_config.json").read_text())
    assert processor_config == {"processor_class": "MllamaProcessor"}
    assert isinstance(AutoProcessor.from_pretrained(assets), MllamaProcessor)
    for name in ("bos_token", "eos_token", "pad_token"):
        made = json.loads((assets / "special_tokens_map.json").read_text())[name]
        token = made["content"] if isinstance(made, dict) else made
        assert token == getattr(AutoTokenizer.from_pretrained(whole), name)
    made, given = (GenerationConfig.from_pretrained(folder) for folder in (assets, whole))
    assert (made.bos_token_id, made.pad_token_id) == (given.bos_token_id, given.pad_token_id)
    assert made.eos_token_id == given.eos_token_id


def test_files_that_are_there_are_left_as_they_are(assets):
    from converters.mllama_assets import complete_assets

    before = {path.name: path.read_bytes() for path in assets.iterdir()}
    complete_assets(assets, "here")
    assert {path.name: path.read_bytes() for path in assets.iterdir()} == before


@pytest.mark.parametrize("name", ["tokenizer.json", "preprocessor_config.json"])
def test_files_that_cannot_be_made_are_named(assets, name):
    from converters.mllama_assets import complete_assets

    (assets / name).unlink()
    with pytest.raises(ValueError, match=f"hf: here lacks {name}; a server needs every one"):
        complete_assets(assets, "here")


def test_damaged_files_are_refused_in_one_sentence(assets):
    from converters.mllama_assets import complete_assets

    for name, sentence in (
        ("tokenizer.json", "cannot load the tokenizer and processor of here"),
        ("tokenizer_config.json", "tokenizer_config.json of here is not JSON"),
    ):
        kept = (assets / name).read_bytes()
        (assets / name).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(ValueError, match=sentence) as caught:
            complete_assets(assets, "here")
        assert "\n" not in str(caught.value)
        (assets / name).write_bytes(kept)


def test_files_of_another_model_are_refused(assets, change_json):
    from converters.mllama_assets import complete_assets

    change_json(assets / "config.json", lambda content: content.update(image_token_index=5))
    with pytest.raises(ValueError, match=r"id of <\|image\|> \d+ of here does not fit"):
        complete_assets(assets, "here")
    change_json(
        assets / "preprocessor_config.json", lambda content: content.update(do_normalize=False)
    )
    with pytest.raises(ValueError, match=r"does not fit|do_normalize is false"):
        complete_assets(assets, "here")
