"""Replayable sampling: parameters, Philox uniforms, the sampler, stop conditions."""
