"""What the fast resize moves: pixels, and the logits of a model beside what bf16 moves.

Pixels are compared on images like photographs, against Pillow's resize as it is installed and
against its two passes in the order width, height, which versions before 13 always took. The model
has the widths of SigLIP so400m and Qwen2.5-0.5B and random weights, but fewer blocks.
"""

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from benchmarks.data.photographs import jpeg, photograph
from datamodules.image_resize import image_pixels, resize_bicubic, resize_bilinear
from datamodules.nvila_tiles import fill_tiles, fill_tiles_exactly
from models.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.hf_code.modeling_nvila_lite import NVILALiteForConditionalGeneration
from models.hf_code.tiling_nvila_lite import choose_grid, tile_count

SIDE, MAX_TILES = 448, 12
SIZES = ((640, 480), (480, 640), (500, 375), (1280, 960), (1600, 900), (300, 800), (2000, 3000))
TEXT_TOKENS, IMAGE_ID, NEWLINE_ID, VOCABULARY = 64, 1, 2, 512
MODEL_SIZE = (896, 448)  # two tiles and a thumbnail
VISION_BLOCKS, TEXT_BLOCKS = 9, 8

Resize = Callable[[torch.Tensor, int, int], torch.Tensor]


def difference(found: np.ndarray, expected: np.ndarray) -> str:
    levels = np.abs(found.astype(int) - expected)
    return f"{levels.max():4} {levels.mean():8.4f} {(levels > 0).mean():7.2%}"


def compare(image: Image.Image, new: tuple[int, int], resize: Resize, method: int) -> str:
    found = resize(image_pixels(image), *new).permute(0, 2, 1).numpy()
    ordered = image.resize((new[0], image.height), method).resize(new, method)
    installed = image.resize(new, method)
    return difference(found, np.asarray(ordered)) + " |" + difference(found, np.asarray(installed))


def print_pixels() -> None:
    print(f"{'':34}   width first           |    Pillow {Image.__version__}")
    print(f"{'image':12}{'resized to':14}{'':8} max     mean  differ  |  max     mean  differ")
    for number, size in enumerate(SIZES):
        image = photograph(*size, seed=number)
        columns, rows = choose_grid(*size, SIDE, MAX_TILES)
        for new in ((columns * SIDE, rows * SIDE), (SIDE, SIDE)):
            for resize, method in (
                (resize_bicubic, Image.Resampling.BICUBIC),
                (resize_bilinear, Image.Resampling.BILINEAR),
            ):
                names = f"{'x'.join(map(str, size)):12}{'x'.join(map(str, new)):14}"
                print(names + f"{method.name.lower():9}" + compare(image, new, resize, method))


def print_draft() -> None:
    """What scaling in the JPEG decoder would save and move, where an image is much larger."""
    size, new = (4000, 3000), (4 * SIDE, 3 * SIDE)
    data = jpeg(photograph(*size))
    pixels, seconds = {}, {}
    for draft in (False, True):
        times = []
        for _ in range(3):
            started = time.thread_time()
            image = Image.open(io.BytesIO(data))
            if draft:
                image.draft("RGB", new)
            image.load()
            resized = resize_bicubic(image_pixels(image), *new)
            times.append(time.thread_time() - started)
        pixels[draft], seconds[draft] = resized.numpy(), statistics.median(times)
    print(f"\ndraft, 4000x3000 to 1792x1344: {seconds[True] / seconds[False]:.2f} of the time,")
    print(f"  levels max, mean, share that differ: {difference(pixels[True], pixels[False])}")


def make_model() -> NVILALiteForConditionalGeneration:
    torch.manual_seed(0)
    config = NVILALiteConfig(
        vision_config={
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_attention_heads": 16,
            "num_hidden_layers": VISION_BLOCKS,
            "image_size": SIDE,
            "patch_size": 14,
        },
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "num_hidden_layers": TEXT_BLOCKS,
        },
        image_token_id=IMAGE_ID,
        newline_token_id=NEWLINE_ID,
        mm_projector_type="mlp_downsample_2x2_fix",
    )
    return NVILALiteForConditionalGeneration(config).eval()


def print_logits() -> None:
    image = photograph(*MODEL_SIZE, seed=3).resize((700, 360))
    count = tile_count(*image.size, SIDE, 2)
    tiles = {way: np.empty((count, 3, SIDE, SIDE), np.uint8) for way in ("exact", "fast")}
    fill_tiles_exactly(tiles["exact"], image, 2)
    fill_tiles(tiles["fast"], image, 2)
    model = make_model()
    per_tile = model.config.tokens_per_tile
    one_tile = [IMAGE_ID] * per_tile + [NEWLINE_ID, NEWLINE_ID]
    ids = torch.tensor([one_tile * count + list(range(3, 3 + TEXT_TOKENS))])

    def logits(way: str, dtype: torch.dtype) -> torch.Tensor:
        pixels = (torch.from_numpy(tiles[way]).float() / 255 - 0.5) / 0.5
        with torch.inference_mode():
            output = model.to(dtype)(input_ids=ids, pixel_values=pixels.to(dtype))
        return output.logits[0, -TEXT_TOKENS:].float()

    exact, fast = logits("exact", torch.float32), logits("fast", torch.float32)
    rounded = logits("exact", torch.bfloat16)
    print(f"\nlogits, {count} tiles, standard deviation {exact.std():.3f}")
    print(f"  tiles, levels max, mean, share: {difference(tiles['fast'], tiles['exact'])}")
    for name, other in (("fast resize, fp32", fast), ("exact resize, bf16", rounded)):
        moved = (other - exact).abs()
        print(f"  {name:20} max {moved.max():.2e}  mean {moved.mean():.2e}")


def main() -> None:
    torch.set_num_threads(1)
    print_pixels()
    print_draft()
    print_logits()


if __name__ == "__main__":
    main()
