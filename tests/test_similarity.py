"""Similarity of names (lexical, vectors, encoder), and the networkx export of unified graphs."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tbkin_core.errors import ConfigError, DataError, MissingDependencyError
from tbkin_core.graphs.exports import export_networkx, to_networkx
from tbkin_core.graphs.unified import CrossEdges, UnifiedGraph, cross_edges, region_edges
from tbkin_core.names import similarity as similarity_module
from tbkin_core.names.similarity import (
    COCO_NAMES,
    Calibration,
    LexicalSimilarity,
    Similarity,
    VectorSimilarity,
    make_similarity,
)
from tbkin_core.parsing.text_graph import TextAttribute, TextGraph, TextObject, TextRelation

NAMES = st.sampled_from(
    [*COCO_NAMES, "man", "women", "sofa", "food", "glasses", "traffic", "red bus"]
) | st.text(max_size=12)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spaCy pipeline with a vector for each word of COCO's names, and near ones for two more words."""
    import spacy

    nlp = spacy.blank("en")
    source = np.random.default_rng(0)
    words = sorted({word for name in COCO_NAMES for word in name.split()})
    vectors: dict[str, Any] = {word: source.standard_normal(24, np.float32) for word in words}
    for word, like in (("puppy", "dog"), ("sofa", "couch")):
        vectors[word] = vectors[like] + 0.3 * source.standard_normal(24, np.float32)
    for word, vector in vectors.items():
        nlp.vocab.set_vector(word, vector)
    path = tmp_path_factory.mktemp("pipeline") / "words"
    nlp.to_disk(path)
    return path


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two tiny random layers, whose tokens are letters."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    path = tmp_path_factory.mktemp("encoder") / "tiny-bert"
    path.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    (path / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizer(str(path / "vocab.txt")).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        initializer_range=0.5,
    )
    BertModel(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["lexical", "vectors", "encoder"])
def similarity(request: pytest.FixtureRequest, pipeline: Path, encoder: Path) -> Similarity:
    model = {"lexical": None, "vectors": str(pipeline), "encoder": str(encoder)}[request.param]
    return make_similarity(request.param, model)


# ---- every kind ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(names=st.lists(NAMES, max_size=4), labels=st.lists(NAMES, max_size=4))
def test_weights_are_symmetric_in_range_and_one_for_equal_names(
    similarity: Similarity, names: list[str], labels: list[str]
) -> None:
    weights = similarity.matrix(names, labels)
    assert (weights.shape, weights.dtype) == ((len(names), len(labels)), np.float32)
    assert ((weights >= 0) & (weights <= 1)).all()
    np.testing.assert_array_equal(weights.T, similarity.matrix(labels, names))
    for name in names:
        assert similarity(name, name.upper() if name.isascii() else name) == (
            1 if name.strip(" -") else 0
        ) or (not name.split())
        assert similarity(name, "") == 0


def test_a_matrix_equals_its_pairs(similarity: Similarity) -> None:
    names, labels = ["dog", "puppy", "", "dog"], ["couch", "dog", "sofa", ""]
    one_by_one = [[similarity(name, label) for label in labels] for name in names]
    np.testing.assert_array_equal(similarity.matrix(names, labels), np.array(one_by_one, np.float32))


def test_each_distinct_pair_is_compared_once(similarity: Similarity, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[str, str]] = []
    real = similarity._compare

    def counted(names: Any, labels: Any) -> NDArray[np.float32]:
        compared.extend((name, label) for name in names for label in labels)
        return real(names, labels)

    monkeypatch.setattr(similarity, "_compare", counted)
    names, labels = ["first thing", "second thing", "first thing"], ["other", "other", "third thing", ""]
    weights = similarity.matrix(names, labels)
    assert sorted(compared) == sorted({(name, label) for name in names for label in labels if label})
    np.testing.assert_array_equal(similarity.matrix(names[:2], labels), weights[:2])
    assert len(compared) == 4, "the second time everything is known"


def test_the_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity_module, "PAIRS_KEPT", 50)
    similarity = LexicalSimilarity()
    for number in range(40):
        weights = similarity.matrix([f"odd{number} thing", "dog"], ["dog", "cat", "thing"])
        np.testing.assert_array_equal(weights, np.array([[0, 0, 0.8], [1, 0, 0]], np.float32))
    assert sum(map(len, similarity._pairs.values())) <= 50 + 6


def test_empty_sides_give_empty_matrices(similarity: Similarity) -> None:
    assert similarity.matrix([], ["dog"]).shape == (0, 1)
    assert similarity.matrix(["dog"], []).shape == (1, 0)


# ---- lexical ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "label", "expected"),
    [
        ("man", "person", 1.0),
        ("women", "person", 1.0),
        ("toddler", "person", 1.0),
        ("bike", "bicycle", 1.0),
        ("puppy", "dog", 1.0),
        ("couch", "sofa", 1.0),
        ("Sail-Boats", "sailboat", 1.0),
        ("mice", "mouse", 1.0),
        ("skis", "ski", 1.0),
        ("cacti", "cactus", 1.0),
        ("t-shirts", "tshirt", 1.0),
        ("jug", "pitcher", 1.0),
        ("pitcher", "person", 1.0),
        ("coach", "bus", 1.0),
        ("traffic light", "light", 0.8),
        ("baseball player", "person", 0.8),
        ("city bus", "bus", 0.8),
        ("surfboard", "board", 0.8),
        ("food", "pizza", 0.6),
        ("animal", "puppy", 0.6),
        ("vehicle", "bus", 0.6),
        ("glasses", "glass", 0.6),
        ("glasses", "spectacles", 1.0),
        ("hot dog", "dog", 0.0),
        ("motorcycle", "bicycle", 0.0),
        ("man", "woman", 0.0),
        ("parrot", "pigeon", 0.0),
        ("jug", "person", 0.0),
        ("bus", "person", 0.0),
        ("street sign", "stop sign", 0.0),
        ("bus stop", "bus", 0.0),
        ("dog", "table", 0.0),
    ],
)
def test_lexical_similarity(name: str, label: str, expected: float) -> None:
    similarity = make_similarity("lexical")
    assert similarity(name, label) == pytest.approx(expected)
    assert similarity(label, name) == pytest.approx(expected)


def test_coco_names_are_different_things() -> None:
    """But for a head in common ("bear" and "teddy bear") no category may be taken for another."""
    weights = make_similarity().matrix(COCO_NAMES, COCO_NAMES) - np.eye(len(COCO_NAMES))
    alike = {(COCO_NAMES[row], COCO_NAMES[column]) for row, column in np.argwhere(weights >= 0.5)}
    assert alike == {("bear", "teddy bear"), ("teddy bear", "bear")}


def test_the_table_is_what_its_recipe_makes(shared_data: Path, tmp_path: Path) -> None:
    from importlib import resources

    recipes = Path(__file__).resolve().parents[1] / "examples" / "shipped_models"
    vocabularies = [str(shared_data / "vocab" / name) for name in ("objects_vocab.txt", "object_alias.txt")]
    subprocess.run(
        [sys.executable, str(recipes / "build_synonyms.py"), *vocabularies, str(tmp_path / "table.json")],
        check=True,
    )
    shipped = resources.files("tbkin_core.resources").joinpath("object_names.json").read_bytes()
    assert (tmp_path / "table.json").read_bytes() == shipped
    assert "Visual Genome" in json.loads(shipped)["about"]
    assert "CC BY 4.0" in json.loads(shipped)["about"]


def test_lexical_similarity_travels_to_a_worker_process() -> None:
    copy = pickle.loads(pickle.dumps(make_similarity()))
    assert copy("bike", "bicycle") == 1
    assert copy.name == make_similarity().name


# ---- vectors and encoders -----------------------------------------------------------------------


def test_vectors_of_near_words(pipeline: Path) -> None:
    similarity = make_similarity("vectors", str(pipeline))
    assert similarity("puppy", "dog") > 0.7
    assert similarity("sofa", "couch") > 0.7
    assert similarity("dog", "couch") < 0.5
    assert similarity("qwertz", "dog") == 0
    assert similarity("qwertz", "qwertz") == 1, "a word without a vector is still itself"
    assert similarity.name.startswith("vectors-words-")


def test_an_encoder_pools_over_the_words_of_a_name(encoder: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    similarity: Any = make_similarity("encoder", str(encoder))
    tokenizer, model = AutoTokenizer.from_pretrained(encoder), AutoModel.from_pretrained(encoder).eval()
    for text in ("dog", "traffic light"):
        with torch.inference_mode():
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state
        np.testing.assert_allclose(similarity._embed([text])[0], states[0].mean(0).numpy(), atol=1e-5)
    assert similarity.name.startswith("encoder-tiny-bert-")


def test_a_vector_does_not_depend_on_what_it_is_made_with(encoder: Path) -> None:
    alone, together = make_similarity("encoder", str(encoder)), make_similarity("encoder", str(encoder))
    assert isinstance(together, similarity_module.EncoderSimilarity)
    together.prepare(["Zebra crossing", "man", "ape", "a", ""])
    names, labels = ["man", "ape", "zebra crossing"], ["dog", "cat"]
    one_by_one = np.stack([alone.matrix([name], labels)[0] for name in names])
    np.testing.assert_array_equal(together.matrix(names, labels), one_by_one)


@pytest.mark.parametrize("kind", ["vectors", "encoder"])
def test_calibration_leaves_one_pair_of_categories_in_a_hundred(
    kind: str, pipeline: Path, encoder: Path
) -> None:
    similarity = make_similarity(kind, str(pipeline if kind == "vectors" else encoder))
    weights = similarity.matrix(COCO_NAMES, COCO_NAMES)
    pairs = weights[np.triu_indices(len(COCO_NAMES), k=1)]
    assert 0.002 <= (pairs >= 0.5).mean() <= 0.02
    assert (pairs == 0).mean() == pytest.approx(0.5, abs=0.25)


@settings(max_examples=50, deadline=None)
@given(cosines=st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_calibration_keeps_the_order(cosines: list[float]) -> None:
    first, second, third = cosines
    table = np.array([[1, first, second], [first, 1, third], [second, third, 1]])
    calibration = Calibration.of(table)
    assert 0 <= calibration.unrelated < calibration.related < 1 or calibration.unrelated < 0.05
    weights = calibration(np.linspace(-1, 1, 41))
    assert (np.diff(weights) >= 0).all()
    assert (weights[0], weights[-1]) == (0, 1)
    assert calibration(np.array(calibration.related)) == pytest.approx(0.5)


def test_a_model_that_takes_all_names_for_one_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Constant(similarity_module._Cosine):
        name = "constant"

        def _embed(self, texts: Any) -> NDArray[np.floating]:
            return np.ones((len(texts), 2))

    with caplog.at_level("WARNING", logger="tbkin"):
        similarity_module.logger.propagate = True
        Constant()
    assert "hardly tells" in caplog.text


def test_what_cannot_be_loaded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import spacy

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="lexical, vectors, encoder"):
        make_similarity("letters")
    with pytest.raises(ConfigError, match="takes no model"):
        make_similarity("lexical", "en_core_web_md")
    with pytest.raises(MissingDependencyError, match="no_such_pipeline") as caught:
        make_similarity("vectors", "no_such_pipeline")
    assert "spacy download" in (caught.value.hint or "")
    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(ConfigError, match="no word vectors"):
        VectorSimilarity(str(tmp_path / "blank"))
    with pytest.raises(DataError, match="no sentence encoder"):
        make_similarity("encoder", str(tmp_path / "blank"))


@pytest.mark.parametrize("damage", ["cut", "no pickle", "wrong type"])
def test_a_damaged_encoder_is_one_clear_error(encoder: Path, tmp_path: Path, damage: str) -> None:
    place = Path(shutil.copytree(encoder, tmp_path / "encoder"))
    weights, config = place / "model.safetensors", place / "config.json"
    if damage == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "no pickle":
        weights.unlink()
        (place / "pytorch_model.bin").write_bytes(b"no pickle")
    else:
        config.write_text(json.dumps({**json.loads(config.read_text()), "hidden_size": "sixteen"}))
    with pytest.raises(DataError, match="no sentence encoder"):
        make_similarity("encoder", str(place))


def test_a_name_without_tokens_is_similar_to_nothing(encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    similarity: Any = make_similarity("encoder", str(encoder))
    monkeypatch.setattr(similarity, "_tokenizer", lambda texts, **_: {"input_ids": [[] for _ in texts]})
    assert similarity("\u200b\u200c", "dog") == 0


def test_importing_loads_no_torch() -> None:
    code = (
        "import sys; import tbkin_core.names.similarity as s; s.make_similarity()('man', 'person');"
        " sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'spacy', 'networkx')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_cross_edges_take_any_similarity(similarity: Similarity) -> None:
    edges = cross_edges(["dog", "zebra"], ("zebra", "", "dog"), similarity, 0.5)
    assert {(0, 2), (1, 0)} <= set(zip(edges.object.tolist(), edges.region.tolist(), strict=True))
    assert 1 not in edges.region


def test_most_coco_captions_have_an_anchor(shared_data: Path) -> None:
    """Of captions whose image has annotated objects, most name one of them."""
    from tbkin_core.datasets import open_dataset
    from tbkin_core.parsing.parser import CaptionParser

    dataset = open_dataset(shared_data / "coco")
    boxes = dataset.boxes()
    captions = [caption for caption in dataset.captions() if boxes.get(caption.image_id or 0)][:300]
    graphs = CaptionParser().parse(caption.text for caption in captions)
    similarity = make_similarity()
    anchored = 0
    for caption, graph in zip(captions, graphs, strict=True):
        labels = [box.label for box in boxes[caption.image_id or 0]]
        names = [item.name for item in graph.objects]
        anchored += len(cross_edges(names, labels, similarity, 0.5).object) > 0
    assert anchored / len(captions) > 0.88


# ---- networkx -----------------------------------------------------------------------------------

TEXTS = st.text(st.characters(), max_size=8) | st.sampled_from(
    ["\x00", "a\ud83d", "\r\n", "\ufffe<&>\"'", " ö "]
)


@st.composite
def unified_graphs(draw: st.DrawFn) -> UnifiedGraph:
    tokens = tuple(draw(st.lists(TEXTS, min_size=1, max_size=4)))
    objects = tuple(TextObject(0, (0, 1), draw(TEXTS)) for _ in range(draw(st.integers(0, 3))))
    numbers = st.integers(0, max(len(objects) - 1, 0))
    several = range(draw(st.integers(0, 2)) if objects else 0)
    attributes = tuple(TextAttribute(draw(numbers), draw(TEXTS), (0,)) for _ in several)
    relations = tuple(TextRelation(draw(numbers), draw(TEXTS), draw(numbers), (0,)) for _ in several)
    labels = tuple(draw(st.lists(TEXTS, max_size=3)))
    corners = np.array([draw(st.integers(0, 50)) for _ in range(4 * len(labels))], np.float32).reshape(-1, 4)
    corners[:, 2:] += corners[:, :2] + 1
    pairs = [(a, b) for a in range(len(objects)) for b in range(len(labels)) if draw(st.booleans())]
    cross = CrossEdges(
        np.array([a for a, _ in pairs], np.int32),
        np.array([b for _, b in pairs], np.int32),
        np.array([draw(st.floats(0, 1, width=32)) for _ in pairs], np.float32),
    )
    return UnifiedGraph(
        draw(st.integers() | TEXTS),
        draw(st.none() | st.integers(0, 9) | TEXTS),
        draw(TEXTS),
        TextGraph(tokens, objects, attributes, relations),
        corners,
        labels,
        region_edges(corners),
        cross,
    )


def plain(text: Any, format: str) -> Any:
    """A value as the format can hold it."""
    if not isinstance(text, str):
        return text

    def kept(code: int) -> bool:
        if 0xD800 <= code <= 0xDFFF:
            return False
        return format == "json" or ((code in (9, 10, 13) or code >= 32) and code not in (0xFFFE, 0xFFFF))

    return "".join(letter if kept(ord(letter)) else "�" for letter in text)


def described(graph: networkx.DiGraph, format: str) -> Any:
    def values(data: dict[str, Any]) -> dict[str, Any]:
        # XML readers make one newline of a carriage return, with or without another newline.
        return {
            key: plain(value, format).replace("\r\n", "\n").replace("\r", "\n")
            if isinstance(value, str)
            else value
            for key, value in data.items()
        }

    return (
        values(graph.graph),
        {vertex: values(data) for vertex, data in graph.nodes(data=True)},
        {(a, b): values(data) for a, b, data in graph.edges(data=True)},
    )


def read_back(path: Path, format: str) -> networkx.DiGraph:
    if format == "graphml":
        return networkx.read_graphml(path)
    return networkx.node_link_graph(json.loads(path.read_text(encoding="utf-8")), edges="edges")


@pytest.mark.parametrize("format", ["graphml", "json"])
@settings(max_examples=60, deadline=None)
@given(graph=unified_graphs())
def test_one_graph_comes_back(
    format: str, graph: UnifiedGraph, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("one") / f"graph.{format}"
    assert export_networkx(graph, path) == 1
    again = read_back(path, format)
    assert isinstance(again, networkx.DiGraph)
    found, expected = described(again, format), described(to_networkx(graph), format)
    assert found[1:] == expected[1:]
    assert {key: value for key, value in found[0].items() if key in expected[0]} == expected[0]


@settings(max_examples=25, deadline=None)
@given(graphs=st.lists(unified_graphs(), max_size=3))
def test_several_graphs_in_one_file_or_a_directory(
    graphs: list[UnifiedGraph], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("several")
    for format in ("graphml", "json"):
        assert export_networkx(iter(graphs), root / f"all-{format}", format) == len(graphs)
        files = sorted((root / f"all-{format}").iterdir())
        assert len(files) == len(graphs)
        for file, graph in zip(files, graphs, strict=True):
            assert described(read_back(file, format), format)[1:] == described(to_networkx(graph), format)[1:]
    assert export_networkx(iter(graphs), root / "all.json") == len(graphs)
    contents = json.loads((root / "all.json").read_text(encoding="utf-8"))
    for content, graph in zip(contents, graphs, strict=True):
        part = networkx.node_link_graph(content, edges="edges")
        assert described(part, "json")[1:] == described(to_networkx(graph), "json")[1:]
    assert export_networkx(iter(graphs), root / "all.graphml") == len(graphs)
    whole = networkx.read_graphml(root / "all.graphml")
    assert len(whole) == sum(len(to_networkx(graph)) + 1 for graph in graphs)
    for row, graph in enumerate(graphs):
        vertex = whole.nodes[str(row)]
        assert vertex["kind"] == "caption"
        assert set(vertex) == {"kind", "name", "text", "text_id", "image_id"}
        part = whole.subgraph(node for node in whole if node.startswith(f"{row}:"))
        expected = described(to_networkx(graph), "graphml")
        assert {node.partition(":")[2] for node in part} == set(expected[1])
        assert len(part.edges) == len(expected[2])


def test_a_file_is_replaced_only_when_all_is_written(tmp_path: Path) -> None:
    empty = UnifiedGraph(
        1, None, "", TextGraph(()), np.zeros((0, 4), np.float32), (), region_edges(np.zeros((0, 4))),
        cross_edges([], (), make_similarity(), 0.5),
    )  # fmt: skip

    def broken() -> Any:
        yield empty
        raise KeyboardInterrupt

    for name in ("graphs.graphml", "graphs.json", "graphs"):
        assert export_networkx([empty], tmp_path / name) == 1
        before = sorted(tmp_path.rglob("*"))
        content = [path.read_bytes() for path in before if path.is_file()]
        with pytest.raises(KeyboardInterrupt):
            export_networkx(broken(), tmp_path / name)
        assert sorted(tmp_path.rglob("*")) == before
        assert [path.read_bytes() for path in before if path.is_file()] == content


def test_other_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="graphml or json"):
        export_networkx([], tmp_path / "graphs.gexf")
