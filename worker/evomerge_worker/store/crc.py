"""The CRC-32 of pieces put together, from the CRC-32 of each: polynomials over GF(2), modulo the CRC's own.

Appending n zero bits multiplies a checksum by x^n; what was appended is then added. The bits of a CRC-32 are reflected:
the highest stands for x^0.
"""

from collections.abc import Iterable

_POLYNOMIAL = 0xEDB88320
_ONE = 1 << 31


def joined(pieces: Iterable[tuple[int, int]]) -> int:
    """The CRC-32 of the bytes of all pieces in turn; a piece is its own CRC-32 and its size in bytes."""
    crc = 0
    for piece, size in pieces:
        crc = _times(_power(8 * size), crc) ^ piece
    return crc


def _times(a: int, b: int) -> int:
    product = 0
    for bit in range(32):
        if a & (_ONE >> bit):
            product ^= b
        b = b >> 1 ^ (_POLYNOMIAL if b & 1 else 0)  # b times x
    return product


def _power(exponent: int) -> int:
    """x^exponent."""
    result, square = _ONE, _ONE >> 1
    while exponent:
        if exponent & 1:
            result = _times(result, square)
        square = _times(square, square)
        exponent >>= 1
    return result
