import json

import pytest

from datamodules.mllama_encoder import MllamaEncoder
from datamodules.nvila_encoder import NvilaEncoder
from datamodules.sample_encoder import open_encoder


def test_family_by_the_configuration(assets, llama_assets):
    nvila, mllama = open_encoder(assets, 64), open_encoder(llama_assets, 64, max_tiles=2)
    assert isinstance(nvila, NvilaEncoder)
    assert isinstance(mllama, MllamaEncoder)
    nvila.prepare()
    mllama.prepare()
    assert (nvila.max_tiles, mllama.max_tiles) == (12, 2)
    assert nvila.config.seq_length == mllama.config.seq_length == 64
    assert mllama.pad_token_id == mllama.assets.tokenizer.pad_token_id != nvila.pad_token_id


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            json.dumps({"model_type": "bert"}),
            "model_type 'bert', but .* llava, mllama, neva_llava, nvila_lite",
        ),
        ("[]", "model_type None"),
        ("{", "is not JSON"),
    ],
)
def test_other_models_are_refused(tmp_path, content, message):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_encoder(str(tmp_path), 64)
    assert "\n" not in str(caught.value)


def test_arguments_come_before_files():
    with pytest.raises(ValueError, match="seq_length is 0"):
        open_encoder("none", 0)
    with pytest.raises(ValueError, match="max_tiles is 0"):
        open_encoder("none", 8, max_tiles=0)
    with pytest.raises(ValueError, match="none is neither"):
        open_encoder("none", 8)
