"""A Gradio app in which regions of a picture are marked and asked about. It needs the extra `demo`.

`build_demo` and `launch_demo` are in `.app`, which imports gradio; what is here does not.
"""

from .answering import AskedPicture, python_snippet, stream_pieces
from .uploads import MAX_FILE_BYTES, MAX_PICTURE_PIXELS, MAX_REGIONS, UploadError, read_upload

__all__ = [
    "MAX_FILE_BYTES",
    "MAX_PICTURE_PIXELS",
    "MAX_REGIONS",
    "AskedPicture",
    "UploadError",
    "python_snippet",
    "read_upload",
    "stream_pieces",
]
