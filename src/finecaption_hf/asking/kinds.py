"""Which kind of describer a model's name means, and how each kind is loaded."""

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from .. import EMBEDDED_CHECKPOINT
from ..prompts_finecaption import no_such
from . import loading
from .describer import Describer
from .errors import DescriberError
from .finecaption import FineCaptionDescriber

if TYPE_CHECKING:
    from .describers import PromptTemplates, Referral

_OPENAI = "openai:"

KINDS = ("finecaption", "transformers", "endpoint", "pixels")
"""Of describers, besides models with code of their own."""


def load_describer(
    model: str | os.PathLike[str] | None = None,
    *,
    describer: str | None = None,
    referral: "str | Mapping[str, Any] | Referral | None" = None,
    prompts: "str | Mapping[str, Any] | os.PathLike[str] | PromptTemplates | None" = None,
    base_url: str | None = None,
    api_key_env: str | None = None,
    trust_remote_code: bool = False,
    name: str | None = None,
    max_batch_tokens: int | None = None,
    max_new_tokens: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Describer:
    """Load what answers questions about regions; docs/describers.md lists the kinds with their options.

    Args:
        model: a folder or Hub id: of a FineCaption checkpoint or an adapter of one, see `load`, or of any
            image-text-to-text model of transformers; `"openai:MODEL"`, a model behind OpenAI's interface; `"pixels"`,
            what can be told without a model; `None` means the checkpoint that comes with the package.
        describer: the kind, where the model does not tell it: one of `KINDS`; or the code of a model that has its own:
            one of `REGION_MODELS`, such as `"describe_anything"`, or `"module:function"`, see `RegionModel`; with
            `"@"` and the path of a Python behind it, it runs in that one's environment.
        referral: how regions are pointed out, as `read_referral` takes it; `None` means what suits the model's family.
        prompts: what other models are asked, as `read_templates` takes it, or a YAML file with that (a path, not a
            text); `None` means what suits the family.
        base_url: of an endpoint, such as `"http://127.0.0.1:8000/v1"`; `model` then is the name that it has there.
        api_key_env: the environment variable that holds the endpoint's key; `None` means `OPENAI_API_KEY` where no
            `base_url` is given, else none.
        trust_remote_code: run code that lies beside the weights.
        name: of the model, for reports; `None` means that of the folder or repository.
        max_batch_tokens, max_new_tokens: how much is held at once, and the longest answer.
        device: where the model goes; `None` means CUDA where there is one, else the CPU.
        dtype: such as `"bfloat16"`; `None` means the one in which the weights were saved.
        revision: branch, tag or commit of a Hub repository.
        attn_implementation, adapter: see `load`.
        **options: further ones of the kind.

    Raises:
        DescriberError: If the model cannot be loaded or is none that can be asked, or an option has no effect with it.
        ImportError: If a library that it needs is missing.
        OSError, ValueError: As `load`, for FineCaption.
    """
    given: dict[str, Any] = {
        "referral": referral,
        "prompts": prompts,
        "base_url": base_url,
        "api_key_env": api_key_env,
        "trust_remote_code": trust_remote_code or None,
        "name": name,
        "max_batch_tokens": max_batch_tokens,
        "max_new_tokens": max_new_tokens,
        "device": device,
        "dtype": dtype,
        "revision": revision,
        "attn_implementation": attn_implementation,
        "adapter": adapter,
        **options,
    }
    given = {option: value for option, value in given.items() if value is not None}
    named = None if model is None else os.fspath(model)
    kind = _kind(named, describer, given)
    if kind == "finecaption":
        return _finecaption(named, given)
    _refuse_useless(kind, named, given)
    if kind == "pixels":
        from .describers import PixelsDescriber

        return PixelsDescriber()
    if "referral" in given:
        from .describers.referral import read_referral

        given["referral"] = read_referral(given["referral"])
    if "prompts" in given:
        from .describers.templates import read_prompts

        given["prompts"] = read_prompts(given["prompts"])
    keep_sent, at_once = given.pop("keep_sent", False), given.pop("at_once", False)
    if kind == "transformers":
        found: Any = _transformers(named, given)
    elif kind == "endpoint":
        found = _endpoint(named, given)
    else:
        found = _region_model(kind, named, given)
    if keep_sent:
        found.keep_sent()
    if at_once:
        from .describers import AtOnceDescriber

        return AtOnceDescriber(found)
    return found


def prompts_for(model: str | os.PathLike[str] | None = None, revision: str | None = None) -> "PromptTemplates":
    """What a model beside FineCaption is asked where nobody says it; its weights are not read.

    Args:
        model: a folder or Hub id; `None` means one of no known family.

    Raises:
        DescriberError: If its configuration cannot be read.
    """
    from .describers.families import OTHERS, family_of

    if model is None:
        return OTHERS.prompts
    with loading_told(os.fspath(model)):
        return family_of(loading.read_config(model, revision).get("model_type")).prompts


def options_of_kind(kind: str) -> dict[str, tuple[type, ...]]:
    """The options that a kind of describer takes, each with what it may be in YAML, see `options_of`.

    Args:
        kind: one of `KINDS`, or the code of a model that has its own.
    """
    from .describers import EndpointDescriber, RegionModelDescriber, TransformersDescriber
    from .describers.settings import options_of

    without = ("self", "model", "processor", "templates", "settings")
    ways: dict[str, tuple[type, ...]] = {"referral": (), "prompts": (), "keep_sent": (bool,), "at_once": (bool,)}
    if kind == "finecaption":
        others = ("describer", "prompts", "base_url", "api_key_env", "trust_remote_code")
        return options_of(load_describer, without=(*without, *others))
    if kind == "pixels":
        return {}
    if kind == "transformers":
        makers = (TransformersDescriber, TransformersDescriber.from_pretrained)
        return options_of(*makers, without=without) | ways
    if kind == "endpoint":
        return options_of(EndpointDescriber, without=without) | ways
    own: dict[str, tuple[type, ...]] = {"trust_remote_code": (bool,), "arguments": (Mapping,)}
    own |= dict.fromkeys(("revision", "device", "dtype", "max_new_tokens"), ())
    return options_of(RegionModelDescriber, without=without) | ways | own


# --- which kind ------------------------------------------------------------------------------------------------------


def _kind(model: str | None, describer: str | None, given: Mapping[str, Any]) -> str:
    from .describers.region_models import REGION_MODELS

    if describer is not None:
        code = describer.partition("@")[0]
        module, colon, function = code.partition(":")
        if (
            describer in KINDS
            or code in REGION_MODELS
            or (colon and function.isidentifier() and all(part.isidentifier() for part in module.split(".")))
        ):
            return describer
        raise DescriberError(
            f"{no_such('describer', describer, (*KINDS, *REGION_MODELS))} One of your own is module:function."
        )
    if "base_url" in given or (model is not None and model.startswith(_OPENAI)):
        return "endpoint"
    if model is None:
        return "finecaption"
    if model == "pixels":
        return "pixels"
    with loading_told(model):
        config = loading.read_config(model, given.get("revision"))
    return "finecaption" if config.get("model_type") == "finecaption" else "transformers"


def _refuse_useless(kind: str, model: str | None, given: Mapping[str, Any], takes_more: bool = False) -> None:
    """Refuse an option that another kind has, or none."""
    known = options_of_kind(kind)
    unknown = [option for option in given if option not in known]
    others = set().union(*map(options_of_kind, (*KINDS, "describe_anything")))
    if useless := [option for option in unknown if option in others]:
        told = {
            "finecaption": "a FineCaption checkpoint",
            "transformers": "a model of transformers",
            "endpoint": "an endpoint",
            "pixels": "no model",
        }
        raise DescriberError(
            f"{', '.join(useless)}: no effect with {model or 'the embedded checkpoint'}, which is "
            f"{told.get(kind, f'asked by {kind}')}. Leave that out."
        )
    if unknown and not takes_more:
        from .describers.settings import check_options

        check_options(dict.fromkeys(unknown), known, f"The describer {kind!r}")


# --- how each is loaded ----------------------------------------------------------------------------------------------


def _finecaption(model: str | None, given: dict[str, Any]) -> Describer:
    from .describers.referral import WITH_MASK, read_referral

    _refuse_useless("finecaption", model, given, takes_more=True)  # the others are for `from_pretrained`
    referral = read_referral(given.pop("referral", "mask"))
    if referral.kind not in WITH_MASK:
        raise DescriberError(f"FineCaption is referred to by 'mask' or 'filled_box', not by {referral.kind!r}.")
    name = given.pop("name", None) or (EMBEDDED_CHECKPOINT.name if model is None else model)
    own = {option: given.pop(option, None) for option in ("max_batch_tokens", "max_new_tokens")}
    parts = loading.load(model, **given)
    describer = FineCaptionDescriber(*parts, name=name, **own)
    if referral.kind == "mask":
        return describer
    from .describers import FilledBoxDescriber

    return FilledBoxDescriber(describer)


def _transformers(model: str | None, given: dict[str, Any]) -> Describer:
    from .describers import TransformersDescriber
    from .describers.families import family_of

    if model is None:
        raise DescriberError("There is no model. Give the folder or Hub id of an image-text-to-text model.")
    with loading_told(model):
        config = loading.read_config(model, given.get("revision"))
    model_type = config.get("model_type")
    _check_takes_pictures(model, model_type, config.get("auto_map") or {}, given.get("trust_remote_code", False))
    family = family_of(model_type)
    referral, prompts = given.pop("referral", family.referral), given.pop("prompts", family.prompts)
    with loading_told(model, given.get("device")):
        return TransformersDescriber.from_pretrained(model, referral, prompts, **given)


def _check_takes_pictures(model: str, model_type: Any, auto_map: Mapping[str, Any], trusted: bool) -> None:
    from transformers import CONFIG_MAPPING, __version__
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as known

    remedy = "Give an image-text-to-text model, or what asks it (describer): see docs/describers.md."
    if model_type in known:
        return
    if "AutoModelForImageTextToText" in auto_map:
        if trusted:
            return
        raise DescriberError(
            f"{model} runs code that lies beside its weights. Look at that code, then give trust_remote_code "
            "(--trust-remote-code) and a revision, so that it stays the code that you looked at."
        )
    if auto_map:
        raise DescriberError(
            f"{model} has code of its own beside its weights, which does not offer it as an image-text-to-text model. "
            "Give what asks it (describer, such as module:function of your own): see docs/describers.md."
        )
    if model_type in CONFIG_MAPPING:
        raise DescriberError(
            f"{model} holds a model of type {model_type!r}, which transformers has no image-text-to-text model of. "
            f"{remedy}"
        )
    raise DescriberError(
        f"{model} holds a model of type {model_type!r}, which transformers {__version__} does not know. Update it if "
        f"the model is newer. {remedy}"
    )


def _endpoint(model: str | None, given: dict[str, Any]) -> Describer:
    from .describers import EndpointDescriber
    from .describers.families import OTHERS

    called = (model or "").removeprefix(_OPENAI)
    if not called:
        raise DescriberError("There is no model. Give the name that it has at the endpoint, such as openai:gpt-4o.")
    referral, prompts = given.pop("referral", OTHERS.referral), given.pop("prompts", OTHERS.prompts)
    if "base_url" in given:  # whose server may be anybody's: it gets a key only if one is named
        given.setdefault("api_key_env", None)
    return EndpointDescriber(called, referral, prompts, **given)


def _region_model(code: str, model: str | None, given: dict[str, Any]) -> Describer:
    from .describers import Referral, RegionModelDescriber
    from .describers.families import OTHERS, Family
    from .describers.region_models import REGION_MODELS, RegionModel
    from .describers.separate import SeparateModel

    code, _, python = code.partition("@")
    known = REGION_MODELS.get(code)
    own = ("referral", "prompts", "name", "box_format")
    asked = {option: given.pop(option) for option in own if option in given}
    arguments = {**given, **given.pop("arguments", {})}
    arguments.pop("arguments", None)
    loaded: RegionModel
    with loading_told(model or code, given.get("device")):
        if python:
            loaded = SeparateModel(python, f"region_adapters.{code}:load" if known else code, model, arguments)
        else:
            make = _imported(f"{__package__}.describers.region_adapters.{code}:load" if known else code)
            _check_taken(make, arguments, code)
            loaded = make(*([] if model is None else [model]), **arguments)
    family = known.family if known else Family(Referral("mask")) if loaded.takes_mask else OTHERS
    asked = {"name": model or code, "box_format": known.box_format if known else "pixels", **asked}
    referral, prompts = asked.pop("referral", family.referral), asked.pop("prompts", family.prompts)
    return RegionModelDescriber(loaded, referral, prompts, **asked)


def _check_taken(make: Callable[..., Any], arguments: Mapping[str, Any], code: str) -> None:
    taken = inspect.signature(make).parameters.values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken):
        known = {parameter.name for parameter in taken}
        if useless := [option for option in arguments if option not in known]:
            raise DescriberError(f"{', '.join(useless)}: no effect with {code}, which does not take it. Leave it out.")


def _imported(code: str) -> Callable[..., Any]:
    module, _, function = code.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise DescriberError(f"The describer {code} cannot be imported: {error}") from error


@contextmanager
def loading_told(model: str, device: Any = None) -> Iterator[None]:
    """What the libraries say of a model that cannot be loaded, in one line with what to do."""
    from huggingface_hub import errors

    try:
        yield
    except (DescriberError, ImportError):
        raise
    except torch.OutOfMemoryError as error:
        raise DescriberError(
            f"{model} does not fit into the memory of {device or 'the GPU'}. Give a dtype such as bfloat16, another "
            f"device, or a smaller model; finecaption info {model} tells what it takes."
        ) from error
    except (OSError, ValueError) as error:
        causes = list(_causes(error))
        said = " ".join(str(error).split())

        def is_of(*kinds: type[BaseException]) -> bool:
            return any(isinstance(cause, kinds) for cause in causes)

        if isinstance(error, FileNotFoundError) and said.startswith(model):  # it says all of this itself
            raise DescriberError(said) from error
        if is_of(errors.GatedRepoError):
            reason = (
                "is gated: its owner wants conditions accepted. Accept them on its page of the Hub, then log in (hf "
                "auth login)."
            )
        elif is_of(errors.RepositoryNotFoundError):
            reason = (
                "is no folder, and the Hub has no such repository or shows it to its owners only. Check the name; for "
                "a private one log in (hf auth login)."
            )
        elif is_of(errors.RevisionNotFoundError):
            reason = "has no such revision. Give a branch, a tag or a commit of it."
        elif is_of(errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, ConnectionError):
            reason = (
                "is no folder, is not on this machine, and the Hub cannot be reached. Check the name and the network, "
                "or give a folder."
            )
        elif "trust_remote_code" in said:
            reason = (
                "runs code that lies beside its weights. Look at that code, then give trust_remote_code "
                "(--trust-remote-code) and a revision, so that it stays the code that you looked at."
            )
        else:
            reason = f"cannot be loaded: {said[:500]}"
        raise DescriberError(f"{model} {reason}") from error


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__
