"""The operators of ONNX Runtime 1.24.4's DirectML provider, as its own registry of kernels tells them.

One line each: name (with its domain, where that is not ONNX's own), the first opset that it is registered for, the opset from
which ONNX has a newer version that it is not registered for (``-``: none), and the element types of its first input. The
provider takes a node only when the version that its opset means is registered, so a newer opset can be one too many:
``Cast`` of opset 23 has no kernel. ``make test-directml`` compares this table with the library's registry.
"""

from __future__ import annotations

from functools import cache
from typing import Final

from coe_cli.core.providers.base import OperatorSupport


@cache
def operators() -> dict[tuple[str, str], OperatorSupport]:
    """Support by (domain, operator); ONNX's own domain is empty."""
    found = {}
    for line in _TABLE.strip().splitlines():
        name, since, before, *types = line.split()
        domain, _, operator = name.rpartition(":")
        allowed = _ANY if types == ["any"] else frozenset(types)
        found[domain, operator] = OperatorSupport(int(since), None if before == "-" else int(before), allowed)
    return found


_ANY: Final = frozenset(
    ["bool", "double", "float", "float16", "int16", "int32", "int64", "int8", "uint16", "uint32", "uint64", "uint8"]
)

_TABLE: Final = """
Abs 6 - float float16 int16 int32 int64 int8
Acos 7 22 float float16
Acosh 9 22 float float16
Add 7 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Affine 1 - float float16
And 7 - bool
ArgMax 1 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
ArgMin 1 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Asin 7 22 float float16
Asinh 9 22 float float16
Atan 7 22 float float16
Atanh 9 22 float float16
AveragePool 7 22 float float16
BatchNormalization 7 - float float16
BitShift 11 28 uint16 uint32 uint64 uint8
BitwiseAnd 18 - int16 int32 int64 int8 uint16 uint32 uint64 uint8
BitwiseNot 18 - int16 int32 int64 int8 uint16 uint32 uint64 uint8
BitwiseOr 18 - int16 int32 int64 int8 uint16 uint32 uint64 uint8
BitwiseXor 18 - int16 int32 int64 int8 uint16 uint32 uint64 uint8
Cast 6 23 any
CastLike 15 23 any
Ceil 6 - float float16
Celu 12 28 float float16
Clip 6 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Col2Im 18 - any
Concat 4 - any
ConcatFromSequence 11 - any
ConstantOfShape 9 23 int64
Conv 1 22 float float16
ConvInteger 10 - int8 uint8
ConvTranspose 1 22 float float16
Cos 7 22 float float16
Cosh 9 22 float float16
Crop 1 - float float16
CumSum 11 - float float16 int32 int64 uint32 uint64
DFT 17 - double float float16
DepthToSpace 1 28 any
DequantizeLinear 10 23 int32 int4 int8 uint4 uint8
Div 7 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Dropout 7 10 float float16
DynamicQuantizeLinear 11 - float
Einsum 12 28 float float16
Elu 6 22 float float16
Equal 7 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Erf 9 - float float16
Exp 6 - float float16
Expand 8 - any
EyeLike 9 22 any
Flatten 1 23 any
Floor 6 - float float16
GRU 7 22 float float16
Gather 1 - any
GatherElements 11 - any
GatherND 11 - any
Gemm 7 - float float16
GlobalAveragePool 1 22 float float16
GlobalLpPool 2 22 float float16
GlobalMaxPool 1 22 float float16
Greater 7 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
GreaterOrEqual 12 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
GridSample 16 20 float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
GroupNorm 21 - float float16
HardSigmoid 6 22 float float16
Hardmax 1 - float float16
Identity 1 23 any
If 7 21 bool
ImageScaler 1 - float float16
InstanceNormalization 6 22 float float16
IsInf 10 - float
IsNaN 9 - float float16
LRN 1 - float float16
LSTM 7 22 float float16
LayerNormalization 1 - float float16
LeakyRelu 6 - float float16
Less 7 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
LessOrEqual 12 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Log 6 - float float16
LogSoftmax 1 - float float16
LpNormalization 1 22 float float16
LpPool 2 22 float float16
MatMul 1 - float float16
MatMulInteger 10 - int8 uint8
Max 6 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
MaxPool 1 22 float float16 int8 uint8
MaxRoiPool 1 22 float float16
MaxUnpool 9 22 float float16
Mean 6 - float float16
MeanVarianceNormalization 1 - float float16
Min 6 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Mod 10 28 float float16 int16 int32 int8 uint16 uint32 uint8
Mul 7 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Neg 6 - float float16 int16 int32 int64 int8
NonZero 9 - bool float float16 int16 int32 int8 uint16 uint32 uint8
Not 1 - bool
OneHot 9 28 int32 int64 uint32 uint64
OptionalGetElement 15 28 any
OptionalHasElement 15 28 any
Or 7 - bool
PRelu 7 - float float16 int16 int32 int8
Pad 2 23 any
ParametricSoftplus 1 - float float16
Pow 7 - float float16 int32
QLinearConv 10 - int8 uint8
QLinearMatMul 10 - int8 uint8
QuantizeLinear 10 23 float float16 int32
RNN 7 22 float float16
Range 11 27 float int16 int32 int64
Reciprocal 6 - float float16
ReduceL1 1 - float float16 int32 int64 uint32 uint64
ReduceL2 1 - float float16 int32 int64 uint32 uint64
ReduceLogSum 1 28 float float16 int32 int64 uint32 uint64
ReduceLogSumExp 1 28 float float16 int32 int64 uint32 uint64
ReduceMax 1 - any
ReduceMean 1 - float float16 int32 int64 uint32 uint64
ReduceMin 1 - any
ReduceProd 1 - float float16 int32 int64 uint32 uint64
ReduceSum 1 - float float16 int32 int64 uint32 uint64
ReduceSumSquare 1 - float float16 int32 int64 uint32 uint64
Relu 6 - float float16 int16 int32 int8
Reshape 5 23 any
Resize 10 - float float16 int8 uint8
ReverseSequence 10 28 any
RoiAlign 10 22 float float16
Round 11 22 float float16
STFT 17 - float float16
ScaledTanh 1 - float float16
Scatter 9 - any
ScatterElements 11 18 any
ScatterND 11 18 any
Selu 6 22 float float16
SequenceAt 11 - any
SequenceConstruct 11 - any
SequenceEmpty 11 - any
SequenceErase 11 - any
SequenceInsert 11 - any
SequenceLength 11 - any
Shape 1 23 any
Shrink 9 - float float16 int16 int32 int8 uint16 uint32 uint8
Sigmoid 6 - float float16
Sign 9 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
SimplifiedLayerNormalization 1 - float float16
Sin 7 22 float float16
Sinh 9 22 float float16
Size 1 23 any
Slice 1 - any
Softmax 1 - float float16
Softplus 1 22 float float16
Softsign 1 22 float float16
SpaceToDepth 1 28 any
Split 2 - any
Sqrt 6 - float float16
Squeeze 1 23 any
Sub 7 - float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Sum 6 - float float16
Tan 7 22 float float16
Tanh 6 - float float16
ThresholdedRelu 1 22 float float16
Tile 6 - any
TopK 1 24 float float16 int16 int32 int64 int8 uint16 uint32 uint64 uint8
Transpose 1 23 any
Trilu 14 - any
Unsqueeze 1 23 any
Upsample 7 - float float16
Where 9 - bool
Xor 7 - bool
com.microsoft:Attention 1 - float float16
com.microsoft:BiasAdd 1 - float float16
com.microsoft:BiasGelu 1 - float float16
com.microsoft:BiasSplitGelu 1 - float float16
com.microsoft:ConvTransposeWithDynamicPads 1 - float float16
com.microsoft:DequantizeLinear 1 - int32 int8 uint8
com.microsoft:DynamicQuantizeMatMul 1 - float
com.microsoft:EmbedLayerNormalization 1 - float float16
com.microsoft:FastGelu 1 - float float16
com.microsoft:FusedMatMul 1 - float float16
com.microsoft:FusedMatMulActivation 1 - float float16
com.microsoft:Gelu 1 - float float16
com.microsoft:GroupNorm 1 - float float16
com.microsoft:GroupQueryAttention 1 - float float16
com.microsoft:MatMulIntegerToFloat 1 - int8 uint8
com.microsoft:MatMulNBits 1 - float float16
com.microsoft:MultiHeadAttention 1 - float float16
com.microsoft:NhwcConv 1 - float float16
com.microsoft:QAttention 1 - int8 uint8
com.microsoft:QLinearAdd 1 - int8 uint8
com.microsoft:QLinearAveragePool 1 - int8 uint8
com.microsoft:QLinearConcat 1 - float int8 uint8
com.microsoft:QLinearGlobalAveragePool 1 - int8 uint8
com.microsoft:QLinearSigmoid 1 - int8 uint8
com.microsoft:QuantizeLinear 1 - float float16 int32
com.microsoft:QuickGelu 1 - float float16
com.microsoft:RotaryEmbedding 1 - float float16
com.microsoft:SkipLayerNormalization 1 - float float16
com.microsoft:SkipSimplifiedLayerNormalization 1 - float float16
"""
