"""Assets folders of models with real tiles and the tokenizers of the quickstart."""

from pathlib import Path

from transformers import MllamaConfig, MllamaImageProcessor, SiglipImageProcessor

from launch.quickstart.mllama_parent import train_mllama_tokenizer
from launch.quickstart.parents import train_tokenizer
from models.hf_code.configuration_nvila_lite import NVILALiteConfig
from models.hf_code.prompt_nvila_lite import IMAGE_TOKEN

NVILA_SIDE, MLLAMA_SIDE = 448, 560


def write_nvila(folder: Path) -> Path:
    tokenizer = train_tokenizer()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [IMAGE_TOKEN]}, replace_additional_special_tokens=False
    )
    tokenizer.save_pretrained(folder)
    NVILALiteConfig(
        text_config={"vocab_size": len(tokenizer)},
        vision_config={"image_size": NVILA_SIDE, "patch_size": 14},
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        newline_token_id=tokenizer.encode("\n")[0],
        mm_projector_type="mlp_downsample_3x3_fix",
    ).save_pretrained(folder)
    size = {"height": NVILA_SIDE, "width": NVILA_SIDE}
    SiglipImageProcessor(size=size).save_pretrained(folder)
    return folder


def write_mllama(folder: Path) -> Path:
    tokenizer = train_mllama_tokenizer()
    tokenizer.save_pretrained(folder)
    image = tokenizer.convert_tokens_to_ids("<|image|>")
    MllamaConfig(
        text_config={"vocab_size": image, "pad_token_id": tokenizer.pad_token_id},
        vision_config={"image_size": MLLAMA_SIDE, "patch_size": 14, "max_num_tiles": 4},
        image_token_index=image,
    ).save_pretrained(folder)
    size = {"height": MLLAMA_SIDE, "width": MLLAMA_SIDE}
    MllamaImageProcessor(size=size, max_image_tiles=4).save_pretrained(folder)
    return folder
