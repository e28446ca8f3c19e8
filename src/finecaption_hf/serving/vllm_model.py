"""FineCaption as a model of vLLM: towers and adapter of this package, the language model of vLLM.

An item of vLLM is a picture with its region, `{"image": picture, "mask": region}`. It is also what vLLM hashes, so that
its caches tell regions of one picture apart. What vLLM's caches cannot share, the high-resolution towers' features of a
picture over its regions, is kept here.

Dimension letters: B items, N image tokens, D language-model width, C h w channels and cells of these features.
"""

from .vllm import check_version  # isort: skip

check_version()  # before what follows, since names move between releases

import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsMultiModal, SupportsPP
from vllm.model_executor.models.module_mapping import MultiModelKeys
from vllm.model_executor.models.utils import (
    AutoWeightsLoader,
    WeightsMapper,
    init_vllm_registered_model,
    maybe_prefix,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.hasher import MultiModalHasher
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.media import MediaWithBytes
from vllm.multimodal.parse import MultiModalDataItems, MultiModalDataParser, ProcessorBatchItems
from vllm.multimodal.processing import (
    BaseDummyInputsBuilder,
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    PromptReplacement,
)

from ..modeling_finecaption import FineCaptionVisionModel
from .heads import padded, were_padded
from .kept import KeptFeatures
from .regions import split_alpha

KEPT_IMAGES = 16
"""Pictures whose high-resolution features are kept (8 MiB each at full size in bfloat16); vLLM's option
`--additional-config '{"finecaption_kept_images": 64}'` sets another number."""

# --- items -----------------------------------------------------------------------------------------------------------


class RegionItems(ProcessorBatchItems):  # type: ignore[misc]
    """`{"image": picture, "mask": region reference or None}`, one per image token of the prompt."""

    def __init__(self, data: Sequence[dict[str, Any]]) -> None:
        super().__init__(data, "image")

    def get_processor_data(self) -> Mapping[str, object]:
        return {"images": [item["image"] for item in self.data], "masks": [[item["mask"]] for item in self.data]}


class RegionParser(MultiModalDataParser):  # type: ignore[misc]
    """Pictures of a request, with or without their regions, as `RegionItems`."""

    def _parse_image_data(self, data: Any) -> RegionItems | None:
        if data is None:
            return None
        return RegionItems([as_item(each) for each in (data if isinstance(data, (list, tuple)) else [data])])


def as_item(given: Any) -> dict[str, Any]:
    """A picture, alone or as `{"image": .., "mask": ..}`. Where no region is given, an alpha channel that is not opaque
    everywhere is the region, as the web's pictures have no other place for one."""
    if isinstance(given, Mapping):
        if set(given) - {"image", "mask"} or "image" not in given:
            raise VLLMValidationError(
                f"An item has the keys {', '.join(map(repr, given))}. Give a picture, or {{'image': .., 'mask': ..}}.",
                parameter="image",
            )
        image, mask = given["image"], given.get("mask")
    else:
        image, mask = given, None
    if image is None:  # known by its uuid
        return {"image": None, "mask": mask}
    if isinstance(image, MediaWithBytes):  # decoded onto white; the file still has the alpha channel
        image = Image.open(io.BytesIO(image.original_bytes))
    if not isinstance(image, Image.Image):
        return {"image": image, "mask": mask}
    picture, alpha = split_alpha(image)
    # A fresh one: vLLM would take the identity that a camera wrote into a file for that of its pixels.
    return {"image": Image.merge("RGB", picture.split()), "mask": alpha if mask is None else mask}


class RegionInfo(BaseProcessingInfo):  # type: ignore[misc]
    """What vLLM plans with."""

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_data_parser(self) -> RegionParser:
        return RegionParser(expected_hidden_size=self._get_expected_hidden_size())

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.get_hf_config().image_seq_length}


class RegionDummies(BaseDummyInputsBuilder[RegionInfo]):  # type: ignore[misc]
    """What vLLM measures its memory with."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        return str(self.info.get_hf_processor().image_token) * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Any) -> dict[str, Any]:
        side = self.info.get_hf_config().high_res_image_size
        # Each another one: equal pictures would be encoded once.
        colours = [(number % 256, number // 256, 0) for number in range(mm_counts.get("image", 0))]
        return {"image": [{"image": Image.new("RGB", (side, side), colour), "mask": None} for colour in colours]}


class RegionProcessor(BaseMultiModalProcessor[RegionInfo]):  # type: ignore[misc]
    """Prompts and items -> what the model takes."""

    def apply(self, inputs: Any, timing_ctx: Any) -> Any:
        """`mm_processor_kwargs={"masks": [..]}` are regions, one per picture of the prompt; they become part of the
        items, and so of their hashes."""
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        if "masks" in kwargs:
            masks, items = kwargs.pop("masks"), inputs.mm_data_items.get("image", ())
            if not isinstance(masks, list) or len(masks) != len(items):
                arrived = f"{len(masks)} masks" if isinstance(masks, list) else f"masks of type {type(masks).__name__}"
                raise VLLMValidationError(
                    f"{arrived} arrived for {len(items)} pictures. Give a list with a region, or null, for each.",
                    parameter="masks",
                )
            data = []
            for number, (item, mask) in enumerate(zip(items.data, masks)):
                if item["mask"] is not None and mask is not None:
                    raise VLLMValidationError(
                        f"Picture {number} of the prompt has a region of its own and one in masks. Give one.",
                        parameter="masks",
                    )
                data.append(item if mask is None else {**item, "mask": mask})
            inputs = dataclasses.replace(
                inputs, mm_data_items=MultiModalDataItems({"image": RegionItems(data)}), hf_processor_mm_kwargs=kwargs
            )
        return super().apply(inputs, timing_ctx)

    def _get_mm_hashes(self, inputs: Any) -> Any:
        """A client's `uuid` names a picture. Its region stays part of what the caches know it by."""
        hashes = super()._get_mm_hashes(inputs)
        for number, uuid in enumerate((inputs.mm_uuid_items or {}).get("image", ())):
            if uuid is not None:
                mask = inputs.mm_data_items["image"].data[number]["mask"]
                hashes["image"][number] = self._hash(picture=hashes["image"][number], mask=mask)
        return hashes

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        try:
            output = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        except ValueError as error:
            if not isinstance(error.__cause__, ValueError):  # of the processor: something in a request
                raise
            raise VLLMValidationError(str(error.__cause__), parameter="masks") from error
        if items := mm_items.get("image"):
            keys = [bytes.fromhex(self._hash(picture=item["image"])) for item in items.data]
            output["image_keys"] = torch.tensor([list(key) for key in keys], dtype=torch.uint8)
        return output

    def _hash(self, **values: Any) -> str:
        return str(MultiModalHasher.hash_kwargs(self.info.ctx.get_mm_config().mm_hasher_algorithm, **values))

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = ("pixel_values", "high_res_pixel_values", "mask_values")
        return {
            **{name: MultiModalFieldConfig.batched("image") for name in fields},
            "image_keys": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> list[Any]:
        config = self.info.get_hf_config()
        tokens = [config.image_token_id] * config.image_seq_length
        return [PromptReplacement(modality="image", target=[config.image_token_id], replacement=tokens)]


# --- model -----------------------------------------------------------------------------------------------------------


@MULTIMODAL_REGISTRY.register_processor(RegionProcessor, info=RegionInfo, dummy_inputs=RegionDummies)
class FineCaptionForVllm(nn.Module, SupportsMultiModal, SupportsPP, SupportsLoRA):  # type: ignore[misc]
    """FineCaption in vLLM; see vLLM's `SupportsMultiModal` for the methods."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={
            "model.language_model.": "language_model.model.",
            "lm_head.": "language_model.lm_head.",
            "model.": "vision.",
        }
    )

    # Of vLLM, whose types are not followed.
    configure_mm_token_handling: Any
    _mark_tower_model: Any
    _mark_language_model: Any

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        if modality != "image":
            raise ValueError(f"FineCaption takes images, no {modality}.")
        return "<image>"

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        config, dtype = vllm_config.model_config.hf_config, vllm_config.model_config.dtype
        if vllm_config.lora_config is not None and were_padded(config.text_config):
            raise ValueError(
                "The language model's heads are enlarged to a size that vLLM takes, and adapters cannot be loaded onto "
                "such heads. Merge the adapter into the checkpoint, and serve that without --enable-lora."
            )
        self.config = config
        self.configure_mm_token_handling(config.text_config.vocab_size, [config.image_token_id])
        with self._mark_tower_model(vllm_config, "image"):
            self.vision: Any = FineCaptionVisionModel(config).to(dtype).eval()
            channels = config.fused_feature_size - config.vision_config.hidden_size
            kept = vllm_config.additional_config.get("finecaption_kept_images", KEPT_IMAGES)
            self.kept: Any = KeptFeatures(
                kept if channels else 0, (channels, config.grid_size, config.grid_size), dtype
            )
        architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.text_config.model_type]
        with self._mark_language_model(vllm_config):
            self.language_model: Any = init_vllm_registered_model(
                vllm_config=vllm_config,
                hf_config=config.text_config,
                architectures=[architecture],
                prefix=maybe_prefix(prefix, "language_model"),
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    def embed_multimodal(self, **kwargs: Any) -> torch.Tensor | list[torch.Tensor]:
        """Image tokens (B, N, D) of the items."""
        pixels = kwargs.get("pixel_values")
        if pixels is None:
            return []
        high_res, features = kwargs.get("high_res_pixel_values"), None
        if high_res is not None:
            keys = [bytes(key.tolist()) for key in kwargs["image_keys"]]
            features = self.kept.of(keys, high_res, self.vision.get_high_res_features)
        found = self.vision.get_image_features(
            pixels, mask_values=kwargs.get("mask_values"), high_res_features=features, return_dict=True
        )
        return found.pooler_output

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if intermediate_tensors is not None:
            inputs_embeds = None
        return self.language_model.model(input_ids, positions, intermediate_tensors, inputs_embeds=inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> Any:
        return self.language_model.compute_logits(hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Any:
        weights = padded(weights, self.config.text_config)
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)

    def get_mm_mapping(self) -> Any:
        return MultiModelKeys.from_string_field(
            language_model="language_model", connector="vision.adapter", tower_model="vision."
        )
