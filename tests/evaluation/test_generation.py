import json

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.generation import answer, load
from evaluation.query import Query


def noise_image(columns, seed=0):
    shape = (56, 56 * columns, 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


@pytest.fixture(scope="module")
def directory(write_nano_directory, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "answering"
    write_nano_directory(path, tied=False)
    return path


@pytest.fixture(scope="module")
def loaded(directory):
    return load(directory)


def test_answers_do_not_depend_on_the_batch(loaded, tmp_path):
    model, processor = loaded
    noise_image(3, 9).save(tmp_path / "strip.png")
    queries = [
        Query.ask("数字を左から順に読んでください。", [noise_image(4, 1)]),
        Query.ask("1 2 3"),
        Query.ask("この画像の数字は何ですか?", [noise_image(1, 2)]),
        Query.ask("この画像の数字は何ですか?", [tmp_path / "strip.png"]),
        Query.ask("<image>と<image>", [noise_image(1, 3), noise_image(2, 4)]),
    ]
    alone = [answer(model, processor, [query], max_new_tokens=8)[0] for query in queries]
    assert len(set(alone)) == len(queries)
    progress = []
    together = answer(
        model,
        processor,
        queries,
        max_new_tokens=8,
        batch_size=2,
        progress=lambda done, total: progress.append((done, total)),
    )
    assert together == alone
    assert progress == [(2, 5), (4, 5), (5, 5)]


def test_answer_is_the_decoded_greedy_continuation(loaded):
    model, processor = loaded
    image = noise_image(2, 5)
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": "<image>\nこの画像の数字は何ですか?"}],
        images=[image],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    ids = inputs["input_ids"]
    end = processor.tokenizer.eos_token_id
    for _ in range(8):
        with torch.no_grad():
            logits = model(ids, inputs["pixel_values"]).logits[:, -1]
        logits[:, model.config.image_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
        if ids[0, -1] == end:
            break
    expected = processor.tokenizer.decode(
        ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )
    query = Query.ask("この画像の数字は何ですか?", [image])
    assert answer(model, processor, [query], max_new_tokens=8) == [expected.strip()]


def test_no_queries_and_wrong_batch_size(loaded):
    assert answer(*loaded, []) == []
    with pytest.raises(ValueError, match="batch_size=0"):
        answer(*loaded, [], batch_size=0)


def test_dtype(directory):
    model, _ = load(directory, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_unknown_code_is_not_run(write_nano_directory, tmp_path):
    directory = tmp_path / "changed"
    write_nano_directory(directory)
    code = directory / "modeling_nvila_lite.py"
    marker = tmp_path / "was_run"
    code.write_text(code.read_text() + f"\nopen({str(marker)!r}, 'w').close()\n")
    with pytest.raises(ValueError, match="is not a copy of this repository's code"):
        load(directory)
    assert not marker.exists()
    load(directory, trust_remote_code=True)
    assert marker.exists()


def test_code_from_elsewhere_is_not_run(write_nano_directory, tmp_path):
    directory = tmp_path / "elsewhere"
    write_nano_directory(directory)
    config = json.loads((directory / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "someone/model--configuration_nvila_lite.NVILALiteConfig"
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="refers to code outside of the directory"):
        load(directory)


def test_not_an_export(tmp_path):
    with pytest.raises(ValueError, match="^hf: .* must be a directory with a config.json"):
        load(tmp_path)
