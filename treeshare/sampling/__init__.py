"""Replayable sampling: parameters, Philox uniforms, the sampler, stop conditions.

The sampler needs torch and is imported from ``treeshare.sampling.sampler``; this package does not load it.
"""

from treeshare.sampling.params import SamplingParams
from treeshare.sampling.philox import philox4x32, problem_key, uniforms
from treeshare.sampling.stopping import Ending, StopChecker
from treeshare.sampling.structured import StructuredOutputsParams
from treeshare.sampling.suggested import OF_DRAWING, suggested_params, suggestions

__all__ = [
    "OF_DRAWING",
    "Ending",
    "SamplingParams",
    "StopChecker",
    "StructuredOutputsParams",
    "philox4x32",
    "problem_key",
    "suggested_params",
    "suggestions",
    "uniforms",
]
