"""The parts that see: a mask-aware CLIP tower, two high-resolution towers, and the adapter behind them.

Dimension letters: B regions, I images, C channels, H W pixels, h w feature grid, N = h * w image tokens, D
language-model width.
"""

from .configuration_finecaption import FineCaptionConfig, FineCaptionConvNextConfig

# isort: split
import timm
import torch
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModel, SamVisionConfig, SamVisionModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models.clip.modeling_clip import CLIPVisionEmbeddings


class FineCaptionAlphaConv(nn.Conv2d):
    """Patch embedding of the region mask; starts at zero, so that an untrained one leaves CLIP as it is.

    A class of its own because weights are initialised leaf by leaf and a plain `Conv2d` would start at random.
    """


class FineCaptionVisionEmbeddings(CLIPVisionEmbeddings):
    """CLIP's embeddings with the region mask added to the patches, before class token and positions.

    Alpha-CLIP, section 3.2 (arXiv 2312.03818); FineCaption, section 4 (arXiv 2411.15411).
    """

    def __init__(self, config: CLIPVisionConfig, use_mask: bool):
        super().__init__(config)
        if use_mask:
            self.alpha_embedding = FineCaptionAlphaConv(
                1, self.embed_dim, kernel_size=self.patch_size, stride=self.patch_size, bias=False
            )

    def forward(  # type: ignore[override]
        self, pixel_values: torch.Tensor, mask_values: torch.Tensor | None, image_indices: torch.Tensor | None
    ) -> torch.Tensor:
        """Embed each image once and each region's mask, `(I, 3, H, W)` and `(B, 1, H, W)` to `(B, 1 + N, C)`."""
        height, width = pixel_values.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"pixel_values are {height}x{width} but the CLIP tower takes {self.image_size}x{self.image_size}. "
                "Prepare images with the processor that belongs to the checkpoint."
            )
        weight = self.patch_embedding.weight
        patches = self.patch_embedding(pixel_values.to(dtype=weight.dtype))
        if image_indices is not None:
            patches = patches.index_select(0, image_indices.to(patches.device))
        if mask_values is not None:
            if mask_values.shape[1:] != (1, height, width):
                raise ValueError(
                    f"mask_values have shape {tuple(mask_values.shape)}; needed is (regions, 1, {height}, {width})."
                )
            if mask_values.shape[0] != patches.shape[0]:
                raise ValueError(
                    f"There are {mask_values.shape[0]} region masks for {patches.shape[0]} regions. Give one mask per "
                    "region, and image_indices where regions share an image."
                )
            patches = patches + self.alpha_embedding(mask_values.to(patches.device, weight.dtype))
        patches = patches.flatten(2).transpose(1, 2)
        class_token = self.class_embedding.expand(patches.shape[0], 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding(self.position_ids)


class FineCaptionVisionTower(CLIPVisionModel):
    """The mask-aware CLIP encoder, up to the hidden state that is used; parameter names are `CLIPVisionModel`'s."""

    def __init__(self, config: CLIPVisionConfig, num_layers: int, use_mask: bool):
        super().__init__(config)
        self.embeddings = FineCaptionVisionEmbeddings(config, use_mask)
        # What lies behind the hidden state that is used would only take memory.
        self.encoder.layers = self.encoder.layers[:num_layers]
        del self.post_layernorm
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FineCaptionAlphaConv):
            init.zeros_(module.weight)

    def forward(  # type: ignore[override]
        self,
        pixel_values: torch.Tensor,
        mask_values: torch.Tensor | None = None,
        image_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Encode regions.

        Args:
            pixel_values (`torch.Tensor` of shape `(I, 3, H, W)`): normalised images.
            mask_values (`torch.Tensor` of shape `(B, 1, H, W)`, *optional*): normalised region masks.
            image_indices (`torch.Tensor` of shape `(B,)`, *optional*): the image of each region; `None` means B = I.

        Returns:
            `torch.Tensor` of shape `(B, 1 + N, C)`: hidden states, class token first, equal to
            `CLIPVisionModel(..., output_hidden_states=True).hidden_states[layer]` while the alpha convolution is zero.
        """
        hidden_states = self.embeddings(pixel_values, mask_values, image_indices)
        return self.encoder(inputs_embeds=self.pre_layrnorm(hidden_states)).last_hidden_state


class FineCaptionConvNextTower(nn.Module):
    """Feature maps of a timm ConvNeXt; stages behind the chosen one and the classifier are not built."""

    def __init__(self, config: FineCaptionConvNextConfig):
        super().__init__()
        self.encoder = timm.create_model(
            config.architecture, pretrained=False, num_classes=0, **(config.model_args or {})
        )
        num_stages = len(self.encoder.feature_info)
        if not -num_stages <= config.feature_stage < num_stages:
            raise ValueError(
                f"convnext_config.feature_stage is {config.feature_stage} but {config.architecture} has {num_stages} "
                "stages."
            )
        stage = config.feature_stage % num_stages
        info = self.encoder.feature_info[stage]
        for field, found in (("hidden_size", info["num_chs"]), ("stride", info["reduction"])):
            expected = getattr(config, field)
            if found != expected:
                raise ValueError(
                    f"convnext_config.{field} is {expected} but stage {stage} of {config.architecture} has {found}."
                )
        self.encoder.prune_intermediate_layers([stage], prune_head=True)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """`(I, 3, H, W)` to feature maps `(I, C, H / stride, W / stride)`."""
        return self.encoder.forward_features(pixel_values.to(dtype=next(self.encoder.parameters()).dtype))


class _ChannelsFirst(nn.Module):
    """Stands where SAM's neck would be when a block's own output is used: `(I, h, w, C)` to `(I, C, h, w)`."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states.permute(0, 3, 1, 2)


class FineCaptionSamTower(SamVisionModel):
    """SAM's image encoder with its own neck; parameter names are `SamVisionModel`'s.

    With `feature_layer` given, that block's output is used instead and neither later blocks nor the neck are built.
    """

    def __init__(self, config: SamVisionConfig, feature_layer: int | None = None):
        super().__init__(config)
        if feature_layer is not None:
            encoder = self.vision_encoder
            encoder.layers = encoder.layers[: feature_layer % config.num_hidden_layers + 1]
            encoder.neck = _ChannelsFirst()

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Eager, or else sdpa, whatever the other parts use: only these take SAM's relative positions."""
        return "eager" if requested_attention == "eager" else "sdpa"

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """`(I, 3, H, W)` to feature maps `(I, C, H / patch, W / patch)`."""
        dtype = self.vision_encoder.patch_embed.projection.weight.dtype
        return self.vision_encoder(pixel_values.to(dtype=dtype)).last_hidden_state


class FineCaptionAdapter(nn.Module):
    """Maps the concatenated tower features of a region to the language model's width, `(B, N, C)` to `(B, N, D)`."""

    def __init__(self, config: FineCaptionConfig):
        super().__init__()
        width = config.text_config.hidden_size
        hidden = config.adapter_hidden_size or width
        self.linear_1 = nn.Linear(config.fused_feature_size, hidden, bias=config.adapter_bias)
        self.act = ACT2FN[config.adapter_hidden_act]
        self.linear_2 = nn.Linear(hidden, width, bias=config.adapter_bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        weight = self.linear_1.weight
        # Packed weights of quantisers are integers, or a method; such layers take the features as they are.
        if isinstance(weight, torch.Tensor) and weight.is_floating_point():
            features = features.to(dtype=weight.dtype)
        return self.linear_2(self.act(self.linear_1(features)))


def convert_normalisation(
    image: torch.Tensor, given: tuple[list[float], list[float]], wanted: tuple[list[float], list[float]]
) -> torch.Tensor:
    """Convert a normalised image from one set of statistics to another.

    Args:
        image (`torch.Tensor` of shape `(I, C, H, W)`): (pixels - mean) / std of `given`.
        given, wanted (`tuple[list[float], list[float]]`): mean and standard deviation per channel, pixels in [0, 1].

    Returns:
        `torch.Tensor` of shape `(I, C, H, W)`: (pixels - mean) / std of `wanted`; `image` itself where both agree.
    """
    if given == wanted:
        return image
    (given_mean, given_std), (wanted_mean, wanted_std) = given, wanted
    scale = [a / b for a, b in zip(given_std, wanted_std, strict=True)]
    shift = [(a - b) / c for a, b, c in zip(given_mean, wanted_mean, wanted_std, strict=True)]
    # In place on the product: another temporary of a large image costs more than the arithmetic.
    return (image * image.new_tensor(scale).view(-1, 1, 1)).add_(image.new_tensor(shift).view(-1, 1, 1))


def fold_to_grid(features: torch.Tensor, grid_size: int) -> torch.Tensor:
    """Fold neighbouring cells into channels: `(I, C, h, w)` to `(I, C * r * r, grid, grid)` with r = h / grid."""
    cells = features.shape[-1]
    if features.shape[-2] != cells or cells % grid_size:
        raise ValueError(
            f"Tower features of {features.shape[-2]}x{cells} cells cannot be folded to {grid_size}x{grid_size}. "
            "Prepare images with the processor that belongs to the checkpoint."
        )
    return nn.functional.pixel_unshuffle(features, cells // grid_size)


def wants_gradient(part: nn.Module, *inputs: torch.Tensor | None) -> bool:
    """Whether a gradient will be asked of a part's parameters or inputs; a part without one keeps no activations."""
    return torch.is_grad_enabled() and (
        any(tensor is not None and tensor.requires_grad for tensor in inputs)
        or any(parameter.requires_grad for parameter in part.parameters())
    )
