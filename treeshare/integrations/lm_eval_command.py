"""``treeshare-lm-eval``: lm-eval's own command line, with the model ``treeshare``."""

from __future__ import annotations

import importlib.util
import sys

from treeshare.errors import TreeshareError
from treeshare.installation import how_to_add


def main() -> int:
    """Run lm-eval's command line; 2 after a mistake of the user's that treeshare found."""
    if importlib.util.find_spec("lm_eval") is None:
        print(f"treeshare-lm-eval needs lm-eval: {how_to_add('lm-eval')}", file=sys.stderr)
        return 2
    import lm_eval.models  # noqa: F401  (first: a registry that is not empty is taken for complete)
    from lm_eval.__main__ import cli_evaluate

    name_model()
    try:
        cli_evaluate()
    except TreeshareError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def name_model() -> None:
    """Tell lm-eval where the model is: in the class's own module, which may replace no other place."""
    from lm_eval.api.registry import model_registry

    if "treeshare" not in model_registry:
        model_registry.register("treeshare", target="treeshare.integrations.lm_eval.model:TreeshareLM")
