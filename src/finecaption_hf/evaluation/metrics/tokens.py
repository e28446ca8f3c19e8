"""Captions to the words that n-gram metrics compare: lower case, split as in the Penn Treebank, without punctuation."""

from collections.abc import Sequence
from pathlib import Path

from ... import install_hint
from .errors import MetricError
from .java import Java

_PTB_VERSION = "3.4.1"
# What pycocoevalcap drops after tokenizing.
_PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)
# What of it the Python tokenizer leaves as it is written.
_PYTHON_PUNCTUATION = _PUNCTUATION | frozenset(["“", "”", "–", "—", '"'])
_TYPEWRITTEN = str.maketrans({"‘": "'", "’": "'", "…": "..."})
# The Stanford tokenizer's names of brackets. In lower case they escape the list above, so that they count as words.
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def pycocoevalcap_folder() -> Path:
    """Where pycocoevalcap is installed, with its jars.

    Raises:
        MetricError: If it is not installed.
    """
    try:
        import pycocoevalcap
    except ImportError:
        raise MetricError(
            "ROUGE-L, BLEU, METEOR, CIDEr and the PTB tokenizer come from pycocoevalcap, which is not installed. "
            f"{install_hint('evaluation')}."
        ) from None
    return Path(next(iter(pycocoevalcap.__path__)))


class PTBTokens:
    """The Stanford tokenizer that caption papers use, as pycocoevalcap brings and calls it, but through pipes."""

    name = f"ptb-{_PTB_VERSION}"

    def __init__(self, java: Java) -> None:
        self._java = java
        self._jar = pycocoevalcap_folder() / "tokenizer" / f"stanford-corenlp-{_PTB_VERSION}.jar"
        if not self._jar.is_file():
            raise MetricError(f"{self._jar} is missing: pycocoevalcap is incomplete. Install it again.")

    def __call__(self, captions: Sequence[str]) -> list[str]:
        """One string of words, joined by spaces, per caption; a caption must be a single line."""
        if not captions:
            return []
        arguments = ["-cp", str(self._jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
        out, _ = self._java.run(arguments, len(captions), "".join(f"{caption}\n" for caption in captions))
        lines = out.replace("\r\n", "\n").removesuffix("\n").split("\n")
        if len(lines) != len(captions):
            raise MetricError(
                f"The PTB tokenizer returned {len(lines)} lines for {len(captions)} captions, so that they cannot be "
                "told apart. Please report this with the captions."
            )
        return [_without(line.rstrip().split(" "), _PUNCTUATION) for line in lines]


class PythonTokens:
    """nltk's rules for the same treebank: no Java, and almost the same words."""

    def __init__(self) -> None:
        try:
            import nltk
            from nltk.tokenize import NLTKWordTokenizer
        except ImportError:
            raise MetricError(
                "tokenizer='python' needs nltk, which is not installed. `pip install nltk`, or use tokenizer='ptb'."
            ) from None
        self._tokenizer = NLTKWordTokenizer()
        self.name = f"python-nltk-{nltk.__version__}"

    def __call__(self, captions: Sequence[str]) -> list[str]:
        """One string of words, joined by spaces, per caption."""
        split = (self._tokenizer.tokenize(caption.lower().translate(_TYPEWRITTEN)) for caption in captions)
        return [_without([_BRACKETS.get(word, word) for word in words], _PYTHON_PUNCTUATION) for words in split]


def _without(words: Sequence[str], punctuation: frozenset[str]) -> str:
    return " ".join(word for word in words if word not in punctuation)
