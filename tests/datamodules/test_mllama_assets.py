"""Assets folders of the MLlama family that do and do not suit."""

import json

import pytest

from datamodules.mllama_assets import load_mllama_assets
from sample_loaders.conversation import parse_llava


def test_template_in_the_processors_old_file(
    tmp_path,
    llama_tokenizer,
    llama_tokenizer_with,
    new_llama_assets,
    make_llama_encoder,
    make_record,
):
    folder = new_llama_assets(tmp_path, llama_tokenizer_with(None))
    with pytest.raises(ValueError, match="has no chat template"):
        load_mllama_assets(str(folder))
    template = {"chat_template": llama_tokenizer.chat_template}
    (folder / "chat_template.json").write_text(json.dumps(template))
    sample = parse_llava(make_record("Q", "A"), key="k", source="s")
    encoded = make_llama_encoder(assets=str(folder)).encode(sample)
    assert (encoded.tokens == make_llama_encoder().encode(sample).tokens).all()


def test_tokenizers_that_do_not_suit(
    tmp_path, llama_tokenizer, llama_tokenizer_with, new_llama_assets
):
    def refusal(name, tokenizer, **options):
        with pytest.raises(ValueError) as caught:
            load_mllama_assets(str(new_llama_assets(tmp_path / name, tokenizer, **options)))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    no_pad = llama_tokenizer_with()
    no_pad.pad_token = None
    assert "has no pad token" in refusal("pad", no_pad)
    assert "image_token_index=3, but" in refusal("id", llama_tokenizer, image_token_index=3)
    strings = "{% for m in messages %}{{ m.role + m.content + '<|eot_id|>' }}{% endfor %}"
    assert "refuses the turns" in refusal("strings", llama_tokenizer_with(strings))
    blind = llama_tokenizer.chat_template.replace("'<|image|>'", "''")
    assert "prints 0 <|image|>" in refusal("blind", llama_tokenizer_with(blind))


def test_tokenizer_without_image_token(tmp_path, llama_tokenizer, new_llama_assets):
    folder = new_llama_assets(tmp_path, llama_tokenizer)
    for file in folder.glob("*token*.json"):
        file.write_text(file.read_text().replace('"<|image|>"', '"<|picture|>"'))
    with pytest.raises(ValueError, match=r"has no <\|image\|> token"):
        load_mllama_assets(str(folder))


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        ({"size": {"height": 14, "width": 14}}, "has size="),
        ({"max_image_tiles": 2}, "has max_image_tiles=2, but the model needs 4"),
        ({"resample": 3}, "has resample=3"),
    ],
)
def test_image_processor_that_does_not_suit(
    tmp_path, llama_tokenizer, new_llama_assets, processor, message
):
    folder = new_llama_assets(tmp_path, llama_tokenizer, processor)
    with pytest.raises(ValueError, match=message):
        load_mllama_assets(str(folder))
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="no preprocessor_config.json"):
        load_mllama_assets(str(folder))


def test_other_aspect_ratios(tmp_path, llama_tokenizer, new_llama_assets):
    folder = new_llama_assets(tmp_path, llama_tokenizer)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["supported_aspect_ratios"] = [[1, 1], [2, 2]]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="supported_aspect_ratios"):
        load_mllama_assets(str(folder))
