"""A small MLlama of transformers, samples for it, and what it says about each sample alone."""

from dataclasses import dataclass

import torch

VOCABULARY = 50
SLOTS = 4
TILE = 28
RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
ROPE_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def make_reference(seed=0, cross_attention_layers=(1, 3), num_layers=4, taps=(1, 2)):
    """Makes a Hugging Face model with large random weights: every part moves the logits.

    transformers initialises the gates to 0, which would hide the image from the text.
    """
    from transformers import MllamaConfig, MllamaForConditionalGeneration

    config = MllamaConfig(
        vision_config={
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "num_global_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 64,
            "vision_output_dim": 32 * (1 + len(taps)),
            "image_size": TILE,
            "patch_size": 14,
            "intermediate_layers_indices": list(taps),
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 64,
            "num_hidden_layers": num_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 96,
            "cross_attention_layers": list(cross_attention_layers),
            "rope_scaling": ROPE_SCALING,
            "rope_theta": 10_000.0,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        image_token_index=VOCABULARY,
    )
    model = MllamaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1.0)
    return model


@dataclass
class Sample:
    """Tokens, and for each image its first and last seen position, its ratio id and its tiles."""

    tokens: torch.Tensor
    spans: list[list[int]]
    ratio_ids: list[int]
    tiles: torch.Tensor

    @property
    def tile_counts(self):
        return [RATIOS[number - 1][0] * RATIOS[number - 1][1] for number in self.ratio_ids]


def make_sample(length, places=(), ratio_ids=(), seed=0):
    """Makes a sample with images at the given places; neighbours are seen together."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, VOCABULARY, (length,), generator=generator)
    tokens[list(places)] = VOCABULARY
    ends = [*places, length][1:]
    spans = [[start, end] for start, end in zip(places, ends, strict=True)]
    for one, following in reversed(list(zip(spans, spans[1:], strict=False))):
        if one[1] == one[0] + 1:
            one[1] = following[1]
    count = sum(RATIOS[number - 1][0] * RATIOS[number - 1][1] for number in ratio_ids)
    tiles = torch.randint(0, 256, (count, 3, TILE, TILE), generator=generator, dtype=torch.uint8)
    return Sample(tokens, spans, list(ratio_ids), tiles)


def mixed_samples():
    """Text before, between and after images; neighbours; one, two, three images and none."""
    return [
        make_sample(12, (2, 7), (2, 6), seed=1),
        make_sample(9, (3,), (1,), seed=2),
        make_sample(10, seed=3),
        make_sample(12, (0, 5, 6), (3, 1, 7), seed=4),
    ]


def reference_logits(model, sample):
    """Logits float[length, vocabulary] of one sample alone, its masks written out by hand."""
    tokens = sample.tokens.unsqueeze(0)
    if not sample.spans:
        return model(input_ids=tokens).logits[0]
    images, mean, std = len(sample.spans), *_statistics()
    pixels = torch.zeros(1, images, SLOTS, 3, TILE, TILE)
    tile_mask = torch.zeros(1, images, SLOTS, dtype=torch.long)
    cross_mask = torch.zeros(1, len(sample.tokens), images, SLOTS, dtype=torch.long)
    parts = sample.tiles.split(sample.tile_counts)
    for index, (part, (start, end)) in enumerate(zip(parts, sample.spans, strict=True)):
        pixels[0, index, : len(part)] = (part.float() / 255 - mean) / std
        tile_mask[0, index, : len(part)] = 1
        cross_mask[0, start:end, index, : len(part)] = 1
    return model(
        input_ids=tokens,
        pixel_values=pixels,
        aspect_ratio_ids=torch.tensor([sample.ratio_ids]),
        aspect_ratio_mask=tile_mask,
        cross_attention_mask=cross_mask,
    ).logits[0]


def _statistics():
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    return mean, std


def join(samples):
    """Makes the micro-batch of the samples, as described in models/mllama/model.py."""
    length = max(len(sample.tokens) for sample in samples)
    tokens = torch.zeros(len(samples), length, dtype=torch.long)
    for row, sample in enumerate(samples):
        tokens[row, : len(sample.tokens)] = sample.tokens
    spans = [span for sample in samples for span in sample.spans]
    return {
        "tokens": tokens,
        "position_ids": torch.arange(length).repeat(len(samples), 1),
        "tiles": torch.cat([sample.tiles for sample in samples]),
        "tiles_per_image": torch.tensor(
            [count for sample in samples for count in sample.tile_counts], dtype=torch.long
        ),
        "aspect_ratio_ids": torch.tensor(
            [number for sample in samples for number in sample.ratio_ids], dtype=torch.long
        ),
        "images_per_sample": torch.tensor([len(sample.spans) for sample in samples]),
        "image_spans": torch.tensor(spans, dtype=torch.long).view(-1, 2),
    }


def pack(samples, padding=3):
    """Makes one packed row of the samples, with empty places in the middle and at the end."""
    batch = join(samples)
    half = len(samples) // 2
    lengths = [len(sample.tokens) for sample in samples]
    lengths = [*lengths[:half], padding, *lengths[half:], padding]
    starts = torch.tensor([0, *lengths]).cumsum(0)
    rows = [sample.tokens for sample in samples]
    empty = torch.zeros(padding, dtype=torch.long)
    images = batch["images_per_sample"].tolist()
    images = [*images[:half], 0, *images[half:], 0]
    offsets = starts[:-1].repeat_interleave(torch.tensor(images))
    return batch | {
        "tokens": torch.cat([*rows[:half], empty, *rows[half:], empty]).unsqueeze(0),
        "position_ids": torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0),
        "images_per_sample": torch.tensor(images),
        "image_spans": batch["image_spans"] + offsets.unsqueeze(1),
        "cu_seqlens": starts.to(torch.int32),
        "max_seqlen": max(lengths),
    }


def unpacked(row, samples, padding=3):
    """Cuts [1, positions, ...] of a packed row into the samples' parts."""
    half = len(samples) // 2
    lengths = [len(sample.tokens) for sample in samples]
    parts = row[0].split([*lengths[:half], padding, *lengths[half:], padding])
    return [*parts[:half], *parts[half + 1 : -1]]


def with_labels(batch, samples, supervised=6):
    """Adds labels on the last positions of every sample, and their mask."""
    labels = torch.full_like(batch["tokens"], -100)
    for row, sample in enumerate(samples):
        end = len(sample.tokens)
        wanted = sample.tokens[end - supervised : end].clone()
        wanted[wanted >= VOCABULARY] = -100
        labels[row, end - supervised - 1 : end - 1] = wanted
    return batch | {"labels": labels, "loss_mask": (labels >= 0).float()}


def reference_loss(model, samples, labels):
    """Sum of the cross entropy over the labelled positions, by the plain formula."""
    total = torch.zeros(())
    for row, sample in enumerate(samples):
        wanted = labels[row, : len(sample.tokens)]
        chosen = wanted >= 0
        log_probabilities = reference_logits(model, sample)[chosen].log_softmax(dim=-1)
        total = total - log_probabilities.gather(1, wanted[chosen][:, None]).sum()
    return total
