"""What datatrove leaves to others: words without a language, and languages by a model that is at hand."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.utils.word_tokenizers import WordTokenizer

from pretrain.errors import UserError

WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
SEEN = 1000  # characters at the beginning, in the middle and at the end by which py3langid tells a language
SENTENCE = re.compile(r"[^.!?。！？\n]*(?:[.!?。！？]+[\"'”’)]*|\n|$)")


class UnicodeWords(WordTokenizer):
    """Runs of letters and digits, an apostrophe inside one included; every other sign by itself. Of any language that
    writes spaces."""

    def __init__(self):
        super().__init__(None)

    def __eq__(self, other: object) -> bool:
        return type(other) is UnicodeWords

    def __hash__(self) -> int:
        return hash(UnicodeWords)

    def word_tokenize(self, text: str) -> list[str]:
        return WORD.findall(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[a:b].strip() for a, b in self.span_tokenize(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return list(_sentences(text))


def _sentences(text: str) -> Iterator[tuple[int, int]]:
    for match in SENTENCE.finditer(text):
        if match[0].strip():
            yield match.span()


class Languages(BaseFilter):
    """Keeps a document when its probabilities of the languages sum to the threshold or more."""

    name = "language"

    def __init__(self, languages: tuple[str, ...], threshold: float, model: str | None):
        super().__init__()
        self.languages, self.threshold, self.model = languages, threshold, model
        self._loaded: Any = None
        if model is not None and not Path(model).is_file():
            message = f"found no file {model}, expected a fastText language model, as lid.176.bin"
            raise UserError(f"{message}; copy it there, or leave model out to use py3langid")
        if model is None:
            _require("py3langid", "py3langid")
        else:
            _require("fasttext", "fasttext-numpy2-wheel")

    def __getstate__(self):
        return {**self.__dict__, "_loaded": None}

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        share = sum(probability for code, probability in self._ranked(doc.text) if code in self.languages)
        return True if share >= self.threshold else (False, "other language")

    def _ranked(self, text: str) -> list[tuple[str, float]]:
        if self._loaded is None:
            self._loaded = self._load()
        if self.model is None:
            return [(code, float(p)) for code, p in self._loaded.rank(_excerpt(text))]
        codes, probabilities = self._loaded.predict(text.replace("\n", " "), k=-1)
        return [(code.removeprefix("__label__"), float(p)) for code, p in zip(codes, probabilities)]

    def _load(self):
        if self.model is None:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier

            return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        from fasttext.FastText import _FastText  # type: ignore  # an extra

        try:
            return _FastText(self.model)
        except ValueError:
            message = f"found no fastText model in {self.model}, expected one, as lid.176.bin"
            raise UserError(f"{message}; copy it anew") from None


def _excerpt(text: str) -> str:
    """Three places of a long text: enough for a model of bytes, whose cost is that of its text."""
    if len(text) <= 3 * SEEN:
        return text
    middle = (len(text) - SEEN) // 2
    return "\n".join((text[:SEEN], text[middle : middle + SEEN], text[-SEEN:]))


def _require(module: str, package: str) -> None:
    import importlib.util

    if importlib.util.find_spec(module) is None:
        raise UserError(f"found no {module}, expected it for the Language step; pip install {package}")
