"""Int8 weights: what they are, a model that has them, where they are kept, and what they should compute."""

from treeshare.models.quantization.memory import weights_memory
from treeshare.models.quantization.modules import (
    QuantizedEmbedding,
    QuantizedLinear,
    bind_codes,
    codes_by_parameter,
    is_placeholder,
    own_forwards,
    quantize_linear,
    quantize_model,
    quantized_linears,
    weights_in_codes,
)
from treeshare.models.quantization.oracle import OracleLinear
from treeshare.models.quantization.reading import keep, read_int8
from treeshare.models.quantization.weights import (
    INT8,
    Int8Weights,
    can_join,
    join,
    require_quantization,
)

__all__ = [
    "INT8",
    "Int8Weights",
    "OracleLinear",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "bind_codes",
    "can_join",
    "codes_by_parameter",
    "is_placeholder",
    "join",
    "keep",
    "own_forwards",
    "quantize_linear",
    "quantize_model",
    "quantized_linears",
    "read_int8",
    "require_quantization",
    "weights_in_codes",
    "weights_memory",
]
