"""The dataset formats that tbkin reads: one module each, one row each in `FORMATS`.

The order of the table is that of `Dataset.layouts` and, where nothing else is said, of captions and images.
"""

from tbkin_core.datasets.formats import (
    bottom_up,
    coco,
    conceptual,
    feature_tables,
    flickr,
    jsonl,
    karpathy,
    made,
    mmf,
    own,
    own_expressions,
    own_questions,
    refcoco,
    results,
    sbu,
    visual_genome,
    vqa,
)
from tbkin_core.datasets.formats.base import Format

FORMATS: tuple[Format, ...] = (
    own.GRAPH_EXPORT,
    results.RESULTS,
    coco.CAPTIONS,
    coco.INSTANCES,
    coco.OTHERS,
    karpathy.KARPATHY,
    own_expressions.EXPRESSION_LINES,
    own_questions.QUESTION_LINES,
    flickr.FLICKR,
    flickr.FLICKR_LISTS,
    jsonl.JSON_LINES,
    conceptual.CONCEPTUAL,
    sbu.SBU,
    made.QUESTIONS,
    made.ANNOTATIONS,
    made.REFS,
    made.INSTANCES,
    vqa.QUESTIONS,
    vqa.ANNOTATIONS,
    refcoco.REFS,
    refcoco.INSTANCES,
    refcoco.MDETR,
    refcoco.GOOGLE,
    refcoco.WITHOUT_BOXES,
    visual_genome.REGIONS,
    visual_genome.SCENE_GRAPHS,
    visual_genome.RELATIONSHIPS,
    visual_genome.OBJECTS,
    visual_genome.ATTRIBUTES,
    visual_genome.IMAGES,
    visual_genome.OTHERS,
    bottom_up.BOTTOM_UP,
    mmf.NPY,
    feature_tables.FEATURE_TABLES,
    feature_tables.UNREAD,
)
FORMAT_OF = {format.name: format for format in FORMATS}
