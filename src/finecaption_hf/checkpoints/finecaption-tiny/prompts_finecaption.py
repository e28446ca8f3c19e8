"""Tasks and attributes with their instructions, and a chat template that puts the image before the question.

The paper (arXiv 2411.15411) counts 18 attributes, of which 16 are named in its figures; those are here. The list is
open: a processor takes any mapping of names to instructions as `questions` and saves it with the checkpoint.
"""

import re
from collections.abc import Mapping

TASKS = {
    "region": "Describe the marked region in one sentence.",
    "dense": "Describe the marked region in detail.",
    "global": "Describe the whole image in detail.",
}
"""Task name -> instruction: a short caption of a region, a dense one, and a caption of the whole image."""

ATTRIBUTES = {
    "Category Name": "What is in the marked region? Answer with the name of its category.",
    "One-Sentence Description": "Sum up what the marked region shows in a single sentence.",
    "Body Pose/Gesture": "Describe the body pose and the gestures in the marked region.",
    "Body Shape": "Describe the body shape in the marked region.",
    "Facial Expression": "Describe the facial expression in the marked region.",
    "Skin Texture and Color": "Describe the texture and the color of the skin in the marked region.",
    "Hair": "Describe the hair in the marked region.",
    "Clothing, Shoes and Accessories": "Describe the clothing, the shoes and the accessories in the marked region.",
    "Age Range": "Which age range does the marked region suggest?",
    "Color": "Describe the colors of the marked region.",
    "Materials/Texture": "Describe the materials and the texture of the marked region.",
    "Shape": "Describe the shape of the marked region.",
    "Camera Viewpoint": "From which camera viewpoint is the marked region seen?",
    "Associative Visual Effect": (
        "Describe the visual effects that belong to the marked region, such as shadows, reflections or motion blur."
    ),
    "Interaction with Other Objects": "How does the marked region interact with other objects?",
    "Relative Location with Other Objects": "Where is the marked region in relation to other objects?",
}
"""Attribute name -> instruction, in the paper's spelling of the names."""

DEFAULT_CHAT_TEMPLATE = """\
{{- bos_token or '' }}
{%- for message in messages %}
    {{- message['role'] + ': ' }}
    {%- if message['content'] is string %}
        {%- set parts = [{'type': 'text', 'text': message['content']}] %}
    {%- else %}
        {%- set parts = message['content'] %}
    {%- endif %}
    {%- for part in parts if part['type'] == 'image' %}
        {{- '<image>' }}
    {%- endfor %}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {%- for part in parts if part['type'] == 'text' %}
                {{- part['text'] }}
            {%- endfor %}
            {{- eos_token or '' }}
        {%- endgeneration %}
    {%- else %}
        {%- for part in parts if part['type'] == 'text' %}
            {{- part['text'] }}
        {%- endfor %}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'assistant: ' }}
{%- endif %}"""
"""For a language model that has no template of its own. The images of a message come before its text, wherever they
stand in the message, so that nothing up to the last image token depends on the question."""


def normalise_name(name: str) -> str:
    """Bring a name to one form: `"Materials/Texture"` and `"materials texture"` become `"materials_texture"`.

    Only separators go: `"Color?"` is a question in someone's own words, not the name `"Color"`.
    """
    return re.sub(r"[\s_/,&-]+", "_", name.casefold()).strip("_")


def find_question(name: str, questions: Mapping[str, str]) -> str | None:
    """The instruction of a task or attribute, `None` where no name matches. See `normalise_name` for what matters."""
    wanted = normalise_name(name)
    return next((text for known, text in questions.items() if normalise_name(known) == wanted), None)


def resolve_question(name: str, questions: Mapping[str, str]) -> str:
    """The instruction of a task or attribute. Case and separators of the name do not matter.

    Args:
        name (`str`): such as `"Materials/Texture"`, `"materials_texture"` or `"dense"`.
        questions (`Mapping[str, str]`): the names that are known, with their instructions.

    Returns:
        `str`: the instruction.

    Raises:
        ValueError: If no name matches.
    """
    question = find_question(name, questions)
    if question is None:
        raise ValueError(
            f"There is no task or attribute {name!r}. Known are: {', '.join(questions)}. A question in your own words "
            "goes into the message as it is; to add a name, give the processor your own `questions`."
        )
    return question
