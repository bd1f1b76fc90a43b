"""States of grammars: functions of grammar and tokens, with tokenizers of every kind; all refusals."""

from __future__ import annotations

import json
import re
import sys
import threading

import numpy as np
import pytest

from tests.text.kinds import KINDS, byte_letters
from treeshare.errors import ConfigError, one_line
from treeshare.installation import how_to_add
from treeshare.sampling import StructuredOutputsParams
from treeshare.sampling.grammar import WHITESPACE, GrammarCompiler
from treeshare.sampling.masks import unpacked
from treeshare.sampling.structured import MAX_CHARS, MAX_NESTING

pytest.importorskip("llguidance", reason="llguidance is not installed")

READABLE = ("llama2", "gemma", "byte level")
"""Kinds whose tokens are bytes to llguidance."""


def compiler(kind="byte level", vocab_size=None, eos=None):
    tokenizer = KINDS[kind]
    eos = {tokenizer.eos_token_id} if eos is None else eos
    return GrammarCompiler(tokenizer, vocab_size or len(tokenizer), eos)


def allowed(state, size):
    return set(np.flatnonzero(unpacked(state.mask(), size)).tolist())


def walk(made, params, choose, size, limit=60):
    """Tokens until the grammar is complete or the end of a text is drawn; ``choose`` takes one of a list."""
    state, tokens = made.start(params), []
    while not state.is_complete and len(tokens) < limit:
        tokens.append(choose(sorted(allowed(state, size))))
        state = state.advance(tokens[-1])
    return tokens, state


def text_of(kind, tokens):
    tokenizer = KINDS[kind]
    kept = [token for token in tokens if token not in tokenizer.all_special_ids]
    return tokenizer.decode(kept, skip_special_tokens=False)


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize(
    "values",
    [
        {"regex": r"[ab]{2,5}\."},
        {"choice": ["abab", "ab \u00e9", "\U0001f600\u20ac"]},
        {"grammar": 'start: "a" start | "b"'},
        {"regex": "(?s:.){4}"},
        {"json": {"type": "object", "properties": {"a": {"enum": ["b", 1]}}, "required": ["a"]}},
    ],
    ids=str,
)
def test_every_path_is_a_text_of_the_grammar(kind, values):
    """Random walks end, with text that the grammar has; special tokens and what no model knows never come."""
    import re

    size = len(KINDS[kind]) + 13  # a vocabulary padded beyond the tokenizer
    made, draws = compiler(kind, size), np.random.default_rng(0)
    params = StructuredOutputsParams(**values)
    special = set(KINDS[kind].all_special_ids) - {KINDS[kind].eos_token_id}
    num_whole = 0
    for _ in range(12):
        tokens, state = walk(made, params, lambda ids: int(draws.choice(ids)), size)
        assert not special & set(tokens)
        assert max(tokens) < len(KINDS[kind])
        if not state.is_complete:
            continue
        num_whole += 1
        text = text_of(kind, tokens)
        if "regex" in values:
            assert values["regex"].startswith("(?s") or re.fullmatch(values["regex"], text)
        elif "choice" in values:
            assert text in values["choice"]
        elif "grammar" in values:
            assert re.fullmatch("a*b", text)
        else:
            assert json.loads(text)["a"] in ("b", 1)
    assert num_whole > 3


def test_states_are_functions_of_tokens():
    """Forks, states that nobody held any more, and those of another compiler: the same masks."""
    size = len(KINDS["byte level"])
    params = StructuredOutputsParams(json={"type": "array", "items": {"enum": ["ab", "b"]}, "maxItems": 3})
    first, second = compiler(), compiler()
    draws = np.random.default_rng(3)
    tokens, _ = walk(first, params, lambda ids: int(draws.choice(ids)), size)
    one, two = first.start(params), second.start(params)
    held = [one]
    for token in tokens:
        two.mask()
        other = next(iter(allowed(two, size) - {token, KINDS["byte level"].eos_token_id}), None)
        if other is not None:
            two.advance(other).mask()  # a branch that is dropped at once
        one, two = one.advance(token), two.advance(token)
        assert one.is_complete == two.is_complete
        if not one.is_complete:
            assert allowed(one, size) == allowed(two, size)
        held.append(one)
    assert held[0].advance(tokens[0]) is held[1], "those that agree share a state"


def test_a_mask_is_computed_once():
    made, params = compiler(), StructuredOutputsParams(regex="[ab]{9}")
    state = made.start(params)
    made.take_num_masks()
    branches = [state.advance(next(iter(allowed(state, len(KINDS["byte level"]))))) for _ in range(5)]
    threads = [threading.Thread(target=branch.mask) for branch in branches for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made.take_num_masks() <= 1  # or 0: computed when the grammar was checked
    assert made.take_num_masks() == 0


def test_the_end_comes_only_where_a_text_may_end():
    tokenizer = KINDS["byte level"]
    size, a = len(tokenizer), tokenizer.convert_tokens_to_ids("a")
    made = compiler(eos={tokenizer.eos_token_id, 3})
    state = made.start(StructuredOutputsParams(regex="aa?a?"))
    assert allowed(state, size) == {a}
    state = state.advance(a)
    assert allowed(state, size) == {a, tokenizer.eos_token_id, 3}
    assert not state.is_complete
    assert state.advance(3).is_complete
    assert state.advance(a).advance(a).is_complete


def test_a_model_without_an_end():
    """The tokenizer's own end-of-sequence is nothing that such a model may draw."""
    tokenizer = KINDS["byte level"]
    size, a = len(tokenizer), tokenizer.convert_tokens_to_ids("a")
    state = compiler(eos=()).start(StructuredOutputsParams(regex="a+")).advance(a)
    assert allowed(state, size) == {a}


def test_a_model_with_fewer_tokens_than_its_tokenizer():
    tokenizer = KINDS["byte level"]
    size = tokenizer.convert_tokens_to_ids(byte_letters(" a"))
    state = compiler(vocab_size=size, eos=()).start(StructuredOutputsParams(regex=" a"))
    assert state.mask().shape == (-(-size // 32),)
    assert allowed(state, size) == {tokenizer.convert_tokens_to_ids(byte_letters(" "))}


BROKEN = [
    ({"regex": "(a"}, "regex: unclosed group"),
    ({"regex": "(?=a)b"}, "regex: look-around"),
    ({"regex": r"(a)\1"}, "regex: backreferences are not supported"),
    ({"regex": r"a\Z"}, "regex: unrecognized escape sequence"),
    ({"regex": "a$b"}, "lookarounds not supported yet; End in regex /a$b/"),
    (
        {"regex": r"[^\s\S]"},
        "regex: got 'none', expected at least one text that the model's tokens can spell",
    ),
    ({"regex": "a{1000000000000}"}, "regex: decimal literal invalid"),
    ({"regex": "a{1000000}"}, "too many expressions"),
    ({"regex": "(" * 5000 + "a" + ")" * 5000}, "regex: exceed the maximum number of nested"),
    ({"json": {"enum": []}}, "json: Unsatisfiable schema"),
    ({"json": {"type": "integer", "minimum": 5, "maximum": 3}}, "json: Unsatisfiable schema"),
    ({"json": {"type": "foo"}}, "json: Invalid type: foo"),
    ({"json": {"$ref": "#/nope"}}, "json: Pointer '/nope' does not exist"),
    ({"json": {"$ref": "http://127.0.0.1:9/s"}}, "json: Resource 'http://127.0.0.1:9/s' is not present"),
    ({"json": {"type": "array", "uniqueItems": True}}, 'json: Unimplemented keys: ["uniqueItems"]'),
    (
        {"json": {"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}},
        "json: Unimplemented",
    ),
    ({"json": {"not": {"type": "string"}}}, 'json: Unimplemented keys: ["not"]'),
    (
        {"json": {"oneOf": [{"type": "integer"}, {"type": "number"}]}},
        "json: oneOf constraints are not supported",
    ),
    ({"json": {"type": "string", "format": "iri"}}, "json: Unknown format: iri"),
    ({"json": {"$ref": "#"}}, "json: got 'none', expected at least one text"),
    ({"json": {"type": "object"}, "whitespace_pattern": "("}, "json: unclosed group"),
    ({"grammar": 'start: "a" nope'}, 'grammar: at 1(8): unknown name: "nope"'),
    ({"grammar": "hello world"}, "grammar: Failed to convert the grammar from GBNF"),
    ({"grammar": "start: start"}, "grammar: got 'none', expected at least one text"),
]


@pytest.mark.parametrize(("values", "message"), BROKEN, ids=lambda value: str(value)[:40])
def test_broken_and_impossible_grammars(values, message):
    with pytest.raises(ConfigError) as raised:
        compiler().start(StructuredOutputsParams(**values))
    text = str(raised.value)
    assert text.startswith("structured_outputs: ")
    assert message in text
    assert text == one_line(text, 330)


MISTAKES = [
    ({}, "got 'none', expected exactly one of json, regex, choice, grammar, json_object"),
    ({"regex": "a", "choice": ["b"]}, "got 'regex, choice', expected exactly one"),
    ({"json_object": False}, "got 'none'"),
    ({"regex": ""}, "regex: got '', expected text"),
    ({"regex": 5}, "regex: got 5"),
    ({"regex": "\ud800"}, "a lone surrogate"),
    ({"regex": "a" * (MAX_CHARS + 1)}, "expected at most 120,000"),
    ({"choice": []}, "choice: got []"),
    ({"choice": "ab"}, "choice: got 'ab'"),
    ({"choice": ["a", ""]}, "choice: got"),
    ({"choice": ["\ud800"]}, "a lone surrogate"),
    ({"choice": ["word" + str(i) for i in range(20_000)]}, "expected at most 120,000"),
    ({"json": "{"}, "json: Expecting property name"),
    ({"json": "[1]"}, "json: got '[1]', expected a JSON schema"),
    ({"json": {"a": object()}}, "json: Object of type object is not JSON serializable"),
    ({"json": {"const": float("nan")}}, "json: Out of range float values"),
    ({"json": "[" * 100_000}, "nested too deeply"),
    ({"json": '{"a":' * (MAX_NESTING + 1) + "1" + "}" * (MAX_NESTING + 1)}, "nested too deeply"),
    ({"json_object": True, "disable_any_whitespace": 1}, "disable_any_whitespace: got 1"),
    ({"schema": {}}, "got 'schema', expected names of json, regex"),
]


@pytest.mark.parametrize(("values", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistakes(values, message):
    with pytest.raises(ConfigError) as raised:
        StructuredOutputsParams.of(values)
    assert message in str(raised.value)
    assert "structured_outputs" in str(raised.value)
    assert len(str(raised.value)) < 500


def test_parameters_are_values():
    schema = {"type": "object", "properties": {"b": {}, "a": {}}}
    params = StructuredOutputsParams(json=schema)
    schema["type"] = "array"
    assert json.loads(params.json)["type"] == "object"
    assert params == StructuredOutputsParams.of(params.to_dict()) == StructuredOutputsParams(json=params.json)
    assert hash(params) == hash(StructuredOutputsParams.of({"json": params.json}))
    assert list(json.loads(params.json)["properties"]) == ["b", "a"], "order says what is written first"
    assert StructuredOutputsParams(choice=["a", "b", "a"]).to_dict() == {"choice": ["a", "b"]}


@pytest.mark.parametrize("pattern", ["a", "^a$", r"\Aa\z", "^a|^a$", "(^a$)", "^(a)$|a"])
def test_anchors_say_nothing(pattern):
    tokenizer = KINDS["byte level"]
    a = tokenizer.convert_tokens_to_ids("a")
    state = compiler().start(StructuredOutputsParams(regex=pattern))
    assert allowed(state, len(tokenizer)) == {a}
    assert state.advance(a).is_complete


def test_space_has_an_end():
    """Behind a line's end and its indentation no other space may come."""
    tokenizer = KINDS["byte level"]
    size = len(tokenizer)
    ids = {text: tokenizer.convert_tokens_to_ids(byte_letters(text)) for text in ("[", "\n", " ", "]")}
    made = compiler()
    state = made.start(StructuredOutputsParams(json={"type": "array", "maxItems": 1})).advance(ids["["])
    state = state.advance(ids["\n"])
    for _ in range(20):
        assert ids["\n"] not in allowed(state, size)
        state = state.advance(ids[" "])
    assert not {ids["\n"], ids[" "]} & allowed(state, size)
    assert ids["]"] in allowed(state, size)
    tight = StructuredOutputsParams(json={"type": "array"}, disable_any_whitespace=True)
    assert not {ids["\n"], ids[" "]} & allowed(made.start(tight).advance(ids["["]), size)
    assert "{0,20}" in WHITESPACE


@pytest.mark.parametrize("bound", [None, 14])
def test_a_maximum_length_bounds_the_digits_of_a_time(bound):
    """RFC 3339 lets any number of digits stand behind the seconds' point."""
    tokenizer = KINDS["byte level"]
    size = len(tokenizer)
    schema = {"type": "string", "format": "time"} | ({} if bound is None else {"maxLength": bound})
    state = compiler().start(StructuredOutputsParams(json=schema))
    ids = {letter: tokenizer.convert_tokens_to_ids(letter) for letter in '"0123456789:.Z'}
    written = 0
    for letter in '"12:30:05.' + 40 * "7":
        if ids[letter] not in allowed(state, size):
            break
        state, written = state.advance(ids[letter]), written + 1
    assert written == (50 if bound is None else bound)  # the quote, and room left for the zone
    assert ids["Z"] in allowed(state, size)


def test_other_properties_may_be_refused():
    tokenizer = KINDS["byte level"]
    size = len(tokenizer)
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {}}}}
    made = compiler()
    for closed in (False, True):
        params = StructuredOutputsParams(json=schema, disable_additional_properties=closed)
        state = made.start(params)
        for letter in '{"':
            state = state.advance(tokenizer.convert_tokens_to_ids(letter))
        b = tokenizer.convert_tokens_to_ids("b")
        assert (b in allowed(state, size)) != closed


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in READABLE])
def test_tokenizers_that_llguidance_does_not_read(kind):
    """A line, or masks; never a crash: which ones it reads is the library's affair."""
    try:
        state = compiler(kind).start(StructuredOutputsParams(regex="[ab]+"))
    except ConfigError as error:
        assert str(error) == one_line(str(error), 400)  # noqa: PT017
    else:
        assert allowed(state, len(KINDS[kind]))


def test_without_the_library_or_a_tokenizer(monkeypatch):
    with pytest.raises(ConfigError, match=r"^structured_outputs: the model has no tokenizer"):
        GrammarCompiler(None, 10, ()).start(StructuredOutputsParams(regex="a"))
    with pytest.raises(ConfigError, match=r"got 'a int', expected a tokenizer with tokenizer.json"):
        GrammarCompiler(7, 10, ()).start(StructuredOutputsParams(regex="a"))
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match="not installed; " + re.escape(how_to_add("structured")) + "$"):
        compiler().start(StructuredOutputsParams(regex="a"))
