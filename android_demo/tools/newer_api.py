"""The part of Android's newest API that the app names, on top of an old android.jar.

The only android.jar that Debian has is of API 23. The PyPI package chaquopy-stubs-android describes
API 36 as typed Python stubs. This tool reads the imports of the app's Kotlin files, and writes a
jar with those classes as API 23 has them, plus the members and nested classes that API 36 adds.
Nothing in it can run: it is a class path for the type check.

    python3 newer_api.py --jar android-23.jar --stubs WHEEL --out newer.jar KOTLIN_FILE...

Two things are not in the stubs. Whether a class is an interface is inferred: a class file keeps the
names of parameters only of methods with code, so an interface's are called arg1, arg2. And `int`
may be a Java int or long, so a newer method that returns a number is added only if RETURNS names
it.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import class_file
from class_file import ClassFile

# Java's type of the results that the stubs call int or float, from Android's reference.
RETURNS = {
    "android/os/PowerManager.getCurrentThermalStatus": "I",
    "android/view/WindowInsets$Type.systemBars": "I",
    "android/view/WindowInsets$Type.displayCutout": "I",
    "android/view/WindowInsets$Type.ime": "I",
    "android/app/ApplicationExitInfo.getReason": "I",
    "android/app/ApplicationExitInfo.getTimestamp": "J",
}
# What API 26 made generic, without another descriptor.
GENERIC = {"findViewById": "<T:Landroid/view/View;>(I)TT;"}
PRIMITIVES = {"jboolean": "Z", "jbyte": "B", "jchar": "C", "jshort": "S", "jint": "I"}
PRIMITIVES |= {"jlong": "J", "jfloat": "F", "jdouble": "D"}
ARRAYS = {"JavaArray" + name[0].upper() + name[1:]: f"[{t}" for name, t in PRIMITIVES.items()}
RESULTS = {"bool": "Z", "None": "V", "str": "Ljava/lang/String;"}
OBJECT = "Ljava/lang/Object;"


@dataclass
class Stub:
    """A class of the stubs: its internal name, its definition, and the names its package knows."""

    name: str
    node: ast.ClassDef
    package: str


class Stubs:
    """All of API 36, read package by package when a class of it is asked for."""

    def __init__(self, wheel: Path) -> None:
        self._archive = zipfile.ZipFile(wheel)
        self._packages: dict[str, dict[str, Stub]] = {}

    def _package(self, package: str) -> dict[str, Stub]:
        if package not in self._packages:
            first, *rest = package.split("/")
            path = "/".join([f"{first}-stubs", *rest, "__init__.pyi"])
            found: dict[str, Stub] = {}
            if path in self._archive.namelist():
                _collect(ast.parse(self._archive.read(path)), package, f"{package}/", found)
            self._packages[package] = found
        return self._packages[package]

    def find(self, name: str) -> Stub | None:
        """The class of an internal name, as android/os/PowerManager$WakeLock, or None."""
        return self._package(name.rpartition("/")[0]).get(name)

    def nested(self, stub: Stub) -> list[Stub]:
        return [
            self._package(stub.package)[f"{stub.name}${node.name}"]
            for node in stub.node.body
            if isinstance(node, ast.ClassDef)
        ]

    def internal_name(self, expression: str, package: str) -> str | None:
        """The internal name of a type as the stub of a package writes it; None: a type variable."""
        parts = expression.split(".")
        for n in range(len(parts) - 1, -1, -1):
            where = "/".join(parts[:n]) or package
            name = f"{where}/" + "$".join(parts[n:])
            if name in self._package(where):
                return name
        return None


def _collect(tree: ast.AST, package: str, prefix: str, found: dict[str, Stub]) -> None:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            name = prefix + node.name
            found[name] = Stub(name, node, package)
            _collect(node, package, f"{name}$", found)


def _alternatives(node: ast.expr) -> list[ast.expr]:
    """The parts of A | B | None, without None, and without the type arguments of generic types."""
    if isinstance(node, ast.BinOp):
        return _alternatives(node.left) + _alternatives(node.right)
    return [] if isinstance(node, ast.Constant) and node.value is None else [node]


class Types:
    """Descriptors of the Java virtual machine for the stubs' types; `used` gathers the classes."""

    def __init__(self, stubs: Stubs) -> None:
        self.stubs, self.used = stubs, set[str]()

    def _class(self, node: ast.expr, package: str) -> str:
        if isinstance(node, ast.Subscript):
            if ast.unparse(node.value).endswith("JavaArray"):
                return "[" + self._class(node.slice, package)
            node = node.value
        expression = ast.unparse(node)
        last = expression.rpartition(".")[2]
        if last in ARRAYS or expression == "str":
            return ARRAYS.get(last, "Ljava/lang/String;")
        name = self.stubs.internal_name(expression, package)
        if name is None:
            return OBJECT  # a type variable: its erasure
        self.used.add(name)
        return f"L{name};"

    def parameter(self, node: ast.expr, package: str) -> str:
        types = _alternatives(node)
        for part in types:
            primitive = PRIMITIVES.get(ast.unparse(part).rpartition(".")[2])
            if primitive is not None:
                return primitive
        return self._class(types[0], package) if types else OBJECT

    def result(self, node: ast.expr, package: str, name: str) -> str | None:
        """None: the stubs do not say which of Java's numbers it is, nor does RETURNS."""
        text = ast.unparse(node)
        if text in RESULTS:
            return RESULTS[text]
        if text in ("int", "float"):
            return RETURNS.get(name)
        return self._class(_alternatives(node)[0], package)

    def generic(self, node: ast.expr, package: str, plain: str) -> str:
        """The descriptor `plain` of a result, with the arguments of its type: List<Locale>."""
        first = next(iter(_alternatives(node)), node)
        if not isinstance(first, ast.Subscript) or not plain.startswith("L"):
            return plain
        inside = first.slice.elts if isinstance(first.slice, ast.Tuple) else [first.slice]
        arguments = "".join(self._class(argument, package) for argument in inside)
        return f"{plain[:-1]}<{arguments}>;"


def is_interface(node: ast.ClassDef) -> bool:
    """Whether no method has code: no parameter has a name, and there is no constructor."""
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    own = [m for m in methods if not _has(m, "staticmethod")]
    names = [a.arg for m in own for a in [*m.args.posonlyargs, *m.args.args] if a.arg != "self"]
    constructs = any(m.name == "__init__" for m in methods)
    return bool(own) and not constructs and all(re.fullmatch(r"arg\d+", name) for name in names)


def _has(function: ast.FunctionDef, decorator: str) -> bool:
    return any(ast.unparse(d) == decorator for d in function.decorator_list)


class Merger:
    """Brings classes of API 23 to API 36."""

    def __init__(self, old: zipfile.ZipFile, stubs: Stubs) -> None:
        self.old, self.stubs, self.types = old, stubs, Types(stubs)
        self.old_names = set(old.namelist())

    def is_old(self, name: str) -> bool:
        return f"{name}.class" in self.old_names

    def _base(self, stub: Stub) -> ClassFile:
        if self.is_old(stub.name):
            made = class_file.read_class(self.old.read(f"{stub.name}.class"))
            # The jar has classes that implement the system's own interfaces, which it has not.
            made.interfaces = [i for i in made.interfaces if "internal" not in made.text(i)]
            for method, signature in GENERIC.items():
                made.make_generic(method, signature)
            return made
        parent, interfaces = "java/lang/Object", []
        for base in stub.node.bases:
            name = self.stubs.internal_name(ast.unparse(base), stub.package)
            found = self.stubs.find(name) if name else None
            if found is not None and is_interface(found.node):
                interfaces.append(found.name)
            elif found is not None:
                parent = found.name
        self.types.used |= {parent, *interfaces}
        flags = class_file.SUPER
        if is_interface(stub.node):
            flags = class_file.INTERFACE | class_file.ABSTRACT
        return class_file.new_class(stub.name, parent, interfaces, class_file.PUBLIC | flags)

    def _add_field(self, made: ClassFile, node: ast.AnnAssign, package: str) -> None:
        assert isinstance(node.target, ast.Name)
        shared = isinstance(node.annotation, ast.Subscript) and "ClassVar" in ast.unparse(
            node.annotation.value
        )
        kind = node.annotation.slice if shared else node.annotation  # type: ignore[attr-defined]
        text = ast.unparse(kind)
        plain = {"int": "I", "float": "F", "bool": "Z"}
        access = class_file.PUBLIC | (class_file.STATIC | class_file.FINAL if shared else 0)
        if node.target.id not in made.field_names():
            made.add_field(access, node.target.id, plain.get(text) or self._type(kind, package))

    def _type(self, node: ast.expr, package: str) -> str:
        return self.types.parameter(node, package)

    def _add_method(self, made: ClassFile, node: ast.FunctionDef, stub: Stub) -> None:
        static = _has(node, "staticmethod")
        arguments = [*node.args.posonlyargs, *node.args.args]
        kinds = [
            self._type(a.annotation, stub.package) for a in arguments if a.annotation is not None
        ]
        access = class_file.PUBLIC | (class_file.STATIC if static else 0)
        if node.args.vararg is not None and node.args.vararg.annotation is not None:
            kinds.append("[" + self._type(node.args.vararg.annotation, stub.package))
            access |= class_file.VARARGS
        name = "<init>" if node.name == "__init__" else node.name
        assert node.returns is not None
        result = self.types.result(node.returns, stub.package, f"{stub.name}.{node.name}")
        parameters = "(" + "".join(kinds)
        if result is None or made.has_method(name, parameters):
            return
        if not static and name != "<init>" and made.access & class_file.INTERFACE:
            if self.is_old(stub.name):
                return  # a method with a default body: API 23's implementations lack it
            access |= class_file.ABSTRACT
        else:
            access |= class_file.NATIVE  # so that no code is needed
        generic = self.types.generic(node.returns, stub.package, result)
        made.add_method(access, name, f"{parameters}){result}", f"{parameters}){generic}")

    def merge(self, stub: Stub) -> ClassFile:
        made = self._base(stub)
        for node in stub.node.body:
            if isinstance(node, ast.AnnAssign):
                self._add_field(made, node, stub.package)
            elif isinstance(node, ast.FunctionDef):
                self._add_method(made, node, stub)
        for inner in self.stubs.nested(stub):
            made.add_inner(stub.name, inner.node.name, _inner_access(inner))
        outer, _, last = stub.name.rpartition("$")
        if outer and not self.is_old(stub.name):
            made.add_inner(outer, last, _inner_access(stub))
        return made


def _inner_access(stub: Stub) -> int:
    kind = class_file.INTERFACE | class_file.ABSTRACT if is_interface(stub.node) else 0
    return class_file.PUBLIC | class_file.STATIC | kind


def imported(files: list[Path]) -> set[str]:
    """Internal names of Android's top-level classes that Kotlin files import."""
    found = set()
    for file in files:
        for path in re.findall(
            r"^import ((?:android|java)\.[\w.]+)", file.read_text("utf-8"), re.M
        ):
            parts = path.split(".")
            first = next((i for i, part in enumerate(parts) if part[0].isupper()), len(parts) - 1)
            found.add("/".join(parts[:first]) + "/" + parts[first])
    return found


def write_jar(jar: Path, wheel: Path, files: list[Path], out: Path) -> list[str]:
    """Writes the jar, and returns the names that neither API 23 nor API 36 has."""
    with zipfile.ZipFile(jar) as old, zipfile.ZipFile(out, "w") as new:
        merger = Merger(old, Stubs(wheel))
        todo, done, unknown = sorted(imported(files)), set(), []
        while todo:
            name = todo.pop()
            stub = merger.stubs.find(name)
            if name in done:
                continue
            done.add(name)
            if stub is None:
                if not merger.is_old(name):
                    unknown.append(name)
                continue
            new.writestr(f"{name}.class", merger.merge(stub).pack())
            todo += [inner.name for inner in merger.stubs.nested(stub)]
            todo += sorted(n for n in merger.types.used if not _is_there(n, merger))
    return unknown


def _is_there(name: str, merger: Merger) -> bool:
    return merger.is_old(name) or not name.startswith(("android/", "java/"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Android's newer API on top of an old android.jar."
    )
    parser.add_argument("--jar", type=Path, required=True, help="android.jar of API 23")
    parser.add_argument("--stubs", type=Path, required=True, help="wheel of chaquopy-stubs-android")
    parser.add_argument("--out", type=Path, required=True, help="the jar to write")
    parser.add_argument("files", type=Path, nargs="+", help="Kotlin files whose imports count")
    options = parser.parse_args()
    unknown = write_jar(options.jar, options.stubs, options.files, options.out)
    if unknown:
        sys.exit("no such class in API 23 or 36: " + ", ".join(sorted(unknown)))


if __name__ == "__main__":
    main()
