"""What the Hub knows: identifiers that the front matter of a card may use.

Checked on 2026-11-22 against copies of
- pipeline tags: PIPELINE_DATA of @huggingface/tasks (packages/tasks/src/pipelines.ts of huggingface/huggingface.js, at
  2c3c6c29 and in a later build), and the list on huggingface.co/tasks. Tags that the Hub hides in its filters count;
- libraries: MODEL_LIBRARIES_UI_ELEMENTS (packages/tasks/src/model-libraries.ts at 904f6b34);
- licences: docs/hub/repositories-licenses.md (huggingface/hub-docs at 008d54d0), and the page itself as of 2026-02-26.
What the Hub has taken in since then is missing.
"""


def _ids(text: str) -> frozenset[str]:
    return frozenset(text.split())


PIPELINE_TAGS = _ids(
    """
    any-to-any audio-classification audio-text-to-text audio-to-audio automatic-speech-recognition depth-estimation
    document-question-answering feature-extraction fill-mask graph-ml image-classification image-feature-extraction
    image-segmentation image-text-to-image image-text-to-text image-text-to-video image-to-3d image-to-image
    image-to-text image-to-video keypoint-detection mask-generation multiple-choice object-detection other
    question-answering reinforcement-learning robotics sentence-similarity summarization table-question-answering
    table-to-text tabular-classification tabular-regression tabular-to-text text-classification text-generation
    text-ranking text-retrieval text-to-3d text-to-audio text-to-image text-to-speech text-to-video
    time-series-forecasting token-classification translation unconditional-image-generation video-classification
    video-text-to-text video-to-video visual-document-retrieval visual-question-answering voice-activity-detection
    zero-shot-classification zero-shot-image-classification zero-shot-object-detection
    """
)

# Of models; formats of files (gguf, onnx, safetensors) are no libraries there.
LIBRARIES = _ids(
    """
    3dtopia-xl PaddleOCR acestep adapter-transformers allennlp anemoi araclip asteroid audiocraft audioseal
    bagel-mot bboxmaskpose ben2 bertopic big_vision birder birefnet bm25s cartesia_mlx cartesia_pytorch champ
    chat_tts chatterbox clipscope colpali comet contexttab cosmos cosyvoice cotracker cxr-foundation deepforest
    depth-anything-v2 depth-pro derm-foundation describe-anything dia-tts diffree diffusers diffusion-single-file
    diffusionkit doctr edsnlp elm espnet f5-tts fairseq fastai fasttext flair fme gemma.cpp genmo geometry-crafter
    gliner glyph-byt5 grok hallo hermes hezar htrflow hunyuan-dit hunyuan3d-2 hunyuanworld-voyager imstoucan
    index-tts infinite-you infinitetalk k2 keras keras-hub kimi-audio kittentts kronos lerobot lightning-ir
    litert-lm liveportrait llama-cpp-python lvface magenta-realtime magi-1 mamba-ssm mars5-tts matanyone medvae
    merlin mesh-anything mindspore mini-omni2 mitie ml-agents mlc-llm mlx mlx-image model2vec monkeyocr moshi
    mtvcraft nemo open-oasis open-sora open_clip outetts paddlenlp peft perception-encoder phantom-wan pxia py-feat
    pyannote-audio pythae recurrentgemma refiners relik renderformer reverb rkllm saelens sam2 sample-factory sana
    sapiens seed-story seedvr sentence-transformers setfit sklearn soloaudio songbloom spacy span-marker speechbrain
    ssr-speech stable-audio-tools stable-baselines3 stanza swarmformer tabpfn tencent-song-generation tensorflowtts
    terratorch tf-keras tic-clip timesfm timm tirex torchgeo transformers transformers.js trellis ultralytics
    uni-3dar unity-sentis univa vfi-mamba videoprism voicecraft vui wan2.2 wham whisperkit yolov10 zonos
    """
)

PERMISSIVE = _ids(
    """
    apache-2.0 mit bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear isc zlib unlicense cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 pddl odc-by cdla-permissive-1.0 cdla-permissive-2.0 artistic-2.0 bsl-1.0 ncsa ecl-2.0 postgresql
    wtfpl afl-3.0 ms-pl etalab-2.0 openmdw-1.0
    """
)
SHARE_ALIKE = _ids(
    """
    gpl gpl-2.0 gpl-3.0 agpl-3.0 lgpl lgpl-2.1 lgpl-3.0 lgpl-lr mpl-2.0 epl-1.0 epl-2.0 eupl-1.1 eupl-1.2 osl-3.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nd-4.0 odbl gfdl ofl-1.1 lppl-1.3c cdla-sharing-1.0 c-uda
    """
)
COMMUNITY = _ids(
    """
    llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma openrail openrail++ creativeml-openrail-m
    bigscience-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m grok2-community apple-ascl
    """
)
NONCOMMERCIAL = _ids(
    """
    cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0
    cc-by-nc-sa-4.0 fair-noncommercial-research-license apple-amlr intel-research h-research deepfloyd-if-license
    """
)
# `cc` is any of Creative Commons: what it allows is not known.
LICENCES = PERMISSIVE | SHARE_ALIKE | COMMUNITY | NONCOMMERCIAL | {"cc", "unknown", "other"}
