"""Layers: they own parameters and call ops."""

from tinygen.nn.attention import CausalSelfAttention
from tinygen.nn.conv import Conv2d, MaskedConv2d, UpConv2d
from tinygen.nn.embedding import Embedding
from tinygen.nn.gated import Gate, VerticalStack
from tinygen.nn.linear import Linear, MaskedLinear
from tinygen.nn.module import Buffer, Dropout, Module, Parameter, RowBuffer
from tinygen.nn.norm import BatchNorm, ChannelNorm, GroupNorm, LayerNorm
from tinygen.nn.recurrent import LSTM, DiagonalBiLSTM, RowLSTM
from tinygen.nn.sequential import Sequential

__all__ = [
    "LSTM",
    "BatchNorm",
    "Buffer",
    "CausalSelfAttention",
    "ChannelNorm",
    "Conv2d",
    "DiagonalBiLSTM",
    "Dropout",
    "Embedding",
    "Gate",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "MaskedConv2d",
    "MaskedLinear",
    "Module",
    "Parameter",
    "RowBuffer",
    "RowLSTM",
    "Sequential",
    "UpConv2d",
    "VerticalStack",
]
