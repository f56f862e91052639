"""The tables of AES against OpenSSL's."""

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from primia.fss import aes
from primia.fss.prf import PUBLIC_KEY
from primia.prg import Seed, Stream


def turned(word, bits):
    return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF if bits else word


def encrypted(block):
    """A block by the tables, a round at a time."""
    table, keys = aes.table().tolist(), aes.round_keys().tolist()
    state = [int.from_bytes(block[at : at + 4], "little") for at in range(0, 16, 4)]
    state = [word ^ key for word, key in zip(state, keys, strict=False)]
    for number in range(1, aes.ROUNDS + 1):
        after = []
        for column in range(4):
            found = keys[4 * number + column]
            for row in range(4):
                byte = state[(column + row) % 4] >> 8 * row & 0xFF
                mixed = turned(table[byte], 8 * row)
                plain = (table[byte] >> 8 & 0xFF) << 8 * row
                found ^= plain if number == aes.ROUNDS else mixed
            after.append(found)
        state = after
    return b"".join(word.to_bytes(4, "little") for word in state)


def test_blocks_are_those_of_openssl():
    openssl = Cipher(AES(PUBLIC_KEY), ECB()).encryptor()
    data = Stream(Seed(bytes(16)), "aes").raw(16 * 64)
    for at in range(0, len(data), 16):
        assert encrypted(data[at : at + 16]) == openssl.update(data[at : at + 16])


def test_the_substitution_is_a_permutation_without_fixed_points():
    found = aes.substitution()
    assert sorted(found) == list(range(256))
    assert all(s not in (x, 255 - x) for x, s in enumerate(found))
    assert found[0x00] == 0x63
    assert found[0x53] == 0xED  # the example of FIPS 197, 5.1.1
