"""A FineCaption checkpoint in vLLM on the machines of a Ray cluster, through Ray Data's vLLM processor.

Tasks of Ray read pictures, and make a row of each question about each region; the processor answers rows, in any order
and on any machine; here, answers are put back into their batches.
"""

import os
import pickle
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from .. import install_hint
from ..pipeline_finecaption import AskedImage, answer_all
from ..prompts_finecaption import BranchAnswer
from ..resuming import UnfinishedError
from .vllm_describer import VllmDescriber, check_options

_ASKED = "asked"  # the reason for which an answer in a row ended, until that of vLLM is there
_TASKS = 1000  # at most so many, each of which reads many batches


class RayDescriber(VllmDescriber):
    """Answers of a checkpoint in vLLM, on the machines of a Ray cluster, for whole data sets: see `Spreading`.

    Ray is that of the environment (`RAY_ADDRESS`), or is started on this machine alone. Each machine has this package,
    and the checkpoint and the data under the same paths.

    Args:
        model, name, max_new_tokens: as for `VllmDescriber`.
        **options: of `vllm.LLM`, and of Ray's `vLLMEngineProcessorConfig`, such as `concurrency`, how many engines.

    Raises:
        ImportError: If Ray or vLLM is not installed, or vLLM is none of the tested releases.
        ValueError: If vLLM cannot serve the checkpoint, or neither vLLM nor Ray has such an option.
    """

    def _start(self, model: str, options: dict[str, Any]) -> Any:
        try:
            from ray.data.llm import vLLMEngineProcessorConfig
        except ImportError as error:
            raise ImportError(f"Ray is not installed. {install_hint('ray')}.") from error
        from vllm import EngineArgs
        from vllm.platforms import current_platform

        self._config: dict[str, Any] = {
            "log_engine_metrics": False,  # would need ray[serve]
            "should_continue_on_error": True,
            # Prompts come as tokens.
            **dict.fromkeys(("chat_template_stage", "tokenize_stage", "detokenize_stage"), False),
        }
        if current_platform.is_cpu():
            self._config["placement_group_config"] = {"bundle_per_worker": {"CPU": 1}}
        of_ray = set(vLLMEngineProcessorConfig.model_fields) - {"engine_kwargs"}
        check_options(options, of_ray)
        for option in set(options) & of_ray:
            self._config[option] = options.pop(option)
        self._config["model_source"] = os.path.abspath(model) if os.path.isdir(model) else model
        self._engine_options = options
        return EngineArgs(model, **options).create_model_config()

    def _answers(
        self, prompts: Sequence[dict[str, Any]], parameters: Sequence[dict[str, Any]]
    ) -> Iterator[BranchAnswer]:
        self._rows = [
            {
                "tokenized_prompt": prompt["prompt_token_ids"],
                "multimodal_data": prompt["multi_modal_data"],
                "sampling_params": sampling,
            }
            for prompt, sampling in zip(prompts, parameters, strict=True)
        ]
        return (BranchAnswer("", (number,), finish_reason=_ASKED) for number in range(len(prompts)))

    def rows(self, images: list[AskedImage], log_probs: bool) -> list[dict[str, Any]]:
        """What Ray is to ask about images that this prepared; the first row has the images themselves."""
        self._rows = []
        answer_all(self, images, log_probs=log_probs)
        for image in images:
            image.prepared = None
        # A batch in which nothing can be asked has a row nonetheless, without a picture: else it would be missed.
        text = list(self._question_ids("region"))
        nothing = {"tokenized_prompt": text, "multimodal_data": None, "sampling_params": {"max_tokens": 1}}
        rows = self._rows or [nothing]
        asked = [pickle.dumps(images), *[b""] * (len(rows) - 1)]
        return [{**row, "number": number, "rows": len(rows), "asked": asked[number]} for number, row in enumerate(rows)]

    def spread(
        self, prepare: Callable[[int], list[AskedImage]], batches: Sequence[int], *, log_probs: bool
    ) -> Generator[tuple[int, list[AskedImage]], None, None]:
        """See `Spreading`."""
        if not batches:
            return
        import ray
        from ray.data.llm import build_processor, vLLMEngineProcessorConfig

        started = not ray.is_initialized()
        if started:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(log_to_driver=False, logging_level="ERROR")
        try:
            ray.data.DataContext.get_current().enable_progress_bars = False
            shared = ray.put((os.getcwd(), self, prepare, log_probs))
            engines = vLLMEngineProcessorConfig(**self._config, engine_kwargs=dict(self._engine_options))
            dataset = ray.data.from_items(
                [{"batch": batch} for batch in batches], override_num_blocks=min(len(batches), _TASKS)
            )
            asked = dataset.flat_map(partial(_read, shared))
            waiting: dict[int, dict[int, Mapping[str, Any]]] = {}
            for row in build_processor(engines, preprocess=dict, postprocess=_answered)(asked).iter_rows():
                rows = waiting.setdefault(row["batch"], {})
                rows[row["number"]] = row
                if len(rows) == row["rows"]:
                    yield row["batch"], put_back(waiting.pop(row["batch"]))
        except ray.exceptions.RayError as error:
            # With the traces of all processes; the cause comes last.
            raise UnfinishedError(f"Ray could not go on: ..{' '.join(str(error).split())[-600:]}") from error
        finally:
            if started:
                ray.shutdown()


# --- in Ray's processes ----------------------------------------------------------------------------------------------


def _read(shared: Any, row: dict[str, int]) -> list[dict[str, Any]]:
    """The rows of a batch of pictures."""
    describer, prepare, log_probs = _fetched(shared)
    return [{"batch": row["batch"], **each} for each in describer.rows(prepare(row["batch"]), log_probs)]


@lru_cache(maxsize=1)
def _fetched(shared: Any) -> Any:
    import ray

    folder, *others = ray.get(shared)
    os.chdir(folder)  # paths of the input may be relative to it
    return others


def _answered(row: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a row that vLLM answered."""
    steps = row["logprobs"]
    tokens = [int(token) for token in row["generated_tokens"]]
    found = None if steps is None else [step[token]["logprob"] for token, step in zip(tokens, steps)]
    kept = {name: row[name] for name in ("batch", "number", "rows", "asked", "generated_text")}
    return {**kept, "log_probs": pickle.dumps(found)}


# --- here ------------------------------------------------------------------------------------------------------------


def put_back(rows: Mapping[int, Mapping[str, Any]]) -> list[AskedImage]:
    """The images of a batch with the answers of its rows."""
    images: list[AskedImage] = pickle.loads(rows[0]["asked"])
    for image in images:
        for region in image.regions:
            for number, answer in region.answers.items():
                if answer.finish_reason == _ASKED:
                    region.answers[number] = _answer(rows[answer.token_ids[0]])
    return images


def _answer(row: Mapping[str, Any]) -> BranchAnswer:
    if reason := row.get("__inference_error__"):
        return BranchAnswer("", finish_reason="error", error=str(reason))
    found = pickle.loads(row["log_probs"])
    return BranchAnswer(row["generated_text"].strip(), (), None if found is None else tuple(found), "end")
