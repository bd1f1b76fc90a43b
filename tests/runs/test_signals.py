"""Signals wait until a line is written, and are delivered afterwards."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from treeshare.runs.signals import SignalsHeld


def send(number):
    os.kill(os.getpid(), number)


def test_an_interrupt_waits():
    done = []
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012
        with SignalsHeld():
            send(signal.SIGINT)
            done.append(1)
        done.append(2)
    assert done == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_contexts_nest_and_errors_pass():
    with pytest.raises(KeyboardInterrupt), SignalsHeld(), SignalsHeld():  # noqa: PT012
        send(signal.SIGINT)
        raise ValueError
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_handlers_wait_in_order_and_defaults_are_left_alone():
    seen = []
    previous = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))
    hangup = signal.getsignal(signal.SIGHUP)  # after nohup it is ignored
    try:
        with SignalsHeld():
            assert signal.getsignal(signal.SIGHUP) is hangup
            send(signal.SIGTERM)
            assert seen == []
        assert seen == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_a_handler_that_raises_before_it_is_held(monkeypatch):
    install, calls = signal.signal, []

    def interrupted(number, handler):
        calls.append(number)
        if len(calls) == 2:
            raise SystemExit
        return install(number, handler)

    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(signal, "signal", interrupted)
            with pytest.raises(SystemExit), SignalsHeld():
                pytest.fail("the body began")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, previous)


def test_other_threads_have_no_handlers():
    def body():
        with SignalsHeld():
            handlers.append(signal.getsignal(signal.SIGINT))

    handlers = []
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert handlers == [signal.default_int_handler]
