"""A run whose every bit level portable promises: printed as a hash of each part, to be compared between CPUs.

``python -m tests.engine.portable_run FOLDER DTYPE`` in a process whose libraries were told to leave
instructions unused, or below an emulated CPU.
"""

from __future__ import annotations

import hashlib
import json
import sys

import torch

from tests.engine.forests import requests_for
from treeshare.config import DEFAULT_FOLD_COST
from treeshare.engine.llm import LLM
from treeshare.models.fusion import decoder_layers
from treeshare.sampling import SamplingParams

PARAMS = (
    SamplingParams(n=2, temperature=0.9, top_p=0.95, max_tokens=12, ignore_eos=True),
    SamplingParams(n=2, temperature=1.4, min_p=0.2, top_k=30, max_tokens=12, ignore_eos=True),
    SamplingParams(
        n=2,
        temperature=1.1,
        top_p=0.9,
        min_p=0.01,
        max_tokens=12,
        min_tokens=8,
        repetition_penalty=1.2,
        logprobs=3,
    ),
)
"""The compiled sampler's rows, and those of the general path."""


def portable_run(folder, dtype, num_tokens=300, quantization=None, max_num_seqs=32):
    """A hash of each part of a run: tables, hidden states, tokens, log-probabilities, scores."""
    llm = LLM(
        folder,
        dtype=dtype,
        quantization=quantization,
        seed=5,
        max_num_seqs=max_num_seqs,
        kv_budget_bytes=1 << 26,
        fold_cost=DEFAULT_FOLD_COST,
    )
    parts = _Parts(llm.loaded.model)
    base = [2 + i * 37 % 290 for i in range(num_tokens)]
    prompts = [base, base[: num_tokens // 2], [*base[: 3 * num_tokens // 4], 5, 6], [7, *base[:20]], [9]]
    requests = [request for params in PARAMS for request in requests_for(prompts, params)]
    found = sorted(
        (done.request_index, done.completion_index, done.token_ids, done.cumulative_logprob.hex())
        for done in llm.engine.run(requests)
    )
    scores = llm.score([(prompts[1], base[: num_tokens // 8]), (prompts[3], [1, 2, 3])])
    return {
        **parts.hashes(),
        "weights": llm.loaded.fingerprint(),
        "tokens": _hash(json.dumps([line[:3] for line in found]).encode()),
        "log-probabilities": _hash(json.dumps(found).encode()),
        "scores": _hash(repr(scores).encode()),
    }


class _Parts:
    """Keeps hashing what some of a model's modules return: rotary tables, layers, last norm, logits."""

    def __init__(self, model):
        self._digests = {}
        layers = decoder_layers(model)
        inside = {id(module) for layer in layers for module in layer.modules()} - set(map(id, layers))
        whole = {
            id(module) for module in model.modules() if set(map(id, layers)) & set(map(id, module.modules()))
        }
        for name, module in model.named_modules():
            if id(module) not in inside | whole or module in layers:
                self._digests[name] = hashlib.sha256()
                module.register_forward_hook(self._keep(name))

    def _keep(self, name):
        def hook(module, arguments, output):
            for tensor in output if isinstance(output, tuple) else (output,):
                self._digests[name].update(tensor.contiguous().view(torch.uint8).numpy().tobytes())

        return hook

    def hashes(self):
        return {name: digest.hexdigest()[:16] for name, digest in self._digests.items()}


def _hash(content):
    return hashlib.sha256(content).hexdigest()[:16]


if __name__ == "__main__":
    print(json.dumps(portable_run(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))))
