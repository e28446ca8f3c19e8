"""How interrupted work goes on, whatever the work is, and ends with the same bytes.

- An *entry* is a finished piece of work: a line of an `EntryFile`, which one process appends to. An end in the midst of
  a line costs that entry only (`repair`).
- A *manifest* says what the work was begun with. `check_same` is the one comparison of then and now, in one message.
- A *seal*, written last, says that a folder is whole: `seal` and `read_seal`.
- `model_fingerprint` says which model it is, for manifests; `files_fingerprint` says it of a folder that is not loaded.
- `whole_file` and `write_json` write a file that appears as a whole, or not at all.

`ResumeError` is raised for what is on disk, `UnfinishedError` where the disk takes nothing more.
"""

from .fingerprint import files_fingerprint, model_fingerprint
from .lines import EntryFile, repair, to_line
from .manifest import SEAL, check_same, differences, read_manifest, read_seal, seal
from .writing import ResumeError, UnfinishedError, whole_file, write_json, writing_into

__all__ = [
    "SEAL",
    "EntryFile",
    "ResumeError",
    "UnfinishedError",
    "check_same",
    "differences",
    "files_fingerprint",
    "model_fingerprint",
    "read_manifest",
    "read_seal",
    "repair",
    "seal",
    "to_line",
    "whole_file",
    "write_json",
    "writing_into",
]
