"""F1 and exact match of the caption parser on FACTUAL's dev captions, and its speed.

python tests/benchmarks/factual_scores.py [--parser builtin] [--wording factual] [--errors 20]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "shipped_models"))

from factual import graph_tuples, parse_factual_graph, read_factual, score

from tbkin_core.parsing.parser import CaptionParser
from tbkin_core.parsing.wording import WORDINGS


def main() -> None:
    """Read the options, parse, print one JSON object."""
    repository = Path(__file__).resolve().parents[2]
    data = Path(os.environ.get("TBKIN_SHARED_DATA", repository.parent / "shared" / "data"))
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--parser", default="builtin")
    options.add_argument("--wording", choices=WORDINGS, default="factual")
    options.add_argument("--file", type=Path, default=data / "factual" / "dev.csv")
    options.add_argument("--errors", type=int, default=0, help="print this many captions whose graph differs")
    arguments = options.parse_args()
    pairs = read_factual(arguments.file)
    parser = CaptionParser(arguments.parser, arguments.wording)
    started = time.perf_counter()
    candidates = [graph_tuples(graph) for graph in parser.parse(caption for caption, _ in pairs)]
    seconds = time.perf_counter() - started
    references = [parse_factual_graph(graph) for _, graph in pairs]
    wrong = [
        (caption, candidate, reference)
        for (caption, _), candidate, reference in zip(pairs, candidates, references, strict=True)
        if candidate != reference
    ]
    for caption, candidate, reference in wrong[: arguments.errors]:
        print(caption)
        print(f"    extra   {sorted(candidate - reference)}")
        print(f"    missing {sorted(reference - candidate)}")
    result = score(candidates, references)
    print(
        json.dumps(
            {
                "parser": f"{parser.name} {parser.version}",
                "wording": arguments.wording,
                "captions": result.captions,
                "f1": round(100 * result.f1, 2),
                "exact": round(100 * result.exact, 2),
                "captions_per_second": round(len(pairs) / seconds),
            }
        )
    )


if __name__ == "__main__":
    main()
