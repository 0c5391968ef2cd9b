"""What is read back: YAML that says one thing, arrays that are what their heads say, dataclasses of the right types."""

import io
import json
import zipfile
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge

from crosschannel import UserError
from crosschannel.config.load import build_stored
from crosschannel.stored import parse_yaml, read_arrays, read_json, read_rows, read_yaml

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "alias"),
        ("a: 1\nb: {c: 1, c: 2}\n", "the key 'c' twice"),
        ("a: 1\na: 1\n", "the key 'a' twice"),
        ("- {x: 1, x: 2}\n", "twice"),
        ("a: [1\n", "not valid YAML"),
        ("a: \x01\n", "not valid YAML"),
        ("[" * 20_000, "nested|not valid YAML"),
        ("a: " + "x" * (1 << 20), "longer"),
    ],
)
def test_yaml_that_says_more_or_less_than_it_seems(tmp_path, text, words):
    with pytest.raises(UserError, match=words):
        parse_yaml(text, "it")
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("data", [b"\xff\xfea\x00", b"\x00\x01\x02", b"\x80abc", b"", b"- 1\n", b"text"])
def test_what_is_no_mapping_of_keys(tmp_path, data):
    (tmp_path / "a.yaml").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.yaml"):
        read_yaml(tmp_path / "a.yaml")


def test_plain_yaml_passes(tmp_path):
    (tmp_path / "a.yaml").write_text("# a comment\na: {b: [1, 2.5, x], c: null}\nd: true\n")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": [1, 2.5, "x"], "c": None}, "d": True}


@pytest.mark.parametrize("data", [b"{", b"\xff", b"[" * 100_000, b"{} {}"])
def test_json_that_is_none(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_damaged_rows_are_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b'{"a": 1}\n[1]\n\xff\xfe\nnull\n{"a": \n' + b"[" * 50_000 + b'\n{"a": 2}\n{"a": 3'
    )
    assert read_rows(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}] and read_rows(tmp_path / "gone") == []


def packed(path, members: dict[str, bytes], how=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def test_arrays_come_back_as_they_were(tmp_path):
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "f": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "names": np.array(["é", "long name"]),
        "none": np.empty((0, 4)),
        "one": np.array("text"),
    }
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = read_arrays(tmp_path / "a.npz")
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert found[name].dtype == array.dtype and np.array_equal(found[name], array)


def test_arrays_that_claim_what_they_do_not_hold(tmp_path):
    head = npy(np.zeros(4)).replace(b"(4,), ", b"(9999999999999,), ".ljust(6))
    cases = {
        "a giant head": {"a.npy": npy(np.zeros(4)).replace(b"(4,)", b"(9*9)")[:200]},
        "more rows than bytes": {"a.npy": head},
        "cut off": {"a.npy": npy(np.zeros(4))[:-8]},
        "a pickle": {"a.npy": npy_of_objects()},
        "no array": {"a.npy": b"hello"},
    }
    for words, members in cases.items():
        with pytest.raises(UserError, match="damaged"):
            read_arrays(packed(tmp_path / "a.npz", members))
            pytest.fail(words)
    bomb = packed(tmp_path / "b.npz", {"a.npy": bytes(10 << 20)}, zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 20_000
    with pytest.raises(UserError, match="unpack to more than"):
        read_arrays(bomb, limit=1 << 20)


def npy_of_objects() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{}, []], dtype=object), allow_pickle=True)
    return buffer.getvalue()


@dataclass(frozen=True)
class Inner:
    side: Annotated[int, Ge(1)] = 1
    pair: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "b"] = "a"
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    more: dict[str, Any] = field(default_factory=dict)
    many: list[int] = field(default_factory=list)


def test_a_dataclass_comes_back_as_it_was():
    tree = {"name": "x", "kind": "b", "inner": {"side": 3, "pair": [1, 2.5]}, "maybe": {"side": 2}, "many": [1]}
    outer = build_stored(Outer, json.loads(json.dumps(tree)), "it")
    assert outer == Outer("x", "b", Inner(3, (1, 2.5)), Inner(2), {}, [1])
    assert build_stored(Outer, {"name": "x", "maybe": None}, "it") == Outer("x")


@pytest.mark.parametrize(
    "tree",
    [
        [], None, "x", {}, {"name": 1}, {"name": None}, {"name": "x", "kind": "c"}, {"name": "x", "kind": ["a"]},
        {"name": "x", "inner": 3}, {"name": "x", "inner": None}, {"name": "x", "inner": {"side": 0}},
        {"name": "x", "inner": {"side": True}}, {"name": "x", "inner": {"side": 1.5}}, {"name": "x", "maybe": 1},
        {"name": "x", "inner": {"pair": [1]}}, {"name": "x", "inner": {"pair": [1, float("nan")]}},
        {"name": "x", "many": [1, "2"]}, {"name": "x", "more": []}, {"name": "x", "newer": 1}, {"name": "x\0"},
        {"name": "x", "many": [10**30]},
    ],
)  # fmt: skip
def test_other_types_and_values_out_of_range_are_said(tree):
    with pytest.raises(UserError, match=r"^it"):
        build_stored(Outer, tree, "it")
