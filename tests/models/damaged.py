"""What may come of a damaged model's folder, and how its files are changed."""

from __future__ import annotations

import json

import pytest

from treeshare.errors import TreeshareError
from treeshare.models import describe_model, load_model

WEIGHTS = "model.safetensors"
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def refusal(model, load=load_model):
    """The message of a refusal."""
    with pytest.raises(TreeshareError) as caught:
        load(model)
    message = str(caught.value)
    assert message
    assert message.isprintable()
    return message


def loads_or_refuses(model):
    """Both are right; what may not come is a library's error."""
    for load in (describe_model, load_model):
        try:
            load(model)
        except TreeshareError as error:
            message = str(error)
        else:
            message = "loaded"
        assert message.isprintable()


def values_of(folder, name):
    """The JSON value in a file of a folder."""
    return json.loads((folder / name).read_text())


def set_values(folder, name, **values):
    """Set keys of a file's JSON object."""
    (folder / name).write_text(json.dumps(values_of(folder, name) | values))
