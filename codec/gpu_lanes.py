"""The functions of codec.lanes for one lane a thread: the wavefront kernels' source, compiled again, is the GPU's.

Same names, same results. A vector of 16 becomes one value of one thread: `S` int32 (wraps), `W` float64, `B` a bit;
what `codec.lanes` reads and writes for 16 lanes at once, each thread reads and writes for its own. What is written here
is plain LLVM: for CUDA (numba.cuda), and also for this processor, where `LANE` says which lane runs; so the arithmetic
is tested without a GPU.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from numba.core import cpu

from codec.lanes import ConcreteTemplate, infer_global, intrinsic, lower_builtin, models, signature

CPUContext: Any = cpu.CPUContext
LANES = 16
LANE = np.zeros(1, np.int32)  # the lane that runs, where a processor stands in for a device

I1, I32, I64, F32, F64 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType(), ir.DoubleType()
ELEMENTS = {"int32": I32, "float64": F64, "bit": I1}


class Single(types.Type):
    """One lane's value of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(name=f"single({kind})")


@extending.register_model(Single)
class SingleModel(models.PrimitiveModel):  # type: ignore[misc]
    """Held as one LLVM scalar."""

    def __init__(self, manager: Any, of: Single) -> None:
        super().__init__(manager, of, ELEMENTS[of.kind])


S, W, B = (Single(kind) for kind in ELEMENTS)


def register_for_cuda() -> None:
    """Make the types known to the separate package numba-cuda too, where it replaces numba's own CUDA target."""
    from importlib import import_module

    if import_module("numba.cuda").implementation == "Built-in":
        return
    cuda_models: Any = import_module("numba.cuda.datamodel.models")
    register: Any = import_module("numba.cuda.extending").register_model

    class CudaModel(cuda_models.PrimitiveModel):  # type: ignore[misc]
        """As SingleModel."""

        def __init__(self, manager: Any, of: Single) -> None:
            super().__init__(manager, of, ELEMENTS[of.kind])

    register(Single)(CudaModel)


def _define(function: Any, operand: Single, scalar: Any, result: Single, emit: Callable[..., Any]) -> None:
    """Make `function` work on two values, or on a value and a plain number."""
    cases = [(operand, operand), (operand, scalar), (scalar, operand)]

    class Template(ConcreteTemplate):  # type: ignore[misc]
        """Result types of the operator."""

    Template.cases = [signature(result, *pair) for pair in cases]
    infer_global(function)(Template)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        narrow = operand is S
        values = [
            builder.trunc(value, I32) if narrow and not isinstance(kind, Single) else value
            for value, kind in zip(args, sig.args, strict=True)
        ]
        return emit(builder, *values)

    for pair in cases:
        lower_builtin(function, *pair)(lower)


for _function, _name in ((operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul"), (operator.and_, "and_"),
                         (operator.or_, "or_"), (operator.xor, "xor"), (operator.lshift, "shl"),
                         (operator.rshift, "ashr")):  # fmt: skip
    _define(_function, S, types.int64, S, lambda b, x, y, name=_name: getattr(b, name)(x, y))
for _function, _name in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul"),
                         (operator.truediv, "fdiv")):  # fmt: skip
    _define(_function, W, types.float64, W, lambda b, x, y, name=_name: getattr(b, name)(x, y))
for _function, _sign in ((operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="),
                         (operator.eq, "=="), (operator.ne, "!=")):  # fmt: skip
    _define(_function, S, types.int64, B, lambda b, x, y, sign=_sign: b.icmp_signed(sign, x, y))
    _define(_function, W, types.float64, B, lambda b, x, y, sign=_sign: b.fcmp_ordered(sign, x, y))
for _function, _name in ((operator.and_, "and_"), (operator.or_, "or_"), (operator.xor, "xor")):
    _define(_function, B, types.boolean, B, lambda b, x, y, name=_name: getattr(b, name)(x, y))


def _lane(context: Any, builder: Any) -> Any:
    """The running lane, i64: a thread's number mod 16, or what LANE holds."""
    if isinstance(context, CPUContext):
        cell = builder.inttoptr(I64(LANE.ctypes.data), I32.as_pointer())
        return builder.zext(builder.load(cell), I64)
    read = builder.module.declare_intrinsic("llvm.nvvm.read.ptx.sreg.tid.x", (), ir.FunctionType(I32, []))
    return builder.zext(builder.and_(builder.call(read, []), I32(LANES - 1)), I64)


def _address(context: Any, builder: Any, array_type: Any, array: Any, place: Any) -> Any:
    data = context.make_array(array_type)(context, builder, array).data
    return builder.gep(data, [place])


@intrinsic
def lane_number(typing: Any) -> Any:
    """0..15, as a plain integer."""
    return types.int64(), lambda context, builder, sig, args: _lane(context, builder)


@intrinsic
def set_lane(typing: Any, lane: Any) -> Any:
    """Say which lane runs from here on (only where a processor stands in for a device)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(builder.trunc(args[0], I32), builder.inttoptr(I64(LANE.ctypes.data), I32.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), emit


@intrinsic
def plain(typing: Any, value: Any) -> Any:
    """A lane's int32 as a plain integer."""
    return types.int64(S), lambda context, builder, sig, args: builder.sext(args[0], I64)


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """An integer as S."""
    return S(types.int64), lambda context, builder, sig, args: builder.trunc(args[0], I32)


@intrinsic
def iota(typing: Any) -> Any:
    """The lane's number as S."""
    return S(), lambda context, builder, sig, args: builder.trunc(_lane(context, builder), I32)


@intrinsic
def load(typing: Any, array: Any, place: Any) -> Any:
    """array[place + lane] of int32 (S) or float64 (W)."""
    kind = S if array.dtype == types.int32 else W

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.add(args[1], _lane(context, builder))
        return builder.load(_address(context, builder, sig.args[0], args[0], place))

    return kind(array, types.int64), emit


@intrinsic
def store(typing: Any, array: Any, place: Any, value: Any) -> Any:
    """array[place + lane] = value, of int32 (S) or float64 (W)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.add(args[1], _lane(context, builder))
        builder.store(args[2], _address(context, builder, sig.args[0], args[0], place))
        return context.get_dummy_value()

    return types.void(array, types.int64, value), emit


@intrinsic
def splat_at(typing: Any, array: Any, place: Any) -> Any:
    """array[place] (int32) as S."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], args[0], args[1]))

    return S(array, types.int64), emit


@intrinsic
def gather(typing: Any, array: Any, place: Any) -> Any:
    """array[place] (int32), the place being S."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(context, builder, sig.args[0], args[0], builder.sext(args[1], I64)))

    return S(array, S), emit


@intrinsic
def pick(typing: Any, array: Any, first: Any, place: Any) -> Any:
    """array[first + (place & 15)] (int32), the place being S."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = builder.add(args[1], builder.zext(builder.and_(args[2], I32(15)), I64))
        return builder.load(_address(context, builder, sig.args[0], args[0], place))

    return S(array, types.int64, S), emit


@intrinsic
def select(typing: Any, mask: Any, yes: Any, no: Any) -> Any:
    """`yes` where the bit is 1, else `no`."""
    return yes(B, yes, yes), lambda context, builder, sig, args: builder.select(*args)


def _smaller(sign: str) -> Any:
    def declare(typing: Any, x: Any, y: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return builder.select(builder.icmp_signed(sign, args[0], args[1]), args[0], args[1])

        return S(S, S), emit

    return declare


vmin = intrinsic(_smaller("<"))
vmax = intrinsic(_smaller(">"))


@intrinsic
def vabs(typing: Any, x: Any) -> Any:
    """Absolute value; of -2^31 itself, as codec.lanes has it."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.icmp_signed("<", args[0], I32(0)), builder.neg(args[0]), args[0])

    return S(S), emit


@intrinsic
def float_bits(typing: Any, x: Any) -> Any:
    """The bit pattern of the nearest float32 (S)."""
    return S(S), lambda context, builder, sig, args: builder.bitcast(builder.sitofp(args[0], F32), I32)


@intrinsic
def to_double(typing: Any, x: Any) -> Any:
    """int32 to float64, exact."""
    return W(S), lambda context, builder, sig, args: builder.sitofp(args[0], F64)


@intrinsic
def to_int(typing: Any, x: Any) -> Any:
    """float64 to int32, towards 0; the value must fit."""
    return S(W), lambda context, builder, sig, args: builder.fptosi(args[0], I32)


@intrinsic
def floor(typing: Any, x: Any) -> Any:
    """The largest integer that is not above (W)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.floor", (F64,), ir.FunctionType(F64, [F64]))
        return builder.call(function, args)

    return W(W), emit


@intrinsic
def bits_of(typing: Any, mask: Any) -> Any:
    """The lane's own bit as an integer: enough to ask whether there is still something to do."""
    return types.int64(B), lambda context, builder, sig, args: builder.zext(args[0], I64)


def _dot2(first: int) -> Any:
    def declare(typing: Any, total: Any, pair: Any, weights: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            total, pair, weights = args
            if not isinstance(context, CPUContext):
                kind = ir.FunctionType(I32, [I32, I32, I32])
                part = "hi" if first else "lo"
                code = ir.InlineAsm(kind, f"dp2a.{part}.s32.s32 $0, $1, $2, $3;", "=r,r,r,r")
                return builder.call(code, [pair, weights, total])
            for number in range(2):
                a, b = _part(builder, pair, 16, number), _part(builder, weights, 8, first + number)
                total = builder.add(total, builder.mul(a, b))
            return total

        return S(S, S, S), emit

    return declare


def _part(builder: Any, value: Any, bits: int, number: int) -> Any:
    """One of the signed integers that lie in an int32."""
    return builder.ashr(builder.shl(value, I32(32 - bits * (number + 1))), I32(32 - bits))


#: total + two products: a pair of int16 with the lower, the upper two of four int8 in an int32 (PTX dp2a)
dot2_lower, dot2_upper = intrinsic(_dot2(0)), intrinsic(_dot2(2))
