"""What the Hub knows: identifiers that the front matter of a card may use, as of November 2026."""


def _ids(text: str) -> frozenset[str]:
    return frozenset(text.split())


PIPELINE_TAGS = _ids(
    """
    any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation
    document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction
    image-segmentation image-text-to-image image-text-to-text image-text-to-video image-to-3d image-to-image
    image-to-text image-to-video keypoint-detection mask-generation object-detection other question-answering
    reinforcement-learning robotics sentence-similarity summarization table-question-answering tabular-classification
    tabular-regression text-classification text-generation text-ranking text-to-3d text-to-audio text-to-image
    text-to-speech text-to-video token-classification translation unconditional-image-generation video-classification
    video-text-to-text video-to-video visual-document-retrieval visual-question-answering voice-activity-detection
    zero-shot-classification zero-shot-image-classification zero-shot-object-detection
    """
)

LIBRARIES = _ids(
    """
    adapter-transformers diffusers gguf keras mlx onnx open_clip peft pytorch safetensors sentence-transformers
    tensorflow timm transformers transformers.js ultralytics
    """
)

PERMISSIVE = _ids(
    """
    apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib unlicense cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 pddl odc-by cdla-permissive-1.0 cdla-permissive-2.0 artistic-2.0 bsl-1.0 ncsa ecl-2.0 postgresql
    wtfpl afl-3.0 ms-pl etalab-2.0
    """
)
SHARE_ALIKE = _ids(
    """
    gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 osl-3.0
    cc cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nd-4.0 odbl gfdl ofl-1.1 lppl-1.3c cdla-sharing-1.0 c-uda
    """
)
COMMUNITY = _ids(
    """
    llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma openrail openrail++ creativeml-openrail-m
    bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m deepfloyd-if-license apple-ascl
    """
)
NONCOMMERCIAL = _ids(
    """
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 fair-noncommercial-research-license apple-amlr intel-research
    """
)
LICENCES = PERMISSIVE | SHARE_ALIKE | COMMUNITY | NONCOMMERCIAL | {"unknown", "other"}
