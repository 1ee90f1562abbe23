"""Prompts to token ids: a SentencePiece vocabulary built on the data set's own prompts."""

import io
from collections.abc import Iterable

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
    """Prompts to ids of a fixed length."""

    def __init__(self, model: bytes, length: int):
        self.model = model
        self.length = length
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)

    def __reduce__(self):
        return Tokenizer, (self.model, self.length)

    @property
    def size(self) -> int:
        """Pieces in the vocabulary."""
        return self._processor.vocab_size()

    def __call__(self, prompt: str) -> tuple[Int[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
        """Ids, cut or padded with 0 to `length`, and which of them count (never none).

        A cut prompt keeps room for the end token.
        """
        pieces = self._processor.encode(prompt)[: self.length - 1]
        ids = np.full(self.length, PAD, np.int32)
        ids[: len(pieces) + 1] = [*pieces, END]
        return ids, np.arange(self.length) <= len(pieces)
