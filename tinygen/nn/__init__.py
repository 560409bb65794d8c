"""Layers: they own parameters and call ops."""

from tinygen.nn.conv import Conv2d, MaskedConv2d, UpConv2d
from tinygen.nn.gated import Gate, VerticalStack
from tinygen.nn.linear import Linear
from tinygen.nn.module import Dropout, Module, Parameter, Sequential
from tinygen.nn.recurrent import LSTM, DiagonalBiLSTM, RowLSTM

__all__ = [
    "LSTM",
    "Conv2d",
    "DiagonalBiLSTM",
    "Dropout",
    "Gate",
    "Linear",
    "MaskedConv2d",
    "Module",
    "Parameter",
    "RowLSTM",
    "Sequential",
    "UpConv2d",
    "VerticalStack",
]
