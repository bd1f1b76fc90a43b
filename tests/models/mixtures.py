"""Tiny random mixtures of experts of the families that people have, and experts of other kinds."""

from __future__ import annotations

import torch
import transformers
from torch import nn

from tests.models import tiny
from tests.models.tiny import make_model

_COMMON = {key: value for key, value in tiny._COMMON.items() if key != "intermediate_size"} | {
    "num_hidden_layers": 2
}
_LATENT = {
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16,
    "v_head_dim": 24,
    "num_key_value_heads": 4,
}
_GROUPED = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_LOCAL = {"intermediate_size": 48, "num_local_experts": 6, "num_experts_per_tok": 2}
_OWN = {"intermediate_size": 96, "moe_intermediate_size": 48}
_THREE = {"num_experts": 6, "num_experts_per_tok": 3}

CONFIGS = {
    "mixtral": lambda: transformers.MixtralConfig(**_COMMON, **_LOCAL, sliding_window=None),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **_COMMON, **_OWN, **_THREE, shared_expert_intermediate_size=40, use_sliding_window=False
    ),
    "qwen3_moe": lambda: transformers.Qwen3MoeConfig(
        **_COMMON, **_OWN, **_THREE, head_dim=16, norm_topk_prob=True
    ),
    "olmoe": lambda: transformers.OlmoeConfig(**_COMMON, **_THREE, intermediate_size=48),
    "phimoe": lambda: transformers.PhimoeConfig(**_COMMON, **_LOCAL, sliding_window=None),
    "granitemoe": lambda: transformers.GraniteMoeConfig(**_COMMON, **_LOCAL),
    "ernie4_5_moe": lambda: transformers.Ernie4_5_MoeConfig(
        **_COMMON, **_OWN, moe_num_experts=6, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=1
    ),
    "minimax_m2": lambda: transformers.MiniMaxM2Config(**_COMMON, **_LOCAL, head_dim=16, rotary_dim=16),
    "gpt_oss": lambda: transformers.GptOssConfig(**_COMMON, **_LOCAL, head_dim=16, sliding_window=8),
    "deepseek_v2": lambda: transformers.DeepseekV2Config(
        **{**_COMMON, **_OWN, **_LATENT, **_GROUPED}, q_lora_rank=None, topk_method="group_limited_greedy"
    ),
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **{**_COMMON, **_OWN, **_LATENT, **_GROUPED}, q_lora_rank=24
    ),
    "glm4_moe_lite": lambda: transformers.Glm4MoeLiteConfig(
        **{**_COMMON, **_OWN, **_LATENT, **_GROUPED}, q_lora_rank=24
    ),
    "glm4_moe": lambda: transformers.Glm4MoeConfig(**_COMMON, **_OWN, **_GROUPED, head_dim=16),
    "llama4_text": lambda: transformers.Llama4TextConfig(
        **_COMMON,
        intermediate_size=48,
        intermediate_size_mlp=96,
        num_local_experts=4,
        num_experts_per_tok=1,
        head_dim=16,
        attention_chunk_size=8,
    ),
    "hunyuan_v1_moe": lambda: transformers.HunYuanMoEV1Config(
        **_COMMON, intermediate_size=48, num_experts=6, moe_topk=2, head_dim=16
    ),
    "jetmoe": lambda: transformers.JetMoeConfig(**_COMMON, **_LOCAL, kv_channels=16),
}
"""By family: what their routers and experts do differs, or how they are held."""


def make_mixture(family, dtype):
    """A random model of a family; biases of its experts and routers are no zeros."""
    model = make_model(CONFIGS[family](), dtype)
    draws = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.copy_(torch.randn(parameter.shape, generator=draws) * 0.2)
    return model


class Ungated(nn.Module):
    """Experts without a gate, as Nemotron-H has them, by the plainest code."""

    def __init__(self, num_experts=5, num_inputs=64, middle=48):
        super().__init__()
        self.num_experts = num_experts
        draws = torch.Generator().manual_seed(2)
        self.up_proj = nn.Parameter(torch.randn(num_experts, middle, num_inputs, generator=draws) * 0.2)
        self.down_proj = nn.Parameter(torch.randn(num_experts, num_inputs, middle, generator=draws) * 0.2)

    def act_fn(self, x):
        """The square of what is above zero."""
        return torch.square(nn.functional.relu(x))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        """One row after the other."""
        rows = []
        for x, chosen, weights in zip(hidden_states, top_k_index.tolist(), top_k_weights, strict=True):
            parts = [self.down_proj[expert] @ self.act_fn(self.up_proj[expert] @ x) for expert in chosen]
            rows.append(sum(part * weight for part, weight in zip(parts, weights, strict=True)))
        return torch.stack(rows)
