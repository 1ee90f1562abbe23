"""Prompts to token ids: by a vocabulary built on the data set's own prompts, or by a released one.

Both end a prompt with one end token, as T5 does, and travel to loader workers as bytes.
"""

import functools
import io
import pathlib
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import sentencepiece
from jaxtyping import Bool, Int

from onediff_jax.errors import InputError

PAD, END, UNKNOWN = 0, 1, 2  # as T5 numbers them


def vocabulary_of(prompts: Iterable[str], size: int) -> bytes:
    """A SentencePiece byte-pair model of at most `size` pieces, serialised.

    Byte pairs, because on a small corpus of few words the unigram method stops at syllables.  Equal
    prompts give equal bytes.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(prompts),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=PAD,
            eos_id=END,
            unk_id=UNKNOWN,
            bos_id=-1,
            num_threads=1,  # more threads add up in another order
            minloglevel=2,
        )
    except RuntimeError as error:
        raise InputError(
            f"config.text.vocabulary is {size}; SentencePiece finds no vocabulary of that size for "
            f"the prompts: {error}"
        ) from None
    return model.getvalue()


class Tokenizer:
    """Prompts to ids of a fixed length, by a SentencePiece model."""

    def __init__(self, model: bytes, length: int):
        self.model = model
        self.length = length
        self._told = False

    def __reduce__(self):
        return type(self), (self.model, self.length)

    @functools.cached_property
    def _processor(self) -> Any:
        return sentencepiece.SentencePieceProcessor(model_proto=self.model)

    @property
    def size(self) -> int:
        """Pieces in the vocabulary."""
        return self._processor.vocab_size()

    def pieces(self, prompt: str) -> list[int]:
        """Ids of a whole prompt, without the end token."""
        return self._processor.encode(prompt)

    def text_after(self, prompt: str, count: int) -> str:
        """What a prompt says after its first pieces."""
        return self._processor.decode(self._processor.encode(prompt)[count:])

    def __call__(self, prompt: str) -> tuple[Int[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
        """Ids, cut or padded with 0 to `length`, and which of them count (never none).

        A cut prompt keeps room for the end token; the first one of a process is warned about.
        """
        pieces = self.pieces(prompt)
        if len(pieces) >= self.length and not self._told:
            self._told = True
            lost = self.text_after(prompt, self.length - 1)
            warnings.warn(
                f"text.length is {self.length}, and a prompt takes {len(pieces) + 1} tokens; it "
                f"loses its end: {lost!r}.  Others may too, and are not told.",
                stacklevel=2,
            )
        pieces = pieces[: self.length - 1]
        ids = np.full(self.length, PAD, np.int32)
        ids[: len(pieces) + 1] = [*pieces, END]
        return ids, np.arange(self.length) <= len(pieces)


class T5Tokenizer(Tokenizer):
    """The same by the tokenizer of a released T5, as the library `tokenizers` serialises it."""

    @functools.cached_property
    def _processor(self) -> Any:
        import tokenizers  # without transformers, which takes seconds to import in every worker

        return tokenizers.Tokenizer.from_buffer(self.model)

    @property
    def size(self) -> int:
        """Pieces in the vocabulary."""
        return self._processor.get_vocab_size()

    def pieces(self, prompt: str) -> list[int]:
        """Ids of a whole prompt, without the end token."""
        return self._processor.encode(prompt, add_special_tokens=False).ids

    def text_after(self, prompt: str, count: int) -> str:
        """What a prompt says after its first pieces."""
        encoded = self._processor.encode(prompt, add_special_tokens=False)
        return prompt[encoded.offsets[count][0] :]


def t5_vocabulary(folder: pathlib.Path) -> bytes:
    """The tokenizer of a released folder (spiece.model or tokenizer.json), for `T5Tokenizer`.

    Raises InputError, naming the folder, where there is none, or none that numbers padding, end
    and unknown pieces as T5 does.
    """
    try:
        import transformers
    except ImportError:
        raise InputError(
            "text.kind is 't5', whose tokenizer is read by transformers, which is not installed: "
            "pip install 'onediff_jax[t5]'."
        ) from None
    files = [folder / name for name in ("spiece.model", "tokenizer.json")]
    if not any(file.is_file() for file in files):
        raise InputError(
            f"{folder} holds no T5 tokenizer; expected {' or '.join(f.name for f in files)} in it."
        )
    try:
        found = transformers.T5TokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the library's own, of many kinds
        told = " ".join(str(error).split())[:200]
        raise InputError(f"{folder} holds no tokenizer of T5: {told}") from error
    numbers = (found.pad_token_id, found.eos_token_id, found.unk_token_id)
    if numbers != (PAD, END, UNKNOWN):
        raise InputError(
            f"{folder} holds a tokenizer that numbers padding, end and unknown pieces {numbers}, "
            f"and T5's numbers them {(PAD, END, UNKNOWN)}."
        )
    found.backend_tokenizer.no_padding()
    found.backend_tokenizer.no_truncation()
    return found.backend_tokenizer.to_str().encode()
