"""What formats share that have a JSON file for each picture."""

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from ..errors import DataError
from ..json_stream import parse
from .base import AnnotationFile, ReadOptions, Seen
from .files import files_below, looks, new_file, read_file


class PerPicture(AnnotationFile):
    """A JSON file of one picture, or a folder with some at any depth; other JSON files in it are counted.

    Texts go back into files of the same names, with all else in them as it is.
    """

    indent: ClassVar[int | None] = 2
    """How far the tool indents its JSON."""

    def __init__(self, path: Path, options: ReadOptions) -> None:
        super().__init__(path, options)
        self._paths: list[Path] = []

    @staticmethod
    @abstractmethod
    def is_own(document: Any) -> bool:
        """Whether a JSON file is of this format; of one that was seen, lists may be cut and later keys missing."""

    @abstractmethod
    def row(self, path: Path, where: str, document: dict[str, Any]) -> Any:
        """The row of a file.

        Raises:
            DataError: If it cannot be used.
        """

    @abstractmethod
    def put(self, document: dict[str, Any], answers: Iterator[Mapping[str, str] | None]) -> None:
        """Put the answers about its regions into a document, one for each in their order."""

    @abstractmethod
    def without_area(self, document: dict[str, Any]) -> Iterable[str]:
        """The types of the shapes that are no regions."""

    @classmethod
    def recognises(cls, seen: Seen) -> bool:
        return any(cls.is_own(each.json) for each in looks(seen, ".json"))

    def files(self) -> Iterator[Path]:
        return files_below(self.path, ".json") if self.path.is_dir() else iter([self.path])

    def scan(self) -> Iterator[tuple[str, Any]]:
        self._paths = []
        left_out: Counter[str] = Counter()
        num_others = 0
        for path in self.files():
            where, document = self.document(path)
            if self._is_foreign(document):
                num_others += 1
                continue
            self._paths.append(path)
            row = self._row(path, where, document)
            if not isinstance(row, DataError):
                left_out.update(self.without_area(document))
            yield where, row
        self.notes = [f"{number} shapes of type {name} have no area: left out." for name, number in left_out.items()]
        if num_others:
            self.notes.append(f"{num_others} JSON files of the folder are not of {self.title}: left out.")

    def read(self, index: int) -> tuple[str, Any]:
        where, document = self.document(self._paths[index])
        return where, self._row(self._paths[index], where, document)

    def document(self, path: Path) -> tuple[str, Any]:
        """Place and content of a file, or the error why it has none."""
        where = f"{self.name}/{path.relative_to(self.path).as_posix()}" if path != self.path else self.name
        try:
            return where, parse(read_file(path, where).decode("utf-8-sig"))
        except DataError as error:
            return where, error
        except ValueError as error:
            return where, DataError(where, f"it is no JSON ({error}).")

    def _is_foreign(self, document: Any) -> bool:
        return self.path.is_dir() and not isinstance(document, DataError) and not self.is_own(document)

    def _row(self, path: Path, where: str, document: Any) -> Any:
        if isinstance(document, DataError):
            return document
        try:
            if not self.is_own(document):
                raise DataError(where, f"this is no file of {self.title}.")
            return self.row(path, where, document)
        except DataError as error:
            return error

    def write_back(self, answers: Iterator[Mapping[str, str] | None], target: Path) -> None:
        for path in self.files():
            where, document = self.document(path)
            if self._is_foreign(document):
                continue
            if isinstance(self._row(path, where, document), DataError):
                next(answers, None)  # it had one line in the place of its regions
                continue
            self.put(document, answers)
            place = target / path.relative_to(self.path) if self.path.is_dir() else target
            with new_file(self.path, place) as file:
                file.write(
                    json.dumps(document, ensure_ascii=False, indent=self.indent).encode("utf-8", "surrogatepass")
                )
