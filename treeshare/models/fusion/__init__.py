"""Decoder layers as programs of the compiled kernels, whatever the layers are made of."""

from treeshare.models.fusion.binding import decoder_layers, fuse_layers, unfuse_layers
from treeshare.models.fusion.layer import FusedLayer

__all__ = ["FusedLayer", "decoder_layers", "fuse_layers", "unfuse_layers"]
