"""The greeter's messages by hand, so that no code generator is needed.

greeter.v1: HelloRequest { string name = 1 }, HelloReply { string message = 1, version = 2, peer = 3 }.
"""

METHOD = "/greeter.v1.Greeter/SayHello"


def _varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode(fields):
    """Strings by field number."""
    out = b""
    for number, text in fields.items():
        data = text.encode()
        out += _varint(number << 3 | 2) + _varint(len(data)) + data
    return out


def decode(data):
    """Strings by field number; these messages have nothing else."""
    fields, at = {}, 0

    def varint():
        nonlocal at
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return number

    while at < len(data):
        key, length = varint(), varint()
        fields[key >> 3] = data[at : at + length].decode()
        at += length
    return fields
