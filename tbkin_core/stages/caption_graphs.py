"""`tbkin build-graphs --text` and `tbkin build-graphs FILE`: the graphs of captions without images."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from tbkin_core.datasets.reading import encoding_of
from tbkin_core.datasets.single_files import CAPTION_SUFFIXES, read_captions
from tbkin_core.errors import ConfigError, DataError
from tbkin_core.graphs.exports import (
    check_jsonl_place,
    check_networkx_place,
    check_two_places,
    export_jsonl,
    export_networkx,
)
from tbkin_core.graphs.unified import CrossEdges, UnifiedGraph, region_edges
from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.results import CaptionGraphsResult
from tbkin_core.settings import BuildGraphsConfig
from tbkin_core.support.console import progress, shortened
from tbkin_core.texts.language import looks_foreign

STDIN = "-"
SHOWN = 5  # of a file's graphs


def is_missing_file(path: Path) -> bool:
    """Whether there is nothing, and the name is that of a file of captions."""
    return path.suffix.lower() in CAPTION_SUFFIXES and not path.exists()


def caption_graphs(config: BuildGraphsConfig) -> CaptionGraphsResult:
    """The text scene graphs of captions that are given, or of a file of them; there are no regions.

    Raises:
        ConfigError: What is asked for takes images, or an export has no place.
        DataError: The file cannot be read, or holds no caption.
    """
    for name in ("questions", "expressions", "features", "out"):
        if getattr(config, name):
            raise ConfigError(
                f"{name}: is for the captions of images",
                hint="give a dataset directory in the place of texts; these go to --export or --networkx",
            )
    problems: list[str] = []
    if config.text:
        texts = list(enumerate(_given(config.text), start=1))
        source, export = "text", config.export
    else:
        assert config.data is not None
        if config.data.suffix.lower() not in CAPTION_SUFFIXES:
            raise DataError(
                f"{config.data}: is a file, not a dataset directory, and no file of captions",
                hint=f"a file of captions ends in one of {', '.join(CAPTION_SUFFIXES)}",
            )
        export = config.export or config.data.with_name(f"{config.data.name}.graphs.jsonl")
        source = str(config.data)
        texts, problems = read_captions(config.data)
    if not texts:
        raise DataError(f"{source}: holds no caption")
    check_two_places(config.export, config.networkx)
    for path, check in ((export, check_jsonl_place), (config.networkx, check_networkx_place)):
        if path is not None:
            check(path)
    foreign = [text for _, text in texts if looks_foreign(text, least=1)]
    if len(foreign) >= max(1, len(texts) / 100):
        problems.append(
            f"{len(foreign):,} of {len(texts):,} texts do not look English, such as"
            f" {shortened(foreign[0])!r}: the parser knows English only"
        )
    parser = CaptionParser(config.parser)
    files: list[Path] = []
    if export is not None:
        export_jsonl(_graphs(parser, texts), export, len(texts))
        files.append(export)
    if config.networkx is not None:
        export_networkx(progress(_graphs(parser, texts), "networkx", total=len(texts)), config.networkx)
        files.append(config.networkx)
    shown = texts if config.text else texts[:SHOWN]
    return CaptionGraphsResult(
        out=Path(source),
        count=len(texts),
        graphs=[graph.to_dict() for graph in _graphs(parser, shown)],
        problems=problems,
        files=files,
    )


def _given(texts: Iterable[str]) -> Iterator[str]:
    """The texts, and the lines of standard input in the place of `-`."""
    for text in texts:
        yield from (line.strip() for line in (_stdin() if text == STDIN else [text]) if line.strip())


def _stdin() -> list[str]:
    if sys.stdin is None:
        raise DataError("text: there is no standard input to read captions from", hint="give --text TEXT")
    data = sys.stdin.buffer.read()
    return data.decode(encoding_of(data[:4]), errors="replace").splitlines()


def _graphs(parser: CaptionParser, texts: Iterable[tuple[int, str]]) -> Iterator[UnifiedGraph]:
    """Graphs of numbered texts, one at a time."""
    ahead, own = itertools.tee(texts)
    none = CrossEdges(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, np.float32))
    boxes = np.zeros((0, 4), np.float32)
    for (number, text), graph in zip(own, parser.parse(text for _, text in ahead), strict=True):
        yield UnifiedGraph(number, None, text, graph, boxes, (), region_edges(boxes), none)
