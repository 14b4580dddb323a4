"""`tbkin build-graphs --text` and `tbkin build-graphs FILE`: graphs of captions without images."""

from __future__ import annotations

import csv
import importlib
import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import fails, succeeds, tbkin_process
from hypothesis import given
from hypothesis import strategies as st

from tbkin_core.datasets.single_files import read_captions
from tbkin_core.errors import DataError
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.settings import BuildGraphsConfig

caption_graphs = importlib.import_module("tbkin_core.stages.caption_graphs")

TEXTS = ["A man in a red shirt rides a horse.", 'Two dogs, "Rex" and Max', "a café with a green door"]


def written(path: Path, texts: list[str]) -> Path:
    """The texts in a file of the form that its suffix tells."""
    if path.suffix == ".txt":
        path.write_text("\ufeff" + "\r\n\r\n".join(texts), encoding="utf-8", newline="")
    elif path.suffix == ".jsonl":
        lines = [json.dumps(text if number % 2 else {"caption": text}) for number, text in enumerate(texts)]
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            table.writerows([["image", "Text"], *(["a.jpg", text] for text in texts)])
    return path


def said(graph: dict) -> set[tuple[str, ...]]:
    """Objects, attributes and relations of a graph, as plain values, by name."""
    names = [item["name"] for item in graph["objects"]]
    found: set[tuple[str, ...]] = {(name,) for name in names}
    found |= {(names[item["object"]], item["name"]) for item in graph["attributes"]}
    triples = graph["relations"]
    return found | {(names[it["subject"]], it["predicate"], names[it["object"]]) for it in triples}


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_a_file_of_captions_gives_the_graphs_of_the_parser(suffix: str, tmp_path: Path) -> None:
    written(tmp_path / f"own{suffix}", TEXTS)
    values = json.loads(succeeds("build-graphs", f"own{suffix}", "--json", cwd=tmp_path).out)
    assert (values["captions"], values["files"], values["problems"]) == (3, [f"own{suffix}.graphs.jsonl"], [])
    lines = [json.loads(line) for line in (tmp_path / f"own{suffix}.graphs.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == TEXTS
    for line, graph in zip(lines, CaptionParser().parse(TEXTS), strict=True):
        assert line["tokens"] == list(graph.tokens)
        assert [item["name"] for item in line["objects"]] == [item.name for item in graph.objects]
    assert ("man", "ride", "horse") in said(lines[0]) and ("shirt", "red") in said(lines[0])
    # A second time its own file is replaced; others never are.
    succeeds("build-graphs", f"own{suffix}", cwd=tmp_path)
    (tmp_path / f"own{suffix}.graphs.jsonl").write_text("mine")
    fails("build-graphs", f"own{suffix}", cwd=tmp_path, code=2, says="export")
    assert (tmp_path / f"own{suffix}.graphs.jsonl").read_text() == "mine"


def test_a_caption_is_shown_as_a_graph_and_nothing_is_written(tmp_path: Path) -> None:
    shown = succeeds("build-graphs", "--text", TEXTS[0], "--text", "two dogs", cwd=tmp_path).out
    lines = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines()]
    assert ["man", "", "ride horse; wear shirt"] in lines and ["shirt", "red", ""] in lines
    assert ["dog", "2", ""] in lines
    assert list(tmp_path.iterdir()) == []
    values = json.loads(succeeds("build-graphs", "--text", TEXTS[0], "--json", cwd=tmp_path).out)
    assert ("man", "wear", "shirt") in said(values["graphs"][0])
    exported = ("--export", "out.jsonl", "--networkx", "out.json")
    succeeds("build-graphs", "--text", TEXTS[0], *exported, cwd=tmp_path)
    assert json.loads((tmp_path / "out.jsonl").read_text())["text"] == TEXTS[0]
    assert json.loads((tmp_path / "out.json").read_text())[0]["graph"]["text"] == TEXTS[0]


def test_captions_come_from_standard_input(tmp_path: Path) -> None:
    lines = "a red ball\n\n a dog \n"
    outcome = tbkin_process("build-graphs", "--text", "-", "--json", cwd=tmp_path, stdin=lines)
    assert outcome.code == 0, outcome.err
    assert [graph["text"] for graph in json.loads(outcome.out)["graphs"]] == ["a red ball", "a dog"]
    outcome = tbkin_process("build-graphs", "--text", "-", cwd=tmp_path, stdin="\n")
    assert outcome.code == 1 and "holds no caption" in outcome.err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_graphs, "sys", SimpleNamespace(stdin=None))
        with pytest.raises(DataError, match="no standard input"):
            caption_graphs.caption_graphs(BuildGraphsConfig(text=["-"]))
        stream = SimpleNamespace(buffer=io.BytesIO("ein Café\n".encode("latin-1")))
        patch.setattr(caption_graphs, "sys", SimpleNamespace(stdin=stream))
        (graph,) = caption_graphs.caption_graphs(BuildGraphsConfig(text=["-"])).graphs
        assert graph["text"] == "ein Caf\ufffd"


def test_what_holds_no_captions_is_named(tmp_path: Path) -> None:
    assert "--text" in fails("build-graphs", cwd=tmp_path, code=2, says="data: is missing")
    fails("build-graphs", ".", "--text", "a dog", cwd=tmp_path, code=2, says="leave out DATA or --text")
    fails("build-graphs", "--text", "a dog", "--questions", cwd=tmp_path, code=2, says="questions: is for")
    exports = ("--export", "x.json", "--networkx", "x.json")
    fails(
        "build-graphs", "--text", "a dog", *exports, cwd=tmp_path, code=2, says="is also where --export goes"
    )
    assert list(tmp_path.iterdir()) == []
    fails("build-graphs", "no.txt", cwd=tmp_path, code=1, says="no.txt: no such file")
    for name, content, words in (
        ("a.txt", b"\n \n", "holds no caption"),
        ("a.csv", b"image,id\na.jpg,3\n", "no column of its header is called text or caption or sentence"),
        ("a.csv", b"", "no column of its header"),
        ("a.jsonl", b"nonsense\n", "a.jsonl"),
        ("a.jpg", b"\xff\xd8", "not a dataset directory, and no file of captions"),
    ):
        (tmp_path / name).write_bytes(content)
        fails("build-graphs", name, cwd=tmp_path, code=1, says=words)
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a dog"}\n{"text": 3}\n[]\n\nnonsense\n"a cat"\n' + "[" * 5000
    )
    outcome = succeeds("build-graphs", "a.jsonl", cwd=tmp_path)
    assert "line 2 and 1 more: has no caption (skipped)" in outcome.out
    assert len((tmp_path / "a.jsonl.graphs.jsonl").read_text().splitlines()) == 2
    outcome = succeeds("build-graphs", "--text", "der Hund läuft über die Straße", cwd=tmp_path)
    assert "do not look English" in outcome.out


LINES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), max_size=40)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
def test_captions_are_read_as_they_were_written(
    suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("captions")

    @given(st.lists(LINES, min_size=1))
    def check(texts: list[str]) -> None:
        found, problems = read_captions(written(place / f"a{suffix}", texts))
        assert [text for _, text in found] == [text.strip() for text in texts if text.strip()]
        assert any("has no caption" in line for line in problems) <= any(not text.strip() for text in texts)

    check()
