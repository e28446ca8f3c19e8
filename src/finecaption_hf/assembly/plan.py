"""What is to be assembled: options -> sources, one configuration, and the way of every tensor."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from ..configuration_finecaption import FineCaptionConfig
from ..hub.checkpoint import read_json
from ..prompts_finecaption import no_such
from . import configs
from .accounting import Part, route
from .errors import AssemblyError
from .key_maps import (
    ADAPTER,
    ALPHA,
    CONVNEXT,
    HEAD,
    LANGUAGE,
    SAM,
    VISION,
    alpha_clip_map,
    clip_map,
    convnext_map,
    language_map,
    llava_map,
    sam_map,
)
from .language import Vocabulary, add_image_token, chat_template, load_tokenizer
from .llava import FAMILIES, NEWLINE, llava_fields, llava_geometry
from .sources import Source, find_source
from .tensors import TensorInfo, list_tensors

# Parts whose configuration is settled by a field of FineCaptionConfig, which then cannot be given as well.
_DECIDES = {
    "clip": ("vision_config",),
    "alpha_clip": ("vision_config",),
    "sam": ("sam_config",),
    "llm": ("text_config",),
    **dict.fromkeys(
        FAMILIES, ("vision_config", "text_config", "vision_feature_layer", "adapter_hidden_size", "grid_size")
    ),
}
_OPTIONAL = ("mask", "convnext", "sam")


@dataclass(frozen=True)
class AssemblyOptions:
    """What the user asks for; see `assemble`."""

    clip: str | None
    alpha_clip: str | None
    convnext: str | None
    sam: str | None
    llm: str | None
    from_llava: str | None
    from_llava_next: str | None
    from_llava_onevision: str | None
    tokenizer: str | None
    without: frozenset[str]
    config: dict[str, Any]
    image_token: str

    @property
    def left_away(self) -> frozenset[str]:
        """What the model is built without, by `without` or by `use_mask`, `use_convnext` or `use_sam` in `config`."""
        return self.without | {name for name in _OPTIONAL if self.config.get(f"use_{name}") is False}

    def __post_init__(self) -> None:
        if unknown := sorted(self.without - set(_OPTIONAL)):
            raise AssemblyError(f"--without: {no_such('part', unknown[0], _OPTIONAL)}")
        for name in ("convnext", "sam"):
            if name in self.left_away and getattr(self, name):
                raise AssemblyError(f"--{name} and --without {name} contradict each other.")
        if llavas := [name for name in FAMILIES if getattr(self, name)]:
            others = (*llavas[1:], "clip", "convnext", "sam", "llm", "tokenizer")
            second = [name.replace("_", "-") for name in others if getattr(self, name)]
            if second:
                raise AssemblyError(
                    f"--{llavas[0].replace('_', '-')} gives a one-tower model with its own language model; "
                    f"--{second[0]} has no place in it. --alpha-clip has."
                )
        elif not (self.llm or self.tokenizer):
            raise AssemblyError("Give --llm, or --tokenizer for a language model that starts from random weights.")
        if self.llm and self.tokenizer:
            raise AssemblyError("--llm brings its own tokenizer; leave --tokenizer out.")
        for option, fields in _DECIDES.items():
            both = [name for name in fields if name in self.config]
            if getattr(self, option) and both:
                raise AssemblyError(
                    f"--{option.replace('_', '-')} decides {both[0]}; leave it out of the configuration."
                )
        known = FineCaptionConfig.__dataclass_fields__
        if foreign := [name for name in self.config if name not in known]:
            raise AssemblyError(f"FineCaptionConfig: {no_such('field', foreign[0], sorted(known))}")


@dataclass
class Plan:
    """Everything that is settled before a tensor is read.

    Of some parts only the configuration or the tokenizer is used; `parts` are those that give tensors.
    """

    config: FineCaptionConfig
    all_parts: list[Part]
    tokenizer: Any
    vocabulary: Vocabulary
    chat_template: str
    template_note: str
    dtype: str
    generation: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    image_processor: dict[str, Any] = field(default_factory=dict)

    @property
    def parts(self) -> list[Part]:
        return [part for part in self.all_parts if part.source.weights]

    @property
    def language_is_given(self) -> bool:
        return any(part.option in ("llm", *FAMILIES) for part in self.parts)


def make_plan(options: AssemblyOptions, tell: Callable[[str], None]) -> Plan:
    """Find the parts, settle the configuration and route every tensor."""
    found: dict[str, tuple[Source, dict[str, TensorInfo]]] = {}
    for option in (*FAMILIES, "clip", "alpha_clip", "convnext", "sam", "llm", "tokenizer"):
        given = getattr(options, option)
        if given:
            tell(f"finding {given}")
            # Alpha-CLIP replaces CLIP's weights, so they need not even be fetched.
            wanted = option != "tokenizer" and not (option == "clip" and options.alpha_clip)
            if option == "convnext" and "/" not in given and "." in given:
                given = _timm_id(given)
            if option in FAMILIES:  # refused, if at all, before its weights are fetched
                llava_fields(option, find_source(given, need_weights=False))
            source = find_source(given, need_weights=wanted)
            found[option] = (source, list_tensors(source.weights))
    sources = {option: source for option, (source, _) in found.items()}
    tensors = {option: listed for option, (_, listed) in found.items()}

    fields = _tower_fields(options, sources, tensors)
    llava = next((option for option in FAMILIES if option in sources), None)
    language_source = sources.get(llava or "llm") or sources["tokenizer"]
    tokenizer = load_tokenizer(language_source)
    language = None
    if "llm" in sources:
        language = configs.language_config(sources["llm"], tensors["llm"])
        text = language.config
    elif llava is not None:
        text = fields["text_config"]
    else:
        text = _fresh_language_config(options.config.get("text_config"), tokenizer)
    newline = NEWLINE if llava is not None and FAMILIES[llava].has_tiles else None
    vocabulary = add_image_token(tokenizer, text.vocab_size, options.image_token, fields.get("image_token_id"), newline)
    template, note = chat_template(tokenizer, vocabulary.image_token, newline or "")
    text.vocab_size = vocabulary.needed
    fields |= {"text_config": text, "image_token_id": vocabulary.image_token_id}
    fields["tie_word_embeddings"] = bool(fields.get("tie_word_embeddings") or text.tie_word_embeddings)
    config = FineCaptionConfig(**fields)
    notes = _without_statistics(sources, fields)
    geometry: dict[str, Any] = {}
    if language is not None and language.note is not None:
        notes.append(language.note)
    if llava is not None:
        geometry, differences = llava_geometry(llava, sources[llava], config.vision_config.image_size)
        notes += differences

    return Plan(
        config=config,
        all_parts=[
            _part(option, source, listed, config, language, vocabulary, "alpha_clip" in found)
            for option, (source, listed) in found.items()
        ],
        tokenizer=tokenizer,
        vocabulary=vocabulary,
        chat_template=template,
        template_note=note,
        dtype=_dtype(language_source) if "tokenizer" not in sources else "float32",
        generation=_generation(language_source) if "tokenizer" not in sources else {},
        notes=notes,
        image_processor=geometry,
    )


def _timm_id(name: str) -> str:
    return name if Path(name).exists() else f"timm/{name}"


def _tower_fields(
    options: AssemblyOptions, sources: dict[str, Source], tensors: dict[str, dict[str, TensorInfo]]
) -> dict[str, Any]:
    """Fields of the configuration that the towers decide, over those that the user gave."""
    fields = dict(options.config)
    for name in options.left_away:
        fields[f"use_{name}"] = False
    if llavas := [option for option in FAMILIES if option in sources]:
        fields |= llava_fields(llavas[0], sources[llavas[0]])
        fields |= configs.image_statistics(sources[llavas[0]], "image")
    elif "clip" in sources:
        fields["vision_config"] = configs.clip_config(sources["clip"])
        fields |= configs.image_statistics(sources["clip"], "image")
    elif "alpha_clip" in sources:
        fields["vision_config"] = configs.alpha_clip_config(sources["alpha_clip"], tensors["alpha_clip"])
    if "convnext" in sources:
        fields |= configs.convnext_config(sources["convnext"], dict(fields.get("convnext_config") or {}))
    if "sam" in sources:
        fields["sam_config"] = configs.sam_config(sources["sam"], tensors["sam"])
        fields |= configs.image_statistics(sources["sam"], "sam_image")
        if sources["sam"].is_hub and fields.get("sam_feature_layer") is None:
            fields["sam_pretrained"] = sources["sam"].name
    return fields | _geometry(fields)


def _without_statistics(sources: dict[str, Source], fields: dict[str, Any]) -> list[str]:
    """Which towers' parts do not say how their pictures are normalised, with what is used instead."""
    clip = next((option for option in (*FAMILIES, "clip", "alpha_clip") if option in sources), "clip")
    notes = []
    towers = ((clip, "image", "CLIP"), ("convnext", "convnext_image", "CLIP"), ("sam", "sam_image", "ImageNet"))
    for option, prefix, kind in towers:
        names = [f"{prefix}_{name}" for name in ("mean", "std") if f"{prefix}_{name}" not in fields]
        if option in sources and names:
            notes.append(
                f"--{option.replace('_', '-')} {sources[option].name} does not say how its pictures are normalised; "
                f"{' and '.join(names)} are those of {kind}. Give others in --config if it was trained with them."
            )
    return notes


def _geometry(fields: dict[str, Any]) -> dict[str, Any]:
    """Size of the high-resolution input and of the common grid, where the user left them open: the input is SAM's, the
    grid the coarsest that loses nothing of the towers, SAM's cells folded by two and two where it is alone."""
    defaults = FineCaptionConfig(**{k: v for k, v in fields.items() if k in ("vision_config",)}, grid_size=1)
    use_convnext, use_sam = fields.get("use_convnext", True), fields.get("use_sam", True)
    sam = _config_of(fields.get("sam_config"), defaults.sam_config)
    size = fields.get("high_res_image_size") or (sam["image_size"] if use_sam else defaults.high_res_image_size)
    if fields.get("grid_size"):
        return {"high_res_image_size": size}
    if use_convnext:
        grid = size // _config_of(fields.get("convnext_config"), defaults.convnext_config)["stride"]
    elif use_sam:
        cells = sam["image_size"] // sam["patch_size"]
        grid = cells // 2 if cells % 2 == 0 else cells
    else:
        vision = _config_of(fields.get("vision_config"), defaults.vision_config)
        grid = vision["image_size"] // vision["patch_size"]
    return {"high_res_image_size": size, "grid_size": grid}


def _config_of(given: Any, default: PreTrainedConfig) -> dict[str, Any]:
    if isinstance(given, PreTrainedConfig):
        return given.to_dict()
    return {**default.to_dict(), **(given or {})}


def _fresh_language_config(given: dict[str, Any] | None, tokenizer: Any) -> PreTrainedConfig:
    """Configuration of a language model that is left out: the user's or the paper's, with the tokenizer's ids."""
    values = {**(given or FineCaptionConfig().text_config.to_dict())}
    values |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return AutoConfig.for_model(values.pop("model_type", "llama"), **{**values, "vocab_size": len(tokenizer)})


def _part(
    option: str,
    source: Source,
    tensors: dict[str, TensorInfo],
    config: FineCaptionConfig,
    found: configs.Language | None,
    vocabulary: Vocabulary,
    has_alpha: bool,
) -> Part:
    layers, tied = config.vision_num_layers, config.tie_word_embeddings
    keys = list(tensors)
    language = (LANGUAGE, HEAD)
    if option in FAMILIES:
        owes = (ADAPTER, *language) if has_alpha else (VISION, ADAPTER, *language)
        newline = vocabulary.newline_id
        part = route(Part(option, source, tensors, owes, (ALPHA,)), llava_map(layers, tied, has_alpha, newline))
        if newline is not None and not part.rows:
            raise AssemblyError(f"--{option.replace('_', '-')} {source.name} lacks: image_newline.")
        return part
    if option == "clip":
        return route(Part(option, source, tensors, (VISION,), (ALPHA,)), clip_map(layers))
    if option == "alpha_clip":
        return route(Part(option, source, tensors, (VISION,)), alpha_clip_map(keys, layers, config.use_mask))
    if option == "convnext":
        stages = configs.convnext_stages(config.convnext_config.architecture, config.convnext_config.model_args)
        used = config.convnext_config.feature_stage % len(stages) + 1
        return route(Part(option, source, tensors, (CONVNEXT,)), convnext_map(keys, used))
    if option == "sam":
        chosen, all_layers = config.sam_feature_layer, config.sam_config.num_hidden_layers
        used = all_layers if chosen is None else chosen % all_layers + 1
        return route(Part(option, source, tensors, (SAM,)), sam_map(used, chosen is None))
    if found is None:  # a tokenizer alone, without tensors
        return Part(option, source, tensors, language)
    return route(
        Part(option, source, tensors, language), language_map(found.base, found.head, tied, rest=found.is_inside)
    )


def _dtype(source: Source) -> str:
    return configs.part_dtype(source.config) or "float32"


def _generation(source: Source) -> dict[str, Any]:
    """First and last tokens of a text, which generation settings know better than the configuration."""
    path = None if source.folder is None else source.folder / "generation_config.json"
    values = read_json(path, AssemblyError) if path is not None and path.is_file() else {}
    return {name: values[name] for name in ("bos_token_id", "eos_token_id") if name in values}
