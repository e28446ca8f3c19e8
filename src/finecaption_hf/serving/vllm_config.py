"""What vLLM has to know of a checkpoint before it builds the model."""

from collections.abc import Mapping
from typing import Any

from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.platforms import current_platform

from .heads import head_size, pad_heads

HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Of vLLM's attention on the CPU; that on GPUs takes any multiple of 8."""


class FineCaptionModelConfig(VerifyAndUpdateConfig):  # type: ignore[misc]
    """Checks of a checkpoint, in each process, before anything is loaded."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        """
        Raises:
            ValueError: If vLLM cannot serve this checkpoint as it is.
        """
        config = model_config.hf_config
        quantised = getattr(config, "quantization_config", None)
        if quantised is not None:
            raise ValueError(
                f"This FineCaption is quantised ({_kind(quantised)}), which vLLM's plugin does not load. Serve the "
                "checkpoint that it was made of, or ask the quantised one by finecaption describe or finecaption serve."
            )
        size = head_size(config.text_config)
        if size not in HEAD_SIZES and (size % 8 or current_platform.is_cpu()):
            pad_heads(config.text_config, HEAD_SIZES)
            model_config.model_arch_config = model_config.get_model_arch_config()


def _kind(quantised: Mapping[str, Any]) -> str:
    """Which library quantised the weights, and into what."""
    method = str(quantised["quant_method"])
    if method == "bitsandbytes":
        return f"{method}, {'int8' if quantised['load_in_8bit'] else 'int4'}"
    if method == "torchao":
        return f"{method}, {quantised['quant_type']['default']['_type']}"
    return method
