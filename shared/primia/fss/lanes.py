"""Emits LLVM IR that works on vectors of 128-bit words, for the native kernels.

A ``Lanes`` is a value in the code being emitted: ``width`` words of two 64-bit halves, in one
vector register. Operators on it emit instructions, so that a kernel reads as arithmetic.
``Emitter`` holds the function under construction, and the AES instructions of this width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import ir

from primia.fss.prf import PUBLIC_KEY

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
POINTER = ir.PointerType()
# AESENC on 128, 256 (VAES) and 512 (VAES, AVX-512) bits.
AES_SUFFIX = {1: "", 2: ".256", 4: ".512"}
_ROUNDS = 10
_ROUND_CONSTANTS = (1, 2, 4, 8, 16, 32, 64, 128, 27, 54)


class Lanes:
    """A vector, or (from ``nonzero``) a truth value for every half."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value

    def __xor__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.xor(self.value, other.value))

    def __and__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.and_(self.value, other.value))

    def __or__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.or_(self.value, other.value))

    def __sub__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.sub(self.value, other.value))

    def __lshift__(self, other: Lanes) -> Lanes:
        """Each half by its own distance, below 64."""
        return Lanes(self.builder, self.builder.shl(self.value, other.value))

    def __rshift__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.lshr(self.value, other.value))

    def nonzero(self) -> Lanes:
        zero = ir.Constant(self.value.type, None)
        return Lanes(self.builder, self.builder.icmp_unsigned("!=", self.value, zero))

    def below(self, other: Lanes) -> Lanes:
        """Signed comparison of the halves."""
        return Lanes(self.builder, self.builder.icmp_signed("<", self.value, other.value))

    def choose(self, true: Lanes, false: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.select(self.value, true.value, false.value))

    def shuffled(self, order: Sequence[int]) -> Lanes:
        mask = ir.Constant(ir.VectorType(I32, len(order)), list(order))
        return Lanes(self.builder, self.builder.shuffle_vector(self.value, self.value, mask))


class Emitter:
    """One function of the module: its arguments, loops, memory and constants."""

    def __init__(self, module: Any, name: str, arguments: Sequence[Any], width: int) -> None:
        self.width = width
        self.vector = ir.VectorType(I64, 2 * width)
        self._module = module
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), list(arguments)), name)
        self.arguments = function.args
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self._round_keys = self._key_schedule()

    # Memory. Arrays of the callers are aligned to their elements, scratch to whole vectors.

    def scratch(self, words: int) -> Any:
        """Memory for ``words`` 128-bit words, on the stack."""
        # Declared as pointers, 64 bits each: of other elements llvmlite makes a typed pointer.
        return self.builder.alloca(POINTER, 2 * words)

    def pointer(self, number: Any) -> Any:
        return self.builder.inttoptr(number, POINTER)

    def at(self, base: Any, index: Any, kind: Any = I64) -> Any:
        return self.builder.gep(base, [index], source_etype=kind)

    def word_at(self, base: Any, index: Any) -> Any:
        """The address of the 128-bit word ``index``."""
        return self.at(base, self.builder.shl(index, I64(1)))

    def load(self, address: Any) -> Lanes:
        return Lanes(self.builder, self.builder.load(address, typ=self.vector, align=8))

    def store(self, lanes: Lanes, address: Any) -> None:
        self.builder.store(lanes.value, address, align=8)

    def prefetch(self, address: Any) -> None:
        """Fetch the vector there into the cache; any address will do."""
        kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
        reading, kept, data = I32(0), I32(3), I32(1)
        function = self._intrinsic("llvm.prefetch.p0", kind)
        self.builder.call(function, [address, reading, kept, data])

    def load_numbers(self, address: Any, kind: Any) -> Lanes:
        """``width`` small integers, each in the low half of its word."""
        packed = self.builder.load(address, typ=ir.VectorType(kind, self.width), align=1)
        wide = self.builder.zext(packed, ir.VectorType(I64, self.width))
        zero = ir.Constant(wide.type, None)
        order = [i // 2 if i % 2 == 0 else self.width for i in range(2 * self.width)]
        mask = ir.Constant(ir.VectorType(I32, len(order)), order)
        return Lanes(self.builder, self.builder.shuffle_vector(wide, zero, mask))

    def store_bytes(self, lanes: Lanes, address: Any) -> None:
        """The lowest byte of each word."""
        low = lanes.shuffled(range(0, 2 * self.width, 2)).value
        narrow = self.builder.trunc(low, ir.VectorType(I8, self.width))
        self.builder.store(narrow, address, align=1)

    # Bits of consecutive words, eight to a byte: word i has bit i mod 8 of byte i div 8.

    def load_bits(self, row: Any, index: Any) -> Lanes:
        """For the words from ``index`` on, not zero in the low half where the bit is set."""
        byte = self.builder.load(self._byte(row, index), typ=I8)
        shifted = self.builder.lshr(self.builder.zext(byte, I64), self.builder.and_(index, I64(7)))
        return self.splat(shifted) & self.words(lambda i: (1 << i, 0))

    def store_bits(self, truth: Lanes, row: Any, index: Any) -> None:
        """Keeps the byte's lower bits and clears its upper ones: words are written in order."""
        low = truth.shuffled(range(0, 2 * self.width, 2)).value
        bits = self.builder.zext(self.builder.bitcast(low, ir.IntType(self.width)), I8)
        offset = self.builder.trunc(self.builder.and_(index, I64(7)), I8)
        address = self._byte(row, index)
        kept = self.builder.sub(self.builder.shl(I8(1), offset), I8(1))
        kept = self.builder.and_(self.builder.load(address, typ=I8), kept)
        self.builder.store(self.builder.or_(kept, self.builder.shl(bits, offset)), address)

    def _byte(self, row: Any, index: Any) -> Any:
        return self.at(row, self.builder.lshr(index, I64(3)), I8)

    # Constants and control.

    def words(self, of: Callable[[int], tuple[int, int]]) -> Lanes:
        """A constant: low and high half of the word at each place."""
        halves = [half & (1 << 64) - 1 for i in range(self.width) for half in of(i)]
        return Lanes(self.builder, ir.Constant(self.vector, halves))

    def word(self, low: int, high: int) -> Lanes:
        return self.words(lambda _: (low, high))

    def splat(self, scalar: Any) -> Lanes:
        """A 64-bit number in every half."""
        single = self.builder.insert_element(ir.Constant(self.vector, None), scalar, I32(0))
        return Lanes(self.builder, single).shuffled([0] * (2 * self.width))

    def low_in_both(self, lanes: Lanes) -> Lanes:
        return lanes.shuffled([i & ~1 for i in range(2 * self.width)])

    def swapped(self, lanes: Lanes) -> Lanes:
        return lanes.shuffled([i ^ 1 for i in range(2 * self.width)])

    def least(self, a: Any, b: Any) -> Any:
        return self.builder.select(self.builder.icmp_signed("<", a, b), a, b)

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int) -> Iterator[Any]:
        """for index in range(start, stop, step)"""
        b = self.builder
        before = b.block
        head, body, after = (b.append_basic_block(n) for n in ("head", "body", "after"))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(I64)
        index.add_incoming(start, before)
        b.cbranch(b.icmp_signed("<", index, stop), body, after)
        b.position_at_end(body)
        yield index
        index.add_incoming(b.add(index, I64(step)), b.block)
        b.branch(head)
        b.position_at_end(after)

    # The hash of ``primia.fss.prf``.

    def hash(self, x: Lanes) -> Lanes:
        """AES_K(x) xor x."""
        state = x ^ self._round_keys[0]
        for key in self._round_keys[1:_ROUNDS]:
            state = self._aes("aesenc", state, key)
        return self._aes("aesenclast", state, self._round_keys[_ROUNDS]) ^ x

    def _aes(self, name: str, state: Lanes, key: Lanes) -> Lanes:
        kind = ir.FunctionType(self.vector, [self.vector] * 2)
        function = self._intrinsic(f"llvm.x86.aesni.{name}{AES_SUFFIX[self.width]}", kind)
        return Lanes(self.builder, self.builder.call(function, [state.value, key.value]))

    def _key_schedule(self) -> list[Lanes]:
        """The round keys of the public key (FIPS 197, 5.2), each in every word."""
        pair, quad = ir.VectorType(I64, 2), ir.VectorType(I32, 4)
        assist = self._intrinsic(
            "llvm.x86.aesni.aeskeygenassist", ir.FunctionType(pair, [pair, I8])
        )
        halves = [int.from_bytes(PUBLIC_KEY[at : at + 8], "little") for at in (0, 8)]
        key = Lanes(self.builder, ir.Constant(pair, halves))
        keys = [key]
        for constant in _ROUND_CONSTANTS:
            helped = self.builder.call(assist, [key.value, I8(constant)])
            last = Lanes(self.builder, self.builder.bitcast(helped, quad)).shuffled([3] * 4)
            column = Lanes(self.builder, self.builder.bitcast(key.value, quad))
            for _ in range(3):  # column j becomes the xor of columns 0 to j
                column ^= self._up_one(column)
            key = Lanes(self.builder, self.builder.bitcast((column ^ last).value, pair))
            keys.append(key)
        return [key.shuffled([0, 1] * self.width) for key in keys]

    def _up_one(self, column: Lanes) -> Lanes:
        zero = ir.Constant(column.value.type, None)
        mask = ir.Constant(ir.VectorType(I32, 4), [4, 0, 1, 2])
        return Lanes(self.builder, self.builder.shuffle_vector(column.value, zero, mask))

    def _intrinsic(self, name: str, kind: Any) -> Any:
        found = self._module.globals.get(name)
        return found if found is not None else ir.Function(self._module, kind, name)
