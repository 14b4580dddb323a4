"""Results as tables for people; every cell is text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tbkin_core import results
from tbkin_core.selection import Selection
from tbkin_core.support.console import percent, shortened

_KINDS = ("objects", "attributes", "relations")
_MOST_TYPES = 12
# Other data than VQA's may have many answer types; all are in the files.
_MOST_SWEPT_TYPES = 4


_OBJECTIVES = {
    "mlm": "masked words (mlm)",
    "mlm_without_image": "masked words without the image",
    "mrfr": "vectors of masked regions (mrfr)",
    "object": "objects of masked regions",
    "attribute": "attributes of masked regions",
    "itm": "whether caption and image match (itm)",
    "alignment": "distance of words and regions (alignment)",
    "words": "words told from the image (words)",
    "all": "all together",
}


@dataclass(frozen=True, slots=True)
class Table:
    """A table with its title."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def tables_of(result: results.StageResult) -> list[Table]:
    """What a person wants to see of a result."""
    return _TABLES[type(result)](result)


def notes_of(result: results.StageResult) -> list[str]:
    """What stands below the tables."""
    if isinstance(result, results.SweepResult) and result.conclusion.text:
        return [result.conclusion.text, *result.problems]
    return result.problems


def _extract_features(result: results.ExtractFeaturesResult) -> list[Table]:
    if result.missing:
        columns = ["made now", "skipped", "shards of others missing"]
        row = [str(result.made), str(result.skipped), str(result.missing)]
        return [Table(f"Share of the features in {result.out}", columns, [row])]
    columns = ["extractor", "images", "made now", "skipped", "feature size"]
    counts = (result.images, result.made, result.skipped, result.feature_size)
    return [Table(f"Features in {result.out}", columns, [[result.extractor, *map(str, counts)]])]


def _build_graphs(result: results.BuildGraphsResult) -> list[Table]:
    if result.missing:
        columns = ["made now", "present", "shards of others missing"]
        row = [str(result.made), str(result.present), str(result.missing)]
        return [Table(f"Share of the graphs in {result.out}", columns, [row])]
    summary = result.summary
    anchored = 100 * summary["anchored"] / max(summary["captions"], 1)
    each = [f"{summary[f'{kind}_per_caption']:.2f}" for kind in _KINDS]
    columns = ["captions", "made now", *(f"{kind} each" for kind in _KINDS), "with an anchor"]
    counts = [str(summary["captions"]), str(result.made)]
    ranked = [[f"{name} ({count})" for name, count in summary["most_common"][kind]] for kind in _KINDS]
    return [
        Table(f"Graphs in {result.out}", columns, [[*counts, *each, f"{anchored:.0f} %"]]),
        Table("Most frequent", _KINDS, list(itertools.zip_longest(*ranked, fillvalue=""))),
        *_made(result),
    ]


def _caption_graphs(result: results.CaptionGraphsResult) -> list[Table]:
    return [_graph(graph) for graph in result.graphs]


def _graph(graph: dict[str, Any]) -> Table:
    """A text scene graph, an object a line."""
    names = [item["name"] for item in graph["objects"]]
    told: dict[str, list[list[str]]] = {"attributes": [[] for _ in names], "relations": [[] for _ in names]}
    for item in graph["attributes"]:
        told["attributes"][item["object"]].append(item["name"])
    for item in graph["relations"]:
        other = names[item["object"]]
        told["relations"][item["subject"]].append(f"{item['predicate']} {other}".strip())
    rows = [
        [name, ", ".join(looks), "; ".join(relations)]
        for name, looks, relations in zip(names, *told.values(), strict=True)
    ]
    return Table(shortened(graph["text"], 300), ["object", "attributes", "relations"], rows)


def _made(result: results.BuildGraphsResult) -> Iterator[Table]:
    """What was made beside the graphs, by kind and split."""
    for what, images in (("questions", "images_asked_about"), ("expressions", "images_referred_in")):
        counts: dict[str, dict[str, int]] = result.summary.get(what, {})
        kinds = dict.fromkeys(kind for of_split in counts.values() for kind in sorted(of_split))
        rows = [[kind, *(str(of_split.get(kind, 0)) for of_split in counts.values())] for kind in kinds]
        rows.append(["all", *(str(sum(of_split.values())) for of_split in counts.values())])
        rows.append(["images", *map(str, result.summary.get(images, {}).values())])
        if kinds:
            yield Table(f"{what.capitalize()} made", ["kind", *counts], rows)


def _pretrain(result: results.PretrainResult) -> list[Table]:
    found = {name.removeprefix("val_"): value for name, value in result.validation.items()}
    # A name that is new has no words yet, and shows itself.
    names = dict.fromkeys([*_OBJECTIVES, *(name.rpartition("_")[0] or "all" for name in found)])
    rows = []
    for name in names:
        loss, right = "loss" if name == "all" else f"{name}_loss", f"{name}_accuracy"
        if loss in found or right in found:
            cells = [_number(found[loss], ".3f") if loss in found else ""]
            cells.append(_number(found[right], ".1f", " %") if right in found else "")
            rows.append([_OBJECTIVES.get(name, name), *cells])
    title = f"Pretrained model in {result.out}, best epoch {result.best_epoch}"
    return [Table(title, ["on validation captions", "loss", "right"], rows)]


def _finetune(result: results.FinetuneResult) -> list[Table]:
    report = sorted(result.report, key=lambda entry: (entry.split, entry.part or "", entry.order))
    tables = []
    for part in dict.fromkeys(entry.part for entry in report):
        entries = [entry for entry in report if entry.part == part]
        more = list(dict.fromkeys(name for entry in entries for name in entry.also or {}))
        rows = [_report_row(entry, more) for entry in entries]
        columns = ["split", "model", result.metric if more else "accuracy", "95 % interval", *more, "n"]
        title = f"{result.metric}{' in %' if more else ''}, model in {result.out}"
        tables.append(Table(f"{part.capitalize()}: {title}" if part else title, columns, rows))
    if len(result.by_type) > 1:
        tables.append(_by_type(result))
    return tables


def _by_type(result: results.FinetuneResult) -> Table:
    """The most frequent question types; of earlier versions, which did not count them, the first."""
    counts, found = result.type_counts, result.by_type
    names = sorted(found, key=lambda name: (-(counts.get(name) or 0), name))[:_MOST_TYPES]
    rows = [
        [name, _number(found[name], ".2f", " %"), *([_number(counts.get(name), ".0f")] if counts else [])]
        for name in names
    ]
    title = f"{result.type_split} by question type"
    if len(found) > len(names):
        title += f", the {'most frequent' if counts else 'first'} {len(names)} of {len(found)}"
    return Table(title, ["type", "accuracy", *(["n"] if counts else [])], rows)


def _report_row(entry: results.ReportEntry, more: Sequence[str]) -> list[str]:
    """A row; with further numbers beside the accuracy, all in percent are shorter."""
    places, unit = (1, "") if more else (2, " %")
    low, high = entry.accuracy_low, entry.accuracy_high
    interval = "" if None in (low, high) else f"{low:.{places}f} to {high:.{places}f}"
    cells = [entry.split, entry.model, _number(entry.accuracy, f".{places}f", unit), interval]
    return [*cells, *(f"{(entry.also or {})[name]['value']:.1f}" for name in more), str(entry.n)]


def _threshold_sweep(result: results.SweepResult) -> list[Table]:
    rows = result.rows
    types = list(rows[0].get("answer_types", {})) if rows else []
    types = types if len(types) <= _MOST_SWEPT_TYPES else []
    seeds = ["± seeds"] if rows and "accuracy_by_seed" in rows[0] else []
    # Each seed may hold other samples out.
    counts = " to ".join(map(str, sorted({min(result.samples_by_seed), max(result.samples_by_seed)})))
    counted = f"({counts} samples, {result.images} images)"
    counted_regions = ["regions"] if rows and "regions" in rows[0] else []
    lost = ["lost"] if rows and "lost" in rows[-1] else []
    columns = ["selection", *counted_regions, "accuracy", "95 % interval", *seeds, "against dense", "p"]
    columns += [*lost, *types]
    return [
        Table(
            f"{result.metric} on {result.split} {counted}, {result.title}",
            [*columns, "kept", "entropy", "samples/s"],
            [_sweep_row(row, types, bool(lost)) for row in rows],
        )
    ]


def _sweep_row(row: dict[str, Any], types: Sequence[str], loses: bool) -> list[str]:
    name = "dense" if row["threshold"] == 0 else Selection(row["selection"], row["threshold"]).name
    return [
        name,
        *([str(row["regions"])] if "regions" in row else []),
        f"{row['accuracy']:.2f}",
        f"{row['accuracy_low']:.2f} to {row['accuracy_high']:.2f}",
        *([f"{row['accuracy_spread']:.2f}"] if "accuracy_spread" in row else []),
        f"{row['difference']:+.2f}" if "difference" in row else "",
        ("< 0.001" if row["p_value"] < 0.0005 else f"{row['p_value']:.3f}") if "p_value" in row else "",
        *([f"{row['lost']:+.2f}" if "lost" in row else ""] if loses else []),
        *(f"{row['answer_types'][name]:.2f}" for name in types),
        f"{100 * row['kept_fraction']:.1f} %",
        f"{row['entropy']:.2f}",
        f"{row['samples_per_second']:.0f}",
    ]


def _answers(result: results.AnswersResult) -> list[Table]:
    sides = ["dense", result.selection]
    if result.several:
        rows = [[image.image, *_best(image)] for image in result.images]
        if not result.shows_box:
            return [Table(result.title, ["image", *sides], rows)]
        boxes = [", ".join(f"{side:.0f}" for side in image.box or ()) for image in result.images]
        rows = [[*row, box] for row, box in zip(rows, boxes, strict=True)]
        return [Table(result.title, ["image", *sides, "box"], rows)]
    (image,) = result.images
    dense, sparse = ({answer.name: answer for answer in side} for side in (image.dense, image.thresholded))
    rows = []
    for name in dict.fromkeys([*dense, *sparse]):
        cells = (percent(side[name].probability) if name in side else "" for side in (dense, sparse))
        rows.append([_named(dense.get(name) or sparse[name]), *cells])
    tables = [Table(result.title, [result.heading, *sides], rows)]
    if image.box is not None:
        columns, corners = ["x1", "y1", "x2", "y2"], [f"{side:.0f}" for side in image.box]
        if image.iou is not None:
            columns, corners = [*columns, "IoU with the target"], [*corners, f"{image.iou:.2f}"]
        tables.append(Table("box (x1, y1, x2, y2) in pixels", columns, [corners]))
    return tables


def _question_file(result: results.QuestionFileResult) -> list[Table]:
    columns = ["questions", "images", "answered now", "kept", "left out", "seconds"]
    now = result.questions - result.kept - result.failed
    counts = (result.questions, result.images, now, result.kept, result.failed)
    rows = [
        [shortened(image, 40), shortened(text, 60), answer, "" if share is None else percent(share)]
        for image, text, answer, share in result.shown
    ]
    title = f"Answers of {result.about}"
    return [
        Table(title, columns, [[*map(str, counts), f"{result.seconds:.1f}"]]),
        Table("The first", ["image", "question", "answer", "probability"], rows),
    ]


def _serve(result: results.ServeResult) -> list[Table]:
    return [
        Table("Serving", ["page", "model", "end it with"], [[result.url, str(result.checkpoint), "Ctrl-C"]])
    ]


def _search(result: results.SearchResult) -> list[Table]:
    rows = [
        [result.name_of(match), f"{match.score:.1f}", percent(match.probability)] for match in result.matches
    ]
    title = f"{shortened(result.sentence)}  ({result.about}; {result.searched:,} pictures)"
    return [Table(title, ["picture", "score", "match"], rows)]


def _redrawn(result: results.RedrawnResult) -> list[Table]:
    rows = [
        [image.image, shortened(image.question, 40), *_best(image), image.checkpoint]
        for image in result.images
    ]
    return [Table("Drawn again", ["trace", "text", "dense", "thresholded", "checkpoint"], rows)]


def _result_sheet(result: results.ResultSheet) -> list[Table]:
    rows = [[kind or "all", *map(str, counts)] for kind, counts in result.counts.items()]
    return [Table(result.title, ["type", "wrong", "of", "shown"], rows)]


def _best(image: results.ImageAnswer) -> list[str]:
    """The best answer of either side."""
    sides = (image.dense[0], image.thresholded[0])
    return [f"{_named(answer)} ({percent(answer.probability)})" for answer in sides]


def _named(answer: results.Answer) -> str:
    """A region with its label: "region 3 (red)"."""
    return f"{answer.name} ({answer.label})" if answer.label else answer.name


def _number(value: float | None, form: str, unit: str = "") -> str:
    """A number with its unit; null stands for what was no finite number."""
    return "–" if value is None else f"{value:{form}}{unit}"


_TABLES: dict[type[results.StageResult], Callable[[Any], list[Table]]] = {
    results.ExtractFeaturesResult: _extract_features,
    results.BuildGraphsResult: _build_graphs,
    results.CaptionGraphsResult: _caption_graphs,
    results.PretrainResult: _pretrain,
    results.FinetuneResult: _finetune,
    results.SweepResult: _threshold_sweep,
    results.AnswersResult: _answers,
    results.QuestionFileResult: _question_file,
    results.RedrawnResult: _redrawn,
    results.SearchResult: _search,
    results.ServeResult: _serve,
    results.ResultSheet: _result_sheet,
}
