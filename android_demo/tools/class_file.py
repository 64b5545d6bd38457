"""Java class files whose members can be added to: what a compiler needs to see, without any code.

The layout is that of chapter 4 of the Java virtual machine's specification. Everything that is read
is written again byte for byte; only new constants, fields, methods and nested classes are appended.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PUBLIC, STATIC, FINAL, VARARGS, NATIVE = 0x1, 0x8, 0x10, 0x80, 0x100
SUPER, INTERFACE, ABSTRACT = 0x20, 0x200, 0x400
MAGIC = 0xCAFEBABE
JAVA_8 = 52  # the newest version that API 23's own classes and every compiler read
# Bytes after the tag of each kind of constant; strings (tag 1) have a length of their own.
CONSTANT_BYTES = {3: 4, 4: 4, 5: 8, 6: 8, 7: 2, 8: 2, 9: 4, 10: 4, 11: 4, 12: 4, 15: 3, 16: 2}
CONSTANT_BYTES |= {17: 4, 18: 4, 19: 2, 20: 2}
UTF8, CLASS = 1, 7
TWO_SLOTS = (5, 6)


@dataclass
class Member:
    """A field or a method: indices into the constants; its attributes as they lie in the file."""

    access: int
    name: int
    descriptor: int
    attributes: bytes = b"\0\0"

    def pack(self) -> bytes:
        return struct.pack(">HHH", self.access, self.name, self.descriptor) + self.attributes


@dataclass
class ClassFile:
    """One class: `constants[i]` is the whole constant i, its tag first (b"" for an unused slot)."""

    constants: list[bytes]
    access: int
    this_index: int
    super_index: int
    interfaces: list[int]
    fields: list[Member] = field(default_factory=list)
    methods: list[Member] = field(default_factory=list)
    attributes: dict[str, bytes] = field(default_factory=dict)
    version: bytes = struct.pack(">HH", 0, JAVA_8)

    def __post_init__(self) -> None:
        self._indices = {constant: i for i, constant in enumerate(self.constants)}

    def text(self, index: int) -> str:
        """The string of a constant: of UTF8 its own, of a class its name."""
        constant = self.constants[index]
        if constant[0] == CLASS:
            return self.text(int.from_bytes(constant[1:], "big"))
        return constant[3:].decode("utf-8", "surrogatepass")

    def _index(self, constant: bytes) -> int:
        if constant not in self._indices:
            self._indices[constant] = len(self.constants)
            self.constants.append(constant)
        return self._indices[constant]

    def utf8(self, text: str) -> int:
        raw = text.encode()
        return self._index(bytes([UTF8]) + struct.pack(">H", len(raw)) + raw)

    def class_index(self, name: str) -> int:
        return self._index(bytes([CLASS]) + struct.pack(">H", self.utf8(name)))

    def field_names(self) -> set[str]:
        return {self.text(member.name) for member in self.fields}

    def has_method(self, name: str, parameters: str) -> bool:
        """Whether there is a method of these types, as "(I"."""
        return any(
            self.text(m.name) == name and self.text(m.descriptor).startswith(f"{parameters})")
            for m in self.methods
        )

    def add_field(self, access: int, name: str, descriptor: str) -> None:
        self.fields.append(Member(access, self.utf8(name), self.utf8(descriptor)))

    def add_method(self, access: int, name: str, descriptor: str, signature: str) -> None:
        """`signature`: the descriptor with the arguments of generic types."""
        member = Member(access, self.utf8(name), self.utf8(descriptor))
        self.methods.append(member)
        self._sign(member, signature)

    def make_generic(self, name: str, signature: str) -> None:
        """Gives the methods of a name type variables; their descriptors stay."""
        for member in self.methods:
            if self.text(member.name) == name:
                self._sign(member, signature)

    def _sign(self, member: Member, signature: str) -> None:
        row = struct.pack(">HIH", self.utf8("Signature"), 2, self.utf8(signature))
        n = int.from_bytes(member.attributes[:2], "big")
        member.attributes = struct.pack(">H", n + 1) + member.attributes[2:] + row

    def add_inner(self, outer: str, name: str, access: int) -> None:
        """Names a nested class `outer$name` in the attribute by which compilers find it."""
        raw = self.attributes.get("InnerClasses", b"\0\0")
        inner = self.class_index(f"{outer}${name}")
        if any(raw[i : i + 2] == struct.pack(">H", inner) for i in range(2, len(raw), 8)):
            return
        row = struct.pack(">HHHH", inner, self.class_index(outer), self.utf8(name), access)
        self.attributes["InnerClasses"] = (
            struct.pack(">H", int.from_bytes(raw[:2], "big") + 1) + raw[2:] + row
        )

    def pack(self) -> bytes:
        attributes = b"".join(
            struct.pack(">HI", self.utf8(name), len(raw)) + raw
            for name, raw in self.attributes.items()
        )
        head = struct.pack(">I", MAGIC) + self.version + struct.pack(">H", len(self.constants))
        body = struct.pack(">HHH", self.access, self.this_index, self.super_index)
        body += struct.pack(f">H{len(self.interfaces)}H", len(self.interfaces), *self.interfaces)
        for members in (self.fields, self.methods):
            body += struct.pack(">H", len(members)) + b"".join(m.pack() for m in members)
        return (
            head
            + b"".join(self.constants)
            + body
            + struct.pack(">H", len(self.attributes))
            + attributes
        )


def new_class(name: str, parent: str, interfaces: list[str], access: int) -> ClassFile:
    """A class without members. Names are internal ones, as android/os/PowerManager."""
    made = ClassFile([b""], access, 0, 0, [])
    made.this_index, made.super_index = made.class_index(name), made.class_index(parent)
    made.interfaces = [made.class_index(interface) for interface in interfaces]
    return made


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, n_bytes: int) -> bytes:
        self.at += n_bytes
        return self.data[self.at - n_bytes : self.at]

    def number(self, n_bytes: int) -> int:
        return int.from_bytes(self.take(n_bytes), "big")

    def constants(self) -> list[bytes]:
        found = [b""]
        n = self.number(2)
        while len(found) < n:
            tag = self.data[self.at]
            size = CONSTANT_BYTES.get(tag)
            if size is None:
                size = 2 + int.from_bytes(self.data[self.at + 1 : self.at + 3], "big")
            found.append(self.take(1 + size))
            if tag in TWO_SLOTS:
                found.append(b"")
        return found

    def attributes(self) -> bytes:
        begin = self.at
        for _ in range(self.number(2)):
            self.take(2)
            self.take(self.number(4))
        return self.data[begin : self.at]

    def members(self) -> list[Member]:
        n = self.number(2)
        return [
            Member(self.number(2), self.number(2), self.number(2), self.attributes())
            for _ in range(n)
        ]


def read_class(data: bytes) -> ClassFile:
    """The class of a file. Raises ValueError if it is none."""
    reader = _Reader(data)
    if reader.number(4) != MAGIC:
        raise ValueError("not a class file")
    version = reader.take(4)
    made = ClassFile(reader.constants(), reader.number(2), reader.number(2), reader.number(2), [])
    made.version = version
    made.interfaces = [reader.number(2) for _ in range(reader.number(2))]
    made.fields, made.methods = reader.members(), reader.members()
    for _ in range(reader.number(2)):
        name = made.text(reader.number(2))
        made.attributes[name] = reader.take(reader.number(4))
    return made
