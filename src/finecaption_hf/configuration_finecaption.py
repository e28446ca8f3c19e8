"""What a FineCaption checkpoint is: which towers it has, on which grid they meet, the adapter and the language model.

Dimension letters: C channels, N image tokens, D language-model width. Sizes are (height, width) in pixels unless a name
says grid; every FineCaption input is square, so one integer stands for both sides.
"""

from typing import Any, ClassVar

import transformers
from packaging.version import Version
from transformers import logging

MIN_TRANSFORMERS = "5.19"
TESTED_TRANSFORMERS = "5.24"
"""The newest minor release that everything was tested on; its patch releases count as tested."""

# Of the library's own, so that its verbosity counts; of one name, so that all copies of this file say a thing once.
logger = logging.get_logger("transformers.finecaption")


def check_transformers_version(version: str) -> None:
    """Refuse a transformers release that is too old, and remark on one that nobody has tested this code on.

    Args:
        version (`str`): a release such as `"5.23.0"`; development builds count as the release they lead to.

    Raises:
        ImportError: If `version` is below 5.19.
    """
    release = Version(Version(version).base_version)
    if release < Version(MIN_TRANSFORMERS):
        raise ImportError(
            f"FineCaption needs transformers>={MIN_TRANSFORMERS} (tested up to {TESTED_TRANSFORMERS}), but "
            f'transformers {version} is installed. Run: pip install --upgrade "transformers>={MIN_TRANSFORMERS}"'
        )
    if (release.major, release.minor) > Version(TESTED_TRANSFORMERS).release:
        logger.warning_once(
            f"This FineCaption was tested up to transformers {TESTED_TRANSFORMERS} and runs on {version}. If something "
            "fails, see docs/compatibility.md of finecaption-hf, or renew the checkpoint's code: finecaption renew."
        )


# The other files of a checkpoint import this one first, so an unsupported release ends here, not in a missing name.
check_transformers_version(transformers.__version__)

from transformers import AutoConfig, PreTrainedConfig  # noqa: E402

# Means and standard deviations of red, green and blue, pixels in [0, 1], that the published towers were trained with.
CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]

# Full-size parts (arXiv 2411.15411 names the parts; widths are those of the published checkpoints).
_CLIP_L_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "projection_dim": 768,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}
# `initializer_range` differs from the library's 1e-10, with which a tower that is not loaded from weights cannot train.
_SAM_L = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "global_attn_indexes": [5, 11, 17, 23],
    "image_size": 1024,
    "patch_size": 16,
    "output_channels": 256,
    "initializer_range": 0.02,
}
_LLAMA_31_8B = {
    "vocab_size": 128257,  # 128,256 of the tokenizer and the image token
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}


class FineCaptionConvNextConfig(PreTrainedConfig):
    """The ConvNeXt tower: a timm model whose stage outputs are feature maps.

    Args:
        architecture (`str`): timm model name, without the tag of its weights.
        model_args (`dict`, *optional*): further arguments of `timm.create_model`, such as `{"depths": [1, 1, 2, 1]}`.
        feature_stage (`int`): the stage whose output is used; negative counts from the last; later ones are not built.
        hidden_size (`int`): channels of that stage, C; checked against the timm model.
        stride (`int`): input pixels per feature cell at that stage; checked against the timm model.
        layer_scale_init_value (`float`): layer scale of blocks that are not loaded from weights.
        initializer_range (`float`): standard deviation of weights that are not loaded.
    """

    model_type = "finecaption_convnext"
    base_config_key = "convnext_config"

    architecture: str = "convnext_xxlarge"
    model_args: dict[str, Any] | None = None
    feature_stage: int = -1
    hidden_size: int = 3072
    stride: int = 32
    layer_scale_init_value: float = 1e-6
    initializer_range: float = 0.02


class FineCaptionConfig(PreTrainedConfig):
    """Configuration of FineCaption; the defaults are the full-size model of arXiv 2411.15411, 9.5 billion parameters.

    Args:
        vision_config (`CLIPVisionConfig` or `dict`): the mask-aware CLIP tower.
        convnext_config (`FineCaptionConvNextConfig` or `dict`): the first high-resolution tower.
        sam_config (`SamVisionConfig` or `dict`): the second high-resolution tower.
        text_config (`PreTrainedConfig` or `dict`): the language model, any causal model of the library.
        use_mask (`bool`): whether the CLIP tower takes the region mask (the alpha convolution exists).
        use_convnext (`bool`): whether the ConvNeXt tower exists.
        use_sam (`bool`): whether the SAM tower exists. With both off, the model has the CLIP tower alone.
        vision_feature_layer (`int`): the hidden state of CLIP that is used, as in `hidden_states[i]` (0 is the
            embedding); the layers behind it are not built.
        sam_feature_layer (`int`, *optional*): the SAM block whose output is used; `None` means the neck.
        sam_pretrained (`str`, *optional*): the SAM whose untouched encoder the SAM tower is, as the id of a Hub
            repository; its prompt encoder and mask decoder then work on the tower's output. `None` means none known.
        high_res_image_size (`int`): side of the high-resolution input in pixels.
        grid_size (`int`): side of the feature grid on which the towers meet; N = grid_size ** 2 image tokens.
        adapter_hidden_size (`int`, *optional*): width of the adapter's hidden layer; `None` means the language model's.
        adapter_hidden_act (`str`): activation of the adapter.
        adapter_bias (`bool`): whether the adapter's linear layers have biases.
        image_mean, image_std (`list[float]`): statistics with which `pixel_values` are normalised (CLIP's).
        high_res_image_mean, high_res_image_std (`list[float]`): statistics with which `high_res_pixel_values` arrive.
        convnext_image_mean, convnext_image_std (`list[float]`): statistics that the ConvNeXt tower was trained with.
        sam_image_mean, sam_image_std (`list[float]`): statistics that the SAM tower was trained with. Where they differ
            from those in which the image arrives, the model converts, so each tower sees its own.
        mask_mean, mask_std (`float`): normalisation of the region mask, from Alpha-CLIP (arXiv 2312.03818).
        image_token_id (`int`): the token that an image token replaces in `input_ids`.
        initializer_range (`float`): standard deviation of adapter weights that are not loaded.
        tie_word_embeddings (`bool`): whether the output layer shares the language model's embeddings; follows
            `text_config` when that ties.
        custom_pipelines (`dict`, *optional*): pipelines whose code `transformers.pipeline` takes from the checkpoint,
            by task, in the library's form. A saved configuration always names `region-captioning`; in memory it is
            absent where this task is registered with the library, so that the registered code is used.

    Raises:
        ValueError: If sizes do not fit together; the message names both numbers.
    """

    model_type = "finecaption"
    sub_configs = {
        "vision_config": AutoConfig,
        "convnext_config": FineCaptionConvNextConfig,
        "sam_config": AutoConfig,
        "text_config": AutoConfig,
    }
    # Else an evaluation gathers the features of all regions. The cache, by its name in transformers 5.24 and before.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values", "image_outputs"]
    registered_tasks: ClassVar[frozenset[str]] = frozenset()
    """Tasks whose pipeline is registered with the library; set where that is done."""

    vision_config: Any = None
    convnext_config: Any = None
    sam_config: Any = None
    text_config: Any = None
    use_mask: bool = True
    use_convnext: bool = True
    use_sam: bool = True
    vision_feature_layer: int = -2
    sam_feature_layer: int | None = None
    sam_pretrained: str | None = None
    high_res_image_size: int = 1024
    grid_size: int = 32
    adapter_hidden_size: int | None = None
    adapter_hidden_act: str = "gelu"
    adapter_bias: bool = True
    image_mean: list[float] | tuple[float, ...] = tuple(CLIP_MEAN)
    image_std: list[float] | tuple[float, ...] = tuple(CLIP_STD)
    high_res_image_mean: list[float] | tuple[float, ...] = tuple(CLIP_MEAN)
    high_res_image_std: list[float] | tuple[float, ...] = tuple(CLIP_STD)
    convnext_image_mean: list[float] | tuple[float, ...] = tuple(CLIP_MEAN)
    convnext_image_std: list[float] | tuple[float, ...] = tuple(CLIP_STD)
    sam_image_mean: list[float] | tuple[float, ...] = tuple(IMAGENET_MEAN)
    sam_image_std: list[float] | tuple[float, ...] = tuple(IMAGENET_STD)
    mask_mean: float = 0.5
    mask_std: float = 0.26
    image_token_id: int = 128256
    initializer_range: float = 0.02
    tie_word_embeddings: bool = False
    custom_pipelines: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.vision_config = _sub_config(self.vision_config, "clip_vision_model", _CLIP_L_336)
        self.sam_config = _sub_config(self.sam_config, "sam_vision_model", _SAM_L)
        self.text_config = _sub_config(self.text_config, "llama", _LLAMA_31_8B)
        if self.convnext_config is None:
            self.convnext_config = FineCaptionConvNextConfig()
        elif isinstance(self.convnext_config, dict):
            self.convnext_config = FineCaptionConvNextConfig(**self.convnext_config)
        for name in _STATISTICS:
            setattr(self, name, [float(value) for value in getattr(self, name)])
        if self.text_config.tie_word_embeddings:
            self.tie_word_embeddings = True
        super().__post_init__(**kwargs)
        # Saving a model writes the entry of one Auto class only; users load through either.
        self.auto_map = {**_AUTO_MAP, **(getattr(self, "auto_map", None) or {})}
        pipelines = {**_CUSTOM_PIPELINES, **(self.custom_pipelines or {})}
        # Copies: the library replaces the names of classes in them by the classes.
        self.custom_pipelines = {
            task: dict(entry) for task, entry in pipelines.items() if task not in self.registered_tasks
        }
        self._check_sizes()

    def to_dict(self) -> dict[str, Any]:
        values = super().to_dict()
        values["custom_pipelines"] = {**_CUSTOM_PIPELINES, **values["custom_pipelines"]}
        return values

    def _check_sizes(self) -> None:
        vision, sam, convnext = self.vision_config, self.sam_config, self.convnext_config
        if self.grid_size < 1:
            raise ValueError(f"grid_size is {self.grid_size}; the feature grid needs at least 1 cell a side.")
        if vision.image_size % vision.patch_size:
            raise ValueError(
                f"The CLIP tower's image size {vision.image_size} is no multiple of its patch size {vision.patch_size}."
            )
        if not 1 <= self.vision_num_layers <= vision.num_hidden_layers:
            raise ValueError(
                f"vision_feature_layer {self.vision_feature_layer} does not exist in a CLIP tower of "
                f"{vision.num_hidden_layers} layers; give 1 to {vision.num_hidden_layers}, or -1 to "
                f"-{vision.num_hidden_layers}."
            )
        if self.use_convnext:
            if self.high_res_image_size % convnext.stride:
                raise ValueError(
                    f"high_res_image_size {self.high_res_image_size} is no multiple of the ConvNeXt tower's stride "
                    f"{convnext.stride}."
                )
            self._check_grid("ConvNeXt", self.high_res_image_size // convnext.stride)
        if self.use_sam:
            if sam.image_size != self.high_res_image_size:
                raise ValueError(
                    f"The SAM tower takes {sam.image_size} px but high_res_image_size is {self.high_res_image_size}; "
                    "both high-resolution towers see the same image, so the two must be equal."
                )
            if sam.image_size % sam.patch_size:
                raise ValueError(
                    f"The SAM tower's image size {sam.image_size} is no multiple of its patch size {sam.patch_size}."
                )
            if self.sam_feature_layer is not None and not (
                -sam.num_hidden_layers <= self.sam_feature_layer < sam.num_hidden_layers
            ):
                raise ValueError(
                    f"sam_feature_layer {self.sam_feature_layer} does not exist in a SAM tower of "
                    f"{sam.num_hidden_layers} blocks; give -{sam.num_hidden_layers} to {sam.num_hidden_layers - 1}, or "
                    "None for the neck."
                )
            self._check_grid("SAM", sam.image_size // sam.patch_size)
        for name in _STATISTICS:
            if len(getattr(self, name)) != vision.num_channels:
                raise ValueError(f"{name} has {len(getattr(self, name))} values for {vision.num_channels} channels.")
        if not 0 <= self.image_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"image_token_id {self.image_token_id} is outside of the language model's vocabulary of "
                f"{self.text_config.vocab_size}; add the image token to the tokenizer and raise text_config.vocab_size."
            )

    def _check_grid(self, tower: str, cells: int) -> None:
        if cells % self.grid_size:
            raise ValueError(
                f"The {tower} tower gives a {cells}x{cells} grid, which cannot be folded into grid_size "
                f"{self.grid_size}x{self.grid_size}; it must be the same size or a multiple."
            )

    @property
    def image_seq_length(self) -> int:
        """Image tokens per region, N."""
        return self.grid_size**2

    @property
    def vision_num_layers(self) -> int:
        """CLIP layers that are built: those up to `vision_feature_layer`."""
        layer = self.vision_feature_layer
        return layer if layer >= 0 else self.vision_config.num_hidden_layers + 1 + layer

    @property
    def convnext_feature_size(self) -> int:
        """Channels of the ConvNeXt tower on the common grid, after its cells are folded into channels."""
        fold = self.high_res_image_size // self.convnext_config.stride // self.grid_size
        return self.convnext_config.hidden_size * fold**2

    @property
    def sam_feature_size(self) -> int:
        """Channels of the SAM tower on the common grid, after its cells are folded into channels."""
        sam = self.sam_config
        channels = sam.output_channels if self.sam_feature_layer is None else sam.hidden_size
        return channels * (sam.image_size // sam.patch_size // self.grid_size) ** 2

    @property
    def fused_feature_size(self) -> int:
        """Channels of the concatenated towers, the adapter's input width."""
        size = self.vision_config.hidden_size + (self.convnext_feature_size if self.use_convnext else 0)
        return size + (self.sam_feature_size if self.use_sam else 0)

    def image_processor_kwargs(self) -> dict[str, Any]:
        """Arguments with which `FineCaptionImageProcessor` prepares inputs for this model."""
        size, high_res_size = (
            {"height": side, "width": side} for side in (self.vision_config.image_size, self.high_res_image_size)
        )
        return {
            "size": size,
            "high_res_size": high_res_size if self.use_convnext or self.use_sam else None,
            "do_mask": self.use_mask,
            **{name: list(getattr(self, name)) for name in _STATISTICS[:4]},
            "mask_mean": self.mask_mean,
            "mask_std": self.mask_std,
        }


_AUTO_MAP = {
    "AutoConfig": "configuration_finecaption.FineCaptionConfig",
    "AutoModel": "modeling_finecaption.FineCaptionForConditionalGeneration",
    "AutoModelForImageTextToText": "modeling_finecaption.FineCaptionForConditionalGeneration",
}

_CUSTOM_PIPELINES = {
    "region-captioning": {
        "impl": "pipeline_finecaption.RegionCaptioningPipeline",
        "pt": ["AutoModelForImageTextToText"],
        "type": "multimodal",
    },
}

_STATISTICS = [f"{tower}image_{what}" for tower in ("", "high_res_", "convnext_", "sam_") for what in ("mean", "std")]


def _sub_config(given: dict | PreTrainedConfig | None, model_type: str, defaults: dict[str, Any]) -> PreTrainedConfig:
    if given is None:
        return AutoConfig.for_model(model_type, **defaults)
    if isinstance(given, dict):
        given = dict(given)
        return AutoConfig.for_model(given.pop("model_type", model_type), **given)
    return given


# Saving then copies the code beside the weights, so that a checkpoint loads where this package is not installed.
FineCaptionConfig.register_for_auto_class()
