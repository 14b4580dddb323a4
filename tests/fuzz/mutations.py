"""Ways to damage a file, each drawn from a seeded generator: bytes, text, values, arrays, files."""

from __future__ import annotations

import contextlib
import copy
import csv
import functools
import io
import json
import os
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

Random = random.Random
DEEP = "@deep@"  # in a tree; nested lists where the format is text
LONG = "word " * 20_000
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 1e308, 1e-320, -0.0, 0.5,
    float("nan"), float("inf"), float("-inf"), "", " ", "1", "nan", "null", "[/x]", "\x1b[31m", "\0",
    "\ud800", "a" * 300, LONG, "../../x", "/etc/hostname", "../../../outside", "x/../..", "~", "--out", [],
    {}, [[]], [None], {"": None}, {"x": {"x": {}}}, [1, 2, 3, 4], [0, 0, 0, 0], [-5, -5, 1e9, 1e9], DEEP,
)  # fmt: skip
NAMES: tuple[str | bytes, ...] = (
    "../../x.jpg", "a/../../b.jpg", "/tmp/x.jpg", "b" * 240 + ".jpg", "-rf.jpg", "--out.jpg", "[/x].jpg",
    "\x1b[31mred.jpg", "new\nline.jpg", " .jpg", ".hidden.jpg", "CON.jpg", "e\u0301\U0001f415.jpg", "..jpg",
    b"\xff\xfe.jpg", "1" * 200 + ".jpg", "\uff11\u0662.jpg", "%s{0}.jpg", "nan.jpg", "1e5.jpg", "a\0b.jpg",
    "\u00e9" * 60_000 + ".jpg", "\u202egpj.jpg", "$(touch x).jpg", "a\\b.jpg", "x.jpg.jpg", "\ud800.jpg",
)  # fmt: skip


# ---- bytes and text -----------------------------------------------------------------------------


def damaged_bytes(data: bytes, chance: Random) -> tuple[str, bytes]:
    """Cut, flip, insert, zero or repeat a piece; half of the time near the beginning, where headers are."""
    reach = min(len(data), 512) if chance.random() < 0.5 else len(data)
    at = chance.randrange(reach + 1)
    size = chance.choice((1, 2, 8, 64, 4096))
    noise = chance.randbytes(size)
    ways = {
        "truncate": data[:at],
        "flip": data[:at] + bytes(byte ^ (1 << chance.randrange(8)) for byte in data[at : at + size])
        + data[at + size :],
        "insert": data[:at] + noise + data[at:],
        "zero": data[:at] + bytes(min(size, len(data) - at)) + data[at + size :],
        "ones": data[:at] + b"\xff" * min(size, len(data) - at) + data[at + size :],
        "repeat": data[: at + size] + data[at:],
        "drop": data[:at] + data[at + size :],
        "tail": data + noise,
    }  # fmt: skip
    way = chance.choice(list(ways))
    return f"{way} {size} bytes at {at}", ways[way]


def damaged_text(data: bytes, chance: Random) -> tuple[str, bytes]:
    """Something that parsers stumble over, at some place; or other encodings, or lines in disorder."""
    text = data.decode("utf-8", "replace")
    lines = text.splitlines(keepends=True) or [""]
    at, line = chance.randrange(len(text) + 1), chance.randrange(len(lines))
    inserted = {
        "deep lists": "[" * 100_000, "deep objects": '{"a":' * 100_000, "long number": "9" * 5000,
        "exponent": "1e99999", "NUL": "\0", "surrogate": "\\ud800", "long line": "a" * 2_000_000,
        "quote": '"', "tab": "\t", "newline": "\n", "comma": ",", "carriage return": "\r", "brace": "}",
        "escape": "\x1b[2J", "separator": "\u2028\x85",
    }  # fmt: skip
    whole: dict[str, Callable[[], bytes]] = {
        "BOM": lambda: b"\xef\xbb\xbf" + data,
        "utf-16": lambda: text.encode("utf-16"),
        "utf-32-be": lambda: text.encode("utf-32-be"),
        "latin-1": lambda: text.replace("e", "\u00e9").encode("latin-1", "replace"),
        "no UTF-8": lambda: text[:at].encode() + b"\xff\xfe\xc0\x80" + text[at:].encode(),
        "drop a line": lambda: "".join(lines[:line] + lines[line + 1 :]).encode(),
        "repeat a line": lambda: "".join(lines[:line] + [lines[line]] * 3 + lines[line + 1 :]).encode(),
        "shuffle columns": lambda: "\n".join(
            "\t".join(chance.sample(parts := row.split("\t"), len(parts))) for row in text.split("\n")
        ).encode(),
        "double a key": lambda: re.sub(r'"(\w+)":', r'"\1": null, "\1":', text, count=1).encode(),
        "only spaces": lambda: b" \n" * 1000,
    }
    way = chance.choice([*inserted, *whole])
    changed = whole[way]() if way in whole else (text[:at] + inserted[way] + text[at:]).encode()
    return f"{way} at {at}", changed


# ---- values -------------------------------------------------------------------------------------


def damaged_tree(tree: Any, chance: Random) -> tuple[str, Any]:
    """One or two places of lists, dicts, scalars and arrays changed."""
    told = []
    for _ in range(chance.choice((1, 1, 1, 2))):
        places = list(_places(tree, ()))
        # Each depth is as likely as another: most places are deep ones.
        depth = chance.choice(sorted({len(place) for place in places}))
        place = chance.choice([place for place in places if len(place) == depth])
        parent, key = None, None
        value = tree
        for key in place:
            parent, value = value, value[key]
        ways = ["replace"] * 4 + ["replace by another"]
        ways += ["drop", "double", "rename"] if parent is not None else []
        ways += ["shorten", "repeat"] if isinstance(value, list | str) else []
        ways += ["array"] * 12 if isinstance(value, np.ndarray) else []
        ways += ["elsewhere", "negative"] if isinstance(value, int | float) else []
        way = chance.choice(ways)
        changed: Any = copy.deepcopy(chance.choice(HOSTILE))
        if way == "replace by another":
            changed = functools.reduce(lambda node, key: node[key], chance.choice(places), tree)
        elif way == "array":
            way, changed = damaged_array(value, chance)
        elif way in ("shorten", "repeat"):
            changed = value[: len(value) // 2] if way == "shorten" else value * 3
        elif way in ("elsewhere", "negative"):
            changed = value + 10**6 if way == "elsewhere" else -value
        told.append(f"{way} {'/'.join(map(str, place))}: {repr(changed)[:40]}")
        if parent is None:
            tree = changed
        elif way == "drop":
            del parent[key]
        elif way == "double" and isinstance(parent, list):
            parent.insert(key, value)
        elif way in ("double", "rename") and isinstance(parent, dict):
            parent[f"{key}_"] = parent.pop(key) if way == "rename" else value
        elif isinstance(parent, list | dict):
            parent[key] = changed
    return "; ".join(told), tree


def _places(tree: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    yield path
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        yield from _places(value, (*path, key))


def damaged_array(array: np.ndarray, chance: Random) -> tuple[str, Any]:
    """Another dtype or shape, or numbers that are none."""
    some = chance.randrange(max(array.size, 1))

    def filled(value: float, everywhere: bool) -> Any:
        changed = array.astype(array.dtype if array.dtype.kind in "fiu" else np.float32)
        with np.errstate(all="ignore"):
            number = np.array(value).astype(changed.dtype)
        changed.reshape(-1)[slice(None) if everywhere else slice(some, some + 1)] = number
        return changed

    ways: dict[str, Callable[[], Any]] = {
        **{f"as {kind}": functools.partial(array.astype, kind)
           for kind in ("f2", "f8", ">f4", "c8", "i8", "u1", "?", "S4", "U8", "O", "M8[s]")},
        "transposed": lambda: array.T, "flat": lambda: array.reshape(-1),
        "one axis more": lambda: array[None], "a row less": lambda: array[:-1], "empty": lambda: array[:0],
        "one number": lambda: array.reshape(-1)[0], "twice": lambda: np.concatenate([array, array]),
        "a column less": lambda: array[..., :-1],
        "a structure": lambda: np.zeros(3, [("a", "f4"), ("b", "O")]),
        **{f"all {value}": functools.partial(filled, value, True) for value in (np.nan, np.inf, -1, 1e38, 0)},
        **{f"one {value}": functools.partial(filled, value, False) for value in (np.nan, -np.inf, 1e9, -1)},
    }  # fmt: skip
    way = chance.choice(list(ways))
    return way, ways[way]()


# ---- containers ---------------------------------------------------------------------------------


def _mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        return {key: _mapped(value, change) for key, value in tree.items()}
    return [_mapped(value, change) for value in tree] if isinstance(tree, list) else change(tree)


def _written(write: Callable[[io.BytesIO], Any]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def _nested(value: Any) -> Any:
    """Lists in lists for DEEP, where the format is no text."""
    is_deep = isinstance(value, str) and value == DEEP
    return functools.reduce(lambda inner, _: [inner], range(400), []) if is_deep else value


def _dump_json(tree: Any) -> bytes:
    return json.dumps(tree, default=repr).replace(f'"{DEEP}"', "[" * 50_000 + "]" * 50_000).encode()


def _dump_csv(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(row if isinstance(row, list) else [row] for row in rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


def _load_npy(data: bytes) -> Any:
    array = np.load(io.BytesIO(data), allow_pickle=True)
    return array[()] if array.dtype == object else array


def _dump_npy(tree: Any) -> bytes:
    cell = np.empty((), object)
    cell[()] = _mapped(tree, _nested)
    return _written(lambda file: np.save(file, tree if isinstance(tree, np.ndarray) else cell))


def _load_hdf5(data: bytes) -> Any:
    with h5py.File(io.BytesIO(data), "r") as file:
        return {name: item[()] for name, item in file.items()}


def _dump_hdf5(tree: Any) -> bytes:
    def write(stream: io.BytesIO) -> None:
        with h5py.File(stream, "w") as file:
            file.update(tree)

    return _written(write)


def _load_torch(data: bytes) -> Any:
    found = torch.load(io.BytesIO(data), weights_only=True)
    return _mapped(found, lambda it: it.numpy() if isinstance(it, torch.Tensor) else it)


def _dump_torch(tree: Any) -> bytes:
    plain = _mapped(tree, lambda it: torch.from_numpy(np.array(it)) if isinstance(it, np.ndarray) else it)
    return _written(lambda file: torch.save(plain, file))


def _load_header(data: bytes) -> Any:
    """Of a safetensors file: what it declares, with its bytes as they are."""
    (size,) = struct.unpack("<Q", data[:8])
    return {"header": json.loads(data[8 : 8 + size]), "data": [data[8 + size :]]}


def _dump_header(tree: Any) -> bytes:
    header = _dump_json(tree["header"])
    return struct.pack("<Q", len(header)) + header + b"".join(tree["data"])


CODECS: dict[str, list[tuple[Callable[[bytes], Any], Callable[[Any], bytes]]]] = {
    "json": [(json.loads, _dump_json)],
    "jsonl": [(lambda data: [json.loads(line) for line in data.splitlines()],
               lambda rows: b"\n".join(map(_dump_json, rows)))],
    "csv": [(lambda data: list(csv.reader(io.StringIO(data.decode()))), _dump_csv)],
    "tsv": [(lambda data: [line.split("\t") for line in data.decode().splitlines()],
             lambda rows: "\n".join("\t".join(map(str, row)) for row in rows).encode("utf-8", "replace"))],
    "yaml": [(yaml.safe_load,
              lambda tree: yaml.safe_dump(tree).replace(DEEP, "[" * 900 + "]" * 900).encode())],
    "pickle": [(pickle.loads, lambda tree: pickle.dumps(_mapped(tree, _nested), 2))],
    "npz": [(lambda data: dict(np.load(io.BytesIO(data), allow_pickle=True)),
             lambda tree: _written(lambda file: np.savez(file, **tree)))],
    "npy": [(_load_npy, _dump_npy)],
    "hdf5": [(_load_hdf5, _dump_hdf5)],
    "safetensors": [(load_safetensors, save_safetensors), (_load_header, _dump_header)],
    "torch": [(_load_torch, _dump_torch)],
}  # fmt: skip


# ---- files that are hostile as a whole ----------------------------------------------------------


def _npy_header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    declared = {"descr": dtype, "fortran_order": False, "shape": shape}
    return _written(lambda file: np.lib.format.write_array_header_1_0(file, declared)) + bytes(64)


def _npz_of(data: bytes, member: bytes) -> bytes:
    """A whole archive whose first array is another member."""

    def write(file: io.BytesIO) -> None:
        with (
            zipfile.ZipFile(io.BytesIO(data)) as old,
            zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new,
        ):
            for place, name in enumerate(old.namelist()):
                new.writestr(name, member if place == 0 else old.read(name))

    return _written(write)


def _npz_bomb(data: bytes) -> bytes:
    """Its first array has 2.5 GB of zeros, packed to 2.5 MB, behind a header that fits."""

    def write(file: io.BytesIO) -> None:
        name = zipfile.ZipFile(io.BytesIO(data)).namelist()[0]
        new = zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with new, new.open(name, "w", force_zip64=True) as member:
            member.write(_npy_header((2500 << 7, 2048))[:-64])
            for _ in range(2500):
                member.write(bytes(1 << 20))

    return _written(write)


def _hdf5(change: Callable[[h5py.File], Any]) -> Callable[[bytes], bytes]:
    """The file with other things under names of its own."""

    def changed(data: bytes) -> bytes:
        stream = io.BytesIO(data)
        with h5py.File(stream, "r+") as file:
            del file["image_bb"]
            change(file)
        return stream.getvalue()

    return changed


def _huge(file: h5py.File) -> None:
    del file["image_features"]
    file.create_dataset("image_features", (10**7, 36, 2048), "f4", chunks=(1, 36, 2048))
    file.create_dataset("image_bb", (10**7, 36, 4), "f4", chunks=(1, 36, 4))
    file.create_dataset("image_ids", (10**7,), "S2000", chunks=(1000,))


class _Command:
    """Makes a file when it is unpickled by someone who trusts it."""

    def __reduce__(self) -> Any:
        return os.system, ("touch code-ran",)


def _huge_picture(mode: str, form: str, data: bytes) -> bytes:
    options = {"compression": "tiff_deflate"} if form == "TIFF" else {}
    return _written(lambda file: Image.new(mode, (12_000, 12_000)).save(file, form, **options))


def _picture_as(mode: str, form: str, size: tuple[int, int], data: bytes) -> bytes:
    plain = Image.open(io.BytesIO(data)).convert("L" if mode in ("I;16", "F") else "RGB")
    return _written(lambda file: plain.convert(mode).resize(size).save(file, form))


SPECIAL: dict[str, dict[str, Callable[[bytes], bytes]]] = {
    "npz": {
        "declares 10**12 numbers": lambda data: _npz_of(data, _npy_header((10**6, 10**6))),
        "declares 10**30 numbers": lambda data: _npz_of(data, _npy_header((10**15, 10**15))),
        "declares a negative shape": lambda data: _npz_of(data, _npy_header((-1, 4))),
        "odd dtype": lambda data: _npz_of(data, _npy_header((4, 4), "|V1000000")),
        "no array in it": lambda data: _npz_of(data, b"what?"),
        "2.5 GB of zeros": _npz_bomb,
    },
    "npy": {
        "declares 10**12 numbers": lambda data: _npy_header((10**6, 10**6)),
        "declares a negative shape": lambda data: _npy_header((-1, 4)),
        "a command": lambda data: _dump_npy(_Command()),
    },
    "hdf5": {
        "huge and empty": _hdf5(_huge),
        "bytes of another file": _hdf5(lambda file: file.create_dataset(
            "image_bb", (2, 5, 4), "f4", external=[("/etc/passwd", 0, 160)])),
        "a link to itself": _hdf5(lambda file: file.update(image_bb=h5py.SoftLink("/image_bb"))),
        "a link to another file": _hdf5(lambda file: file.update(image_bb=h5py.ExternalLink("a.h5", "/x"))),
        "a group for an array": _hdf5(lambda file: file.create_group("image_bb")),
        "no space": _hdf5(lambda file: file.update(image_bb=h5py.Empty("f4"))),
        "a scalar": _hdf5(lambda file: file.update(image_bb=1.0)),
    },
    "pickle": {
        "a command": lambda data: pickle.dumps([_Command()], 2),
        "declares 2 GB": lambda data: b"\x80\x02\x8b\xff\xff\xff\x7f" + data,
        "declares a long text": lambda data: b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"x.",
        "deep": lambda data: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        "holds itself": lambda data: b"\x80\x02]q\x00h\x00a.",
        "marks": lambda data: b"(" * 1_000_000 + b".",
        "grows by two": lambda data: b"\x80\x02]q\x00" + b"(h\x00h\x00tq\x00" * 40 + b".",
        "tuples in tuples": lambda data: b"\x80\x02)" + b"\x85" * 100_000 + b".",
    },
    "torch": {
        "a command": lambda data: pickle.dumps(_Command(), 2),
        "another object": lambda data: _dump_torch([1, 2, 3]),
    },
    "safetensors": {
        "header of 2**40 bytes": lambda data: struct.pack("<Q", 1 << 40) + data[8:],
        "deep header": lambda data: struct.pack("<Q", 200_000) + b"[" * 200_000 + data,
    },
    "yaml": {
        "aliases of aliases": lambda data: b"epochs: &a [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
            b"k%d: &%c [%s]\n" % (n, 98 + n, b", ".join([b"*%c" % (97 + n)] * 10)) for n in range(8)),
        "an object": lambda data: b"epochs: !!python/object/apply:os.system ['touch code-ran']\n",
        "two documents": lambda data: data + b"---\n" + data,
        "deep": lambda data: b"data: " + b"[" * 20_000,
        "merges itself": lambda data: b"a: &a\n  <<: *a\n",
        "other types": lambda data: b"seed: 2001-01-01\nepochs: 0x10\nbatch_size: 1_0\n? [a]\n: 1\n",
    },
    "picture": {
        **{f"12,000 pixels a side, {mode}": functools.partial(_huge_picture, mode, form)
           for mode, form in (("1", "PNG"), ("I;16", "PNG"), ("L", "TIFF"), ("F", "TIFF"))},
        **{f"{mode} of {size}": functools.partial(_picture_as, mode, form, size)
           for mode, form, size in (("I;16", "PNG", (9, 9)), ("F", "TIFF", (9, 9)), ("CMYK", "TIFF", (9, 9)),
                                    ("P", "GIF", (9, 9)), ("LA", "PNG", (9, 9)), ("RGBA", "WEBP", (1, 1)),
                                    ("1", "PNG", (1, 9000)), ("1", "PNG", (9000, 1)))},
        "declares 2**60 pixels": lambda data: b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(
            ">II", 1 << 30, 1 << 30) + b"\x08\x02\0\0\0" + bytes(40),
        "SVG": lambda data: b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    },
}  # fmt: skip


def damaged_file(path: Path, chance: Random) -> str:
    """Something else in the place of a file."""
    ways: dict[str, Callable[[], Any]] = {
        "empty": path.touch,
        "directory": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "link to itself": lambda: path.symlink_to(path.name),
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "missing": lambda: None,
    }
    if chance.random() < 0.1:
        path.chmod(0)
        return "unreadable"
    path.unlink()
    way = chance.choice(list(ways))
    ways[way]()
    return way


def rename_picture(lines: Path, chance: Random) -> str:
    """A picture, and the line that names it, get an odd name."""
    name = chance.choice(NAMES)
    text = os.fsdecode(name)
    if "../" not in text and not text.startswith("/"):
        raw = name if isinstance(name, bytes) else name.encode("utf-8", "replace")
        with contextlib.suppress(OSError, ValueError):  # what no file system takes is in the line alone
            (lines.parent / "a_1.jpg").rename(os.fsdecode(os.fsencode(lines.parent) + b"/" + raw))
    rows = lines.read_text().splitlines()
    rows[0] = json.dumps({"image": text, "text": "a red dog"})
    lines.write_text("\n".join(rows) + "\n")
    return f"picture named {text[:40]!r}"


def mutate(path: Path, kind: str, chance: Random) -> str:
    """Damage a file of a kind (see `CODECS`); what was done, in words."""
    if kind == "names":
        return rename_picture(path, chance)
    for _ in range(50):
        data = path.read_bytes()
        families = ["bytes", "bytes", "file"] + ["tree"] * 6 * (kind in CODECS)
        families += ["text"] * 2 * (kind in ("json", "jsonl", "csv", "tsv", "yaml", "text"))
        families += ["special"] * 2 * (kind in SPECIAL)
        family = chance.choice(families)
        if family == "file":
            return damaged_file(path, chance)
        try:
            if family == "bytes":
                told, changed = damaged_bytes(data, chance)
            elif family == "text":
                told, changed = damaged_text(data, chance)
            elif family == "special":
                told = chance.choice(list(SPECIAL[kind]))
                changed = SPECIAL[kind][told](data)
            else:
                load, dump = chance.choice(CODECS[kind])
                told, tree = damaged_tree(load(data), chance)
                changed = dump(tree)
        except Exception:  # a format cannot hold everything
            continue
        if changed != data:
            path.write_bytes(changed)
            return told
    raise AssertionError(f"no mutation of {path} could be written")
