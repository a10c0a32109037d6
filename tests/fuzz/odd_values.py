"""Numbers and texts that programs stumble over, and how a number is put into bytes."""

import struct
from random import Random

WORDS = (0, 1, 2, 7, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
LONG_WORDS = (*WORDS, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
NUMBERS = (
    *("0", "-1", "1", "-0", "0.0", "1e308", "1e-320", "1e999", "-1e999", "nan", "NaN", "Infinity", "inf"),
    *(
        "2147483647",
        "4294967296",
        "9223372036854775808",
        "9" * 400,
        "0x10",
        "1_000",
        "٣",
        "½",
        "+5",
        "0.00001",
    ),
    *("1.7976931348623157e308", "", " ", "abc", "true", "null", "~", "12:30:45", "0o17"),
)
TEXTS = (
    *(
        "\0",
        "\x1b[2J",
        "\x1b]0;x\x07",
        "\r",
        "\n",
        "\u2028",
        "\u202e",
        "\ud800",
        "ÿ",
        "𝔘",
        "a" * 5000,
        "../x",
    ),
    *(
        "/",
        ".",
        "..",
        "C:\\x",
        "%00",
        "%s%n",
        "{0}",
        "http://127.0.0.1:9/x",
        "file:///etc/passwd",
        "'",
        '"',
        "`",
    ),
    *("\ufeff", "\x7f", "\x85", "é" * 300),
)


def any_number(chance: Random, kind: str) -> int:
    return chance.choice(LONG_WORDS) & (1 << 8 * struct.calcsize(kind)) - 1


def get(data: bytes, at: int, kind: str) -> int:
    if not 0 <= at <= len(data) - struct.calcsize(kind):
        return 0
    return int(struct.unpack_from(kind, data, at)[0])


def put(data: bytes, at: int, kind: str, value: int) -> bytes:
    size = struct.calcsize(kind)
    if not 0 <= at <= len(data) - size:
        return data
    return data[:at] + struct.pack(kind, value & (1 << 8 * size) - 1) + data[at + size :]
