"""HEIC pictures, which Pillow reads with the help of pillow-heif, an extra."""

from .. import install_hint
from .errors import DataError

HEIF = (".heic", ".heif", ".hif")
_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def is_heif(data: bytes) -> bool:
    """Whether a file is of that kind, by how it begins."""
    return data[4:8] == b"ftyp" and data[8:12] in _BRANDS


def enable_heif(where: str) -> None:
    """Let Pillow open such files, for the whole process.

    Raises:
        DataError: If pillow-heif is not installed.
    """
    try:
        import pillow_heif
    except ImportError as error:
        raise DataError(where, f"this is a HEIC picture, which needs pillow-heif. {install_hint('heif')}.") from error
    pillow_heif.register_heif_opener()
