"""What a model has to offer to be asked about regions."""

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from ..masks_finecaption import RegionMask
from ..pipeline_finecaption import AskedImage
from ..prompts_finecaption import BranchRequest, BranchUpdate, Question


class Describer(Protocol):
    """A model that answers questions about regions.

    Attributes:
        name: for reports.
        settings: all that decides the texts beside requests, as JSON: fingerprint or revision, referral, prompts,
            dtype, .. . Work that was interrupted is gone on with under the same settings only.
        independent: whether an answer does not depend on what is asked beside it. If not, work that goes on asks whole
            batches again, so that it gets the texts of a run in one go.
        questions: the tasks and attributes that it knows by name, with their instructions.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    @property
    def independent(self) -> bool: ...

    @property
    def questions(self) -> Mapping[str, str]: ...

    def prepare(self, picture: Image.Image, regions: Sequence[RegionMask]) -> Any:
        """What the model needs of a picture and its regions. May run in threads, ahead of the model.

        Args:
            picture: RGB, upright, (H, W).
            regions: B of them, of shape (H, W).
        """
        ...

    def refusal(self, question: Question) -> str | None:
        """Why a question, of one turn or several, cannot be asked; `None` where it can."""
        ...

    def stream(
        self,
        prepared: Sequence[Any],
        requests: Sequence[Sequence[BranchRequest]],
        *,
        log_probs: bool = False,
        partial: bool = False,
    ) -> Iterator[BranchUpdate]:
        """The answers, as they come.

        Args:
            prepared: of pictures, each with one or several regions.
            requests: for each of these regions, counted through all pictures, those about it; may be none.
            log_probs: whether answers have log-probabilities, where the model knows them.
            partial: whether unfinished answers come as well, where the model gives them.

        Yields:
            Answers in any order; each request's last one has a `finish_reason`. What fails for a request is the `error`
            of its answer. What is raised ends the run, which then may be gone on with.
        """
        ...


@runtime_checkable
class Spreading(Protocol):
    """A describer that reads pictures and asks about them in other processes, or on other machines."""

    def spread(
        self, prepare: Callable[[int], list[AskedImage]], batches: Sequence[int], *, log_probs: bool
    ) -> Generator[tuple[int, list[AskedImage]], None, None]:
        """Ask all that is to be asked about batches of pictures.

        Args:
            prepare: reads a batch and prepares it for this describer; it can be pickled.
            batches: their numbers.
            log_probs: as for `Describer.stream`.

        Yields:
            Each batch with its answers, in any order.

        Raises:
            FineCaptionError: If it cannot go on. What came before is kept.
        """
        ...
