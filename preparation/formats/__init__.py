"""One module for each source format, and the table that `--format` chooses from."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

from preparation.source import FormatRow, Reader, ReaderOptions


class _Opener:
    """Opens a source with a function that is imported when it is needed."""

    def __init__(self, module: str, function: str) -> None:
        self.module = module
        self.function = function

    def __call__(self, source: Path, options: ReaderOptions) -> Reader:
        function = getattr(import_module(f"preparation.formats.{self.module}"), self.function)
        return function(source, options)


FORMATS: Mapping[str, FormatRow] = {
    "llava": FormatRow(
        make=_Opener("llava", "open_llava"),
        description="LLaVA JSON or JSONL with conversations, and a folder of images",
    ),
    "captions": FormatRow(
        make=_Opener("captions", "open_captions"),
        description="image and caption: COYO-like pkl, WebDataset tar, parquet, JSONL and folder",
        max_tiles=1,
    ),
    "interleaved": FormatRow(
        make=_Opener("interleaved", "open_interleaved"),
        description="documents of text and images: MMC4, MOMIJI, llm-jp; pkl, JSONL, tar",
        max_tiles=6,
    ),
    "wikipedia_ja": FormatRow(
        make=_Opener("wikipedia_ja", "open_wikipedia_ja"),
        description="Wikipedia articles as text (parquet, JSONL), or Wikipedia-Vision-JA",
        max_tiles=1,
        licence="CC-BY-SA-4.0",
    ),
    "stair_captions": FormatRow(
        make=_Opener("stair_captions", "open_stair_captions"),
        description="STAIR Captions: COCO-like JSON with Japanese captions, and COCO's images",
        max_tiles=1,
        licence="CC-BY-4.0",
    ),
    "ja_vg_vqa": FormatRow(
        make=_Opener("ja_vg_vqa", "open_ja_vg_vqa"),
        description="Japanese Visual Genome VQA: JSON of questions, and Visual Genome's images",
        licence="CC-BY-4.0",
    ),
    "synthdog": FormatRow(
        make=_Opener("synthdog", "open_synthdog"),
        description="SynthDoG parquet: rendered pages and their text, as questions to read them",
    ),
    "ai2d": FormatRow(
        make=_Opener("ai2d", "open_ai2d"),
        description="AI2D parquet: diagrams with multiple-choice questions",
    ),
    "sherlock": FormatRow(
        make=_Opener("sherlock", "open_sherlock"),
        description="Sherlock JSON: boxes with clues and inferences, and Visual Genome and VCR",
        licence="CC-BY",
    ),
    "hf": FormatRow(
        make=_Opener("hf", "open_hf"),
        description="a datasets.save_to_disk folder or parquet with conversations and images",
    ),
}
