"""FineCaption: a mask-aware CLIP tower and two high-resolution towers, fused into a prefix of image tokens per region.

Dimension letters: B regions, I images, C channels, H W pixels, h w feature grid, N = h * w image tokens, T tokens of a
sequence, S sequences, D language-model width, V vocabulary.
"""

from .configuration_finecaption import FineCaptionConfig

# isort: split
import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from timm.layers import GlobalResponseNormMlp
from torch import nn
from transformers import (
    AutoModel,
    Cache,
    GenerationConfig,
    GenerationMixin,
    GradientCheckpointingLayer,
    PreTrainedModel,
    logging,
)
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from .branches_finecaption import check_values, packed_branch_inputs
from .towers_finecaption import (
    FineCaptionAdapter,
    FineCaptionConvNextTower,
    FineCaptionSamTower,
    FineCaptionVisionTower,
    convert_normalisation,
    fold_to_grid,
    wants_gradient,
)

logger = logging.get_logger(__name__)


@dataclass
class FineCaptionModelOutputWithPast(BaseModelOutputWithPast):
    """Outputs of `FineCaptionModel`: the language model's, `last_hidden_state` `(S, T, D)`, its cache and what else was
    asked for.

    Args:
        image_outputs (`BaseModelOutputWithPooling`): what `get_image_features` gave, with the image tokens of each
            region in `pooler_output` `(B, N, D)`.
    """

    image_outputs: BaseModelOutputWithPooling | None = None


@dataclass
class FineCaptionCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Outputs of `FineCaptionForConditionalGeneration`: `loss` `()`, where labels are given the negative log-likelihood
    per labelled token, `logits` `(S, T, V)`, and the language model's cache and what else was asked for.

    Args:
        image_outputs (`BaseModelOutputWithPooling`): as in `FineCaptionModelOutputWithPast`.
    """

    image_outputs: BaseModelOutputWithPooling | None = None


def _settle_frozen(module: nn.Module) -> bool:
    """Put every part of a module that has parameters, none of which trains, in evaluation mode; says if any trains."""
    parameters = list(module.parameters())
    trains = any(parameter.requires_grad for parameter in parameters)
    if not trains and parameters:
        module.eval()
    elif not all(parameter.requires_grad for parameter in parameters):
        for child in module.children():
            _settle_frozen(child)
    return trains


def _check_indices(of: str, indices: torch.Tensor, count: int, by: str, remedy: str) -> None:
    """Every index is of one of `count`, and each of those occurs."""
    in_range = (indices >= 0) & (indices < count)
    check_values(in_range, f"{of}_indices must be between 0 and {count - 1} for {count} {of}s.")
    occurs = (indices == torch.arange(count, device=indices.device)[:, None]).any(1)
    check_values(occurs, f"Some of the {count} {of}s have no {by} in {of}_indices. {remedy}")


class FineCaptionPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation shared by FineCaption models."""

    config_class = FineCaptionConfig
    base_model_prefix = "model"
    input_modalities = ("image", "text")
    supports_gradient_checkpointing = True
    # A tower stays on one device: its parts are small, and they exchange tensors outside of their forward calls.
    _no_split_modules = [
        "FineCaptionVisionTower",
        "FineCaptionConvNextTower",
        "FineCaptionSamTower",
        "FineCaptionAdapter",
    ]
    # The cache, by its name in transformers 5.24 and before.
    _skip_keys_device_placement = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @property
    def device(self) -> torch.device:
        """Where inputs go, also while the first parameters are on disk, from where each call brings them."""
        device: torch.device = super().device
        hooks = (getattr(part, "_hf_hook", None) for part in (self.modules() if device.type == "meta" else ()))
        found = (getattr(hook, "execution_device", None) for hook in hooks)
        return next((torch.device(place) for place in found if place is not None), device)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As the library's, but the modules that a `quantization_config` skips may be named with or without `model.`.

        The library matches them from the start of a name, so that towers would be quantised without a word.
        """
        if kwargs.get("quantization_config") is not None:
            kwargs["quantization_config"] = config = copy.deepcopy(kwargs["quantization_config"])
            values = config if isinstance(config, dict) else vars(config)
            for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
                if names := [name.removeprefix("model.") for name in values.get(field) or ()]:
                    values[field] = [*names, *(f"model.{name}" for name in names)]
        loaded = super().from_pretrained(*args, **kwargs)
        for layer in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            # bitsandbytes packs 4 bit weights anew where the CPU has AVX512-BF16, which takes blocks of 32 x 64 only.
            if hasattr(layer, "support_avx512bf16_for_cpu") and (layer.out_features % 32 or layer.in_features % 64):
                layer.support_avx512bf16_for_cpu = False
        return loaded

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # timm's own parameters outside of linear, convolution and norm layers; a tensor that is missed here would be
        # whatever memory holds when a checkpoint lacks it.
        own = dict(module.named_parameters(recurse=False))
        if "gamma" in own:  # of a ConvNeXt block
            init.constant_(own["gamma"], self.config.convnext_config.layer_scale_init_value)
        elif isinstance(module, GlobalResponseNormMlp):
            init.zeros_(module.grn.weight)
            init.zeros_(module.grn.bias)

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        super()._set_gradient_checkpointing(enable, *args, **kwargs)
        # timm keeps a switch of its own, which the library does not find.
        for module in self.modules():
            if isinstance(module, FineCaptionConvNextTower):
                module.encoder.set_grad_checkpointing(enable)


class FineCaptionVisionModel(FineCaptionPreTrainedModel):
    """Towers and adapter: pictures and region masks to image tokens, without a language model.

    What engines that bring their own language model load from a checkpoint.
    """

    _keys_to_ignore_on_load_unexpected: ClassVar[list[str] | None] = [r"^(model\.)?language_model\.", r"^lm_head\."]

    def __init__(self, config: FineCaptionConfig):
        super().__init__(config)
        self.vision_tower = FineCaptionVisionTower._from_config(
            config.vision_config, num_layers=config.vision_num_layers, use_mask=config.use_mask
        )
        if config.use_convnext:
            self.convnext_tower = FineCaptionConvNextTower(config.convnext_config)
        if config.use_sam:
            self.sam_tower = FineCaptionSamTower._from_config(config.sam_config, feature_layer=config.sam_feature_layer)
        self.adapter = FineCaptionAdapter(config)
        if type(self) is FineCaptionVisionModel:  # else once all parts are there
            self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.vision_tower.get_input_embeddings()

    def forward(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See `get_image_features`."""
        return self.get_image_features(pixel_values, **kwargs)

    def get_high_res_features(self, high_res_pixel_values: torch.Tensor) -> torch.Tensor | None:
        """Run the high-resolution towers, which do not see the mask: once per image, whatever its number of regions.

        Args:
            high_res_pixel_values (`torch.Tensor` of shape `(I, 3, H, W)`): images, normalised with the configuration's
                `high_res_image_mean` and `high_res_image_std`.

        Returns:
            `torch.Tensor` of shape `(I, C, h, w)`: ConvNeXt channels, then SAM channels, on the common grid; `None`
            where the model has neither tower. Give it back as `high_res_features` to reuse it for more regions.
        """
        config = self.config
        if not (config.use_convnext or config.use_sam):
            return None
        size = config.high_res_image_size
        if high_res_pixel_values.shape[-2:] != (size, size):
            height, width = high_res_pixel_values.shape[-2:]
            raise ValueError(
                f"high_res_pixel_values are {height}x{width} but the high-resolution towers take {size}x{size}. "
                "Prepare images with the processor that belongs to the checkpoint."
            )
        given = (config.high_res_image_mean, config.high_res_image_std)
        towers = []
        if config.use_convnext:
            towers.append((self.convnext_tower, (config.convnext_image_mean, config.convnext_image_std)))
        if config.use_sam:
            towers.append((self.sam_tower, (config.sam_image_mean, config.sam_image_std)))
        features = []
        for tower, wanted in towers:
            image = convert_normalisation(high_res_pixel_values, given, wanted)
            with torch.set_grad_enabled(wants_gradient(tower, image)):
                features.append(fold_to_grid(tower(image), config.grid_size))
        return torch.cat([feature.to(features[0].device) for feature in features], dim=1)

    @can_return_tuple
    def get_image_features(
        self,
        pixel_values: torch.Tensor,
        high_res_pixel_values: torch.Tensor | None = None,
        mask_values: torch.Tensor | None = None,
        image_indices: torch.Tensor | None = None,
        high_res_features: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling:
        """Compute the image tokens of each region.

        Args:
            pixel_values (`torch.Tensor` of shape `(I, 3, H, W)`, or `(B, K)` of `pack_pixels`): low-resolution images.
            high_res_pixel_values (`torch.Tensor` of shape `(I, 3, H', W')`, *optional*): high-resolution images.
            mask_values (`torch.Tensor` of shape `(B, 1, H, W)`, *optional*): normalised region masks; `None` means that
                each region is its whole image.
            image_indices (`torch.Tensor` of shape `(B,)`, *optional*): the image of each region; `None` means that
                regions and images correspond, B = I.
            high_res_features (`torch.Tensor` of shape `(I, C, h, w)`, *optional*): what `get_high_res_features` gave
                for these images, instead of `high_res_pixel_values`.

        Returns:
            `BaseModelOutputWithPooling`: `last_hidden_state` `(B, N, C)` are the concatenated tower features (CLIP,
            ConvNeXt, SAM) in row-major order, `pooler_output` `(B, N, D)` the image tokens.

        Raises:
            ValueError: If an input is missing or unknown, or the numbers of images, regions and masks do not agree.
        """
        if unknown := [name for name, value in kwargs.items() if value is not None and value is not False]:
            raise ValueError(
                f"get_image_features knows no {' and no '.join(unknown)}. It gives the towers' features and the image "
                "tokens of regions, and no states in between. Leave that out."
            )
        if pixel_values.ndim == 2:
            pixel_values, high_res_pixel_values, mask_values = self._unpacked(pixel_values)
        num_images = pixel_values.shape[0]
        self._check_image_indices(image_indices, num_images, mask_values)
        num_regions = num_images if image_indices is None else image_indices.shape[0]
        mask_values = self._checked_mask_values(mask_values, pixel_values, num_regions)
        high_res_features = self._checked_high_res_features(high_res_features, high_res_pixel_values, num_images)

        with torch.set_grad_enabled(wants_gradient(self.vision_tower, pixel_values, mask_values)):
            hidden_states = self.vision_tower(pixel_values, mask_values=mask_values, image_indices=image_indices)
        features = self._to_grid(hidden_states[:, 1:])
        if high_res_features is not None:
            if image_indices is not None:
                high_res_features = high_res_features.index_select(0, image_indices.to(high_res_features.device))
            features = torch.cat([features, high_res_features.to(features.device, features.dtype)], dim=1)
        # Quantised products of serving engines take no strided view.
        features = features.flatten(2).transpose(1, 2).contiguous()
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=self.adapter(features))

    def _unpacked(self, rows: torch.Tensor) -> list[Any]:
        """Rows of `pack_pixels` -> pixel_values, high_res_pixel_values and mask_values, `None` where not used."""
        config = self.config
        low, high = config.vision_config.image_size, config.high_res_image_size
        sizes = [3 * low**2, 3 * high**2 * (config.use_convnext or config.use_sam), low**2 * config.use_mask]
        if rows.shape[1] != sum(sizes):
            raise ValueError(
                f"Packed pixel_values hold {rows.shape[1]} numbers per region where this model takes {sum(sizes)}. "
                "Prepare images with the processor that belongs to the checkpoint."
            )
        parts = zip(rows.split(sizes, dim=1), (low, high, low))
        return [part.unflatten(1, (-1, side, side)) if part.shape[1] else None for part, side in parts]

    def _to_grid(self, patches: torch.Tensor) -> torch.Tensor:
        """CLIP patches `(B, n, C)` to the common grid `(B, C, h, w)`, bilinearly where their own grid differs."""
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        features = patches.transpose(1, 2).unflatten(2, (side, side))
        if side == self.config.grid_size:
            return features
        return nn.functional.interpolate(features, (self.config.grid_size,) * 2, mode="bilinear", align_corners=False)

    def _check_image_indices(
        self, image_indices: torch.Tensor | None, num_images: int, mask_values: torch.Tensor | None
    ) -> None:
        if image_indices is not None:
            # Inputs of several calls that were merely concatenated all count their images from 0.
            remedy = (
                "If this comes from a pipeline's batch_size, give a list of chats and no batch_size: inputs that were "
                "prepared apart cannot be stacked."
            )
            _check_indices("image", image_indices, num_images, "region", remedy)
        elif mask_values is not None and mask_values.shape[0] != num_images:
            raise ValueError(
                f"There are {mask_values.shape[0]} region masks for {num_images} images. Give image_indices, which "
                "says to which image each region belongs."
            )

    def _checked_mask_values(
        self, mask_values: torch.Tensor | None, pixel_values: torch.Tensor, num_regions: int
    ) -> torch.Tensor | None:
        config = self.config
        if not config.use_mask:
            if mask_values is not None:
                logger.warning_once("mask_values have no effect: this FineCaption has no mask input (use_mask=False).")
            return None
        if mask_values is None and self.training:
            raise ValueError(
                "pixel_values without mask_values in training: the trainer hands on some inputs only, so that regions "
                "would be lost. Set processor.image_processor.do_pack = True: pixel_values hold the regions then."
            )
        if mask_values is None:
            inside = (1.0 - config.mask_mean) / config.mask_std
            return pixel_values.new_full((num_regions, 1, *pixel_values.shape[-2:]), inside)
        return mask_values

    def _checked_high_res_features(
        self, high_res_features: torch.Tensor | None, high_res_pixel_values: torch.Tensor | None, num_images: int
    ) -> torch.Tensor | None:
        if not (self.config.use_convnext or self.config.use_sam):
            return None
        given = high_res_pixel_values if high_res_features is None else high_res_features
        if given is None:
            raise ValueError(
                "This FineCaption has high-resolution towers: give high_res_pixel_values, or high_res_features from "
                "get_high_res_features. A trainer that hands on pixel_values alone needs the image processor's do_pack."
            )
        if high_res_features is not None and high_res_pixel_values is not None:
            raise ValueError("Give either high_res_pixel_values or high_res_features, not both.")
        if given.shape[0] != num_images:
            raise ValueError(
                f"There are {given.shape[0]} high-resolution images for {num_images} low-resolution ones; both hold "
                "each image once, in the same order."
            )
        return self.get_high_res_features(given) if high_res_features is None else high_res_features


class FineCaptionModel(FineCaptionVisionModel):
    """Towers, adapter and language model, without the language-modelling head."""

    _keys_to_ignore_on_load_unexpected = None

    def __init__(self, config: FineCaptionConfig):
        super().__init__(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def train(self, mode: bool = True) -> "FineCaptionModel":
        """Set training mode, but keep what has parameters and trains none of them in evaluation mode.

        A trainer calls this at every step; the dropout of frozen parts, for one, has to stay off.
        """
        super().train(mode)
        if mode:
            for part in self.children():
                trains = _settle_frozen(part)
                # A layer checkpoints its activations only in training mode. Where the gradient has to pass frozen
                # layers, to the adapter or to the alpha convolution, they keep that mode, and what they hold does not.
                if trains or part is self.language_model:
                    for module in part.modules():
                        if isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                            module.training = True
        return self

    def get_placeholder_mask(
        self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor, image_features: torch.Tensor
    ) -> torch.Tensor:
        """Where image tokens go, `(S, T, 1)`; checks that their number is that of the features `(B, N, D)`."""
        if input_ids is None:
            token = torch.tensor(self.config.image_token_id, dtype=torch.long, device=inputs_embeds.device)
            placeholders = (inputs_embeds == self.get_input_embeddings()(token)).all(-1)
        else:
            placeholders = input_ids == self.config.image_token_id
        num_features = image_features.shape[0] * image_features.shape[1]
        check_values(
            placeholders.sum() == num_features,
            lambda: (
                f"The prompts hold {int(placeholders.sum())} image tokens but the regions give {num_features} "
                f"({image_features.shape[0]} regions of {image_features.shape[1]}). Use the processor that belongs to "
                "the checkpoint, with one image placeholder per region."
            ),
        )
        return placeholders.unsqueeze(-1).to(inputs_embeds.device)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        high_res_pixel_values: torch.Tensor | None = None,
        mask_values: torch.Tensor | None = None,
        image_indices: torch.Tensor | None = None,
        high_res_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        branch_ids: torch.LongTensor | None = None,
        region_indices: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> FineCaptionModelOutputWithPast:
        """Run the language model over sequences in which image tokens stand for regions.

        Args:
            input_ids (`torch.LongTensor` of shape `(S, T)`): tokens; the B * N image tokens, in reading order over the
                batch, are replaced by the regions' image tokens in order.
            pixel_values, high_res_pixel_values, mask_values, image_indices, high_res_features: as `get_image_features`.
            attention_mask (`torch.Tensor` of shape `(S, T)` or `(S, 1, T, T)`, *optional*): 1 or True where attended.
            position_ids (`torch.LongTensor` of shape `(S, T)`, *optional*): positions.
            inputs_embeds (`torch.Tensor` of shape `(S, T, D)`, *optional*): embeddings instead of `input_ids`.
            mm_encoder_outputs (`dict`, *optional*): `{"image": output of get_image_features}` instead of pixels.
            branch_ids (`torch.LongTensor` of shape `(S, T)`, *optional*): 0 in the prefix, 1, 2, .. in its branches, -1
                in padding on the right: each branch attends to the prefix and to itself, and gets positions as if it
                were alone. Instead of `attention_mask` and `position_ids`, and without a cache.
            region_indices (`torch.LongTensor` of shape `(S,)`, *optional*): the region of each sequence, where several
                sequences are about one region; `None` means that image tokens follow the order of the regions.
            kwargs: the language model's own, such as its cache.

        Raises:
            ValueError: If the number of image tokens is not that of the regions', or inputs contradict each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        image_output = (mm_encoder_outputs or {}).get("image")
        if pixel_values is not None and image_output is not None:
            raise ValueError("Give either pixel_values or mm_encoder_outputs, not both.")
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if pixel_values is not None:
            image_output = self.get_image_features(
                pixel_values,
                high_res_pixel_values=high_res_pixel_values,
                mask_values=mask_values,
                image_indices=image_indices,
                high_res_features=high_res_features,
                return_dict=True,
            )
        image_features = None
        if image_output is not None:
            image_features = image_output.pooler_output
            if not isinstance(image_features, torch.Tensor):
                image_features = torch.stack(list(image_features))
            image_features = sequence_features = image_features.to(inputs_embeds.device, inputs_embeds.dtype)
            if region_indices is not None:
                if region_indices.shape != inputs_embeds.shape[:1]:
                    raise ValueError(
                        f"region_indices have shape {tuple(region_indices.shape)} for {inputs_embeds.shape[0]} "
                        "sequences. Give the region of each sequence."
                    )
                of_regions = region_indices.to(image_features.device)
                _check_indices("region", of_regions, len(image_features), "sequence", "Leave their masks out.")
                sequence_features = image_features.index_select(0, of_regions)
            placeholders = self.get_placeholder_mask(input_ids, inputs_embeds, sequence_features)
            if region_indices is not None:
                check_values(
                    placeholders.sum(dim=(1, 2)) == image_features.shape[1],
                    f"With region_indices each sequence holds the {image_features.shape[1]} image tokens of a region.",
                )
            inputs_embeds = inputs_embeds.masked_scatter(placeholders, sequence_features)
        elif region_indices is not None:
            raise ValueError("region_indices were given without images or image features. Give both or none.")

        if branch_ids is not None:
            given = {"attention_mask": attention_mask, "position_ids": position_ids}
            contradicting = [name for name, value in given.items() if value is not None]
            contradicting += [name for name, value in kwargs.items() if isinstance(value, Cache)]
            if contradicting:
                raise ValueError(
                    f"branch_ids were given together with {' and '.join(contradicting)}. They say which tokens are "
                    "attended to, and where: leave the others out."
                )
            branch_inputs = packed_branch_inputs(self.language_model, branch_ids, inputs_embeds)
            attention_mask, position_ids = branch_inputs["attention_mask"], branch_inputs["position_ids"]
            # Nothing can continue packed branches, so a cache would only hold memory.
            kwargs = {**kwargs, "use_cache": False}

        outputs = self.language_model(
            attention_mask=attention_mask, position_ids=position_ids, inputs_embeds=inputs_embeds, **kwargs
        )
        return FineCaptionModelOutputWithPast(**outputs, image_outputs=image_output)


class FineCaptionForConditionalGeneration(FineCaptionPreTrainedModel, GenerationMixin):
    """FineCaption with its language-modelling head: regions and prompts to text.

    Example:

    ```python
    >>> from transformers import AutoModelForImageTextToText, AutoProcessor

    >>> processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    >>> model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    >>> chat = processor.conversation(image, "What color is this region?", mask=mask)
    >>> inputs = processor.apply_chat_template(
    ...     chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ... )
    >>> answer = model.generate(**inputs, max_new_tokens=32)[:, inputs["input_ids"].shape[1] :]
    >>> processor.batch_decode(answer, skip_special_tokens=True)
    ```
    """

    _tied_weights_keys = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    generation_config: GenerationConfig

    def __init__(self, config: FineCaptionConfig):
        super().__init__(config)
        self.model = FineCaptionModel(config)
        self._can_compile_fullgraph = self.model.language_model._can_compile_fullgraph
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        # For the card that push_to_hub makes; the first lets the Hub's snippets say trust_remote_code.
        self.model_tags = ["custom_code", "finecaption", "region-captioning"]
        self.post_init()

    def get_high_res_features(self, high_res_pixel_values: torch.Tensor) -> torch.Tensor | None:
        """See [`FineCaptionModel.get_high_res_features`]."""
        return self.model.get_high_res_features(high_res_pixel_values)

    def get_image_features(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """See [`FineCaptionModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values, **kwargs)

    def as_pipeline(self, processor: Any, **kwargs: Any) -> Any:
        """The `region-captioning` pipeline of this model and its processor; `kwargs` are the pipeline's.

        For a model that is in memory: `transformers.pipeline` finds the pipeline of a checkpoint by its name only.
        """
        # Saving and loading follow this import, so that the pipeline's file travels with the model's.
        from .pipeline_finecaption import RegionCaptioningPipeline

        return RegionCaptioningPipeline(model=self, processor=processor, **kwargs)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As the library saves, without the defaults that its prediction loops write into generation settings: other
        engines take a `top_k` of 50, for one, as the checkpoint's wish."""
        kept, implied = self.generation_config, GenerationConfig._get_default_generation_params()
        self.generation_config = copy.deepcopy(kept)
        if all(getattr(kept, name, None) is not None for name, value in implied.items() if value is not None):
            for name in [name for name, value in implied.items() if getattr(kept, name, None) == value]:
                setattr(self.generation_config, name, None)
        try:
            super().save_pretrained(*args, **kwargs)
        finally:
            self.generation_config = kept

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        high_res_pixel_values: torch.Tensor | None = None,
        mask_values: torch.Tensor | None = None,
        image_indices: torch.Tensor | None = None,
        high_res_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        branch_ids: torch.LongTensor | None = None,
        region_indices: torch.LongTensor | None = None,
        **kwargs: Any,
    ) -> FineCaptionCausalLMOutputWithPast:
        """Score the next token at each position; see [`FineCaptionModel.forward`] for the inputs.

        Args:
            labels (`torch.LongTensor` of shape `(S, T)`, *optional*): tokens to predict, -100 where none; shifted here.
            logits_to_keep (`int` or `torch.Tensor`, *optional*): compute logits for the last so many positions (0:
                all), or for the given ones.

        Returns:
            `FineCaptionCausalLMOutputWithPast`: with `loss` where labels are given.
        """
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            high_res_pixel_values=high_res_pixel_values,
            mask_values=mask_values,
            image_indices=image_indices,
            high_res_features=high_res_features,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            mm_encoder_outputs=mm_encoder_outputs,
            branch_ids=branch_ids,
            region_indices=region_indices,
            return_dict=True,
            **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(outputs.last_hidden_state[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.text_config.vocab_size, **kwargs
            )
        others = {name: value for name, value in outputs.items() if name != "last_hidden_state"}
        return FineCaptionCausalLMOutputWithPast(loss=loss, logits=logits, **others)


FineCaptionForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")
