"""The plugin for vLLM as far as no engine is needed: its start, releases, regions on their way to the model, refusals.

One engine answers at the end, for a look at the whole. The rest is in test_serving_vllm.py and test_serving_http.py.
"""

import base64
import configparser
import io
import json
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EXAMPLE_PICTURE, ROOT
from packaging.specifiers import SpecifierSet
from PIL import ExifTags, Image
from serving_vllm import MARKS, SETTINGS, engine, environment

from finecaption_hf import EMBEDDED_CHECKPOINT
from finecaption_hf.asking import FineCaptionDescriber, ask
from finecaption_hf.data.encoding import encode_rle
from finecaption_hf.masks_finecaption import MaskError, as_mask
from finecaption_hf.serving import vllm as plugin

BADGE, TOP = {"box_xyxy": [100, 149, 160, 209]}, {"box_xyxy": [178, 25, 249, 96]}


def in_vllm(test: Any) -> Any:
    for mark in MARKS:
        test = mark(test)
    return test


# --- releases --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.31.0", "0.34.0", "1.32.0"])
def test_another_release_of_vllm_is_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "vllm_version", lambda: version)
    with pytest.raises(
        ImportError, match=rf"vLLM {version} is installed, but .* is for 0\.32 and 0\.33 only\. Run: pip"
    ):
        plugin.check_version()


@pytest.mark.parametrize("version", ["0.32.0", "0.33.1", "0.33.0+cpu"])
def test_admitted_releases_are_those_that_the_extra_installs(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "vllm_version", lambda: version)
    plugin.check_version()
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    (line,) = parser["options.extras_require"]["vllm"].split("\n")[1:]
    admitted = SpecifierSet(line.partition(";")[0].strip().removeprefix("vllm"))
    assert {f"0.{minor}" for minor in range(99) if f"0.{minor}.0" in admitted} == set(plugin.ADMITTED)


@in_vllm
def test_vllm_finds_the_plugin_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import ModelRegistry
    from vllm.plugins import load_plugins_by_group

    environment(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = load_plugins_by_group("vllm.general_plugins")["finecaption"]
    found()
    found()
    assert plugin.ARCHITECTURE in ModelRegistry.get_supported_archs()


# --- regions ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return Image.open(EXAMPLE_PICTURE).convert("RGB")


@pytest.fixture(scope="module")
def settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patches:
        for name, value in SETTINGS.items():
            patches.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def processor(settings: None) -> Any:
    """vLLM's, of the embedded checkpoint."""
    from vllm.config import ModelConfig
    from vllm.multimodal import MULTIMODAL_REGISTRY

    plugin.register()
    return MULTIMODAL_REGISTRY.create_processor(ModelConfig(str(EMBEDDED_CHECKPOINT), dtype="float32"))


def arrived(processor: Any, *items: Any, uuids: list[str] | None = None, **options: Any) -> list[dict[str, Any]]:
    """What the model gets for each item of a prompt, and the item's hash."""
    text = f"{processor.info.get_hf_processor().image_token} a question" * len(items)
    found = processor(
        text,
        processor.info.parse_mm_data({"image": list(items)}),
        None if uuids is None else {"image": uuids},
        hf_processor_mm_kwargs=options,
    )
    lengths = [place.length for place in found["mm_placeholders"]["image"]]
    assert lengths == [processor.info.get_hf_config().image_seq_length] * len(items)
    fields = [{name: field.data for name, field in item.items()} for item in found["mm_kwargs"]["image"]]
    return [{**each, "hash": key} for each, key in zip(fields, found["mm_hashes"]["image"], strict=True)]


@pytest.fixture(scope="module")
def expected(embedded: Any, picture: Image.Image) -> dict[str, dict[str, torch.Tensor]]:
    """The own processor's inputs for two regions and the whole picture."""
    own, found = embedded[1], {}
    for name, region in (("badge", BADGE), ("top", TOP), ("whole", None)):
        inputs = own(text=[own.image_token], images=[picture], masks=[[region]], return_tensors="pt")
        found[name] = {key: value[0] for key, value in inputs.items() if key.endswith("values")}
    assert len(found["top"]) == 3 and not torch.equal(found["top"]["mask_values"], found["badge"]["mask_values"])
    return found


def same(found: dict[str, Any], expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(found[name], value) for name, value in expected.items())


def forms(picture: Image.Image) -> dict[str, Any]:
    """The badge in every form."""
    x0, y0, x1, y1 = BADGE["box_xyxy"]
    mask = as_mask(BADGE, picture.height, picture.width)
    return {
        "box": BADGE,
        "polygon": {"polygon": [[x0, y0, x1, y0, x1, y1, x0, y1]]},
        "rle": encode_rle(mask),
        "array": mask,
        "picture": Image.fromarray(mask),
        "tensor": torch.from_numpy(mask),
    }


@in_vllm
def test_a_region_arrives_in_every_form(processor: Any, picture: Image.Image, expected: Any) -> None:
    for form, region in forms(picture).items():
        for found in (
            arrived(processor, {"image": picture, "mask": region}),
            arrived(processor, picture, masks=[region]),
        ):
            assert same(found[0], expected["badge"]), form
    assert same(arrived(processor, picture)[0], expected["whole"])
    assert same(arrived(processor, picture, masks=[None])[0], expected["whole"])
    several = arrived(processor, picture, {"image": picture, "mask": TOP}, picture, masks=[BADGE, None, None])
    assert all(same(each, expected[name]) for each, name in zip(several, ("badge", "top", "whole"), strict=True))


def with_alpha(picture: Image.Image, region: Any) -> Image.Image:
    found = picture.copy()
    found.putalpha(Image.fromarray(as_mask(region, picture.height, picture.width)))
    return found


@in_vllm
def test_the_alpha_channel_is_the_region_of_a_picture_and_of_a_file(
    processor: Any, picture: Image.Image, expected: Any
) -> None:
    """A file comes as vLLM's server decodes it: onto white, with its bytes beside."""
    from vllm.multimodal.media.image import ImageMediaIO

    shown = with_alpha(picture, TOP)
    assert same(arrived(processor, shown)[0], expected["top"])
    assert same(arrived(processor, {"image": shown, "mask": BADGE})[0], expected["badge"])
    file = io.BytesIO()
    shown.save(file, "png")
    decoded = ImageMediaIO().load_base64("image/png", base64.b64encode(file.getvalue()).decode())
    assert decoded.media.mode == "RGB"
    assert same(arrived(processor, decoded)[0], expected["top"])
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # to be turned clockwise
    lying = io.BytesIO()
    shown.transpose(Image.Transpose.ROTATE_90).save(lying, "png", exif=exif)
    assert same(arrived(processor, Image.open(lying))[0], expected["top"])
    opaque = picture.copy()
    opaque.putalpha(255)
    assert same(arrived(processor, opaque)[0], expected["whole"])


@in_vllm
def test_hashes_tell_regions_apart_and_keys_pictures(processor: Any, picture: Image.Image) -> None:
    """By the hash, vLLM's caches know an item, also where a client names it; by the key, the model knows a picture."""
    regions, turned = [BADGE, TOP, None], picture.rotate(90)
    ways = {
        "items": [arrived(processor, {"image": picture, "mask": region})[0] for region in regions],
        "masks": [arrived(processor, picture, masks=[region])[0] for region in regions],
        "uuids": [arrived(processor, picture, uuids=["a"], masks=[region])[0] for region in regions],
    }
    assert all(len({each["hash"] for each in found}) == 3 for found in ways.values())
    assert [each["hash"] for each in ways["items"]] == [each["hash"] for each in ways["masks"]]
    assert arrived(processor, picture, masks=[TOP])[0]["hash"] == ways["masks"][1]["hash"]
    keys = {bytes(each["image_keys"].tolist()) for found in ways.values() for each in found}
    (other,) = arrived(processor, {"image": turned, "mask": BADGE})
    assert len(keys) == 1 and bytes(other["image_keys"].tolist()) not in keys
    assert other["hash"] not in {each["hash"] for found in ways.values() for each in found}


@in_vllm
def test_an_identity_that_a_camera_wrote_into_a_file_does_not_stand_for_its_pixels(
    processor: Any, picture: Image.Image
) -> None:
    """vLLM takes `ImageID` of EXIF, where it is a UUID, for the hash of a picture."""
    found = []
    for shown in (picture.copy(), picture.rotate(90)):
        shown.getexif()[ExifTags.Base.ImageID] = uuid.UUID(int=7)
        (item,) = arrived(processor, shown)
        found.append((item["hash"], bytes(item["image_keys"].tolist())))
    assert found[0][0] != found[1][0] and found[0][1] != found[1][1]


@in_vllm
@pytest.mark.parametrize("bad", [{"box_xyxy": [900, 900, 950, 950]}, {}, "", [], {"size": [2, 2], "counts": "~"}])
def test_what_is_no_region_is_refused_with_the_reason(processor: Any, picture: Image.Image, bad: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(MaskError) as told:
        as_mask(bad, picture.height, picture.width)
    for item, options in (({"image": picture, "mask": bad}, {}), (picture, {"masks": [bad]})):
        with pytest.raises(VLLMValidationError) as caught:
            arrived(processor, item, **options)
        assert str(told.value) in str(caught.value)


@in_vllm
def test_regions_and_pictures_that_do_not_belong_together_are_refused(processor: Any, picture: Image.Image) -> None:
    from vllm.exceptions import VLLMValidationError

    for item, options, reason in (
        ({"image": picture, "mask": 7}, {}, "bare"),
        ({"image": picture, "box": BADGE}, {}, "'image', 'box'"),
        (picture, {"masks": [BADGE, TOP]}, "2 masks arrived for 1 pictures"),
        (picture, {"masks": BADGE}, "masks of type dict arrived for 1 pictures"),
        (picture, {"masks": []}, "0 masks arrived"),
        (
            with_alpha(picture, TOP),
            {"masks": [BADGE]},
            "Picture 0 of the prompt has a region of its own and one in masks",
        ),
    ):
        with pytest.raises(VLLMValidationError, match=reason):
            arrived(processor, item, **options)


# --- checkpoints -----------------------------------------------------------------------------------------------------


@in_vllm
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_what_quantise_writes_is_refused_by_name(scheme: str, settings: None, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes, of the extra train")
    from vllm.config import ModelConfig

    from finecaption_hf.assembly.quantising import quantise

    plugin.register()
    quantise(EMBEDDED_CHECKPOINT, tmp_path / "small", scheme)
    with pytest.raises(
        ValueError, match=rf"quantised \(bitsandbytes, {scheme}\).*Serve the checkpoint that it was made of"
    ):
        ModelConfig(str(tmp_path / "small"))


@in_vllm
@pytest.mark.parametrize(
    ("quantised", "kind"),
    [
        (
            {"quant_method": "torchao", "quant_type": {"default": {"_type": "IntxWeightOnlyConfig"}}},
            "torchao, IntxWeight",
        ),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False}, "gptq"),
    ],
    ids=["torchao", "gptq"],
)
def test_checkpoints_that_others_quantised_are_refused_by_name(
    quantised: dict[str, Any], kind: str, settings: None, tmp_path: Path
) -> None:
    """By what their configuration says, which is looked at before any weight is."""
    from vllm.config import ModelConfig

    plugin.register()
    folder = Path(shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "small"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantised}))
    with pytest.raises(ValueError, match=rf"quantised \({kind}"):
        ModelConfig(str(folder))


@in_vllm
def test_a_misspelt_option_of_vllm_is_refused_with_the_nearest(settings: None) -> None:
    """Before an engine is started."""
    from finecaption_hf.serving.vllm_describer import VllmDescriber

    with pytest.raises(ValueError, match=r"no engine option 'max_modellen'. Did you mean 'max_model_len'\?"):
        VllmDescriber(EMBEDDED_CHECKPOINT, max_modellen=512)


@in_vllm
def test_one_engine_answers_like_the_own(embedded: Any, picture: Image.Image) -> None:
    regions = [BADGE, TOP, None]
    with engine(EMBEDDED_CHECKPOINT) as served:
        found = ask(served, picture, regions, ["region", "color"], log_probs=True)
    wanted = ask(FineCaptionDescriber(*embedded), picture, regions, ["region", "color"], log_probs=True)
    assert [record["answers"] for record in found] == [record["answers"] for record in wanted]
    assert len({record["answers"]["region"] for record in found}) == 3
    for one, other in zip(found, wanted, strict=True):
        for name, log_probs in other["log_probs"].items():
            np.testing.assert_allclose(one["log_probs"][name], log_probs, atol=1e-3)
