"""Whole directories through real checkpoints: import, export, verify, assemble."""

import json
import shutil
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2ForCausalLM, SiglipVisionModel

pytestmark = pytest.mark.usefixtures("single_process")

VARIANTS = {
    "tied_2x2_fp32": {"tied": True, "projector": "mlp_downsample_2x2_fix"},
    "untied_3x3_fp32": {"tied": False, "projector": "mlp_downsample_3x3_fix"},
    "tied_3x3_bf16": {
        "tied": True,
        "projector": "mlp_downsample_3x3_fix",
        "dtype": torch.bfloat16,
    },
    "untied_2x2_fp16": {
        "tied": False,
        "projector": "mlp_downsample_2x2_fix",
        "dtype": torch.float16,
    },
}


def to_dtype(directory, dtype):
    """Change the dtype of a directory's weights."""
    weights = load_file(directory / "model.safetensors")
    save_file(
        {name: tensor.to(dtype) for name, tensor in weights.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )


@pytest.fixture(scope="module")
def converted(write_nano_directory, tmp_path_factory, nemo):
    """Each variant as (Hugging Face directory, checkpoint)."""
    from converters.import_hf import import_checkpoint

    made = {}

    def convert(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            options = dict(VARIANTS[name])
            dtype = options.pop("dtype", torch.float32)
            write_nano_directory(folder / "hf", **options)
            to_dtype(folder / "hf", dtype)
            import_checkpoint("nvila", folder / "hf", folder / "ckpt")
            made[name] = (folder / "hf", folder / "ckpt")
        return made[name]

    return convert


@pytest.mark.parametrize("name", VARIANTS)
def test_import_then_export_gives_back_every_bit(converted, name, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.lazy import HeldTensor, same_bits

    hf, checkpoint = converted(name)
    export_checkpoint(checkpoint, tmp_path / "out")
    before = load_file(hf / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert [
        key for key in before if not same_bits(HeldTensor(before[key]), HeldTensor(after[key]))
    ] == []
    names = {path.name for path in hf.iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} >= names
    dtype = str(VARIANTS[name].get("dtype", torch.float32)).removeprefix("torch.")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == dtype


@pytest.mark.parametrize("name", ["tied_2x2_fp32", "untied_3x3_fp32"])
def test_logits_of_both_models_agree(converted, name):
    from converters.verify import verify_checkpoint

    result = verify_checkpoint(*converted(name))
    assert result.passed
    assert set(result.logit_differences) == {"one_tile", "many_tiles", "many_images", "text_only"}
    # The fixture's weights are large: logits of the order of 10, so 1e-4 is 1e-5 of them.
    assert max(result.logit_differences.values()) <= 1e-4


def test_verify_sees_one_flipped_bit(converted, tmp_path):
    from converters.verify import verify_checkpoint

    hf, checkpoint = converted("tied_2x2_fp32")
    changed = tmp_path / "hf"
    shutil.copytree(hf, changed)
    weights = load_file(changed / "model.safetensors")
    # The last block's key bias moves no logit: only the bits can show it.
    name = "vision_tower.vision_model.encoder.layers.2.self_attn.k_proj.bias"
    weights[name].view(torch.int32)[3] ^= 1
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    result = verify_checkpoint(changed, checkpoint, logits=False)
    assert result.different_tensors == (name,)
    assert not result.passed


def test_verify_sees_a_changed_logit(converted, tmp_path):
    from converters.verify import verify_checkpoint

    hf, checkpoint = converted("tied_2x2_fp32")
    changed = tmp_path / "hf"
    shutil.copytree(hf, changed)
    weights = load_file(changed / "model.safetensors")
    weights["mm_projector.layers.4.bias"] += 0.01
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    result = verify_checkpoint(changed, checkpoint)
    assert result.logit_differences["one_tile"] > 1e-4
    assert result.logit_differences["text_only"] <= 1e-4
    assert not result.passed


def test_native_vila_layout_is_loaded_by_the_parents_own_classes(converted, tmp_path):
    from converters.export_hf import export_checkpoint

    hf, checkpoint = converted("untied_3x3_fp32")
    export_checkpoint(checkpoint, tmp_path / "vila", layout="vila")
    flat = load_file(hf / "model.safetensors")
    llm, loading = Qwen2ForCausalLM.from_pretrained(
        tmp_path / "vila" / "llm", output_loading_info=True
    )
    assert loading["missing_keys"] == []
    assert loading["unexpected_keys"] == []
    for name, tensor in llm.state_dict().items():
        assert torch.equal(tensor, flat[f"llm.{name}"]), name
    vision, loading = SiglipVisionModel.from_pretrained(
        tmp_path / "vila" / "vision_tower", output_loading_info=True
    )
    assert loading["missing_keys"] == []
    assert loading["unexpected_keys"] == []
    for name, tensor in vision.state_dict().items():
        assert torch.equal(tensor, flat[f"vision_tower.{name}"]), name
    projector = load_file(tmp_path / "vila" / "mm_projector" / "model.safetensors")
    assert set(projector) == {
        f"layers.{index}.{kind}" for index in (1, 2, 4, 5, 7) for kind in ("weight", "bias")
    }
    top = json.loads((tmp_path / "vila" / "config.json").read_text())
    assert top["mm_vision_select_layer"] == -2
    assert top["mm_projector_cfg"]["mm_projector_type"] == "mlp_downsample_3x3_fix"
    assert (tmp_path / "vila" / "llm" / "tokenizer_config.json").is_file()


def test_a_stored_copy_of_a_tied_embedding_is_accepted_and_a_different_one_is_not(
    converted, tmp_path
):
    from converters.import_hf import import_checkpoint

    hf, _ = converted("tied_2x2_fp32")
    for name, offset in (("same", 0.0), ("other", 1.0)):
        shutil.copytree(hf, tmp_path / name)
        weights = load_file(tmp_path / name / "model.safetensors")
        weights["llm.lm_head.weight"] = weights["llm.model.embed_tokens.weight"] + offset
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
    import_checkpoint("nvila", tmp_path / "same", tmp_path / "ckpt")
    with pytest.raises(ValueError, match="tie_word_embeddings, but llm.lm_head.weight differs"):
        import_checkpoint("nvila", tmp_path / "other", tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_sharded_weights_and_a_missing_shard(converted, tmp_path):
    from converters.import_hf import import_checkpoint
    from converters.verify import verify_checkpoint

    hf, checkpoint = converted("tied_2x2_fp32")
    sharded = tmp_path / "sharded"
    shutil.copytree(hf, sharded)
    weights = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = sorted(weights)
    halves = {"model-00001-of-00002.safetensors": names[:40]}
    halves["model-00002-of-00002.safetensors"] = names[40:]
    for file, members in halves.items():
        save_file({name: weights[name] for name in members}, sharded / file)
    index = {name: file for file, members in halves.items() for name in members}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    assert verify_checkpoint(sharded, checkpoint, logits=False).passed
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match="lacks model-00002-of-00002.safetensors"):
        import_checkpoint("nvila", sharded, tmp_path / "never")


def test_a_large_export_is_sharded_with_an_index(converted, tmp_path, monkeypatch):
    from transformers import AutoModelForImageTextToText

    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    hf, checkpoint = converted("untied_3x3_fp32")
    monkeypatch.setattr("converters.hf_weights.MAX_SHARD_SIZE", "200KB")
    export_checkpoint(checkpoint, tmp_path / "sharded")
    index = json.loads((tmp_path / "sharded" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert verify_checkpoint(tmp_path / "sharded", checkpoint, logits=False).passed
    model = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "sharded", trust_remote_code=True
    )
    expected = load_file(hf / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_truncated_file_is_named(converted, tmp_path):
    from converters.import_hf import import_checkpoint

    hf, _ = converted("tied_2x2_fp32")
    cut = tmp_path / "cut"
    shutil.copytree(hf, cut)
    data = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        import_checkpoint("nvila", cut, tmp_path / "never")
    assert list(tmp_path.iterdir()) == [cut]


def test_an_output_that_is_not_empty_is_left_alone(converted, tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint

    hf, checkpoint = converted("tied_2x2_fp32")
    (tmp_path / "mine.txt").write_text("keep")
    for convert, source in (
        (partial(import_checkpoint, "nvila"), hf),
        (export_checkpoint, checkpoint),
    ):
        with pytest.raises(ValueError, match="exists and is not empty"):
            convert(source, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_other_families_and_no_checkpoints_are_refused(tmp_path):
    from converters.export_hf import export_checkpoint
    from converters.import_hf import import_checkpoint

    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mllama"}))
    with pytest.raises(ValueError, match="holds a model of type 'mllama'; nvila_lite is expected"):
        import_checkpoint("nvila", tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="is not a finished NeMo checkpoint"):
        export_checkpoint(tmp_path, tmp_path / "out")


@pytest.fixture(scope="module")
def parents(tmp_path_factory):
    """A SigLIP and a Qwen2 directory."""
    from launch.quickstart.parents import train_tokenizer, write_qwen2, write_siglip

    folder = tmp_path_factory.mktemp("parents")
    write_siglip(folder / "siglip")
    write_qwen2(folder / "qwen2", train_tokenizer())
    return folder


def test_assemble_keeps_the_parents_and_adds_mean_rows(parents, tmp_path):
    from converters.assemble import assemble
    from converters.export_hf import export_checkpoint
    from converters.verify import verify_checkpoint

    figures = assemble(parents / "qwen2", parents / "siglip", tmp_path / "ckpt")
    export_checkpoint(tmp_path / "ckpt", tmp_path / "hf")
    assert verify_checkpoint(tmp_path / "hf", tmp_path / "ckpt").passed
    out = load_file(tmp_path / "hf" / "model.safetensors")
    vision = load_file(parents / "siglip" / "model.safetensors")
    for name, tensor in vision.items():
        assert torch.equal(out[f"vision_tower.{name}"], tensor), name
    llm = load_file(parents / "qwen2" / "model.safetensors")
    for name, tensor in llm.items():
        if name not in ("model.embed_tokens.weight", "lm_head.weight"):
            assert torch.equal(out[f"llm.{name}"], tensor), name
    table, parent = out["llm.model.embed_tokens.weight"], llm["model.embed_tokens.weight"]
    assert figures["vocabulary"] == table.shape[0] == parent.shape[0] + 5
    assert torch.equal(table[: len(parent)], parent)
    for row in range(len(parent), len(table)):
        assert torch.allclose(table[row], table[:row].mean(dim=0), atol=1e-7)
    added = json.loads((tmp_path / "hf" / "added_tokens.json").read_text())
    order = ["<vila/sentinel>", "<image>", "<vila/video>", "[BOS]", "[PAD]"]
    assert [added[token] for token in order] == list(range(len(parent), len(table)))


def test_the_untrained_rows_of_a_parent_table_are_no_start_for_added_tokens(parents, tmp_path):
    """Qwen's tables have more rows than its tokenizer: 151,936 for 151,665."""
    from converters.assemble import assemble
    from converters.checkpoint import read_checkpoint

    spare = tmp_path / "spare"
    shutil.copytree(parents / "qwen2", spare)
    weights = load_file(spare / "model.safetensors")
    table = weights["model.embed_tokens.weight"]
    weights["model.embed_tokens.weight"] = torch.cat([table, torch.full((50, 128), 777.0)])
    save_file(weights, spare / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((spare / "config.json").read_text())
    config["vocab_size"] = len(table) + 50
    (spare / "config.json").write_text(json.dumps(config))
    assemble(parents / "qwen2", parents / "siglip", tmp_path / "plain")
    assemble(spare, parents / "siglip", tmp_path / "from_spare")
    name = "language_model.embedding.word_embeddings.weight"
    plain, cut = (read_checkpoint(tmp_path / part)[1][name] for part in ("plain", "from_spare"))
    assert torch.equal(plain, cut)
    assert cut.max() < 1


def test_assemble_is_repeatable_and_its_seed_moves_the_projector_only(parents, tmp_path):
    from converters.assemble import assemble
    from converters.checkpoint import read_checkpoint

    tensors = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        assemble(parents / "qwen2", parents / "siglip", tmp_path / name, seed=seed)
        tensors.append(read_checkpoint(tmp_path / name)[1])
    first, same, other = tensors
    assert [name for name in first if not torch.equal(first[name], same[name])] == []
    moved = {name for name in first if not torch.equal(first[name], other[name])}
    assert moved
    assert all(name.startswith("vision_projection.layers.") for name in moved)


def test_assemble_refuses_swapped_parents_and_a_tokenizer_without_template(parents, tmp_path):
    from converters.assemble import assemble

    with pytest.raises(ValueError, match="llm: .* holds a model of type 'siglip_vision_model'"):
        assemble(parents / "siglip", parents / "qwen2", tmp_path / "never")
    bare = tmp_path / "bare"
    shutil.copytree(parents / "qwen2", bare)
    (bare / "chat_template.jinja").unlink()
    config = json.loads((bare / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no chat template"):
        assemble(bare, parents / "siglip", tmp_path / "never")
    assert not (tmp_path / "never").exists()
