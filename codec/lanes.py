"""Vectors of 16 lanes as values in numba kernels, so that the wavefront's arithmetic is SIMD by construction.

Four types, one LLVM vector each: `V` int32 (wraps), `F` float32, `D` float64, `M` a bit a lane. What is written here
is plain LLVM on any processor; where this one has AVX-512 a few functions use its instructions, with the same results.
No function checks bounds: whoever calls `load` or `gather` has to know that the array holds what it asks for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
from llvmlite import ir
from numba import config, extending, types
from numba.core import cgutils as untyped_cgutils
from numba.core.typing import templates

cgutils: Any = untyped_cgutils
ConcreteTemplate: Any = templates.ConcreteTemplate
infer_global: Any = templates.infer_global
signature: Any = templates.signature
intrinsic: Any = extending.intrinsic
models: Any = extending.models
lower_builtin: Any = extending.lower_builtin
LANES = 16
# Numba may have been told to compile for another processor (NUMBA_CPU_NAME): then nothing is known of it.
FEATURES = {} if getattr(config, "CPU_NAME", None) else dict(llvmlite.binding.get_host_cpu_features())
WIDE = bool(FEATURES.get("avx512f"))
PAIRED = WIDE and bool(FEATURES.get("avx512vnni"))

I1, I16, I32, I64 = ir.IntType(1), ir.IntType(16), ir.IntType(32), ir.IntType(64)
ELEMENTS = {"int32": I32, "float32": ir.FloatType(), "float64": ir.DoubleType(), "bit": I1}
VI, VF, VD, VM = (ir.VectorType(element, LANES) for element in ELEMENTS.values())
VS = ir.VectorType(I16, LANES)


class Lanes(types.Type):
    """Sixteen values of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        super().__init__(name=f"lanes({kind})")


@extending.register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """Held as one LLVM vector."""

    def __init__(self, manager: Any, of: Lanes) -> None:
        super().__init__(manager, of, ir.VectorType(ELEMENTS[of.kind], LANES))


V, F, D, M = (Lanes(kind) for kind in ELEMENTS)
KINDS = {types.int32: (V, VI, 4), types.float32: (F, VF, 4), types.float64: (D, VD, 8)}  # vectors in arrays; alignment


def constant(vector: Any, value: Any) -> Any:
    """The same value in all lanes."""
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * LANES)


def spread(builder: Any, scalar: Any) -> Any:
    """A scalar in all lanes."""
    vector = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), constant(VI, 0))


def call(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Call an LLVM intrinsic."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [argument.type for argument in arguments]), name
    )
    return builder.call(function, arguments)


def address(context: Any, builder: Any, array_type: Any, array: Any, place: Any, vector: Any = None) -> Any:
    """Pointer to element `place` of a contiguous array, or to the vector that begins there."""
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [place])
    return pointer if vector is None else builder.bitcast(pointer, vector.as_pointer())


def _define(function: Any, operand: Lanes, scalar: Any, result: Lanes, emit: Callable[[Any, Any, Any], Any]) -> None:
    """Make `function` work on two vectors, or on a vector and a scalar."""
    cases = [(operand, operand), (operand, scalar), (scalar, operand)]

    infer_global(function)(type("Template", (ConcreteTemplate,), {"cases": [signature(result, *p) for p in cases]}))

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        element = ELEMENTS[operand.kind]
        values = []
        for value, kind in zip(args, sig.args, strict=True):
            if isinstance(kind, Lanes):
                values.append(value)
            else:
                values.append(spread(builder, builder.trunc(value, element) if operand is V else value))
        return emit(builder, *values)

    for pair in cases:
        lower_builtin(function, *pair)(lower)


def _define_all() -> None:
    """The arithmetic of V, F and D, comparisons, and the logic of M."""
    for kind, scalar, table in (
        (V, types.int64, {operator.add: "add", operator.sub: "sub", operator.mul: "mul", operator.and_: "and_",
                          operator.or_: "or_", operator.lshift: "shl", operator.rshift: "ashr"}),
        (F, types.float32, {operator.sub: "fsub", operator.mul: "fmul"}),
        (D, types.float64, {operator.add: "fadd", operator.sub: "fsub", operator.mul: "fmul",
                            operator.truediv: "fdiv"}),
        (M, types.boolean, {operator.and_: "and_", operator.or_: "or_"}),
    ):  # fmt: skip
        for function, name in table.items():
            _define(function, kind, scalar, kind, _instruction(name))
    for function, sign in (
        (operator.lt, "<"), (operator.le, "<="), (operator.gt, ">"), (operator.ge, ">="), (operator.eq, "=="),
    ):  # fmt: skip
        _define(function, V, types.int64, M, _comparison("icmp_signed", sign))
        _define(function, D, types.float64, M, _comparison("fcmp_ordered", sign))


def _instruction(name: str) -> Callable[[Any, Any, Any], Any]:
    return lambda builder, x, y: getattr(builder, name)(x, y)


def _comparison(name: str, sign: str) -> Callable[[Any, Any, Any], Any]:
    return lambda builder, x, y: getattr(builder, name)(sign, x, y)


_define_all()


@intrinsic
def splat(typing: Any, value: Any) -> Any:
    """An integer in all lanes (V)."""
    return V(types.int64), lambda context, builder, sig, args: spread(builder, builder.trunc(args[0], I32))


@intrinsic
def iota(typing: Any) -> Any:
    """0, 1, .. 15 (V)."""
    return V(), lambda context, builder, sig, args: ir.Constant(VI, [I32(lane) for lane in range(LANES)])


@intrinsic
def load(typing: Any, array: Any, place: Any) -> Any:
    """array[place : place + 16] of int32 (V), float32 (F) or float64 (D)."""
    kind, vector, align = KINDS[array.dtype]

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(address(context, builder, sig.args[0], args[0], args[1], vector), align=align)

    return kind(array, types.int64), emit


@intrinsic
def store(typing: Any, array: Any, place: Any, value: Any) -> Any:
    """array[place : place + 16] = value, of int32 or int16 (V; the lower half), float32 (F) or float64 (D)."""
    short = array.dtype == types.int16
    _, vector, align = (V, VS, 2) if short else KINDS[array.dtype]

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = address(context, builder, sig.args[0], args[0], args[1], vector)
        builder.store(builder.trunc(args[2], VS) if short else args[2], pointer, align=align)
        return context.get_dummy_value()

    return types.void(array, types.int64, value), emit


@intrinsic
def splat_at(typing: Any, array: Any, place: Any) -> Any:
    """array[place] of int32 (V) or float32 (F) in all lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return spread(builder, builder.load(address(context, builder, sig.args[0], args[0], args[1])))

    return KINDS[array.dtype][0](array, types.int64), emit


@intrinsic
def select(typing: Any, mask: Any, yes: Any, no: Any) -> Any:
    """A lane of `yes` where the mask has a 1, else of `no`."""
    return yes(M, yes, yes), lambda context, builder, sig, args: builder.select(*args)


def _two(name: str) -> Any:
    def declare(typing: Any, x: Any, y: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return call(builder, name, VI, list(args))

        return V(V, V), emit

    return declare


vmin = intrinsic(_two("llvm.smin.v16i32"))
vmax = intrinsic(_two("llvm.smax.v16i32"))


@intrinsic
def vabs(typing: Any, x: Any) -> Any:
    """Absolute values."""
    return V(V), lambda context, builder, sig, args: call(builder, "llvm.abs.v16i32", VI, [args[0], I1(0)])


@intrinsic
def float_bits(typing: Any, x: Any) -> Any:
    """The bit pattern of the nearest float32 (V)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.bitcast(builder.sitofp(args[0], VF), VI)

    return V(V), emit


@intrinsic
def to_float(typing: Any, x: Any) -> Any:
    """int32 to the nearest float32 (F)."""
    return F(V), lambda context, builder, sig, args: builder.sitofp(args[0], VF)


@intrinsic
def widened(typing: Any, x: Any) -> Any:
    """float32 to float64."""
    return D(F), lambda context, builder, sig, args: builder.fpext(args[0], VD)


@intrinsic
def multiply_add(typing: Any, x: Any, y: Any, total: Any) -> Any:
    """x y + total (F), rounded once or twice as is quickest here: for estimates only."""
    return F(F, F, F), lambda context, builder, sig, args: call(builder, "llvm.fmuladd.v16f32", VF, list(args))


@intrinsic
def to_double(typing: Any, x: Any) -> Any:
    """int32 to float64, exact."""
    return D(V), lambda context, builder, sig, args: builder.sitofp(args[0], VD)


@intrinsic
def to_int(typing: Any, x: Any) -> Any:
    """float64 to int32, towards 0; the values must fit."""
    return V(D), lambda context, builder, sig, args: builder.fptosi(args[0], VI)


@intrinsic
def floor(typing: Any, x: Any) -> Any:
    """The largest integers that are not above (D)."""
    return D(D), lambda context, builder, sig, args: call(builder, "llvm.floor.v16f64", VD, list(args))


@intrinsic
def bits_of(typing: Any, mask: Any) -> Any:
    """The mask as an integer, bit l for lane l."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.zext(builder.bitcast(args[0], I16), I64)

    return types.int64(M), emit


@intrinsic
def dot2(typing: Any, total: Any, x: Any, y: Any) -> Any:
    """total + x.low * y.low + x.high * y.high, where every int32 is a pair of int16."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        if PAIRED:
            return call(builder, "llvm.x86.avx512.vpdpwssd.512", VI, list(args))
        half = constant(VI, 16)
        lows = [builder.ashr(builder.shl(value, half), half) for value in args[1:]]
        highs = [builder.ashr(value, half) for value in args[1:]]
        return builder.add(args[0], builder.add(builder.mul(*lows), builder.mul(*highs)))

    return V(V, V, V), emit


@intrinsic
def pick(typing: Any, array: Any, first: Any, place: Any) -> Any:
    """array[first + (place & 15)] of int32, lane by lane: a look-up in 16 values that are held in a register."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        table = builder.load(address(context, builder, sig.args[0], args[0], args[1], VI), align=4)
        if WIDE:
            return call(builder, "llvm.x86.avx512.permvar.si.512", VI, [table, args[2]])
        out = ir.Constant(VI, ir.Undefined)
        for lane in range(LANES):
            index = builder.and_(builder.extract_element(args[2], I32(lane)), I32(15))
            out = builder.insert_element(out, builder.extract_element(table, index), I32(lane))
        return out

    return V(array, types.int64, V), emit


@intrinsic
def gather(typing: Any, array: Any, place: Any) -> Any:
    """array[place] of int32, lane by lane."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        out = ir.Constant(VI, ir.Undefined)
        for lane in range(LANES):
            index = builder.sext(builder.extract_element(args[1], I32(lane)), I64)
            value = builder.load(address(context, builder, sig.args[0], args[0], index))
            out = builder.insert_element(out, value, I32(lane))
        return out

    return V(array, V), emit
