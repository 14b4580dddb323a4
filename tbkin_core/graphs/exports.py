"""Exports of unified scene graphs: JSON lines; networkx graphs, as GraphML or node-link JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from tbkin_core.datasets.formats.own import is_graph_export
from tbkin_core.errors import ConfigError
from tbkin_core.graphs.store import in_graph_store
from tbkin_core.graphs.unified import PREDICATES, UnifiedGraph
from tbkin_core.support.console import progress
from tbkin_core.support.files import (
    atomic_directory,
    atomic_path,
    check_file_place,
    json_text,
    make_directory,
    real_path,
)

if TYPE_CHECKING:
    import networkx

FORMATS = ("graphml", "json")

# What XML 1.0 cannot hold, not even escaped: control characters, lone surrogates, two non-characters.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
_NOT_IN_NAMES = re.compile(r"[^\w.-]+", re.ASCII)
_OWN_FILE = re.compile(r"\d{8}-.*\.(graphml|json)")
_SURROGATES = re.compile("[\ud800-\udfff]")
# `text_id`, `image_id` and `text` are what every graph here has.
_OWN_START = re.compile(rb'graphml\.graphdrawing\.org.*"text_id"|"graph": \{"text_id": ', re.DOTALL)
_FILES_LOOKED_INTO = 64


def check_jsonl_place(path: Path, store: Path | None = None) -> None:
    """Refuse to export where something else would be lost; `store` is the graph store's directory, if known.

    Raises:
        ConfigError: A directory, another file than an earlier export, or a file of the store.
        DataError: Its directory cannot be made or written to.
    """
    _check_file(path, "export", lambda start: is_graph_export(start.decode("latin-1")), store)


def check_two_places(jsonl: Path | None, networkx: Path | None) -> None:
    """ConfigError where both exports would go to one place."""
    if jsonl is None or networkx is None:
        return
    one, other = (Path(os.path.realpath(path)) for path in (jsonl, networkx))
    if other in (one, one.parent):
        raise ConfigError(f"networkx: {networkx} is also where --export goes", hint="name two places")


def export_jsonl(graphs: Iterable[UnifiedGraph], path: Path, count: int | None = None) -> None:
    """Write every unified graph as a line of JSON, atomically; `count` of them, where that is known.

    Raises:
        ConfigError, DataError: As `check_jsonl_place`; DataError also where the disk is full.
    """
    check_jsonl_place(path)
    path = real_path(path)  # a link stays one
    # Lone surrogates (file names that are no UTF-8) become JSON's own escapes.
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for graph in progress(graphs, "export", total=count, unit="graph"):
            file.write(json_text(graph.to_dict()) + "\n")


# ---- networkx -----------------------------------------------------------------------------------


def to_networkx(graph: UnifiedGraph) -> networkx.DiGraph:
    """One caption's unified graph with networkx.

    Vertices are `region0`, `object0`, `attribute0`, `relation0`, ... with `kind` (region, object,
    attribute, relation) and `name`; regions also have `box` ("x1 y1 x2 y2", pixels). Where people annotated
    regions, `region_attribute0`, `region_relation0`, ... (`kind` region attribute, region relation) hang
    from them. Edges have a `kind`: attribute (object to attribute), subject (object to relation), object
    (relation to object), spatial (region to region, `name` the predicate, `weight` the IoU) and cross-modal
    (object to region, `weight` the similarity).
    The graph has `text_id`, `image_id` ("" without an image) and `text`. All values are text or numbers, so
    that every writer of networkx takes them.
    """
    import networkx

    result = networkx.DiGraph(
        text_id=str(graph.text_id),
        image_id="" if graph.image_id is None else str(graph.image_id),
        text=graph.text,
    )
    for number, (box, label) in enumerate(zip(graph.boxes, graph.labels, strict=True)):
        corners = " ".join(f"{side:.1f}" for side in box)
        result.add_node(f"region{number}", kind="region", name=label, box=corners)
    for number, item in enumerate(graph.graph.objects):
        result.add_node(f"object{number}", kind="object", name=item.name)
    for number, attribute in enumerate(graph.graph.attributes):
        result.add_node(f"attribute{number}", kind="attribute", name=attribute.name)
        result.add_edge(f"object{attribute.object}", f"attribute{number}", kind="attribute")
    for number, relation in enumerate(graph.graph.relations):
        result.add_node(f"relation{number}", kind="relation", name=relation.predicate)
        result.add_edge(f"object{relation.subject}", f"relation{number}", kind="subject")
        result.add_edge(f"relation{number}", f"object{relation.object}", kind="object")
    edges = graph.image_edges
    for (first, second), iou, kind in zip(edges.pairs, edges.iou, edges.predicate, strict=True):
        result.add_edge(
            f"region{first}", f"region{second}", kind="spatial", name=PREDICATES[kind], weight=float(iou)
        )
    for number, (region, name) in enumerate(graph.region_attributes):
        result.add_node(f"region_attribute{number}", kind="region attribute", name=name)
        result.add_edge(f"region{region}", f"region_attribute{number}", kind="attribute")
    for number, (subject, predicate, other) in enumerate(graph.region_relations):
        result.add_node(f"region_relation{number}", kind="region relation", name=predicate)
        result.add_edge(f"region{subject}", f"region_relation{number}", kind="subject")
        result.add_edge(f"region_relation{number}", f"region{other}", kind="object")
    cross = graph.cross
    for number, region, weight in zip(cross.object, cross.region, cross.weight, strict=True):
        result.add_edge(f"object{number}", f"region{region}", kind="cross-modal", weight=float(weight))
    return result


def export_networkx(
    graphs: UnifiedGraph | Iterable[UnifiedGraph], path: Path, format: str | None = None
) -> int:
    """Write graphs for networkx and other graph tools, atomically.

    A path with a suffix (`graphs.graphml`, `graphs.json`) becomes one file, any other a directory with a file
    per graph, named `<row>-<text_id>`. One file of several graphs is, as GraphML, one graph whose vertices
    are prefixed by the row ("0:object0") and which has a vertex per caption ("0", `kind` caption) with the
    ids and the text; as JSON, a list of node-link objects. A single `UnifiedGraph` is written as it is:
    `networkx.read_graphml(path)` or `networkx.node_link_graph(json.load(file), edges="edges")` gives back
    what `to_networkx` makes. Characters that XML (JSON: UTF-8) cannot hold become U+FFFD.

    Args:
        graphs: One graph, or several. They are read once and one at a time; only one GraphML file of all
            holds them in memory together, so take a directory or JSON for a large corpus.
        path: File or directory; an earlier export there is replaced when all is written.
        format: `graphml` or `json`; None goes by the suffix, GraphML without one.

    Returns:
        How many graphs were written.

    Raises:
        ConfigError, DataError: As `check_networkx_place`; DataError also where the disk is full.
    """
    path = Path(path)
    chosen = check_networkx_place(path, format=format)
    path = real_path(path)  # a link stays one
    if isinstance(graphs, UnifiedGraph):
        single = to_networkx(graphs)
        if path.suffix:
            with atomic_path(path) as temporary, temporary.open("wb") as file:
                _write_one(single, file, chosen)
            return 1
        graphs = [graphs]
    if not path.suffix:
        return _write_directory(graphs, path, chosen)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        write_all = _write_graphml_of_all if chosen == "graphml" else _write_json_of_all
        return write_all(graphs, file)


def check_networkx_place(path: Path, store: Path | None = None, format: str | None = None) -> str:
    """The format of an export to `path`; refuses a place where something else would be lost.

    Args:
        path: As for `export_networkx`.
        store: Directory of the graph store, whose own files have names that are taken.
        format: As for `export_networkx`.

    Raises:
        ConfigError: Unknown format; a directory where a file is named or the other way round; other content
            than an earlier export there.
        DataError: The place cannot be written to.
    """
    chosen = format or path.suffix.lower().lstrip(".") or "graphml"
    if chosen not in FORMATS:
        raise ConfigError(
            f"networkx export: expected {' or '.join(FORMATS)}, got {chosen!r}",
            hint="name the file graphs.graphml or graphs.json, or a directory",
        )
    if path.suffix:
        _check_file(path, "networkx", _is_own, store)
        return chosen
    if path.exists() and not path.is_dir():
        raise ConfigError(
            f"networkx: {path} is a file, expected a directory",
            hint="name a file with its format, such as graphs.graphml, or a new directory",
        )
    if store is not None and in_graph_store(path, store):
        raise ConfigError(f"networkx: {path} is the store itself", hint="name a new directory")
    whole, here = os.path.realpath(path), os.path.realpath(".")
    if os.path.commonpath([whole, here]) == whole:
        raise ConfigError(f"networkx: {path} holds the current directory", hint="name a new directory")
    if path.is_dir() and not _is_own_directory(path):
        raise ConfigError(
            f"networkx: {path} holds other files than an earlier export of graphs",
            hint="name a new directory, so that nothing is lost",
        )
    make_directory(path.parent)
    return chosen


def _check_file(path: Path, setting: str, is_own: Callable[[bytes], bool], store: Path | None) -> None:
    if store is not None and not path.is_dir() and in_graph_store(path, store):
        raise ConfigError(f"{setting}: {path} is a file of the store itself", hint="choose another name")
    check_file_place(path, setting, is_own)


def _is_own(start: bytes) -> bool:
    return _OWN_START.search(start) is not None


def _is_own_directory(path: Path) -> bool:
    entries = sorted(path.iterdir())
    if not all(_OWN_FILE.fullmatch(entry.name) and entry.is_file() for entry in entries):
        return False
    for entry in entries[:: max(len(entries) // _FILES_LOOKED_INTO, 1)]:
        with entry.open("rb") as file:
            if not _is_own(file.read(4096)):
                return False
    return True


def _write_directory(graphs: Iterable[UnifiedGraph], path: Path, format: str) -> int:
    count = 0
    with atomic_directory(path) as temporary:
        for count, graph in enumerate(graphs, start=1):
            # The row keeps names apart that differ in what a file name cannot hold.
            name = _NOT_IN_NAMES.sub("_", str(graph.text_id))[:80]
            with (temporary / f"{count - 1:08d}-{name}.{format}").open("wb") as file:
                _write_one(to_networkx(graph), file, format)
    return count


def _write_one(graph: networkx.DiGraph, file: IO[bytes], format: str) -> None:
    import networkx

    if format == "graphml":
        networkx.write_graphml_xml(_clean(graph, _NOT_XML), file)
    else:
        file.write(_node_link(graph))


def _write_json_of_all(graphs: Iterable[UnifiedGraph], file: IO[bytes]) -> int:
    count = 0
    file.write(b"[")
    for count, graph in enumerate(graphs, start=1):
        file.write(b",\n" if count > 1 else b"\n")
        file.write(_node_link(to_networkx(graph)))
    file.write(b"\n]\n")
    return count


def _write_graphml_of_all(graphs: Iterable[UnifiedGraph], file: IO[bytes]) -> int:
    import networkx

    count = 0
    whole = networkx.DiGraph()
    for count, graph in enumerate(graphs, start=1):
        row, part = str(count - 1), _clean(to_networkx(graph), _NOT_XML)
        whole.add_node(row, kind="caption", name=part.graph["text"], **part.graph)
        whole.add_nodes_from((f"{row}:{vertex}", data) for vertex, data in part.nodes(data=True))
        whole.add_edges_from((f"{row}:{a}", f"{row}:{b}", data) for a, b, data in part.edges(data=True))
    networkx.write_graphml_xml(whole, file)
    return count


def _node_link(graph: networkx.DiGraph) -> bytes:
    import networkx

    content = networkx.node_link_data(_clean(graph, _SURROGATES), edges="edges")
    return json_text(content).encode("utf-8")


def _clean(graph: networkx.DiGraph, unwanted: re.Pattern[str]) -> networkx.DiGraph:
    """The graph itself, its texts without what the format cannot hold."""
    for data in (graph.graph, *graph.nodes.values(), *graph.edges.values()):
        data.update({key: unwanted.sub("�", value) for key, value in data.items() if isinstance(value, str)})
    return graph
