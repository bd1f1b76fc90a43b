"""How the tests of known bugs patch one in."""

from __future__ import annotations

import importlib

from treeshare.attention.triton import arrays


def wrap(monkeypatch, target, name, change):
    """Replace an attribute by ``change`` of it."""
    monkeypatch.setattr(target, name, change(getattr(target, name)))


def triton_tables_with(change):
    """A fault that changes the tables handed to the Triton kernels."""

    def patch(monkeypatch):
        def changed(named):
            def tables(self):
                made = named(self)
                change(made)
                return made

            return tables

        wrap(monkeypatch, arrays.StepArrays, "named", changed)

    return patch


def triton_kernel_with(name, make, module="kernels"):
    """A fault inside the kernels."""

    def patch(monkeypatch):
        kernels = importlib.import_module(f"treeshare.attention.triton.{module}")
        wrap(monkeypatch, kernels, name, make)

    return patch
