"""The README's table of what works: every "yes" has a test, and nothing tested is missing."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES, CONVERTERS = "tests/recipes/", "tests/converters/"
PARALLEL, ADAPTERS = f"{RECIPES}test_parallel_and_resume.py", f"{RECIPES}test_lora_training.py"
CONVERSION = f"{CONVERTERS}test_checkpoint_conversion.py"
LAYOUTS_OF_LLAVA = 'for family in ("llava", "llava_jp")\n    for name in ("tp2_sp", "pp2")'

# A file, and what stands in it where the family is tested so. Layouts are the keys of tables, so
# the text of the tables is looked for.
EVIDENCE = {
    "nvila": {
        "import": (f"{CONVERTERS}conftest.py", 'params=["nvila", "mllama", "llava"]'),
        "export": (CONVERSION, "export_checkpoint(tmp_path"),
        "stages / full": (PARALLEL, '"stage": "align"'),
        "LoRA": (ADAPTERS, '"nvila_lora_dp2_recompute"'),
        "DoRA": (f"{RECIPES}test_preference_training.py", '"nvila_dora_tp2"'),
        "TP": (PARALLEL, '"tp2": {"strategy"'),
        "PP": (PARALLEL, '"pp2": {"strategy"'),
        "SP": (PARALLEL, '"tp2_sp": {"strategy"'),
        "packing": (PARALLEL, 'for name in ("tp2_sp", "pp2", "dp2")'),
        "transformers": (CONVERSION, "verify_checkpoint"),
    },
    "mllama": {
        "import": (f"{CONVERTERS}conftest.py", 'params=["nvila", "mllama", "llava"]'),
        "export": (f"{CONVERTERS}test_mllama_conversion.py", "export_checkpoint"),
        "stages / full": (PARALLEL, '"mllama_whole": nano_mllama_start'),
        "LoRA": (ADAPTERS, 'nano_mllama_start | {"peft_scheme": "lora"'),
        "DoRA": (ADAPTERS, '"name": "dora_tp2_sp"'),
        "TP": (PARALLEL, 'f"mllama_{name}": LAYOUTS[name]\n    for name in ("tp2_sp", "pp2"'),
        "PP": (PARALLEL, 'f"mllama_{name}": LAYOUTS[name]\n    for name in ("tp2_sp", "pp2"'),
        "SP": (PARALLEL, 'f"mllama_{name}": LAYOUTS[name]\n    for name in ("tp2_sp", "pp2"'),
        "packing": (PARALLEL, 'f"mllama_packed_{name}"'),
        "transformers": (f"{CONVERTERS}test_mllama_conversion.py", "verify_checkpoint"),
    },
    "llava": {
        "import": (f"{CONVERTERS}conftest.py", 'params=["nvila", "mllama", "llava"]'),
        "export": (f"{CONVERTERS}test_llava_conversion.py", "export_checkpoint"),
        "stages / full": (PARALLEL, 'whole[f"{family}_whole"] = start'),
        "LoRA": (ADAPTERS, '"llava_lora_pp2"'),
        "DoRA": (ADAPTERS, '"llava_dora_tp2_sp"'),
        "TP": (PARALLEL, LAYOUTS_OF_LLAVA),
        "PP": (PARALLEL, LAYOUTS_OF_LLAVA),
        "SP": (PARALLEL, LAYOUTS_OF_LLAVA),
        "packing": (PARALLEL, '(("llava", "tp2_sp"), ("llava_jp", "dp2_recompute"))'),
        "transformers": (f"{CONVERTERS}test_llava_conversion.py", "verify_checkpoint"),
    },
    "llava_jp": {
        "import": (f"{CONVERTERS}test_llava_jp.py", 'import_checkpoint("llava_jp"'),
        "export": (f"{CONVERTERS}test_llava_jp.py", 'layout="llava_jp"'),
        "stages / full": (PARALLEL, 'whole["llava_jp_whole"]'),
        "LoRA": (ADAPTERS, '"llava_jp_lora_tp2"'),
        "DoRA": (ADAPTERS, '"two_scales_dora_pp2"'),
        "TP": (PARALLEL, LAYOUTS_OF_LLAVA),
        "PP": (PARALLEL, LAYOUTS_OF_LLAVA),
        "SP": (PARALLEL, LAYOUTS_OF_LLAVA),
        "packing": (PARALLEL, '(("llava", "tp2_sp"), ("llava_jp", "dp2_recompute"))'),
        "transformers": (f"{CONVERTERS}test_llava_jp.py", "AutoModelForImageTextToText"),
    },
}


def table():
    """The cells of the README's table: {family: {column: text}}."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("## What works today")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    columns = [name.strip("`") for name in rows[0]]
    return {
        re.match(r"`(\w+)`", row[0])[1]: dict(zip(columns[1:], row[1:], strict=True))
        for row in rows[2:]
    }


def test_every_family_is_in_the_table():
    assert table().keys() == EVIDENCE.keys()


@pytest.mark.parametrize("family", EVIDENCE)
def test_yes_is_what_a_test_shows(family):
    said = {column for column, cell in table()[family].items() if cell == "yes"}
    assert said == EVIDENCE[family].keys()
    for column, (file, text) in EVIDENCE[family].items():
        assert text in (ROOT / file).read_text(encoding="utf-8"), (column, file)
