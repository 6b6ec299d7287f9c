"""Every bit of small files flipped, and every cut: no damage passes for data.

The file's checksum covers pages, not their compressed form. So a flipped bit of a payload may leave the page as it was:
the four bits of an LZ4 block's last token that mean nothing, or a match of equal bytes further back. Then, and only
then, the file may still be read, and means the same.
"""

from __future__ import annotations

import pytest

from litereplica.errors import LTXError
from litereplica.format import decoder
from tests.format.builders import CraftedFile, craft, golden_file, legacy_frame, make_header, make_page

FILES = {
    "incompressible": craft(pgnos=(1, 2)).build(),
    "legacy": CraftedFile(make_header().encode(), [legacy_frame(4, make_page(4)), legacy_frame(9, bytes(512))]).build(),
    "golden snapshot": golden_file(512, 1),
    "golden change": golden_file(512, 2),
    "golden shrink": golden_file(512, 3),
}
MEANINGLESS_BITS = {"incompressible": 2 * 4, "legacy": 40}
"""How many mutants may be read of a file without matches, or with few."""


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_detected_or_changes_no_page(name: str) -> None:
    data = FILES[name]
    original = decoder.decode_file(data)
    payloads = set()
    for offset, size in zip(original.index.offset.tolist(), original.index.size.tolist(), strict=True):
        payloads |= set(range(offset + 6, offset + size))
    mutant, read = bytearray(data), 0
    for i in range(8 * len(data)):
        mutant[i // 8] ^= 1 << i % 8
        try:
            file = decoder.decode_file(bytes(mutant))
        except LTXError:
            pass
        else:
            assert i // 8 in payloads, f"bit {i % 8} of byte {i // 8} is not checked"
            assert (file.header, file.pages) == (original.header, original.pages)
            read += 1
        mutant[i // 8] ^= 1 << i % 8
    assert read <= MEANINGLESS_BITS.get(name, len(data) // 4)


@pytest.mark.parametrize("name", FILES)
def test_every_cut_is_detected(name: str) -> None:
    data = FILES[name]
    for cut in range(len(data)):
        with pytest.raises(LTXError):
            decoder.decode_file(data[:cut])
        with pytest.raises(LTXError):
            decoder.decode_file(data[cut + 1 :])


@pytest.mark.parametrize("name", FILES)
def test_every_missing_byte_is_detected(name: str) -> None:
    data = FILES[name]
    original = decoder.decode_file(data)
    for gone in range(len(data)):
        if data[gone : gone + 1] != data[gone + 1 : gone + 2]:
            with pytest.raises(LTXError):
                decoder.decode_file(data[:gone] + data[gone + 1 :])
    assert decoder.decode_file(data).pages == original.pages
