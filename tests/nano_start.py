"""A nano NVILA before its training, and digits to train it on."""


def write_nano_start(folder):
    """Write data and an assembled checkpoint; NeMo must have been imported.

    Returns:
        Options of a training: {"init_from", "train_paths", "image_folder"}.
    """
    from converters.assemble import assemble
    from launch.quickstart.digits import write_digits
    from launch.quickstart.parents import train_tokenizer, write_qwen2, write_siglip

    files = write_digits(folder / "data", strips_per_length=30, validation_strips=10)
    write_siglip(folder / "siglip")
    write_qwen2(folder / "qwen2", train_tokenizer())
    assemble(folder / "qwen2", folder / "siglip", folder / "assembled")
    return {
        "init_from": str(folder / "assembled"),
        "train_paths": [str(files.train_singles), str(files.train_strips)],
        "image_folder": str(files.images),
    }
