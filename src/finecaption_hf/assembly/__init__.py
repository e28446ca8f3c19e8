"""Build a FineCaption checkpoint from pretrained parts, key by key.

`sources` finds the files of a part, `tensors` reads them one tensor at a time, `key_maps` says which tensor goes where,
`plan` settles the configuration, `accounting` compares parts and model, `language` fits tokenizer and chat template,
`writer` writes shards; `build` puts them in order, `summary` tells what was done.
`cost` counts what any configuration costs, without weights.

>>> from finecaption_hf.assembly import assemble
>>> assemble("out", clip="openai/clip-vit-large-patch14-336", alpha_clip="clip_l14_336_grit.pth", llm="owner/some-llm")
"""

from .build import assemble
from .errors import AssemblyError

__all__ = ["AssemblyError", "assemble"]
