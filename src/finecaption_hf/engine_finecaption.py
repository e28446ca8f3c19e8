"""All questions about all regions in one pass: `BranchEngine`.

The prefix of a region is everything up to its last image token; a branch is one question with its answer. What they
attend to is in branches_finecaption. The keys and values of a prefix are computed once per region, and its branches are
decoded together.

Dimension letters: R regions, I images, B regions of these, N image tokens, D language-model width, L tokens that are
new to the cache, C h w channels and cells of the high-resolution towers' features, V vocabulary.
"""

from .configuration_finecaption import MIN_TRANSFORMERS  # noqa: F401  (an unsupported release ends in that file)

# isort: split
import functools
import gc
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import Cache, DynamicCache, GenerationConfig, LogitsProcessorList, StoppingCriteriaList, logging
from transformers.modeling_outputs import BaseModelOutputWithPooling

from .branches_finecaption import (
    CACHE_ARGUMENT,
    LANGUAGE_MODEL_TURN,
    PADDING_BRANCH,
    Branch,
    BranchCache,
    ChooseInGenerate,
    Columns,
    StopInGenerate,
    branch_attention_mask,
    branch_position_ids,
    branch_support,
    choose_tokens,
    context_length,
    length_limit,
    use_branch_attention,
)
from .image_processing_finecaption import join_vision
from .prompts_finecaption import BranchAnswer, BranchRequest, BranchUpdate, PromptEncoder, chat_about, find_question

logger = logging.get_logger(__name__)

# Settings of a generation configuration that change which token comes next, and that only `generate` knows; and with
# which value, beside none at all, they do not. Prediction loops of the library write those values.
_ONLY_IN_GENERATE: dict[str, Any] = {
    "bad_words_ids": [],
    "begin_suppress_tokens": [],
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "exponential_decay_length_penalty": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "guidance_scale": 1.0,
    "min_length": 0,
    "min_new_tokens": 0,
    "no_repeat_ngram_size": 0,
    "sequence_bias": {},
    "suppress_tokens": [],
}


class BranchEngine:
    """Answers many questions about many regions: images are encoded once each, regions are encoded and prefilled once
    each, and all their branches are decoded together.

    Greedy answers are those of one `generate` call per question. Of the model's generation configuration only the end
    tokens, `max_new_tokens` and `repetition_penalty` count; how tokens are drawn is said by the requests.

    A language model that cannot decode branches which share a prefix is used in the plain way, by `generate` on batches
    of whole prompts, with a warning; images and regions are then still encoded once.

    Engines may share a model between threads, and take turns at its language model. Other calls of that model must not
    run at the same time.

    Args:
        model (`FineCaptionForConditionalGeneration`): in evaluation mode; or a `PeftModel` around it, whose adapters
            may be switched by their names between calls.
        processor (`FineCaptionProcessor`): the checkpoint's.
        max_batch_tokens (*optional*): how many tokens, prefixes and branches, are held at once. By default as many as
            half of the free memory takes. When memory runs out nevertheless, it is halved, and work goes on.

    Attributes:
        max_new_tokens (`int`): the longest answer where a request says nothing: that of the model's generation
            configuration, else 64.
        fallback_reason (`str`, *optional*): why the plain way is used, since construction or in the last call.
        counts (`Counter[str]`): of `images` and `regions` encoded, `prefixes` and `branches` computed, `steps`, and
            `cache_bytes`, the most memory that keys and values took.
        seconds (`dict[str, float]`): spent so far on `images`, `regions`, `prefixes`, `questions` and `tokens`.
    """

    prefill_tokens_at_once = 4096
    question_tokens_at_once = 2048
    regions_at_once = 16

    def __init__(self, model: Any, processor: Any, *, max_batch_tokens: int | None = None) -> None:
        if max_batch_tokens is not None and max_batch_tokens < 1:
            raise ValueError(f"max_batch_tokens is {max_batch_tokens}. Give a positive number, or None.")
        self.model = model = without_wrapper(model)
        self.processor = processor
        # (picture, regions) -> `vision` of `stream`
        self.prepare = functools.partial(processor.image_processor, return_tensors="pt")
        self.max_batch_tokens = max_batch_tokens
        self.max_new_tokens: int = model.generation_config.max_new_tokens or 64
        self.counts: Counter[str] = Counter()
        self.seconds = dict.fromkeys(("images", "regions", "prefixes", "questions", "tokens"), 0.0)
        ends = model.generation_config.eos_token_id
        self._end_ids = set([] if ends is None else ends if isinstance(ends, list) else [ends])
        self._language_model = model.model.language_model
        self._prompts: PromptEncoder | None = None
        self.prefix_ids: tuple[int, ...] = ()
        self._obstacle = self._find_obstacle()
        self.fallback_reason: str | None = None
        self._fall_back(self._obstacle)

    def _find_obstacle(self) -> str | None:
        try:
            self._prompts = PromptEncoder(self.processor)
            self.prefix_ids = self._prompts.prefix_ids
        except ValueError as error:
            return str(error)
        settings = self.model.generation_config.to_dict()
        only_in_generate = [
            name for name, neutral in _ONLY_IN_GENERATE.items() if settings.get(name) not in (None, neutral)
        ]
        if only_in_generate:
            return f"The model's generation configuration sets {', '.join(only_in_generate)}."
        obstacle = branch_support(self.model).obstacle
        if obstacle is not None:
            return f"The language model ({self._language_model.config.model_type}) {obstacle}."
        return None

    def _obstacle_of_length(self, branches: Sequence[Branch]) -> str | None:
        """Where positions or masks of long sequences are not those of short ones, branches cannot stand for them."""
        limit = length_limit(self._language_model)
        longest = max((len(self.prefix_ids) + branch.num_tokens for branch in branches), default=0)
        if limit is None or longest <= limit:
            return None
        return (
            f"A prefix and one of its branches take up to {longest} tokens, more than the {limit} within which every "
            "layer of the language model sees all."
        )

    def _fall_back(self, reason: str | None) -> None:
        self.fallback_reason = reason
        if reason is not None:
            logger.warning_once(
                f"Branches are decoded in the plain way, each with a prefix of its own, which is much slower. {reason}"
            )

    # --- with `prepare` and `stream`, what makes it a describer: see `answers` in pipeline_finecaption.py ---

    @property
    def questions(self) -> Mapping[str, str]:
        """The names of tasks and attributes that are known, with their questions."""
        questions: Mapping[str, str] = self.processor.questions
        return questions

    def refusal(self, question: str | tuple[str, ...]) -> str | None:
        """Why a question cannot be asked; `None` where it can."""
        try:
            self.question_ids(question)
        except ValueError as error:
            return str(error)
        return None

    def answer(
        self, vision: Mapping[str, Any], requests: Sequence[Sequence[BranchRequest | str]], *, log_probs: bool = False
    ) -> list[list[BranchAnswer]]:
        """All answers, in the order of the requests. See `stream`."""
        answers: list[list[Any]] = [[None] * len(of_region) for of_region in requests]
        for region, branch, found in self.stream(vision, requests, log_probs=log_probs, partial=False):
            answers[region][branch] = found
        return answers

    @torch.inference_mode()
    def stream(
        self,
        vision: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        requests: Sequence[Sequence[BranchRequest | str]],
        *,
        log_probs: bool = False,
        partial: bool = True,
    ) -> Iterator[BranchUpdate]:
        """Answers as they come.

        Args:
            vision: what the processor's image processor gives for I images and B regions; moved to the model's device
                and converted to its dtype here. `high_res_features` (I, C, h, w), from `get_high_res_features`, may
                stand in the place of `high_res_pixel_values`. Several lots of images are joined.
            requests: for each of the B regions those about it; a text stands for a request with default settings.
            log_probs: whether answers have log-probabilities.
            partial: whether answers come with every new token (in the plain way only once they are finished).

        Yields:
            `BranchUpdate`: each branch's last one has a `finish_reason`. In which order branches come is not fixed. A
            question that with its answer is longer than the language model's context has an `error` for an answer.

        Raises:
            ValueError: If requests and regions differ in number, or a question holds a special token.
            torch.OutOfMemoryError: If memory does not suffice for a single branch.
        """
        images = _Images(self, vision if isinstance(vision, Mapping) else join_vision(vision))
        if len(requests) != images.num_regions:
            raise ValueError(
                f"There are requests for {len(requests)} regions, but vision holds {images.num_regions}. Give a list "
                "of requests for each region, which may be empty."
            )
        pending = [
            self._branch(region, index, request, log_probs)
            for region, of_region in enumerate(requests)
            for index, request in enumerate(of_region)
        ]
        room = max((context_length(self._language_model) or sys.maxsize) - len(self.prefix_ids), 0)
        for branch in (branch for branch in pending if branch.num_tokens > room):
            error = (
                f"The question takes {len(branch.question_ids)} tokens and its answer up to {branch.max_new_tokens}, "
                f"but the language model has room for {room} of both. Shorten the question, or lower max_new_tokens."
            )
            yield BranchUpdate(branch.region, branch.index, BranchAnswer("", finish_reason="error", error=error))
        pending = [branch for branch in pending if branch.num_tokens <= room]
        obstacle = self._obstacle or self._obstacle_of_length(pending)
        self._fall_back(obstacle)
        budget = self.max_batch_tokens or self._tokens_of_free_memory()
        while pending:
            wave = self._next_wave(pending, budget, plain=obstacle is not None)
            failure = None
            try:
                for branch in self._run(wave, images):
                    # After a restart, what was reported before does not come again.
                    if branch.finish_reason or (partial and len(branch.token_ids) > branch.reported):
                        branch.reported = len(branch.token_ids)
                        yield BranchUpdate(branch.region, branch.index, self._answer(branch))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or wave.is_smallest:
                    raise
                failure = str(error).partition("\n")[0]
            if failure is not None:
                # Behind the except clause, whose traceback holds the tensors.
                held = max(wave.num_tokens(len(self.prefix_ids)), 2)
                # It stays for later calls.
                budget = self.max_batch_tokens = max(min(budget, held) // 2, 1)
                logger.warning(
                    f"Memory ran out ({failure}). What is left is done with {budget} tokens at once instead of {held}."
                )
                for branch in wave.branches:
                    # In the plain way none is reported before all are finished.
                    if wave.plain or branch.finish_reason is None:
                        branch.restart()
                gc.collect()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            pending = [branch for branch in pending if branch.finish_reason is None]
            images.release({branch.region for branch in pending})

    def _branch(self, region: int, index: int, request: BranchRequest | str, log_probs: bool) -> Branch:
        if isinstance(request, str):
            request = BranchRequest(request)
        config = self.model.generation_config
        return Branch(
            region,
            index,
            request,
            self.question_ids(request.question),
            request.max_new_tokens or self.max_new_tokens,
            request.repetition_penalty or config.repetition_penalty or 1.0,
            [] if log_probs else None,
        )

    def question_ids(self, question: str | tuple[str, ...]) -> tuple[int, ...]:
        """Tokens of a question, given by its name, in own words or as turns of a chat, behind `prefix_ids`.

        Raises:
            ValueError: If the question holds a special token, such as that of an image.
        """
        if isinstance(question, str):
            question = find_question(question, self.processor.questions) or question
        return self._whole_prompt(question) if self._prompts is None else self._prompts.question_ids(question)

    def _whole_prompt(self, question: str | tuple[str, ...]) -> tuple[int, ...]:
        """Tokens of a prompt whose template does not split into a prefix and a question."""
        processor, chat = self.processor, chat_about(self.processor, question)
        prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        if prompt.count(processor.image_token) != 1:
            raise ValueError(f"The prompt {prompt!r} has not one image token. Mend the question or the chat template.")
        prompt = prompt.replace(processor.image_token, processor.image_token * processor.image_seq_length)
        return tuple(processor.tokenizer(prompt, add_special_tokens=False)["input_ids"])

    # --- how much at once ---

    def _tokens_of_free_memory(self) -> int:
        """Tokens whose keys and values fill half of the memory that is free where they will lie."""
        device = self.model.device
        if device.type == "cuda":
            free = torch.cuda.mem_get_info(device)[0]
            free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        else:
            free = _free_main_memory()
        return max(1, free // 2 // branch_support(self.model).bytes_per_token)

    def _next_wave(self, pending: list[Branch], budget: int, plain: bool) -> "_Wave":
        """Regions with their branches that fit, those with most branches first, so that few places stay empty."""
        by_region: dict[int, list[Branch]] = {}
        for branch in pending:
            by_region.setdefault(branch.region, []).append(branch)
        groups = sorted(by_region.values(), key=len, reverse=True)
        if plain:
            rows = [[branch] for group in groups for branch in group]
            fitting = _how_many_fit(rows, len(self.prefix_ids), min(budget, self._plain_budget))
            return _Wave([rows[: max(fitting, 1)]], plain)
        fitting = _how_many_fit(groups, len(self.prefix_ids), budget)
        if fitting and sum(len(branch.question_ids) for branch in groups[0]) <= self.question_tokens_at_once:
            return _Wave([groups[:fitting]])
        # One region alone is too much, or has so many questions that scoring each with all others would take long: its
        # branches take turns at its prefix.
        passes: list[list[list[Branch]]] = []
        row: list[Branch] = []
        for branch in groups[0]:
            longer = [*row, branch]
            num_questions = sum(len(it.question_ids) for it in longer)
            too_many = num_questions > self.question_tokens_at_once
            if row and (too_many or _num_tokens([longer], len(self.prefix_ids)) > budget):
                passes.append([row])
                row = [branch]
            else:
                row = longer
        return _Wave([*passes, [row]])

    # --- computing ---

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        self.seconds[phase] += time.perf_counter() - start

    def _run(self, wave: "_Wave", images: "_Images") -> Iterator[Branch]:
        """Answer a wave; gives each branch after each of its tokens."""
        if wave.plain:
            yield from self._generate(wave.branches, images)
            return
        cache = self._prefill(images.tokens(wave.regions), wave)
        for rows in wave.passes:
            self.counts["branches"] += sum(map(len, rows))
            yield from self._decode(cache, Columns(rows))

    def _prefill(self, image_tokens: torch.Tensor, wave: "_Wave") -> BranchCache:
        """The keys and values of the prefixes of regions, from their image tokens `(R, N, D)`."""
        prefixes: list[Cache] = []
        with self._timed("prefixes"), LANGUAGE_MODEL_TURN:
            at_once = max(1, self.prefill_tokens_at_once // len(self.prefix_ids))
            for chunk in image_tokens.split(at_once):
                cache = DynamicCache()
                self.model(
                    input_ids=torch.tensor([self.prefix_ids] * len(chunk), device=self.model.device),
                    mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=chunk)},
                    use_cache=True,
                    logits_to_keep=1,
                    **{CACHE_ARGUMENT: cache},
                )
                prefixes.append(cache)
        self.counts["prefixes"] += len(image_tokens)
        most = max(sum(len(branch.question_ids) for branch in row) for rows in wave.passes for row in rows)
        return BranchCache(prefixes, most)

    def _decode(self, cache: BranchCache, columns: Columns) -> Iterator[Branch]:
        with self._timed("questions"):
            logits = self._ask(cache, columns)
            places = columns.places
            tokens = self._advance(logits, columns.at(places))
        while True:
            self.counts["cache_bytes"] = max(self.counts["cache_bytes"], cache.num_bytes)
            yield from columns.at(places)
            going = [
                (place, token)
                for place, branch, token in zip(places, columns.at(places), tokens, strict=True)
                if branch.finish_reason is None
            ]
            if not going:
                return
            with self._timed("tokens"):
                self.counts["steps"] += 1
                by_branch = {id(columns.rows[row][column]): token for (row, column), token in going}
                columns.shrink(cache)
                places = columns.places
                branches = columns.at(places)
                positions = [
                    cache.prefix_length + len(branch.question_ids) + len(branch.token_ids) - 1 for branch in branches
                ]
                cache.next_step()
                logits = self._forward(
                    cache,
                    columns.tensor(places, [by_branch[id(it)] for it in branches], self.model.device),
                    columns.tensor(places, positions, self.model.device),
                )
                rows, numbers = torch.tensor(places, device=logits.device).unbind(dim=1)
                tokens = self._advance(logits[rows, numbers], branches)

    def _ask(self, cache: BranchCache, columns: Columns) -> torch.Tensor:
        """Put the questions behind their prefixes: logits `(branches, V)` of the answers' first tokens."""
        device = self.model.device
        lengths = [tuple(len(branch.question_ids) for branch in row if branch is not None) for row in columns.rows]
        most = max(map(sum, lengths))
        owners = torch.full((len(lengths), most), PADDING_BRANCH)
        found = []
        start = 0
        while start < len(lengths):
            # Regions with questions of the same lengths, mostly the same questions, so that nothing is padded.
            total = sum(lengths[start])
            end = start + 1
            limit = start + max(1, self.prefill_tokens_at_once // total)
            while end < min(len(lengths), limit) and lengths[end] == lengths[start]:
                end += 1
            rows = slice(start, end)
            owner = [number for number, length in enumerate(lengths[start], start=1) for _ in range(length)]
            owners[rows, :total] = torch.tensor(owner)
            branch_ids = torch.tensor([[0] * cache.prefix_length + owner], device=device)
            cache.start_questions(rows, branch_attention_mask(branch_ids)[:, 0, cache.prefix_length :])
            ids = [[token for it in row if it is not None for token in it.question_ids] for row in columns.rows[rows]]
            logits = self._forward(
                cache,
                torch.tensor(ids, device=device),
                branch_position_ids(branch_ids)[:, cache.prefix_length :].expand(end - start, -1),
                logits_to_keep=torch.tensor(lengths[start], device=device).cumsum(dim=0) - 1,
            )
            found.append(logits.flatten(0, 1))
            start = end
        numbers = torch.arange(1, len(columns.rows[0]) + 1)
        cache.start_answers((owners[:, None] == numbers[:, None]).to(device))
        return torch.cat(found)

    def _forward(
        self, cache: BranchCache, input_ids: torch.Tensor, position_ids: torch.Tensor, **options: Any
    ) -> torch.Tensor:
        """Logits of tokens `(R, L)` behind what the cache holds.

        By the whole model's forward, though parts would do: where parameters are spread, it is what collects them.
        """
        with use_branch_attention(self._language_model):
            output = self.model(
                input_ids=input_ids,
                position_ids=position_ids,
                use_cache=True,
                branch_cache=cache,
                **{CACHE_ARGUMENT: cache},
                **options,
            )
        logits: torch.Tensor = output.logits
        return logits

    def _advance(self, logits: torch.Tensor, branches: Sequence[Branch]) -> list[int]:
        """Choose the next token of each branch, and finish those that end with it."""
        tokens = choose_tokens(logits, branches, self.prefix_ids)
        for branch, token in zip(branches, tokens, strict=True):
            branch.token_ids.append(token)
            if token in self._end_ids:
                branch.finish_reason = "end"
            elif branch.request.stop_strings and self._stop(branch) is not None:
                branch.finish_reason = "stop_string"
            elif len(branch.token_ids) >= branch.max_new_tokens:
                branch.finish_reason = "length"
        return tokens

    def _text(self, branch: Branch) -> str:
        text: str = self.processor.tokenizer.decode(branch.token_ids, skip_special_tokens=True)
        return text

    def _stop(self, branch: Branch) -> int | None:
        """Where the first of the stop strings begins in the text."""
        text = self._text(branch)
        return min((place for stop in branch.request.stop_strings if (place := text.find(stop)) >= 0), default=None)

    def _answer(self, branch: Branch) -> BranchAnswer:
        text = self._text(branch)
        if branch.finish_reason == "stop_string":
            text = text[: self._stop(branch)]
        elif branch.finish_reason is None:
            text = text.rstrip("\ufffd")  # the first bytes of a character
        log_probs = None if branch.log_probs is None else tuple(branch.log_probs)
        return BranchAnswer(text.strip(), tuple(branch.token_ids), log_probs, branch.finish_reason)

    # --- the plain way ---

    _plain_budget = 32768

    def _generate(self, branches: list[Branch], images: "_Images") -> Iterator[Branch]:
        """Whole prompts, padded on the left, by `generate`; gives each branch once, when it is finished."""
        prompts = [[*self.prefix_ids, *branch.question_ids] for branch in branches]
        regions = sorted({branch.region for branch in branches})
        rows = [regions.index(branch.region) for branch in branches]
        image_tokens = images.tokens(regions)[rows]
        with self._timed("tokens"), LANGUAGE_MODEL_TURN:
            width = max(map(len, prompts))
            padding = [[0] * (width - len(prompt)) for prompt in prompts]
            device = self.model.device
            config = GenerationConfig(
                max_new_tokens=max(branch.max_new_tokens for branch in branches),
                pad_token_id=0,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,  # done here, for each branch its own
            )
            self.model.generate(
                input_ids=torch.tensor([[*left, *prompt] for left, prompt in zip(padding, prompts)], device=device),
                attention_mask=torch.tensor(
                    [[*left, *([1] * len(prompt))] for left, prompt in zip(padding, prompts)], device=device
                ),
                mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=image_tokens)},
                generation_config=config,
                logits_processor=LogitsProcessorList([ChooseInGenerate(self._advance, branches)]),
                stopping_criteria=StoppingCriteriaList([StopInGenerate(branches)]),
            )
        self.counts["prefixes"] += len(branches)
        self.counts["branches"] += len(branches)
        yield from branches


class _Wave:
    """Regions that are worked on together.

    Args:
        passes: what is decoded one after another, over the same prefixes: for each region its branches.
        plain: whether by `generate`, each branch with a prefix of its own.
    """

    def __init__(self, passes: list[list[list[Branch]]], plain: bool = False) -> None:
        self.passes = passes
        self.plain = plain
        self.regions = [row[0].region for row in passes[0]]
        self.branches = [branch for rows in passes for row in rows for branch in row]

    @property
    def is_smallest(self) -> bool:
        """Whether branches are decoded one by one."""
        return all(sum(map(len, rows)) == 1 for rows in self.passes)

    def num_tokens(self, prefix_length: int) -> int:
        """The most that the cache may have to hold at once."""
        return max(_num_tokens(rows, prefix_length) for rows in self.passes)


def _num_tokens(rows: list[list[Branch]], prefix_length: int) -> int:
    questions = max(sum(len(branch.question_ids) for branch in row) for row in rows)
    answers = max(map(len, rows)) * max(branch.max_new_tokens for row in rows for branch in row)
    return len(rows) * (prefix_length + questions + answers)


def _how_many_fit(rows: list[list[Branch]], prefix_length: int, budget: int) -> int:
    """How many of the rows, from the first one on, take no more tokens than the budget, nor leave many places empty."""
    fitting = 0
    places = 0
    for number, row in enumerate(rows, start=1):
        places += len(row)
        too_sparse = number * len(rows[0]) > 2 * places + 16
        if too_sparse or _num_tokens(rows[:number], prefix_length) > budget:
            break
        fitting = number
    return fitting


class _Images:
    """Images and regions that are encoded when they are first needed, and once each."""

    def __init__(self, engine: BranchEngine, vision: Mapping[str, Any]) -> None:
        self.engine = engine
        self.vision = {name: torch.as_tensor(value) for name, value in vision.items()}
        if "pixel_values" not in self.vision:
            raise ValueError(f"vision holds {', '.join(vision) or 'nothing'}. Give what the image processor returns.")
        num_images = len(self.vision["pixel_values"])
        indices = self.vision.get("image_indices")
        masks = self.vision.get("mask_values")
        num_regions = num_images if masks is None else len(masks)
        self.region_images: list[int] = list(range(num_regions)) if indices is None else indices.tolist()
        if any(not 0 <= image < num_images for image in self.region_images) or (
            masks is not None and len(masks) != len(self.region_images)
        ):
            raise ValueError(
                f"vision holds {num_images} images and {num_regions} regions, and says that these are regions of the "
                f"images {self.region_images}. Give what the image processor returns, see join_vision for several."
            )
        self.num_regions = len(self.region_images)
        self._features: dict[int, torch.Tensor | None] = {}
        self._tokens: dict[int, torch.Tensor] = {}

    def tokens(self, regions: Sequence[int]) -> torch.Tensor:
        """Image tokens of regions, `(R, N, D)`."""
        engine = self.engine
        missing = [region for region in regions if region not in self._tokens]
        for start in range(0, len(missing), engine.regions_at_once):
            chunk = missing[start : start + engine.regions_at_once]
            images = sorted({self.region_images[region] for region in chunk})
            for image in images:
                self._encode_image(image)
            with engine._timed("regions"):
                features = [self._features[image] for image in images]
                inputs = {
                    "pixel_values": self._on_device("pixel_values", images),
                    "image_indices": torch.tensor([images.index(self.region_images[region]) for region in chunk]),
                }
                if features[0] is not None:
                    inputs["high_res_features"] = torch.cat([it for it in features if it is not None])
                if "mask_values" in self.vision:
                    inputs["mask_values"] = self._on_device("mask_values", chunk)
                inputs["image_indices"] = inputs["image_indices"].to(engine.model.device)
                found = engine.model.get_image_features(**inputs, return_dict=True).pooler_output
                engine.counts["regions"] += len(chunk)
                self._tokens.update(zip(chunk, found))
        return torch.stack([self._tokens[region] for region in regions])

    def _encode_image(self, image: int) -> None:
        """One at a time: at 1024 px the activations of the towers are large, and one image keeps a device busy."""
        if image in self._features:
            return
        with self.engine._timed("images"):
            features = None
            if "high_res_features" in self.vision:
                features = self._on_device("high_res_features", [image])
            elif "high_res_pixel_values" in self.vision:
                features = self.engine.model.get_high_res_features(self._on_device("high_res_pixel_values", [image]))
            self._features[image] = features
            self.engine.counts["images"] += 1

    def _on_device(self, name: str, indices: list[int]) -> torch.Tensor:
        model = self.engine.model
        return self.vision[name][indices].to(model.device, model.dtype)

    def release(self, needed: set[int]) -> None:
        """Let go what belongs to regions that are answered."""
        self._tokens = {region: tokens for region, tokens in self._tokens.items() if region in needed}
        images = {self.region_images[region] for region in needed - self._tokens.keys()}
        self._features = {image: features for image, features in self._features.items() if image in images}


@torch.no_grad()
def encode_picture(model: Any, image_processor: Any, picture: Any) -> torch.Tensor | None:
    """What the high-resolution towers say of a picture, (1, C, h, w); `None` where the model has none."""
    prepared = image_processor(picture, do_mask=False, return_tensors="pt")
    if "high_res_pixel_values" not in prepared:
        return None
    features: torch.Tensor = model.get_high_res_features(
        prepared["high_res_pixel_values"].to(model.device, model.dtype)
    )
    return features


def without_wrapper(model: Any) -> Any:
    """The FineCaption inside of a `PeftModel`: adapters are in its layers, where the wrapper goes on switching them.

    Raises:
        ValueError: If the wrapper itself does something with each input.
    """
    if not hasattr(model, "get_base_model"):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise ValueError(
            f"The model has an adapter of learned prompts ({model.active_peft_config.peft_type.value}), for which "
            "there is no place before a region. Use one that changes layers, such as LoRA or DoRA."
        )
    return model.get_base_model()


def _free_main_memory() -> int:
    """Bytes that can be had without swapping: what is free, and what the page cache would give back."""
    try:  # a checkpoint loads without psutil: transformers asks for no import that stands in a `try`
        import psutil
    except ImportError:
        return 2**32
    return psutil.virtual_memory().available


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text or "out of memory" in text
