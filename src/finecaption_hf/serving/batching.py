"""Requests of many users -> batches of one describer.

One thread owns the describer. While it answers a batch, requests wait; those that wait when it is done are the next
batch. Equal pictures of a batch are prepared and encoded once, and equal regions of a picture share their prefix.
"""

import asyncio
import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..asking import Describer, FineCaptionDescriber
from ..masks_finecaption import RegionMask
from ..pipeline_finecaption import AskedImage, AskedRegion, Target, answers
from .limits import LEFT, RequestError

logger = logging.getLogger(__name__)

_GATHER_S = 0.01  # for what comes together: the first of 64 clients would be answered alone


class Job:
    """What a request asks about regions of one picture, and how far it is answered.

    Args:
        picture: RGB, upright, (H, W).
        references: R region references, or errors in their place.
        regions: R of them, with what is asked.
        log_probs: whether answers have log-probabilities.
        partial: whether unfinished answers are of use.

    Attributes:
        regions: with the answers that there are so far.
        prompt_tokens: of the questions that were answered, prefixes included; `None` where the describer does not say.
    """

    def __init__(
        self,
        picture: Image.Image,
        references: Sequence[Any],
        regions: Sequence[AskedRegion],
        *,
        log_probs: bool = False,
        partial: bool = False,
    ) -> None:
        asked = AskedImage.prepare(lambda _, masks: masks, picture, references, regions)
        self.picture, self.regions = picture, asked.regions
        self.log_probs, self.partial = log_probs, partial
        self.masks: list[RegionMask] = asked.prepared or []
        self.rows = asked.rows
        self.picture_key = _digest(picture.size, np.asarray(picture))
        self.mask_keys = [_digest(mask.is_whole, np.packbits(mask.pixels)) for mask in self.masks]
        self.prompt_tokens: int | None = None
        self.is_cancelled = False
        self._left = sum(len(targets) for row in self.rows for targets in row)
        self._failure: str | None = None
        self._changed = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_done(self) -> bool:
        return self._left == 0 or self._failure is not None

    async def updates(self, seconds: float) -> AsyncIterator[None]:
        """Comes back whenever there is more of the answers, until all are there. Whoever leaves it cancels the job.

        Args:
            seconds: how long it may take.

        Raises:
            RequestError: If the describer failed (500) or took longer (504), or the client left (499).
        """
        deadline = time.monotonic() + seconds
        try:
            while not self.is_done:
                try:
                    await asyncio.wait_for(self._changed.wait(), max(deadline - time.monotonic(), 0))
                except asyncio.TimeoutError as error:
                    raise RequestError(
                        f"There was no answer within {seconds:g} seconds. Ask for less at once, or try later.",
                        504,
                        "timeout",
                    ) from error
                self._changed.clear()
                if self.is_cancelled:
                    raise RequestError("The client left.", LEFT, "left")
                if self._failure is None:
                    yield
            if self._failure is not None:
                raise RequestError(self._failure, 500, "model_failed")
        finally:
            self.is_cancelled = not self.is_done

    def leave(self) -> None:
        """Nobody wants the answers any more; called in the event loop."""
        self.is_cancelled = True
        self._changed.set()

    # --- for the batcher ---

    def start(self) -> None:
        """Called in the event loop in which `updates` is."""
        self._loop = asyncio.get_running_loop()

    def note(self, *, is_finished: bool) -> None:
        self._left -= is_finished
        if is_finished or self.partial:
            self._touch()

    def fail(self, reason: str) -> None:
        if not self.is_done:
            self._failure = reason
            self._touch()

    def _touch(self) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._changed.set)


class Batcher:
    """The thread that asks.

    Args:
        describer: what answers.
        pictures_at_once, regions_at_once: of a batch, but for a request that is larger by itself.

    Attributes:
        counts: of `batches`, and of the `batched_requests`, `pictures`, `regions`, `answers` and `tokens` in them;
            `cancelled` requests whose client left before, and `failures` of batches.
    """

    def __init__(self, describer: Describer, *, pictures_at_once: int = 16, regions_at_once: int = 256) -> None:
        self.describer = describer
        self.counts: Counter[str] = Counter()
        self._pictures_at_once, self._regions_at_once = pictures_at_once, regions_at_once
        self._waiting: list[Job] = []
        self._running = 0
        self._is_closed = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="finecaption-batches", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Called in the event loop in which the job's answers are awaited."""
        job.start()
        if job.is_done:
            return
        with self._condition:
            self._waiting.append(job)
            self._condition.notify()

    def close(self, seconds: float) -> None:
        """Answer what is there, then end."""
        with self._condition:
            self._is_closed = True
            self._condition.notify()
        self._thread.join(seconds)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive() and not self._is_closed

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return self._running

    def _run(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._is_closed)
                if not self._waiting:
                    return
            time.sleep(_GATHER_S)
            self._answer_next()

    def _answer_next(self) -> None:
        # In a frame of its own: nothing of a batch is held while there is none.
        batch = self._take()
        try:
            if batch:
                self._answer(batch)
        except Exception as error:  # whatever it is, the next batch may go well
            logger.exception("A batch of %d requests failed.", len(batch))
            self.counts["failures"] += 1
            for job in batch:
                job.fail(f"The model failed ({type(error).__name__}). The server's log says more; try again.")
        finally:
            self._running = 0

    def _take(self) -> list[Job]:
        with self._condition:
            waiting = [job for job in self._waiting if not job.is_cancelled]
            self.counts["cancelled"] += len(self._waiting) - len(waiting)
            batch: list[Job] = []
            left: list[Job] = []
            pictures: set[bytes] = set()
            regions = 0
            for job in waiting:
                is_new = job.picture_key not in pictures
                fits = regions + len(job.masks) <= self._regions_at_once
                if batch and not (fits and (not is_new or len(pictures) < self._pictures_at_once)):
                    left.append(job)
                    continue
                batch.append(job)
                pictures.add(job.picture_key)
                regions += len(job.masks)
            self._waiting, self._running = left, len(batch)
            return batch

    def _answer(self, batch: list[Job]) -> None:
        by_picture: dict[bytes, list[Job]] = {}
        for job in batch:
            by_picture.setdefault(job.picture_key, []).append(job)
        images, owners = [], []
        for number, jobs in enumerate(by_picture.values()):
            image, whose = self._joined(jobs, number)
            images.append(image)
            owners.append(whose)
        self.counts.update(
            batches=1,
            batched_requests=len(batch),
            pictures=len(images),
            regions=sum(len(image.rows) for image in images),
        )
        log_probs, partial = any(job.log_probs for job in batch), any(job.partial for job in batch)
        for image, region, _, answer in answers(self.describer, images, log_probs=log_probs, partial=partial):
            job = owners[image.index][region]
            is_finished = answer.finish_reason is not None
            if is_finished:
                self.counts.update(answers=1, tokens=len(answer.token_ids))
            job.note(is_finished=is_finished)
            if job.is_cancelled and all(each.is_cancelled or each.is_done for each in batch):
                return

    def _joined(self, jobs: Sequence[Job], number: int) -> tuple[AskedImage, list[Job]]:
        """The regions of all jobs about a picture, equal ones once, and whose each of the asked regions is."""
        regions: list[AskedRegion] = []
        owners: list[Job] = []
        masks: dict[bytes, RegionMask] = {}
        rows: dict[bytes, list[list[Target]]] = {}
        for job in jobs:
            for key, mask, row in zip(job.mask_keys, job.masks, job.rows, strict=True):
                masks.setdefault(key, mask)
                rows.setdefault(key, []).extend(
                    [[(len(regions) + region, place) for region, place in targets] for targets in row]
                )
            regions += job.regions
            owners += [job] * len(job.regions)
            job.prompt_tokens = self._prompt_tokens(job)
        prepared = self.describer.prepare(jobs[0].picture, list(masks.values()))
        return AskedImage(regions, number, prepared, list(rows.values())), owners

    def _prompt_tokens(self, job: Job) -> int | None:
        describer = self.describer
        if not isinstance(describer, FineCaptionDescriber):
            return None
        asked = (job.regions[targets[0][0]].requests[targets[0][1]] for row in job.rows for targets in row)
        questions = [it.question for it in asked if describer.refusal(it.question) is None]
        return sum(len(describer.prefix_ids) + len(describer.question_ids(it)) for it in questions)


def _digest(head: Any, content: np.ndarray) -> bytes:
    return hashlib.blake2b(repr(head).encode() + content.tobytes(), digest_size=32).digest()
