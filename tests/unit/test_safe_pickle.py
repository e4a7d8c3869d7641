"""The historical pickle is read, and no pickle, however hostile, runs code or exhausts the machine."""

from __future__ import annotations

import copyreg
import pickle
import random
import struct
import sys
import tracemalloc
import types
from pathlib import Path

import pytest

from groundtune.data import files, safe_pickle
from groundtune.errors import DataError
from groundtune.schema import Document

FAIRE = Path(__file__).parents[3] / "shared/data/faire/documents.pkl"
HISTORICAL = "local_rqa.schema.document"
EXTENSION = 241  # in copyreg's range for private use


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def stub_with(state: bytes) -> bytes:
    return STUB + b")\x81" + state + b"b"


def document(metadata: bytes = b"}") -> bytes:
    return stub_with(b"}(" + text("page_content") + text("some text") + text("metadata") + metadata + b"u")


def pickled(*items: bytes) -> bytes:
    """A list of `items`, in protocol 4."""
    return b"\x80\x04](" + b"".join(items) + b"e."


STUB = name(HISTORICAL, "Document")


@pytest.fixture
def read(tmp_path):
    def read(data: bytes) -> list[Document]:
        path = tmp_path / "documents.pkl"
        path.write_bytes(data)
        return all_documents(path)

    return read


def all_documents(path: Path) -> list[Document]:
    """As `read_documents`, with those that repeat others."""
    found = files.scan_documents(path)
    if found.problems:
        raise DataError(found.problems)
    return [document for _, document in found.entries]


def install(monkeypatch, module: types.ModuleType) -> None:
    package, schema, _ = module.__name__.split(".")
    for parent in (package, f"{package}.{schema}"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.fixture
def canary(tmp_path, monkeypatch) -> Path:
    """A file that appears when any code of the fake modules, including the historical class, runs."""
    path = tmp_path / "canary"

    class Eager:
        def __new__(cls, *arguments):
            path.touch()
            return object.__new__(cls)

    class Stateful:
        def __setstate__(self, state):
            path.touch()

    trap = types.ModuleType("trap")
    trap.touch = lambda *arguments: path.touch()
    trap.Eager, trap.Stateful = Eager, Stateful
    historical = types.ModuleType(HISTORICAL)
    historical.trap, historical.Document = trap, Eager
    monkeypatch.setitem(sys.modules, "trap", trap)
    install(monkeypatch, historical)
    copyreg.add_extension("trap", "touch", EXTENSION)
    yield path
    copyreg.remove_extension("trap", "touch", EXTENSION)


RUNS_CODE = {
    "reduce": pickled(name("trap", "touch") + b")R"),
    "reduce with a name in the opcode": pickled(b"ctrap\ntouch\n)R"),
    "reduce of a builtin": pickled(name("builtins", "eval") + text("__import__('trap').touch()") + b"\x85R"),
    "reduce in protocol 0": b"(lp0\nctrap\ntouch\np1\n(tRa.",
    "reduce inside a document": pickled(document(b"}(" + text("key") + name("trap", "touch") + b")Ru")),
    "inst": pickled(b"(itrap\ntouch\n"),
    "obj": pickled(b"(" + name("trap", "Eager") + b"o"),
    "extension": pickled(b"\x82" + bytes([EXTENSION]) + b")R"),
    "newobj": pickled(name("trap", "Eager") + b")\x81"),
    "newobj with arguments": pickled(name("trap", "Eager") + b"K\x01\x85\x81"),
    "newobj_ex": pickled(name("trap", "Eager") + b")}\x92"),
    "build": pickled(name("trap", "Stateful") + b")\x81}b"),
    # Only allowed opcodes, and a name from the memo, which the scan cannot see.
    "newobj of a memoised name": b"\x80\x04" + text("Eager") + b"q\x00" + text("trap") + b"h\x00\x93)\x81.",
    "dotted name": pickled(name(HISTORICAL, "trap.Eager") + b")\x81"),
    "dotted module": pickled(name(HISTORICAL + ".Document", "__new__")),
}


@pytest.mark.parametrize("data", RUNS_CODE.values(), ids=RUNS_CODE)
def test_pickles_that_run_code_are_refused_and_nothing_runs(read, canary, data):
    with pytest.raises(DataError, match="refused, nothing in it was executed"):
        read(data)
    assert not canary.exists()


@pytest.mark.parametrize("data", [RUNS_CODE[key] for key in RUNS_CODE if key != "dotted module"])
def test_the_same_pickles_do_run_code_in_the_ordinary_unpickler(canary, data):
    pickle.loads(data)  # noqa: S301  that is the point
    assert canary.exists()


def test_the_historical_class_is_not_run_even_where_it_is_installed(read, canary):
    assert read(pickled(document())) == [Document("some text")]
    assert not canary.exists()


def test_names_are_not_imported(read, tmp_path, monkeypatch):
    (tmp_path / "imported_canary.py").write_text("raise SystemExit", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match="it names 'imported_canary' 'thing'"):
        read(pickled(name("imported_canary", "thing")))
    assert "imported_canary" not in sys.modules


def test_every_opcode_that_is_let_through_is_one_that_picklers_write_for_documents():
    """Every addition is a risk; each opcode here was reviewed."""
    calling = {"REDUCE", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}
    exploding = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET", "LONG", "LONG4", "INT", "PUT", "DUP"}
    assert not (calling | exploding) & safe_pickle._OPCODES
    assert len(safe_pickle._OPCODES) == 31


def nested(levels: int) -> bytes:
    return b"]" * levels + b"a" * (levels - 1)


def hashed_tuples() -> bytes:
    """A dict whose key is 60 nested tuples, each containing the previous one twice."""
    pairs = [b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(60)]
    return pickled(b"}" + b")q\x00" + b"".join(pairs) + b"Ns")


def shared_metadata(count: int) -> bytes:
    """`count` documents that share one metadata dict, as chunks of a page may."""
    first = document(b"}q\x00(" + text("title") + text("t" * 1000) + b"u")
    return pickled(first, *[document(b"h\x00")] * (count - 1))


SCANNED = {  # refused before the unpickler sees them
    "empty file": (b"", "exhausted"),
    "not a pickle": (b"\x1f\x8b\x08 gzip", "not a readable pickle"),
    "text": (b'{"page_content": "some text"}\n', "not a readable pickle"),
    "protocol 0": (b"(l.", "not a pickle of protocol 2 to 5"),
    "protocol 1": (b"](K\x01e.", "not a pickle of protocol 2 to 5"),
    "memo bomb": (pickled(b"Nr\xff\xff\xff\x0f"), "memo index 268435455"),
    "small memo jump": (pickled(b"Nq\xf0"), "memo index 240"),
    "frame beyond the file": (b"\x80\x04\x95" + struct.pack("<Q", 2**62) + b"].", "a frame of"),
    "frame slightly beyond the file": (b"\x80\x04\x95" + struct.pack("<Q", 3) + b"].", "a frame of"),
    "string beyond the file": (pickled(b"\x8d" + struct.pack("<Q", 2**62)), "BINUNICODE8|expected"),
    "huge integer": (pickled(b"\x8b" + struct.pack("<i", 2000) + b"\x7f" * 2000), "opcode LONG4"),
    "integer of 65 bits": (pickled(b"\x8a\x0a" + bytes(8) + b"\x01\x00"), "more than 64 bits"),
    "exponential hash": (hashed_tuples(), "opcode TUPLE2"),
    "dup": (pickled(b"N2"), "opcode DUP"),
    "pop": (pickled(b"N0"), "opcode POP"),
    "persistent id": (pickled(b"Pthing\n"), "opcode PERSID"),
    "binary persistent id": (pickled(b"NQ"), "opcode BINPERSID"),
    "bytes after the end": (pickled(document()) + b"cos\nsystem\n", "11 bytes after the end"),
    "two pickles": (pickled(document()) * 2, "bytes after the end"),
}
UNPICKLED = {  # refused by the unpickler or the stub
    "unknown protocol": (b"\x80\xff].", "unsupported pickle protocol"),
    "missing memo entry": (pickled(b"h\x07"), "Memo value not found"),
    "stack underflow": (b"\x80\x04a.", "UnpicklingError"),
    "mark as a value": (b"\x80\x04(.", "UnpicklingError"),
    "append to a document": (pickled(STUB + b")\x81(Ne"), "AttributeError"),
    "items of a class": (pickled(STUB + text("__setstate__") + b"Ns"), "TypeError"),
    "items of a document": (pickled(STUB + b")\x81" + text("state") + b"Ns"), "TypeError"),
    "build of the class": (pickled(STUB + b"}" + text("__setstate__") + b"Nsb"), "TypeError"),
    "build of a list": (pickled(b"]}b"), "AttributeError"),
    "build of a dict": (pickled(b"}}" + text("a") + b"Nsb"), "AttributeError"),
    "build of a string": (pickled(text("a") + b"}b"), "AttributeError"),
    "build with a tuple": (pickled(stub_with(b")")), "state of a document is a tuple"),
    "build with a list": (pickled(stub_with(b"]")), "state of a document is a list"),
    "build with None": (pickled(stub_with(b"N")), "state of a document is a NoneType"),
    "build twice": (pickled(document() + b"}b"), "set twice"),
    "new object of a list of arguments": (pickled(STUB + b"]\x81"), "UnpicklingError"),
    "new object of a string": (pickled(text("a") + b")\x81"), "UnpicklingError"),
    "new object of a document": (pickled(STUB + b")\x81)\x81"), "UnpicklingError"),
    "name of two numbers": (pickled(b"K\x01K\x02\x93"), "UnpicklingError"),
    "another class of the module": (pickled(name(HISTORICAL, "Dialogue")), "it names"),
    "name of the wrong case": (pickled(name(HISTORICAL, "document")), "it names"),
    "attribute of the class": (pickled(name(HISTORICAL, "Document.__init__")), "it names"),
}
MEASURED = {  # unpickled, then refused because of the result
    "dict": (b"\x80\x04}.", "holds a dict, not a list"),
    "number": (b"\x80\x04K\x01.", "holds a int, not a list"),
    "list of dicts": (pickled(b"}"), "item 1 of the list is not a document"),
    "list with the class": (pickled(document(), STUB), "item 2 of the list is not a document"),
    "document without state": (pickled(STUB + b")\x81"), "item 1 of the list is not a document"),
    "class in the metadata": (pickled(document(b"}(" + text("a") + STUB + b"u")), "document 1 holds a type"),
    "document in the metadata": (pickled(document(b"}(" + text("a") + document() + b"u")), "a Document"),
    "tuple in the metadata": (pickled(document(), document(b")")), "document 2 holds a tuple"),
    "key that is a number": (pickled(document(b"}(K\x01Nu")), "key that is not a string"),
    "key that is a class": (pickled(document(b"}(" + STUB + b"Nu")), "key that is not a string"),
    "list that holds itself": (pickled(document(b"]q\x00h\x00a")), "32 levels"),
    "dict that holds itself": (pickled(document(b"}q\x00(" + text("a") + b"h\x00u")), "32 levels"),
    "state that holds itself": (pickled(stub_with(b"}q\x00(" + text("metadata") + b"h\x00u")), "32 levels"),
    "list nested 32 levels": (pickled(document(nested(32))), "32 levels"),
    "list nested 100,000 levels": (pickled(document(nested(10**5))), "32 levels"),
}
REFUSED = {**SCANNED, **UNPICKLED, **MEASURED}


@pytest.mark.parametrize("data, reason", REFUSED.values(), ids=REFUSED)
def test_damaged_and_hostile_pickles_are_refused_with_the_reason(read, data, reason):
    with pytest.raises(DataError, match=reason) as caught:
        read(data)
    assert len(caught.value.problems) == 1
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("data", [case[0] for case in SCANNED.values()], ids=SCANNED)
def test_what_the_scan_refuses_never_reaches_the_unpickler(read, monkeypatch, data):
    monkeypatch.setattr(safe_pickle, "_unpickle", lambda data: pytest.fail("it did"))
    with pytest.raises(DataError):
        read(data)


@pytest.mark.parametrize("key", ["memo bomb", "string beyond the file", "frame beyond the file"])
def test_a_few_bytes_cannot_take_much_memory(read, key):
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            read(REFUSED[key][0])
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20  # half of it for the beginning of the file
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("empty, add", [(b"]", b"e"), (b"}", b"u")], ids=["lists", "dicts"])
def test_values_that_double_with_every_level_are_measured_without_walking_them(read, monkeypatch, empty, add):
    levels = [empty + b"q\x00"]
    for level in range(1, 30):
        previous = b"h" + bytes([level - 1])
        members = previous * 2 if empty == b"]" else text("a") + previous + text("b") + previous
        levels.append(empty + b"q" + bytes([level]) + b"(" + members + add)
    holders = [document(b"}(" + text("level") + level + b"u") for level in levels]
    monkeypatch.setattr(files, "_LARGEST_PICKLE", 10**6)
    with pytest.raises(DataError, match="more than 1,000,000 characters"):
        read(pickled(*holders))


def test_shared_values_are_measured_once(read, monkeypatch):
    calls = []
    measure = safe_pickle._measure
    monkeypatch.setattr(safe_pickle, "_measure", lambda *given: calls.append(given) or measure(*given))
    doubled = b"]q\x00"
    for level in range(1, 16):
        doubled = b"](" + doubled + b"h" + bytes([level - 1]) + b"eq" + bytes([level])
    assert len(read(pickled(document(b"}(" + text("key") + doubled + b"u")))) == 1
    assert len(calls) < 100


def test_depth_adds_up_over_documents_that_share_parts(read):
    chain = [document(b"]q\x00")]
    chain += [document(b"]q" + bytes([level]) + b"h" + bytes([level - 1]) + b"a") for level in range(1, 60)]
    with pytest.raises(DataError, match="document 32 nests more than 32 levels"):
        read(pickled(*chain))


def test_shared_metadata_is_read_but_counts_for_every_document(read, monkeypatch):
    documents = read(shared_metadata(500))
    assert len(documents) == 500
    assert all(found.metadata == {"title": "t" * 1000} for found in documents)
    monkeypatch.setattr(files, "_LARGEST_PICKLE", 100_000)
    with pytest.raises(DataError, match="more than 100,000 characters"):
        read(shared_metadata(500))


def test_a_file_over_the_limit_is_refused_before_it_is_read(read, monkeypatch):
    monkeypatch.setattr(files, "_LARGEST_PICKLE", 50)
    with pytest.raises(DataError, match="over the limit of 50"):
        read(pickled(document()))


def test_the_number_of_opcodes_is_limited(read, monkeypatch):
    monkeypatch.setattr(safe_pickle, "_MAX_OPCODES", 100)
    with pytest.raises(DataError, match="more than 100 opcodes"):
        read(b"\x80\x04" + b"]" * 200 + b".")


def test_a_pickle_leaves_no_mark_for_the_next(read):
    with pytest.raises(DataError):
        read(REFUSED["build of the class"][0])
    assert read(pickled(document())) == [Document("some text")]


def test_every_truncation_is_refused(read):
    data = pickled(document(b"}(" + text("title") + text("t") + b"u"), document())
    for length in range(len(data)):
        with pytest.raises(DataError):
            read(data[:length])


def test_random_damage_gives_documents_or_a_data_error_and_nothing_else(read):
    data = pickled(*[document(b"}(" + text("title") + b"K\x07u")] * 3)
    chance = random.Random(7)
    outcomes = set()
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            outcomes.update(type(found) for found in read(bytes(damaged)))
        except DataError:
            outcomes.add(DataError)
    assert outcomes == {Document, DataError}


FIELDS = {
    "page_content: missing": stub_with(b"}"),
    "page_content: is blank": stub_with(b"}(" + text("page_content") + text(" \n") + b"u"),
    "page_content: is 7, not text": stub_with(b"}(" + text("page_content") + b"K\x07u"),
    "page_content: 'a\\\\ud800' contains half": stub_with(b"}(" + text("page_content") + text("a\ud800") + b"u"),
    "fmt_content: is \\[\\], not text": stub_with(b"}(" + text("fmt_content") + b"]u"),
    "metadata: is 'a', not an object": document(text("a")),
    "metadata: contains half": document(b"}(" + text("\udfff") + b"Nu"),
}


@pytest.mark.parametrize("problem, wrong", FIELDS.items(), ids=FIELDS)
def test_fields_of_the_wrong_type_name_the_document_and_the_field(read, problem, wrong):
    with pytest.raises(DataError, match=rf"documents\.pkl:2: {problem}"):
        read(pickled(document(), wrong, document()))


def test_all_wrong_documents_are_named_at_once(read):
    with pytest.raises(DataError) as caught:
        read(pickled(*FIELDS.values()))
    # One more than there are documents: the `fmt_content` of the wrong type leaves its document without text.
    assert len(caught.value.problems) == len(FIELDS) + 1


def test_a_state_filled_after_it_was_set_is_checked_as_it_ended(read):
    first = stub_with(b"}(" + text("page_content") + text("a") + text("metadata") + b"}q\x00u")
    second = document(b"}(" + text("the first's") + b"h\x00(" + text("filled later") + b")uu")
    with pytest.raises(DataError, match="document 1 holds a tuple"):
        read(pickled(first, second))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("module", [HISTORICAL, "open_rqa.schema.document"])
def test_what_the_historical_class_pickles_is_read_in_every_protocol(read, monkeypatch, module, protocol):
    fake = types.ModuleType(module)
    fake.Document = type("Document", (), {"__module__": module})
    install(monkeypatch, fake)
    metadata = {"seq": 300, "big": -(2**60), "share": 0.5, "known": None, "new": True, "old": False}
    metadata |= {"é€😀": "é€😀", "tags": ["a", ["b"], {}], "where": {"page": 70_000}, "long": "x" * 70_000}
    objects = []
    for number in range(300):
        objects.append(fake.Document())
        texts = {"page_content": f"page {number}", "fmt_content": f"Page {number}"}
        objects[-1].__dict__ = {**texts, "metadata": metadata}
    documents = read(pickle.dumps(objects, protocol=protocol))
    assert [found.page_content for found in documents] == [f"page {number}" for number in range(300)]
    assert [found.fmt_content for found in documents] == [f"Page {number}" for number in range(300)]
    assert all(found.metadata == metadata for found in documents)


def test_fields_that_are_none_or_missing_or_unknown_do_no_harm(read):
    fields = [text("page_content"), text("a"), text("fmt_content"), b"N", text("type"), text("t")]
    assert read(pickled(stub_with(b"}(" + b"".join(fields) + b"u"))) == [Document("a", "", {})]


@pytest.mark.skipif(not FAIRE.exists(), reason=f"needs the Faire documents at {FAIRE}")
def test_the_faire_documents_are_read_as_the_ordinary_unpickler_reads_them(monkeypatch):
    class Plain:
        pass

    class Ordinary(pickle.Unpickler):
        def find_class(self, module, name):
            assert (module, name) == (HISTORICAL, "Document")
            return Plain

    with open(FAIRE, "rb") as file:
        expected = [vars(found) for found in Ordinary(file).load()]
    documents = all_documents(FAIRE)
    assert len(documents) == 1758
    assert [found.to_dict() for found in documents] == expected
