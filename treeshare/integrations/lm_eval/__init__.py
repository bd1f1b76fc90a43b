"""A model for lm-eval (lm-evaluation-harness); importing it registers the name ``treeshare`` there.

The command line is outside, in ``lm_eval_command``: it must be able to say that lm-eval is not installed.
"""

from treeshare.integrations.lm_eval.model import TreeshareLM

__all__ = ["TreeshareLM"]
