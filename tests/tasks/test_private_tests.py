"""LiveCodeBench's private tests: taken out of a pickle that nobody unpickles, or refused by name."""

from __future__ import annotations

import base64
import json
import pickle
import zlib

import pytest

from treeshare.errors import DataError
from treeshare.tasks import private_tests
from treeshare.tasks.private_tests import decode_tests, encode_tests

TESTS = [{"input": "2 3\n", "output": "5\n", "testtype": "stdin"}] * 3


def packed(content):
    return base64.b64encode(zlib.compress(content)).decode()


class Calls:
    """Unpickled it would set a mark; what a pickle may do is run code."""

    done = False

    def __reduce__(self):
        return _set_mark, ()


def _set_mark():
    Calls.done = True


@pytest.fixture(autouse=True)
def nothing_is_unpickled(monkeypatch):
    def refuse(*_args, **_named):
        raise AssertionError("something was unpickled")

    for name in ("loads", "load", "Unpickler", "_Unpickler", "_loads", "_load"):
        monkeypatch.setattr(pickle, name, refuse)
    yield
    assert not Calls.done


def test_the_sixteen_encodings_get_their_verdicts(shared):
    lines = shared("livecodebench/private_encodings.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    assert len(values) == 16
    found, messages = {}, []
    for value in values:
        try:
            found[value["name"]] = len(decode_tests(value["private_test_cases"], "data: p"))
        except DataError as error:
            found[value["name"]] = 0
            messages.append(str(error))
    assert all(message.startswith(("data: p: ", "data: p, test 1: ")) for message in messages)
    assert not any("\n" in message for message in messages)
    expected = {value["name"]: int(value["expect"] != "refuse") for value in values}
    assert found == expected


def test_both_forms_of_the_hub_are_read():
    for text in (json.dumps(TESTS), f" {json.dumps(TESTS, indent=1)}\n", encode_tests(TESTS)):
        found = decode_tests(text, "data: p")
        assert [(test.given, test.expected, test.is_call) for test in found] == [("2 3\n", "5\n", False)] * 3
    assert decode_tests("", "data: p") == decode_tests("[ ]", "data: p") == []
    for tests in (TESTS, TESTS * 9):
        assert encode_tests(tests) == packed(pickle.dumps(json.dumps(tests), protocol=4))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("long", [False, True])
def test_text_of_every_protocol_and_length_is_read(protocol, long):
    tests = [{"input": "é\n" * (20_000 if long else 1), "output": "\\u00e9 '\"", "testtype": "stdin"}]
    text = json.dumps(tests, ensure_ascii=False)
    (found,) = decode_tests(packed(pickle.dumps(text, protocol=protocol)), "data: p")
    assert (found.given, found.expected) == (tests[0]["input"], tests[0]["output"])


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        Calls(),
        [Calls()],
        json.dumps(TESTS).encode(),
        TESTS,
        ["[]"],
        ("[]",),
        7,
        None,
        True,
        1.5,
        {"a": 1},
        {1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_whatever_is_no_single_text_is_refused(protocol, value):
    with pytest.raises(DataError, match="data: p: a pickle"):
        decode_tests(packed(pickle.dumps(value, protocol=protocol)), "data: p")


TEXT = b"X\x02\x00\x00\x00[]"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b".",
        TEXT,
        TEXT + b"..",
        TEXT + b".\n",
        TEXT + TEXT + b".",
        TEXT + b"0" + TEXT + b".",
        TEXT + b"\x94" * 40 + b".",
        TEXT + b"2.",
        b"\x80\x04" * 40 + TEXT + b".",
        b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff" + TEXT,
        b"X\xff\xff\xff\xff[]",
        b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff[]",
        b"X\x02\x00\x00\x00\xff\xff.",
        b"cos\nsystem\n(S'true'\ntR.",
        b"Pnumber\n.",
        b"\x82\x01.",
        b"\x8f" * 100_000,
    ],
    ids=range(18),
)
def test_hand_made_pickles_are_refused(content):
    with pytest.raises(DataError, match="data: p: a pickle"):
        decode_tests(packed(content), "data: p")


@pytest.mark.parametrize("limit", [None, 1 << 20])
def test_bombs_are_refused_before_they_are_unpacked(monkeypatch, limit):
    """17 MiB of spaces in a few KB; and what a smaller setting allows."""
    if limit:
        monkeypatch.setattr(private_tests, "MAX_TEXT_BYTES", limit)
    deflate, chunk = zlib.compressobj(9), b" " * (1 << 20)
    content = b"".join(deflate.compress(chunk) for _ in range(17)) + deflate.flush()
    with pytest.raises(DataError, match=f"unpack to more than {limit or 16 << 20}, the maximum"):
        decode_tests(base64.b64encode(content).decode(), "data: p")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("@@@", "neither JSON nor base64"),
        ("é", "neither JSON nor base64"),
        ("aGVsbG8=", "not zlib"),
        (base64.b64encode(zlib.compress(b"x") + b"y").decode(), "cut short, or followed"),
        (base64.b64encode(zlib.compress(b"x" * 999)[:-4]).decode(), "cut short, or followed"),
        ("[", "test 1: not JSON"),
        ("[1]", "test 1: expected an object"),
        ("[{}]", "test 1: expected an object"),
        ('[{"input": 1, "output": "", "testtype": "stdin"}]', "all three text"),
        (json.dumps([*TESTS, TESTS[0] | {"testtype": "x" * 99}]), "test 4: testtype 'xxx"),
        (json.dumps(TESTS)[:-1], "cut short, or followed"),
        (json.dumps(TESTS) + "[]", "cut short, or followed"),
        (json.dumps(TESTS).replace("}, {", "} {"), "cut short, or followed"),
        ("[" * 100_000, "test 1: not JSON"),
        (packed(pickle.dumps("{}")), "not a JSON list"),
    ],
)
def test_what_is_no_list_of_tests_is_told(text, message):
    with pytest.raises(DataError) as caught:
        decode_tests(text, "data: p")
    assert message in str(caught.value)
    assert len(str(caught.value)) < 300
