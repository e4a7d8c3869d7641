"""120 hostile pickles against the reader of the historical database: none may run, change a class or hog the machine.

    python tests/faults/hostile_pickles.py [real.pkl ...]

Each pickle is built from opcodes and read in a process of its own, which reports every audit event of Python (imports,
calls into `os`, files opened ...), what classes looked like before and after, its memory and its CPU time. Real files
that are named must be read.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from groundtune.data.files import read_documents  # noqa: E402
from groundtune.errors import DataError  # noqa: E402
from groundtune.schema import Document, Example, Turn  # noqa: E402

FAIRE = ROOT.parent / "shared/data/faire/documents.pkl"
HISTORICAL = "local_rqa.schema.document"
MOST_MEGABYTES, MOST_SECONDS = 512, 2.0
# Audit events of the reader itself; any other event was caused by the pickle.
HARMLESS = {"builtins.id", "object.__getattr__"}


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


STUB = name(HISTORICAL, "Document")


def document(metadata: bytes = b"}") -> bytes:
    fields = text("page_content") + text("some text") + text("metadata") + metadata
    return STUB + b")\x81}(" + fields + b"ub"


def pickled(*items: bytes) -> bytes:
    return b"\x80\x04](" + b"".join(items) + b"e."


def cases() -> dict[str, bytes]:
    """Hostile pickles by what they attempt."""
    found: dict[str, bytes] = {}
    for kind, make in (("calls", _calls), ("changes", _changes), ("hogs", _hogs), ("breaks", _breaks)):
        found |= {f"{kind}: {what}": data for what, data in make()}
    return found


# Calls that a pickle attempts: shell, interpreter, imports, files, and ways around a module list.
TARGETS = {
    ("os", "system"): text("touch executed"),
    ("posix", "system"): text("touch executed"),
    ("subprocess", "Popen"): text("touch executed"),
    ("builtins", "eval"): text("open('executed', 'w')"),
    ("builtins", "exec"): text("open('executed', 'w')"),
    ("builtins", "__import__"): text("antigravity"),
    ("importlib", "import_module"): text("antigravity"),
    ("runpy", "run_path"): text("executed.py"),
    ("pickle", "loads"): text("cos\nsystem\n(S'touch executed'\ntR."),
    ("shutil", "rmtree"): text("precious"),
    (HISTORICAL, "os.system"): text("touch executed"),
    ("groundtune.data.files", "os.system"): text("touch executed"),
}
MECHANISMS: dict[str, Callable[[str, str, bytes], bytes]] = {
    "reduce": lambda m, n, a: name(m, n) + a + b"\x85R",
    "global and reduce": lambda m, n, a: f"c{m}\n{n}\n".encode() + a + b"\x85R",
    "inst": lambda m, n, a: b"(" + a + f"i{m}\n{n}\n".encode(),
    "obj": lambda m, n, a: b"(" + name(m, n) + a + b"o",
    "newobj": lambda m, n, a: name(m, n) + a + b"\x85\x81",
    "newobj_ex": lambda m, n, a: name(m, n) + a + b"\x85}\x92",
}


def _calls() -> Iterator[tuple[str, bytes]]:
    for (module, attribute), argument in TARGETS.items():
        for how, build in MECHANISMS.items():
            yield f"{module}.{attribute} by {how}", pickled(build(module, attribute, argument))
    reduced = MECHANISMS["reduce"]("os", "system", text("touch executed"))
    yield "os.system in the metadata of a document", pickled(document(b"}(" + text("k") + reduced + b"u"))
    yield "os.system as the state of a document", pickled(STUB + b")\x81" + reduced + b"b")
    yield "os.system after the end", pickled(document()) + reduced + b"."
    yield "os.system in protocol 0", b"cos\nsystem\n(S'touch executed'\ntR."
    yield (
        "os.system by names out of the memo",
        (b"\x80\x04" + text("system") + b"q\x00" + text("os") + b"h\x00\x93" + text("touch executed") + b"\x85R."),
    )
    yield "a persistent id", pickled(b"Pos.system\n")
    yield "an extension", pickled(b"\x82\x01)R")


def _changes() -> Iterator[tuple[str, bytes]]:
    state = b"}" + text("__setstate__") + b"Ns"
    yield "build of the stub class", pickled(STUB + state + b"b")
    yield "build of the real Document", pickled(name("groundtune.schema", "Document") + state + b"b")
    yield "build of a function", pickled(name("groundtune.data.files", "read_documents") + state + b"b")
    yield "build with slots", pickled(STUB + b")\x81N" + state + b"\x86b")
    yield "an attribute of the class", pickled(name(HISTORICAL, "Document.__setstate__"))
    yield "items of the class", pickled(STUB + text("__slots__") + b"Ns")
    yield "items of a document", pickled(STUB + b")\x81" + text("state") + b"Ns")
    yield "append to a document", pickled(STUB + b")\x81(Ne")
    yield "state set twice", pickled(document() + b"}b")
    yield "the class as metadata", pickled(document(b"}(" + text("k") + STUB + b"u"))
    yield "the class as a key", pickled(document(b"}(" + STUB + b"Nu"))
    yield "the module's dict", pickled(name(HISTORICAL, "__dict__") + text("Document") + b"Ns")
    yield "builtins by their dict", pickled(name("builtins", "__dict__") + text("open") + b"Ns")


def _hogs() -> Iterator[tuple[str, bytes]]:
    for index in (0xF0, 0xFFFF, 0x0FFFFFFF, 0xFFFFFFFF):
        yield f"memo index {index:#x}", pickled(b"Nr" + struct.pack("<I", index))
    yield "memo index in text", pickled(b"Np268435455\n")
    for opcode, what in ((b"\x8d", "string"), (b"\x8e", "bytes"), (b"\x96", "bytearray"), (b"\x95", "frame")):
        yield f"{what} of 2^62 bytes", pickled(opcode + struct.pack("<Q", 2**62))
        yield f"{what} of 2^31 bytes", pickled(opcode + struct.pack("<Q", 2**31))
    yield "integer of 2^31 bytes", pickled(b"\x8b" + struct.pack("<i", 2**31 - 1))
    yield "integers of one hash", pickled(b"}(" + b"".join(_same_hash(i) + b"N" for i in range(3000)) + b"u")
    yield "exponential hash", _exponential_hash()
    yield "lists that double", _doubling(b"]", b"e")
    yield "dicts that double", _doubling(b"}", b"u")
    yield "100,000 nested lists", pickled(document(b"]" * 10**5 + b"a" * (10**5 - 1)))
    yield "a list that holds itself", pickled(document(b"]q\x00h\x00a"))
    yield "a million marks", b"\x80\x04" + b"(" * 10**6 + b"."
    yield "a million copies", b"\x80\x04]" + b"2" * 10**6 + b"."
    yield (
        "one string a hundred thousand times",
        pickled(document(b"](" + text("x" * 10**5) + b"q\x00" + b"h\x00" * 10**5 + b"e")),
    )


def _same_hash(i: int) -> bytes:
    """Integers that differ by a multiple of 2^61 - 1 share one hash."""
    number = (i * (2**61 - 1)).to_bytes(10, "little", signed=True)
    return b"\x8a\x0a" + number


def _exponential_hash() -> bytes:
    pairs = [b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60)]
    return pickled(b"}" + b")q\x00" + b"".join(pairs) + b"Ns")


def _doubling(empty: bytes, add: bytes) -> bytes:
    levels = [empty + b"q\x00"]
    for level in range(1, 31):
        before = b"h" + bytes([level - 1])
        members = before * 2 if empty == b"]" else text("a") + before + text("b") + before
        levels.append(empty + b"q" + bytes([level]) + b"(" + members + add)
    return pickled(*[document(b"}(" + text("level") + level + b"u") for level in levels])


def _breaks() -> Iterator[tuple[str, bytes]]:
    yield "an unknown protocol", b"\x80\xff]."
    yield "no protocol", b"](K\x01e."
    yield "stack underflow", b"\x80\x04a."
    yield "a mark as the result", b"\x80\x04(."
    yield "a memo entry that is missing", pickled(b"h\x07")
    yield "half of a character", pickled(document(b"}(" + text("\ud800") + b"Nu"))
    yield "a key that is a number", pickled(document(b"}(K\x01Nu"))
    yield "a pickle within bytes", pickled(b"C\x05\x80\x04]..")
    yield "every byte once", b"\x80\x04" + bytes(range(256))
    yield "cut in half", pickled(document(), document())[:60]


def fingerprint_of_classes() -> str:
    """The state of all classes that a pickle could reach."""
    return repr([sorted((key, id(value)) for key, value in vars(c).items()) for c in (Document, Example, Turn, Path)])


def attempt(data: bytes, folder: Path) -> dict[str, object]:
    """Read one pickle in this process; why it was refused, its side effects, and whether a class changed."""
    path = folder / "documents.pkl"
    path.write_bytes(data)
    before = fingerprint_of_classes()
    with audit_events() as events:
        try:
            refused = bool(read_documents(path)) and ""
        except DataError as error:
            refused = str(error)
    happened = sorted({event for event in events if event[0] not in HARMLESS and event != ("open", str(path))})
    return {
        "refused": refused, "happened": happened, "changed": fingerprint_of_classes() != before,
        "executed": (folder / "executed").exists() or not (folder / "precious").exists(),
    }  # fmt: skip


_recording: list[list[tuple[str, str]]] = []  # at most one


def _record(event: str, arguments: tuple[object, ...]) -> None:
    for events in _recording:
        events.append((event, str(arguments[0]) if arguments else ""))


@contextmanager
def audit_events() -> Iterator[list[tuple[str, str]]]:
    """All audit events inside the block. An audit hook cannot be removed: afterwards it stays, but records nothing."""
    if not hasattr(_record, "hooked"):
        _record.hooked = True
        sys.addaudithook(_record)
    events: list[tuple[str, str]] = []
    _recording.append(events)
    try:
        yield events
    finally:
        _recording.clear()


def attempt_in_a_process(data: bytes, folder: Path) -> dict[str, object]:
    """`attempt` in a fork, with memory in MB and CPU time in seconds; a crash does not count as a refusal."""
    import resource

    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
        os.chdir(folder)
        answer.write_text(json.dumps(attempt(data, folder)))
        os._exit(0)
    _, status, used = os.wait4(child, 0)
    seconds = used.ru_utime + used.ru_stime
    megabytes = used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    result = json.loads(answer.read_text()) if status == 0 else {"refused": "", "happened": [f"died: {status}"]}
    return {"changed": False, "executed": False, **result, "seconds": seconds, "megabytes": megabytes}


def is_harmless(result: dict[str, object]) -> bool:
    return bool(result["refused"]) and not (result["happened"] or result["changed"] or result["executed"])


def main(real: list[str]) -> int:
    wrong, worst = [], {"seconds": 0.0, "megabytes": 0.0}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "precious").mkdir()
        for what, data in cases().items():
            result = attempt_in_a_process(data, folder)
            worst = {key: max(most, result[key]) for key, most in worst.items()}
            if not is_harmless(result) or result["seconds"] > MOST_SECONDS or result["megabytes"] > MOST_MEGABYTES:
                wrong.append(f"{what}: {result}")
    for path in real or ([str(FAIRE)] if FAIRE.exists() else []):
        print(f"{path}: {len(read_documents(path))} documents read")
    print(*wrong, sep="\n")
    print(
        f"{len(cases())} hostile pickles, {len(wrong)} not refused cleanly; "
        f"at most {worst['megabytes']:.0f} MB and {worst['seconds']:.2f} CPU seconds"
    )
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
