"""Images that no library of the project writes: JPEG lossless or of 12 bits, 16 bits in colors."""

import heapq
import struct
import zlib
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

Coded = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""Symbols, the bits that follow each, and how many these are."""


def lossless_jpeg(pixels: NDArray[np.unsignedinteger], bits: int, restart_rows: int = 0) -> bytes:
    """A lossless JPEG (process 14, predictor 1) of gray levels below 2**bits, (H, W).

    Source: ITU-T T.81 annex H.
    """
    levels = pixels.astype(np.int64)
    parts = [levels[row : row + (restart_rows or len(levels))]
             for row in range(0, len(levels), restart_rows or len(levels))]  # fmt: skip
    coded = [_categories(_differences(part, bits)) for part in parts]
    table = _huffman([symbols for symbols, _, _ in coded])
    scans = [_packed(_written(each, table)) for each in coded]
    interval = restart_rows * levels.shape[1]
    restart = _segment(0xDD, struct.pack(">H", interval)) if restart_rows else b""
    markers = [bytes((0xFF, 0xD0 + index % 8)) for index in range(len(scans) - 1)]
    body = b"".join(scan + marker for scan, marker in zip(scans, [*markers, b""], strict=True))
    return b"".join((
        b"\xff\xd8",
        _frame(0xC3, levels.shape, bits, 0),
        _table(0x00, table),
        restart,
        _segment(0xDA, bytes((1, 1, 0, 1, 0, 0))),
        body,
        b"\xff\xd9",
    ))  # fmt: skip


def sequential_jpeg(
    pixels: NDArray[np.unsignedinteger], bits: int, step: int, scan: bytes = b"\x00\x3f\x00"
) -> bytes:
    """A sequential JPEG of gray levels below 2**bits, (H, W), all coefficients quantized by `step`.

    `scan` are the scan parameters. Source: ITU-T T.81 annex F.
    """
    rows, columns = pixels.shape
    padded = np.pad(pixels.astype(np.float64), ((0, -rows % 8), (0, -columns % 8)), mode="edge")
    blocks = (padded - 2 ** (bits - 1)).reshape(len(padded) // 8, 8, -1, 8).swapaxes(1, 2)
    coefficients = np.rint(dctn(blocks, axes=(2, 3), norm="ortho") / step).astype(np.int64)
    zigzag = sorted(np.ndindex(8, 8), key=_zigzag)
    flat = np.stack([coefficients[..., y, x].ravel() for y, x in zigzag], axis=1)
    dc = _categories(np.diff(flat[:, 0], prepend=0))
    ac = [_runs(block) for block in flat[:, 1:].tolist()]
    ac_symbols = [np.array([symbol for symbol, _, _ in block]) for block in ac]
    dc_table, ac_table = _huffman([dc[0]]), _huffman(ac_symbols)
    codes, lengths = _written(dc, dc_table)
    written: list[tuple[int, int]] = []
    for index, block in enumerate(ac):
        written.append((int(codes[index]), int(lengths[index])))
        for symbol, value, size in block:
            code, length = ac_table[symbol]
            written.append((code << size | value, length + size))
    body = np.array(written)
    quantization = bytes((0x10,)) + struct.pack(">H", step) * 64
    return b"".join((
        b"\xff\xd8",
        _segment(0xDB, quantization),
        _frame(0xC1, pixels.shape, bits, 0),
        _table(0x00, dc_table),
        _table(0x10, ac_table),
        _segment(0xDA, bytes((1, 1, 0)) + scan),
        _packed((body[:, 0], body[:, 1])),
        b"\xff\xd9",
    ))  # fmt: skip


def _zigzag(at: tuple[int, ...]) -> tuple[int, int]:
    y, x = at
    return y + x, y if (y + x) % 2 else x


def _differences(levels: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """What is left of levels, (H, W), after their left neighbors, or those above; (H * W)."""
    predicted = np.empty_like(levels)
    predicted[:, 1:] = levels[:, :-1]
    predicted[1:, 0] = levels[:-1, 0]
    predicted[0, 0] = 2 ** (bits - 1)
    difference = (levels - predicted).ravel()
    return (difference + 2**15 - 1) % 2**16 - 2**15 + 1


def _categories(values: NDArray[np.int64]) -> Coded:
    """Values as their categories and what tells them apart within one. Source: T.81 table F.1."""
    sizes = np.ceil(np.log2(np.abs(values) + 1)).astype(np.int64)
    extra = np.where(values < 0, values + 2**sizes - 1, values)
    return sizes, np.where(sizes == 16, 0, extra), np.where(sizes == 16, 0, sizes)


def _runs(block: Sequence[int]) -> list[tuple[int, int, int]]:
    """The 63 AC coefficients as run lengths. Source: T.81 section F.1.2.2."""
    coded, run = [], 0
    for value in block:
        if value == 0:
            run += 1
            continue
        coded += [(0xF0, 0, 0)] * (run // 16)
        size = abs(value).bit_length()
        coded.append((run % 16 << 4 | size, value if value > 0 else value + 2**size - 1, size))
        run = 0
    return [*coded, (0, 0, 0)] if run else coded


def _huffman(symbols: Sequence[NDArray[np.int64]]) -> dict[int, tuple[int, int]]:
    """Code and length of each symbol, at most 16 bits. Source: T.81 annex K.2 and C."""
    counts = Counter(np.concatenate(symbols).tolist())
    least = sum(counts.values()) // 2**13 + 1
    # One that is never written takes the code of ones alone, which is not allowed.
    heap = [(max(count, least), [symbol]) for symbol, count in sorted(counts.items())]
    heap.append((1, [-1]))
    heapq.heapify(heap)
    lengths = Counter[int]()
    while len(heap) > 1:
        (one, first), (other, second) = heapq.heappop(heap), heapq.heappop(heap)
        lengths.update(first + second)
        heapq.heappush(heap, (one + other, first + second))
    assert max(lengths.values()) <= 16
    last = max(lengths.values())
    table, code, before = {}, 0, 0
    for symbol in sorted(lengths, key=lambda symbol: (lengths[symbol], symbol == -1, symbol)):
        length = lengths[symbol]
        code <<= length - before
        before = length
        if symbol >= 0:
            table[symbol] = (code, length)
        code += 1
    assert lengths[-1] == last
    return table


def _written(coded: Coded, table: dict[int, tuple[int, int]]) -> tuple[NDArray[np.int64], ...]:
    """Bits of each symbol with what follows it, and how many these are."""
    symbols, extra, sizes = coded
    codes, lengths = np.zeros(256, np.int64), np.zeros(256, np.int64)
    for symbol, (code, length) in table.items():
        codes[symbol], lengths[symbol] = code, length
    return codes[symbols] << sizes | extra, lengths[symbols] + sizes


def _packed(written: Sequence[NDArray[np.int64]]) -> bytes:
    """Values of so many bits as a stream, filled up with ones. Source: T.81 section F.1.2.3."""
    values, lengths = written
    ends = lengths.cumsum()
    from_end = np.repeat(ends, lengths) - 1 - np.arange(ends[-1])
    bits = (np.repeat(values, lengths) >> from_end & 1).astype(np.uint8)
    filled = np.pad(bits, (0, -len(bits) % 8), constant_values=1)
    return np.packbits(filled).tobytes().replace(b"\xff", b"\xff\0")


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body


def _frame(process: int, shape: tuple[int, ...], bits: int, quantization: int) -> bytes:
    component = bytes((1, 1, 0x11, quantization))
    return _segment(process, struct.pack(">BHH", bits, *shape) + component)


def _table(place: int, table: dict[int, tuple[int, int]]) -> bytes:
    ordered = sorted(table, key=lambda symbol: (table[symbol][1], table[symbol][0]))
    counts = Counter(length for _, length in table.values())
    return _segment(0xC4, bytes((place, *(counts[length] for length in range(1, 17)), *ordered)))


# --- 16 bits to a channel ------------------------------------------------------------------------

CHANNELS = {"gray": 1, "gray and alpha": 2, "rgb": 3, "rgba": 4}


def in_channels(gray: NDArray[np.uint16], channels: str) -> NDArray[np.uint16]:
    """Gray levels, (H, W), as channels, all alike and opaque, (H, W, C)."""
    levels = np.repeat(gray[..., None], CHANNELS[channels], axis=2)
    if channels in ("gray and alpha", "rgba"):
        levels[..., -1] = 65535
    return levels


def deep_png(levels: NDArray[np.uint16]) -> bytes:
    """A PNG of gray, gray and alpha, RGB or RGBA with 16 bits each, (H, W, C).

    Rows are filtered in turn by each of the five filters, all of which look back by a pixel, but
    for Paeth's. Source: W3C PNG specification, section 9.
    """
    rows, columns, channels = levels.shape
    raw = levels.astype(">u2").view(np.uint8).reshape(rows, -1).astype(np.int64)
    left = np.pad(raw, ((0, 0), (2 * channels, 0)))[:, : raw.shape[1]]
    above = np.pad(raw, ((1, 0), (0, 0)))[:rows]
    filtered = (raw, raw - left, raw - above, raw - (left + above) // 2)
    body = b"".join(
        bytes((row % 4,)) + (filtered[row % 4][row] % 256).astype(np.uint8).tobytes()
        for row in range(rows)
    )
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", columns, rows, 16, color, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(body)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks
    )


def deep_tiff(
    levels: NDArray[np.uint16], order: str = "<", deflated: bool = False, planes: int = 1
) -> bytes:
    """A TIFF of gray, gray and alpha, RGB or RGBA with 16 bits each, (H, W, C), in one strip.

    Args:
        levels: what is written.
        order: `"<"` or `">"`.
        deflated: with the horizontal predictor, as most programs write it.
        planes: 1 for pixels in a row, 2 claims separate planes.
    """
    rows, columns, channels = levels.shape
    predicted = np.diff(levels, axis=1, prepend=np.uint16(0)) if deflated else levels
    raw = predicted.astype(f"{order}u2").tobytes()
    strip = zlib.compress(raw) if deflated else raw
    bits_at, strip_at = 8, 16
    entries = [
        (256, 4, 1, columns),
        (257, 4, 1, rows),
        (258, 3, channels, 16 if channels == 1 else bits_at),
        (259, 3, 1, 8 if deflated else 1),
        (262, 3, 1, 2 if channels > 2 else 1),
        (273, 4, 1, strip_at),
        (277, 3, 1, channels),
        (278, 4, 1, rows),
        (279, 4, 1, len(strip)),
        (284, 3, 1, planes),
        (317, 3, 1, 2 if deflated else 1),
    ]
    if channels in (2, 4):
        entries.append((338, 3, 1, 2))
    if channels == 2:  # Two values of 16 bits stand in the entry itself.
        entries[2] = (258, 3, 2, 16 | 16 << 16)
    directory = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        short = kind == 3 and count == 1
        packed = struct.pack(f"{order}HH" if short else f"{order}I", *((value, 0)[: 1 + short]))
        directory += struct.pack(f"{order}HHI", tag, kind, count) + packed
    directory_at = strip_at + len(strip) + len(strip) % 2
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, directory_at)
    bits = struct.pack(f"{order}4H", 16, 16, 16, 16)
    return head + bits + strip + bytes(len(strip) % 2) + directory + bytes(4)


def bmp_with_alpha(bgra: NDArray[np.uint8]) -> bytes:
    """A BMP of 32 bits with masks for color and alpha (version 4), of BGRA, (H, W, 4)."""
    rows, columns, _ = bgra.shape
    body = bgra[::-1].tobytes()
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, columns, rows, 1, 32, 3, len(body), 2835, 2835, 0, 0)
    header += masks + b"BGRs" + bytes(48)
    offset = 14 + len(header)
    return struct.pack("<2sIHHI", b"BM", offset + len(body), 0, 0, offset) + header + body
