"""docs/recipes.md: its numbers are counted again here. `python tests/test_recipes.py` writes its tables anew."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import typer
from transformers import LlavaConfig, LlavaForConditionalGeneration

from finecaption_hf.assembly.cost import ModelInfo, model_info, read_config
from finecaption_hf.cli import app

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "recipes.md"
# Recipe -> the card it is meant for, in GiB.
CARDS = {
    "paper-llama-3.1-8b": 24,
    "llama-3.2-3b": 24,
    "qwen2.5-1.5b": 8,
    "smollm2-360m": 8,
    "llava-1.5-13b": 40,
}
ALL_PARTS = ("vision_tower", "convnext_tower", "sam_tower", "adapter", "language_model", "total")

# Parameters as published: of safetensors files on the Hub, and of timm's models without classifier.
LANGUAGE_MODELS = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "Qwen/Qwen2.5-1.5B-Instruct": 1_543_714_304,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
}
LLAVAS = {"llava-hf/llava-1.5-13b-hf": 13_015_864_320}  # its language model, Vicuna, before 64 rows were added
SAM_ENCODERS = {"facebook/sam-vit-large": 308_278_272, "facebook/sam-vit-base": 89_670_912}


@cache
def counted(recipe: str) -> ModelInfo:
    return model_info(read_config(DOCS / "recipes" / f"{recipe}.json"))


def commands() -> dict[str, dict[str, str]]:
    """Recipe -> options of its command, which stands below a heading that ends with the recipe's name."""
    found = {}
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        for command in re.findall(r"^```bash\n(finecaption assemble.*?)^```$", section, re.MULTILINE | re.DOTALL):
            words = shlex.split(command.replace("\\\n", " "))[2:]
            found[section.splitlines()[0].split(": ")[-1]] = dict(zip(words[::2], words[1::2], strict=True))
    return found


# --- the tables ------------------------------------------------------------------------------------------------------


HEADS = {
    "parameters": "recipe | for | CLIP | ConvNeXt | SAM | adapter | language model | all",
    "costs": "recipe | float32 | bfloat16 | int8 | int4 | prefix of a region | first region | further region | token",
    "stages": "recipe | stage 1: adapter | stage 2: alpha convolution | stage 3: everything",
}


def tables() -> dict[str, str]:
    """Name of a table -> the table, as it stands on the page."""
    rows: dict[str, list[str]] = {
        name: [head, " | ".join(["---"] + ["---:"] * head.count("|"))] for name, head in HEADS.items()
    }
    for recipe, card in CARDS.items():
        found = counted(recipe)
        parameters = (_millions(found.parameters.get(part, 0)) for part in ALL_PARTS)
        trainable = map(_millions, found.trainable_parameters.values())
        weights = (f"{size / 2**30:.2f}" for size in found.weight_bytes.values())
        prefix = f"{_known(found.prefix_cache_bytes['bfloat16']) / 2**20:.0f}"
        regions = (f"{_known(found.flops[key]) / 1e12:.2f}" for key in ("first_region", "next_region"))
        token = f"{_known(found.flops['token']) / 1e12:.4f}"
        name = f"[{recipe}](recipes/{recipe}.json)"
        rows["parameters"].append(" | ".join([name, f"{card} GB", *parameters]))
        rows["costs"].append(" | ".join([name, *weights, prefix, *regions, token]))
        rows["stages"].append(" | ".join([name, *trainable]))
    return {name: "\n".join(f"| {row} |" for row in listed) for name, listed in rows.items()}


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f}"


def _known(number: int | None) -> int:
    assert number is not None
    return number


def with_tables(page: str) -> str:
    for name, table in tables().items():
        before, mark, rest = page.partition(f"<!-- table: {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert mark and end, f"docs/recipes.md has no place for the table {name}"
        page = f"{before}{mark}{table}\n{end}{after}"
    return page


def test_the_page_has_the_numbers_that_info_counts() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "docs/recipes.md is out of date: run python tests/test_recipes.py"


VICUNA_7B = ("hidden_size=4096", "intermediate_size=11008", "num_hidden_layers=32", "num_attention_heads=32")


def test_other_pages_have_the_memory_that_info_counts() -> None:
    """docs/your-own.md: weights in float32, and 12 bytes for each parameter that trains; docs/photographs.md: LLaVA."""
    page = (DOCS / "your-own.md").read_text(encoding="utf-8")
    for recipe in CARDS.keys() - {"llava-1.5-13b"}:
        found = counted(recipe)
        adapter, alpha, everything = (
            (found.weight_bytes["float32"] + 12 * number) / 2**30 for number in found.trainable_parameters.values()
        )
        assert alpha <= adapter
        captions = found.weight_bytes["bfloat16"] / 2**30
        assert f"| {recipe} | {captions:.2f} GiB | {adapter:.1f} GiB | {everything:.1f} GiB |" in page
    page = (DOCS / "photographs.md").read_text(encoding="utf-8")
    changes = [f"text_config.{change}" for change in (*VICUNA_7B, "num_key_value_heads=32")]
    sizes = (model_info(read_config(DOCS / "recipes/llava-1.5-13b.json", changes)), counted("llava-1.5-13b"))
    rows = {
        "parameters": [f"{_millions(it.parameters['total']).split('.')[0]} M" for it in sizes],
        "weights in bfloat16": [f"{it.weight_bytes['bfloat16'] / 2**30:.2f} GiB" for it in sizes],
        "weights, linear layers of the language model in int4": [
            f"{it.weight_bytes['int4'] / 2**30:.2f} GiB" for it in sizes
        ],
        "keys and values of a region's 576 image tokens, bfloat16": [
            f"{_known(it.prefix_cache_bytes['bfloat16']) / 2**30:.2f} GiB" for it in sizes
        ],
    }
    for name, cells in rows.items():
        assert f"| {name} | {cells[0]} | {cells[1]} |" in page


# --- the commands ----------------------------------------------------------------------------------------------------


def test_every_recipe_has_a_configuration_and_a_command() -> None:
    assert set(commands()) == set(CARDS) == {path.stem for path in (DOCS / "recipes").glob("*.json")}


@pytest.mark.parametrize("recipe", CARDS)
def test_commands_use_options_that_exist(recipe: str) -> None:
    assemble = typer.main.get_command(app).commands["assemble"]
    known = {name for parameter in assemble.params for name in parameter.opts}
    assert set(commands()[recipe]) <= known


@pytest.mark.parametrize("recipe", CARDS)
def test_configurations_are_those_of_the_parts_in_the_commands(recipe: str) -> None:
    found, config, parts = counted(recipe), read_config(DOCS / "recipes" / f"{recipe}.json"), commands()[recipe]

    assert found.parameters["vision_tower"] == counted("paper-llama-3.1-8b").parameters["vision_tower"]
    if llava := parts.get("--from-llava"):
        assert found.parameters["language_model"] == LLAVAS[llava] + 2 * 64 * config.text_config.hidden_size
        assert config.text_config.vocab_size == 32_000 + 64
        return

    published = LANGUAGE_MODELS[parts["--llm"]]
    added = found.parameters["language_model"] - published
    matrices = 1 if config.tie_word_embeddings else 2
    spare = config.text_config.vocab_size > config.image_token_id + 1
    assert added == (0 if spare else matrices * config.text_config.hidden_size)

    assert found.parameters["sam_tower"] == SAM_ENCODERS[parts["--sam"]]
    timm_config = timm.models.get_pretrained_cfg(parts["--convnext"])
    assert timm_config.hf_hub_id == f"timm/{parts['--convnext']}"
    assert parts["--convnext"].split(".")[0] == config.convnext_config.architecture
    assert (list(timm_config.mean), list(timm_config.std)) == (config.convnext_image_mean, config.convnext_image_std)

    assert parts["--clip"] == "openai/clip-vit-large-patch14-336"


def test_llava_takes_the_place_on_disk_that_the_page_says() -> None:
    text = read_config(DOCS / "recipes" / "llava-1.5-13b.json").text_config
    with torch.device("meta"):
        original = LlavaForConditionalGeneration(LlavaConfig(text_config=text))
    size = sum(parameter.numel() for parameter in original.parameters())
    page = " ".join(PAGE.read_text(encoding="utf-8").split())
    assert f"LLaVA's {size / 1e9:.2f} billion parameters take {2 * size / 1e9:.1f} GB" in page
    made = counted("llava-1.5-13b")
    assert made.weight_bytes["bfloat16"] == pytest.approx(2 * size, rel=0.002)  # CLIP's unused layer is left away
    assert f"{made.weight_bytes['bfloat16'] / 2**30:.2f} GiB of weights in bfloat16" in page


@pytest.mark.parametrize(("recipe", "card"), CARDS.items())
def test_recipes_leave_a_quarter_of_their_card_for_activations(recipe: str, card: int) -> None:
    found = counted(recipe)
    held = found.weight_bytes["bfloat16"] + (found.prefix_cache_bytes["bfloat16"] or 0)
    assert held <= 0.75 * card * 2**30


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
