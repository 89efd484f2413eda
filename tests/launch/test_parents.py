import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoTokenizer,
    Qwen2ForCausalLM,
    Qwen2TokenizerFast,
    SiglipImageProcessor,
    SiglipVisionModel,
)

from launch.quickstart.parents import (
    QUESTION_SINGLE,
    QUESTION_STRIP,
    train_tokenizer,
    write_qwen2,
    write_siglip,
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer()


def test_digits_are_single_tokens_wherever_they_stand(tokenizer):
    for digit in "0123456789":
        alone = tokenizer.encode(digit)
        assert len(alone) == 1
        for before in (" ", "\n", "は", "<|im_start|>assistant\n"):
            ids = tokenizer.encode(before + digit)
            assert ids[-1:] == alone
            assert ids[:-1] == tokenizer.encode(before)
    assert len(tokenizer.encode("3 1 4")) == 5


def test_every_text_survives(tokenizer):
    for text in (QUESTION_SINGLE, QUESTION_STRIP, "漢字 ＡＢＣ\n\n😀 it's 42", "a  b\tc"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_questions_are_short(tokenizer):
    assert len(tokenizer.encode(QUESTION_SINGLE)) < 4
    assert len(tokenizer.encode(QUESTION_STRIP)) < 4
    assert len(tokenizer.encode("\n")) == 1


def test_special_tokens_are_like_those_of_qwen(tokenizer):
    names = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = tokenizer.convert_tokens_to_ids(names)
    assert ids == list(range(len(tokenizer) - 3, len(tokenizer)))
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.bos_token is None
    assert len(tokenizer.encode("<image>")) > 1


def test_chat_template(tokenizer):
    question = [{"role": "user", "content": "a"}]
    system = "<|im_start|>system\nあなたは画像を見て日本語で答えるアシスタントです。<|im_end|>\n"
    user = "<|im_start|>user\na<|im_end|>\n"
    options = {"tokenize": False, "add_generation_prompt": True}
    rendered = tokenizer.apply_chat_template(question, **options)
    assert rendered == system + user + "<|im_start|>assistant\n"
    messages = [
        {"role": "system", "content": "s"},
        *question,
        {"role": "assistant", "content": "3"},
    ]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False)
    own = "<|im_start|>system\ns<|im_end|>\n"
    assert rendered == own + user + "<|im_start|>assistant\n3<|im_end|>\n"


def test_training_is_repeatable(tokenizer):
    assert train_tokenizer().get_vocab() == tokenizer.get_vocab()
    longer = train_tokenizer(["東京都東京都東京都"])
    assert len(longer.encode("東京都")) < len(tokenizer.encode("東京都"))


def test_siglip_directory(tmp_path):
    write_siglip(tmp_path)
    model = SiglipVisionModel.from_pretrained(tmp_path)
    config = model.config
    assert (config.image_size, config.patch_size, config.num_hidden_layers) == (56, 14, 3)
    assert (config.hidden_size, config.num_attention_heads) == (96, 4)
    assert config.hidden_act == "gelu_pytorch_tanh"
    stored = load_file(tmp_path / "model.safetensors")
    assert not [name for name in stored if ".head." in name]
    # ViT of the quickstart's measurements: 281,760 with two blocks; a third one and the last norm.
    block = sum(tensor.numel() for name, tensor in stored.items() if ".layers.2." in name)
    assert sum(tensor.numel() for tensor in stored.values()) - block - 2 * 96 == 281_760
    assert SiglipImageProcessor.from_pretrained(tmp_path).size == {"height": 56, "width": 56}
    _is_normal(stored["vision_model.embeddings.position_embedding.weight"], 0.02)
    _is_normal(stored["vision_model.encoder.layers.0.mlp.fc1.weight"], 0.02)
    _is_normal(stored["vision_model.encoder.layers.0.mlp.fc2.weight"], 0.01)
    assert stored["vision_model.encoder.layers.0.mlp.fc2.bias"].abs().max() == 0


@pytest.mark.parametrize("tied", [True, False])
def test_qwen2_directory(tmp_path, tokenizer, tied):
    write_qwen2(tmp_path, tokenizer, tied=tied)
    model, report = Qwen2ForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    config = model.config
    assert config.vocab_size == len(tokenizer)
    assert config.tie_word_embeddings is tied
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (128, 2, 352)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert model.model.layers[0].self_attn.head_dim == 32
    assert (config.rms_norm_eps, config.rope_theta) == (1e-6, 10_000)
    stored = load_file(tmp_path / "model.safetensors")
    assert ("lm_head.weight" in stored) is not tied
    # Decoder blocks of the quickstart's measurements, and the final norm.
    blocks = [n for n in stored if not n.startswith(("model.embed_tokens", "lm_head"))]
    assert sum(stored[name].numel() for name in blocks) == 369_664 + 128
    _is_normal(stored["model.layers.0.mlp.gate_proj.weight"], 0.02)
    _is_normal(stored["model.layers.0.mlp.down_proj.weight"], 0.01)
    _is_normal(stored["model.layers.1.self_attn.o_proj.weight"], 0.01)
    assert stored["model.layers.0.self_attn.q_proj.bias"].abs().max() == 0

    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, Qwen2TokenizerFast)
    assert loaded.encode(QUESTION_SINGLE) == tokenizer.encode(QUESTION_SINGLE)
    assert loaded.chat_template == tokenizer.chat_template
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_weights_depend_on_the_seed_alone(tmp_path, tokenizer):
    state = torch.random.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        torch.rand(seed)
        write_siglip(tmp_path / name / "vision", seed=seed)
        write_qwen2(tmp_path / name / "llm", tokenizer, seed=seed)
    for part in ("vision", "llm"):
        one, same, other = (load_file(tmp_path / n / part / "model.safetensors") for n in "abc")
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)
    torch.random.set_rng_state(state)


def _is_normal(tensor, deviation):
    assert abs(tensor.std().item() / deviation - 1) < 0.1
    assert abs(tensor.mean().item()) < deviation / 5
