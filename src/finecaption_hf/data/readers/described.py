"""Files with one described image per element: CompositionCap, GranD, LLaVA, Osprey and DAM.

Each function turns one parsed element into an `Example`, or raises `DataError` with the part that is wrong. What a
format's rules leave out is counted in `left_out`: reason -> number.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ...masks_finecaption import REGION_KEYS
from ..examples import (
    Branch,
    DataError,
    Example,
    Region,
    as_id,
    as_list,
    as_object,
    as_reference,
    as_text,
    keys_of,
    kind,
)
from .keys import Keys
from .texts import (
    mentioned_regions,
    with_marked_region,
    without_entities,
    without_image,
    without_introduction,
)

LeftOut = Counter[str]


def compositioncap(row: Any, where: str, keys: Keys, keep_entity_references: bool, left_out: LeftOut) -> Example:
    """An image with entities, each with a mask and texts by attribute; perhaps a caption of the whole image."""
    row = as_object(row, "example")

    def text(value: Any, what: str) -> str:
        found = as_text(value, what)
        return found if keep_entity_references else as_text(without_entities(found), what)

    regions = []
    if (whole := keys.get(row, "global_caption")) is not None:
        regions.append(Region(None, (Branch(text(whole, "global caption"), "global"),), "global"))
    entities = keys.get(row, "regions")
    if isinstance(entities, dict):
        pairs: Iterable[tuple[str | None, Any]] = entities.items()
    else:
        pairs = ((None, entity) for entity in as_list(entities or [], keys.regions[0]))
    for index, (name, value) in enumerate(pairs):
        what = f"{keys.regions[0]}[{index if name is None else ascii(name[:40])}]"
        entity = as_object(value, what)
        mask = _region(entity, keys, what)
        branches = []
        for field, branch_name in (("caption", keys.caption_name), ("dense_caption", "dense")):
            if (value := keys.get(entity, field)) is not None:
                branches.append(Branch(text(value, f"{what}.{field}"), branch_name))
        attributes = keys.get(entity, "attributes")
        for attribute, answer in _attributes(attributes, keys, f"{what}.{keys.attributes[0]}"):
            branches.append(Branch(text(answer, f"{what}.{keys.attributes[0]}"), attribute))
        if not branches:
            left_out["entities without texts"] += 1
            continue
        region_id = as_id(keys.get(entity, "region_id"))
        regions.append(Region(mask, tuple(branches), name if region_id is None else region_id))
    if not regions:
        raise DataError("example", f"it describes no region; there are {keys_of(row)}. Is the mapping of keys right?")
    return Example(_image(row, keys), tuple(regions), as_id(keys.get(row, "id")), where)


def _attributes(value: Any, keys: Keys, what: str) -> Iterable[tuple[str, Any]]:
    if value is None:
        return
    if isinstance(value, dict):
        for name, texts in value.items():
            for text in texts if isinstance(texts, list) else [texts]:
                yield as_text(name, what), text
        return
    for index, entry in enumerate(as_list(value, what)):
        row = as_object(entry, f"{what}[{index}]")
        yield (
            as_text(keys.get(row, "attribute_name"), f"{what}[{index}].{keys.attribute_name[0]}"),
            keys.get(row, "attribute_text"),
        )


def grand(name: str, value: Any, where: str, left_out: LeftOut) -> Example:
    """GranD: {image: {objects: [{bbox, segmentation, labels, attributes}], dense_caption}}."""
    value = {"objects": value} if isinstance(value, list) else as_object(value, "image")
    regions = []
    for index, entry in enumerate(as_list(value.get("objects"), "objects")):
        what = f"objects[{index}]"
        entry = as_object(entry, what)
        mask = as_reference(entry.get("segmentation"), f"{what}.segmentation")
        if mask is None:
            mask = {"box_xyxy": as_list(entry.get("bbox"), f"{what}.bbox")}
        labels = [label.replace("_", " ") for label in _texts(entry.get("labels"), f"{what}.labels")]
        branches = [Branch(", ".join(dict.fromkeys(labels)), "Category Name")] if labels else []
        attributes = _texts(entry.get("attributes"), f"{what}.attributes")
        branches += [Branch(text, "region") for text in dict.fromkeys(attributes)]
        left_out["repeated attributes of an object"] += len(attributes) - len(set(attributes))
        if branches:
            regions.append(Region(mask, tuple(branches), as_id(entry.get("id"))))
        else:
            left_out["objects without labels and attributes"] += 1
    dense = value.get("dense_caption")
    if isinstance(dense, dict) and dense.get("caption"):
        regions.append(Region(None, (Branch(as_text(dense["caption"], "dense_caption.caption"), "global"),), "global"))
    if not regions:
        raise DataError("image", "no object of it has labels or attributes.")
    return Example(as_text(name, "image"), tuple(regions), None, where)


def _texts(value: Any, what: str) -> list[str]:
    return [as_text(text, what) for text in ([value] if isinstance(value, str) else as_list(value or [], what))]


def llava(row: Any, where: str, keys: Keys, left_out: LeftOut) -> Example:
    """LLaVA: {id, image, conversations}, about the whole image; of a single turn, the branch is named "global"."""
    row = as_object(row, "example")
    if keys.region(row) is not None:
        raise DataError(
            "example", "it has a region, but this format is about whole images. Read it as osprey (--format)."
        )
    turns = _turns(row, keys)
    name = "global" if len(turns) == 1 else None
    branches = []
    for index, (question, answer) in enumerate(turns):
        asked = without_image(question)
        if not asked and name is None:
            raise DataError(f"conversations[{2 * index}]", "the question is empty.")
        branches.append(Branch(answer, name, asked or None))
    return Example(_image(row, keys), (Region(None, tuple(branches)),), as_id(keys.get(row, "id")), where)


def osprey(row: Any, where: str, keys: Keys, left_out: LeftOut) -> Example:
    """Osprey and DAM: an image, one or several masks, and conversations, descriptions or a caption about them."""
    row = as_object(row, "example")
    masks = _masks(row, keys)
    branches: list[list[Branch]] = [[] for _ in masks]
    if (captions := keys.get(row, "descriptions")) is not None:
        for own, text in zip(branches, _one_each(captions, masks, keys.descriptions[0])):
            own.append(Branch(without_introduction(text), "dense"))
    for field, caption_name in (("caption", keys.caption_name), ("dense_caption", "dense")):
        if (captions := keys.get(row, field)) is not None:
            for own, text in zip(branches, _one_each(captions, masks, field)):
                own.append(Branch(text, caption_name))
    if keys.get(row, "conversations") is not None:
        _ask(branches, _turns(row, keys), left_out)
    if (answer := keys.get(row, "answer")) is not None:
        question = keys.get(row, "question")
        asked = None if question is None else with_marked_region(without_image(as_text(question, "question")))
        for own, text in zip(branches, _one_each(answer, masks, "answer")):
            own.append(Branch(text, None if asked else keys.caption_name, asked))
    regions = tuple(Region(mask, tuple(own), name) for (mask, name), own in zip(masks, branches, strict=True) if own)
    if not regions:
        raise DataError("example", f"nothing can be told about a single region; there are {keys_of(row)}.")
    left_out["masks that no turn is about"] += len(masks) - len(regions)
    return Example(_image(row, keys), regions, as_id(keys.get(row, "id")), where)


def _masks(row: dict[str, Any], keys: Keys) -> list[tuple[Any, str | int | None]]:
    """The region references of an example, with ids."""
    listed = keys.get(row, "regions")
    if listed is not None:
        found = []
        for index, entry in enumerate(as_list(listed, "regions")):
            what = f"{keys.regions[0]}[{index}]"
            region = as_object(entry, what)
            found.append((_region(region, keys, what), as_id(keys.get(region, "region_id"))))
        if not found:
            raise DataError(keys.regions[0], "the list is empty.")
        return found
    mask = _region(row, keys, "example")
    # A list of numbers or of lists is one outline; a list of anything else holds one reference per region.
    if isinstance(mask, list) and not any(isinstance(entry, (list, int, float)) for entry in mask):
        if None in mask:
            raise DataError("mask", "one of the masks is missing.")
        return [(as_reference(entry, f"mask[{index}]"), None) for index, entry in enumerate(mask)]
    return [(mask, None)]


def _region(row: dict[str, Any], keys: Keys, what: str) -> Any:
    try:
        mask = keys.region(row)
    except DataError as error:
        raise error.at(what) from error
    if mask is None:
        raise DataError(
            what, f"there is no mask; there are {keys_of(row)}, needed is {_names(keys.mask or REGION_KEYS[:6])}."
        )
    return mask


def _one_each(value: Any, masks: list[Any], what: str) -> list[str]:
    """One text for each mask; a single text for a single mask."""
    texts = [value] if isinstance(value, str) else as_list(value, what)
    if len(texts) != len(masks):
        raise DataError(what, f"there are {len(texts)} texts for {len(masks)} masks. Give one for each.")
    return [as_text(text, f"{what}[{index}]") for index, text in enumerate(texts)]


def _ask(branches: list[list[Branch]], turns: list[tuple[str, str]], left_out: LeftOut) -> None:
    """Give each turn to the region that it is about.

    Placeholders with a number mean that region; those without one take the regions in their order, each once, unless
    there is only one region. A turn without any is about the region of the turn before.
    """
    free = 0
    current: int | None = 0 if len(branches) == 1 else None
    for index, (question, answer) in enumerate(turns):
        about: set[int] = set()
        for number in mentioned_regions(question):
            if number is None and len(branches) > 1:
                about.add(free)
                free += 1
            else:
                about.add(0 if number is None else number - 1)
        about.update(number - 1 for number in mentioned_regions(answer) if number and number <= len(branches))
        wrong = next((region for region in sorted(about) if not 0 <= region < len(branches)), None)
        if wrong is not None:
            raise DataError(
                f"conversations[{2 * index}]", f"region {wrong + 1} is mentioned, but there are {len(branches)} masks."
            )
        if len(about) > 1:
            # A prefix holds one region, so there is nothing that could be asked.
            left_out["turns about several regions at once"] += 1
            continue
        if about:
            (current,) = about
        if current is None:
            raise DataError(
                f"conversations[{2 * index}]",
                f"it does not say which of {len(branches)} regions it is about. Needed is a placeholder: <region1>.",
            )
        asked = with_marked_region(without_image(question))
        branches[current].append(Branch(with_marked_region(answer), None if asked else "region", asked or None))


def _turns(row: dict[str, Any], keys: Keys) -> list[tuple[str, str]]:
    """Questions with their answers. A system message before the first is passed over: the chat template has its own."""
    turns = []
    question: str | None = None
    for index, entry in enumerate(as_list(keys.get(row, "conversations"), "conversations")):
        what = f"conversations[{index}]"
        entry = as_object(entry, what)
        role = entry.get("from", entry.get("role"))
        text = entry.get("value", entry.get("content"))
        if role == "system" and index == 0:
            continue
        if role in ("human", "user") and question is None:
            question = as_text(text, what)
        elif role in ("gpt", "assistant") and question is not None:
            turns.append((question, as_text(text, what)))
            question = None
        else:
            shown = ascii(role[:20]) if isinstance(role, str) else kind(role)
            raise DataError(what, f"the role is {shown}; needed are human (user) and gpt (assistant) in turn.")
    if question is not None or not turns:
        raise DataError("conversations", "the last question has no answer." if question else "there is no turn.")
    return turns


def _image(row: dict[str, Any], keys: Keys) -> Any:
    image = keys.get(row, "image")
    if image is None:
        raise DataError("example", f"there is no image; there are {keys_of(row)}, needed is {_names(keys.image)}.")
    return image if not isinstance(image, str) else as_text(image, "image")


def _names(names: tuple[str, ...]) -> str:
    return " or ".join(repr(name) for name in names)
