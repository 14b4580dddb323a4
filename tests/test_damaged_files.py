"""Files that tbkin wrote and reads again, damaged or hostile: a message that names them, and nothing lost."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import fails, succeeds, tbkin, tbkin_process
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_traces import tiny_trace

from tbkin_core.errors import CheckpointError, DataError
from tbkin_core.figures.trace import load_trace, save_trace
from tbkin_core.runs import changed_inputs, datasets_of, read_run, run_settings, settings_of
from tbkin_core.settings import FinetuneConfig, MaskingConfig, PretrainConfig
from tbkin_core.support.console import OBEYED, printable
from tbkin_core.support.files import json_text, write_json

VQA, REC = "runs/finetune/vqa-relative-0.3", "runs/finetune/rec"
QUESTION = "what color is the large circle"
HOSTILE = "\\[/x]\x1b[31m[bold]:dog:\r\b\u202e\x9b1m"

# What stands in the place of a value: wrong kinds, no numbers, too large ones, and other texts.
ODD: list[Any] = [
    None, True, -1, 0, 3, 1e308, float("nan"), float("inf"), 10**400, "", "x", "\ud800", [], {}, [None],
]  # fmt: skip


def rewrite(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed))


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of JSON stand; of a list the first two entries."""
    inner: list[Any] = list(value.items()) if isinstance(value, dict) else []
    inner = list(enumerate(value))[:2] if isinstance(value, list) else inner
    return [place, *(found for key, entry in inner for found in places(entry, (*place, key)))]


def damaged(content: Any, draw: Any) -> Any:
    """JSON with one value replaced or left out."""
    content = json.loads(json.dumps(content))
    *before, last = draw(st.sampled_from([place for place in places(content) if place]))
    holder = content
    for key in before:
        holder = holder[key]
    if isinstance(holder, dict) and draw(st.booleans()):
        del holder[last]
    else:
        holder[last] = draw(st.sampled_from(ODD))
    return content


# ---- traces -------------------------------------------------------------------------------------


def trace_arrays(path: Path) -> dict[str, Any]:
    save_trace(path, tiny_trace(task="rec"))
    with np.load(path) as file:
        return dict(file)


def test_a_small_trace_that_declares_much_takes_no_memory(tmp_path: Path) -> None:
    import tracemalloc

    arrays = trace_arrays(tmp_path / "trace.npz")
    for name, change in (
        ("dense.scores", lambda array: np.broadcast_to(array[:1], (4_000_000, *array.shape[1:]))),
        ("kept", None),
    ):
        with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as file:
            for member, array in arrays.items():
                stream = io.BytesIO()
                np.save(stream, array)
                data = stream.getvalue()
                if change is None and member == "dense.kept":
                    # A header that claims what the file does not hold.
                    data = data.replace(b"'shape': (2, ", b"'shape': (9999999999, ", 1).replace(
                        b" " * 9, b"", 1
                    )
                with file.open(member + ".npy", "w", force_zip64=True) as out:
                    out.write(data)
                    if change is not None and member == name:
                        for _ in range(500):
                            out.write(bytes(1_000_000))
        assert (tmp_path / "bomb.npz").stat().st_size < 1_000_000
        tracemalloc.start()
        with pytest.raises(DataError, match=r"bomb\.npz: cannot be read as a trace") as refused:
            load_trace(tmp_path / "bomb.npz")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 30_000_000, (peak, refused.value)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_trace_is_refused_or_drawn(tmp_path: Path, data: st.DataObject) -> None:
    arrays = trace_arrays(tmp_path / "trace.npz")
    if data.draw(st.booleans()):
        arrays["values"] = np.array(json.dumps(damaged(json.loads(str(arrays["values"])), data.draw)))
    else:
        name = data.draw(st.sampled_from(sorted(arrays)))
        array = arrays.pop(name)
        changes: list[Callable[[Any], Any]] = [
            lambda it: it[..., :-1], lambda it: it[None], lambda it: it.astype("U3"), lambda it: None,
            lambda it: it.astype("f8"), lambda it: np.zeros_like(it), lambda it: it / it.dtype.type(0),
        ]  # fmt: skip
        with np.errstate(all="ignore"):
            changed = data.draw(st.sampled_from(changes))(array) if array.ndim else None
        arrays |= {} if changed is None else {name: changed}
    np.savez(tmp_path / "damaged.npz", **arrays)
    outcome = tbkin("visualize", "damaged.npz", "--graph", "--html", "--json", cwd=tmp_path)
    assert outcome.code == 0 or "damaged.npz" in outcome.err, outcome.err
    if outcome.code == 0:
        json.loads(outcome.out, parse_constant=pytest.fail)


@pytest.mark.parametrize("text", ["", "PK", "[" * 100_000, '{"task": "vqa"}'])
def test_what_is_no_trace_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "trace.npz").write_text(text)
    fails("visualize", "trace.npz", cwd=tmp_path, code=1, says=("trace.npz", "cannot be read as a trace"))


def test_a_small_trace_takes_no_minutes(tmp_path: Path) -> None:
    """What it says often, or at length, is refused or shortened."""
    arrays = trace_arrays(tmp_path / "trace.npz")

    def changed(**values: Any) -> None:
        content = json.loads(str(arrays["values"]))
        graph = {**content["graph"], **values.pop("graph", {})}
        text = json.dumps({**content, "graph": graph, **values})
        np.savez_compressed(tmp_path / "slow.npz", **{**arrays, "values": np.array(text)})
        assert (tmp_path / "slow.npz").stat().st_size < 1_000_000

    started = time.process_time()
    long, edge = "w" * 150_000, {"object": 0, "region": 0, "weight": 0.5}
    for name in ("words", "pieces", "region_labels"):
        changed(**{name: [long] * len(json.loads(str(arrays["values"]))[name])})
        succeeds("visualize", "slow.npz", "--graph", "--html", cwd=tmp_path)
    changed(graph={"cross_edges": [edge] * 100_000})
    succeeds("visualize", "slow.npz", "--graph", cwd=tmp_path)
    assert time.process_time() - started < 30
    for values, says in (
        ({"words": ["w" * 300_000]}, "words[0]: expected a text of at most 200,000 letters"),
        ({"text": "w" * 300_000}, "text: expected a text"),
        ({"layers": list(range(300_000))}, "layers: expected a list of at most 4096 entries"),
        ({"more": "w" * 9_000_000}, "values: "),
    ):
        changed(**values)
        fails("visualize", "slow.npz", cwd=tmp_path, code=1, says=("slow.npz", says))


@pytest.mark.parametrize("checkpoint", ["a\0b", "\ud800", "x" * 5000])
def test_a_trace_of_a_model_that_cannot_be_hinders_no_answer(
    trained: Path, tmp_path: Path, checkpoint: str
) -> None:
    line = ("visualize", "img.jpg", QUESTION, "--checkpoint", VQA, "--out", tmp_path, "--json")
    trace = Path(json.loads(succeeds(*line, cwd=trained).out)["trace"])
    with np.load(trace) as file:
        arrays = dict(file)
    values = json.loads(str(arrays["values"])) | {"checkpoint": checkpoint}
    np.savez(trace, **{**arrays, "values": np.array(json.dumps(values))})
    again = Path(json.loads(succeeds(*line, cwd=trained).out)["trace"])
    assert again.name == f"{trace.stem}-2.npz"
    succeeds("visualize", trace, "--out", tmp_path / "new", cwd=tmp_path)


# ---- checkpoints --------------------------------------------------------------------------------


def spoil(checkpoint: Path, value: float, name: str = "tbkin.encoder.layers.0.query.weight") -> None:
    from safetensors.torch import load_file, save_file

    weights = {key: tensor.clone() for key, tensor in load_file(checkpoint / "model.safetensors").items()}
    weights[name].view(-1)[0] = value
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(trained_workspace: Path, value: float) -> None:
    spoil(trained_workspace / VQA, value)
    says = (f"{VQA}/model.safetensors", "tbkin.encoder.layers.0.query.weight", "not finite")
    own = ("--checkpoint", VQA, "--devices", "cpu")
    for line in (
        ("visualize", "img.jpg", QUESTION, *own),
        ("threshold-sweep", "--task", "vqa", "--data", "coco", "--thresholds", "0,0.5", *own),
    ):
        fails(*line, cwd=trained_workspace, code=1, says=says)
    line = ("finetune", "--task", "vqa", "--data", "coco", "--init", VQA, "--out", "new", "--devices", "cpu")
    fails(*line, cwd=trained_workspace, code=1, says=(VQA, "not finite"))


def test_answers_that_are_no_numbers_are_an_error(trained_workspace: Path) -> None:
    # Finite weights whose product is not.
    spoil(trained_workspace / VQA, 3e38, "answer_decoder.bias")
    spoil(trained_workspace / VQA, 3e38, "answer_decoder.weight")
    spoil(trained_workspace / VQA, 3e38, "answer_head.layer_norm.bias")
    own = ("--checkpoint", VQA, "--devices", "cpu", "--json")
    for line in (
        ("visualize", "img.jpg", QUESTION, *own),
        ("threshold-sweep", "--task", "vqa", "--data", "coco", "--thresholds", "0,0.5", *own),
    ):
        fails(*line, cwd=trained_workspace, code=1, says=(VQA, "not finite"))


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("num_hidden_layers", 10**6, "num_hidden_layers is 1000000 in one and 2 in the other"),
        ("vocab_size", 10**400, "vocab_size: expected a whole number"),
        ("hidden_size", 256, "do not belong together"),
        ("num_attention_heads", 5, "5 heads do not divide"),
        ("threshold", float("nan"), "threshold: expected a number"),
        ("id2label", {"0": "yes"}, "does not name its"),
        ("id2label", {"yes": "0"}, "config.json: cannot be read"),
        ("max_text_tokens", 9999, "longer than its positions"),
        ("extractor", {"object_names": [1]}, "extractor.object_names[0]: expected text"),
        ("use_regions", None, "use_regions: expected true or false"),
    ],
)
def test_a_configuration_is_checked_before_a_model_is_built(
    trained_workspace: Path, key: str, value: Any, says: str
) -> None:
    rewrite(trained_workspace / VQA / "config.json", lambda content: content.update({key: value}))
    line = ("visualize", "img.jpg", QUESTION, "--checkpoint", VQA, "--devices", "cpu")
    fails(*line, cwd=trained_workspace, code=1, says=(VQA, says))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_checkpoint_is_refused_or_loaded(
    trained: Path, tmp_path: Path, data: st.DataObject
) -> None:
    from tbkin_core.modeling.checkpoint import load_model

    place = tmp_path / "checkpoint"
    shutil.copytree(trained / VQA, place, dirs_exist_ok=True)
    name = data.draw(st.sampled_from(["config.json", "tokenizer.json", "tokenizer_config.json"]))
    rewrite(place / name, lambda content: damaged(content, data.draw))
    try:
        load_model(place, "vqa")
    except CheckpointError as error:
        assert str(place) in str(error)


def test_a_tokenizer_of_another_model_is_refused(trained_workspace: Path) -> None:
    content = json.loads((trained_workspace / VQA / "tokenizer.json").read_text())
    content["model"]["vocab"]["elsewhere"] = 5000
    (trained_workspace / VQA / "tokenizer.json").write_text(json.dumps(content))
    line = ("visualize", "img.jpg", QUESTION, "--checkpoint", VQA, "--devices", "cpu")
    fails(*line, cwd=trained_workspace, code=1, says=(VQA, "has a word 5000"))


# ---- runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data", {}), ("data", [None]), ("data", True), ("data", "a\0b"), ("data", "\ud800"),
        ("data", "x" * 300), ("train_split", []), ("task", "other"),
        ("features", 7), ("seed", "x"), ("seed", -1), ("init", "a\0b"),
    ],
)  # fmt: skip
def test_settings_of_a_run_that_cannot_be_are_named(trained_workspace: Path, name: str, value: Any) -> None:
    rewrite(trained_workspace / VQA / "run.json", lambda content: content["settings"].update({name: value}))
    says = (f"{VQA}/run.json: settings.{name}: expected", "name another, or train that run again")
    for line in (
        ("visualize", "img.jpg", QUESTION, "--checkpoint", VQA),
        ("visualize", "--from", f"{VQA}/results-val.json"),
        ("threshold-sweep", "--task", "vqa", "--thresholds", "0.3", "--checkpoint", VQA),
    ):
        fails(*line, cwd=trained_workspace, code=1, says=says)
    line = ("finetune", "--task", "vqa", "--data", "coco", "--epochs", "1", "--out", VQA)
    for options in ((), ("--overwrite",)):
        fails(*line, *options, cwd=trained_workspace, code=1, says=(says[0], "--out DIR"))


def test_a_run_of_another_stage_beside_a_model_says_nothing_of_its_data(trained_workspace: Path) -> None:
    shutil.copy(trained_workspace / "runs/pretrain/run.json", trained_workspace / VQA)
    line = ("threshold-sweep", "--task", "vqa", "--data", "coco", "--thresholds", "0.3", "--checkpoint", VQA)
    succeeds(*line, cwd=trained_workspace)
    for arguments in (("img.jpg", QUESTION, "--checkpoint", VQA), ("--from", f"{VQA}/results-val.json")):
        succeeds("visualize", *arguments, cwd=trained_workspace)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), run=st.sampled_from([VQA, REC, "runs/pretrain"]))
def test_a_damaged_run_is_refused_or_finished(
    trained: Path, tmp_path: Path, data: st.DataObject, run: str
) -> None:
    from tbkin_core.results import ReportEntry

    content = damaged(json.loads((trained / run / "run.json").read_text()), data.draw)
    (tmp_path / "run.json").write_text(json.dumps(content))
    try:
        found = read_run(tmp_path)
    except DataError as error:
        assert str(tmp_path / "run.json") in error.message
        return
    for place in (*datasets_of(tmp_path), Path(settings_of(tmp_path).get("init", ""))):
        assert not (place / "nothing of this name").exists()
    assert isinstance(changed_inputs(tmp_path, {}), list)
    if found["status"] == "finished":
        entries = map(ReportEntry.read, found["results"].get("report", []))
        assert sorted((entry.split, entry.order) for entry in entries) is not None


def test_what_a_run_keeps_of_odd_settings_is_read(tmp_path: Path) -> None:
    odd = float("inf")
    for stage, config in (
        ("finetune", FinetuneConfig(task="vqa", grad_clip=odd, warmup=odd, data=Path("\udc80"))),
        ("pretrain", PretrainConfig(data=[Path("a")], weights=[0.5], masking=MaskingConfig(neighbour_iou=1))),
    ):
        kept = {"stage": stage, "status": "running", "settings": run_settings(config)}
        write_json(tmp_path / "run.json", kept)
        assert read_run(tmp_path)["settings"].keys() == kept["settings"].keys()


# ---- results, sweeps, states --------------------------------------------------------------------


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), task=st.sampled_from([VQA, REC]))
def test_damaged_results_are_refused_or_drawn(
    trained: Path, tmp_path: Path, data: st.DataObject, task: str
) -> None:
    content = json.loads((trained / task / "results-val.json").read_text())
    content["results"] = content["results"][:3]
    (tmp_path / "results-val.json").write_text(json.dumps(damaged(content, data.draw)))
    line = ("visualize", "--from", "results-val.json", "--data", trained / "coco", "--out", "o", "--json")
    outcome = tbkin(*line, cwd=tmp_path)
    assert outcome.code == 0 or "results-val.json" in outcome.err, outcome.err


def test_types_that_the_data_do_not_know_are_drawn_together(trained: Path, tmp_path: Path) -> None:
    content = json.loads((trained / VQA / "results-val.json").read_text())
    content["results"][0]["type"] = None
    (tmp_path / "results-val.json").write_text(json.dumps(content))
    line = ("visualize", "--from", "results-val.json", "--limit", "40", "--out", "o")
    line = (*line, "--data", trained / "coco")
    assert "\nall " in succeeds(*line, cwd=tmp_path).out


SWEEP = ("threshold-sweep", "--task", "vqa", "--data", "coco", "--thresholds", "0,0.5", "--checkpoint", VQA)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda entry: entry.update(scores=None), "measurements[1].scores"),
        (lambda entry: entry["scores"].pop(), "measurements[1]"),
        (lambda entry: entry["scores"].append(float("nan")), "measurements[1].scores[32]"),
        (lambda entry: entry.update(seconds=0), "measurements[1].seconds"),
        (lambda entry: entry["kept"].pop("text-to-image"), "measurements[1].kept"),
        (lambda entry: entry.update(threshold="0.5"), "measurements[1].threshold"),
    ],
)
def test_a_damaged_sweep_is_refused_and_measured_anew_once_it_is_removed(
    trained_workspace: Path, change: Callable[[Any], Any], says: str
) -> None:
    line = (*SWEEP, "--devices", "cpu", "--json")
    before = json.loads(succeeds(*line, cwd=trained_workspace).out)
    file = trained_workspace / before["out"] / "sweep.json"
    rewrite(file, lambda content: change(content["measurements"][1]) and None)
    fails(
        *line, cwd=trained_workspace, code=1, says=(says, f"{before['out']}/sweep.json", "remove sweep.json")
    )
    file.unlink()
    (trained_workspace / before["out"] / "sweep.csv").unlink()
    shutil.rmtree(trained_workspace / before["out"])
    after = json.loads(succeeds(*line, cwd=trained_workspace).out)
    assert [row["accuracy"] for row in after["rows"]] == [row["accuracy"] for row in before["rows"]]


PART = ("finetune", "--task", "vqa", "--data", "coco", "--epochs", "2", "--devices", "cpu", "--out", "part")


@pytest.fixture(scope="module")
def cut_short(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a run that its minutes cut short; read only."""
    place = Path(shutil.copytree(trained, tmp_path_factory.mktemp("cut") / "workspace"))
    succeeds(*PART, "--max-minutes", "0.0001", cwd=place)
    return place


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 4
    path.write_bytes(content)


def repack(path: Path) -> None:
    with zipfile.ZipFile(path) as file:
        members = {name: file.read(name) for name in file.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    import torch

    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.pt", lambda path: edit(path, lambda content: content.popitem())),
        ("optimizer.pt", lambda path: edit(path, lambda it: it["optimizer"]["state"][0].pop("exp_avg"))),
        (
            "optimizer.pt",
            lambda path: edit(path, lambda it: it["optimizer"]["state"][3]["step"].fill_(np.nan)),
        ),
        ("model.pt", lambda path: flip(path, path.stat().st_size // 2)),
        ("model.pt", repack),
        ("model.pt", lambda path: path.write_bytes(path.read_bytes()[:-100])),
        ("optimizer.pt", lambda path: flip(path, path.stat().st_size // 3)),
        ("progress.json", lambda path: rewrite(path, lambda content: content.update(step=None))),
        ("progress.json", lambda path: rewrite(path, lambda content: content.update(history=[{}]))),
        ("progress.json", lambda path: rewrite(path, lambda content: content.update(threads=10**9))),
        ("progress.json", lambda path: rewrite(path, lambda content: content.update(epoch_sums={"a": 1}))),
        ("progress.json", lambda path: path.write_text("[" * 100_000)),
    ],
)
def test_a_damaged_state_is_refused(
    cut_short: Path, tmp_path: Path, name: str, damage: Callable[[Path], Any]
) -> None:
    place = Path(shutil.copytree(cut_short, tmp_path / "workspace"))
    damage(place / "part/state" / name)
    says = (f"part/state/{name}", "--overwrite to begin anew")
    fails(*PART, "--max-minutes", "60", cwd=place, code=1, says=says)


def test_a_whole_state_goes_on_with_the_settings_of_its_run(cut_short: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(cut_short, tmp_path / "workspace"))
    state = place / "part/state/optimizer.pt"
    edit(state, lambda content: content["optimizer"]["param_groups"][0].update(betas=None, lr="x"))
    assert json.loads(succeeds(*PART, "--max-minutes", "60", "--json", cwd=place).out)["epochs"] == 2


def test_damaged_curves_name_their_file(trained_workspace: Path) -> None:
    line = ("finetune", "--task", "rec", "--data", "coco", "--epochs", "1", "--devices", "cpu")
    (trained_workspace / REC / "training.png").unlink()
    (trained_workspace / REC / "metrics.jsonl").write_text('{"step": 1, "loss": ' + "9" * 400 + "}\n")
    fails(*line, cwd=trained_workspace, code=1, says=(f"{REC}/metrics.jsonl", "remove it"))


# ---- what is printed and written ----------------------------------------------------------------


@given(
    st.recursive(
        st.none() | st.floats() | st.text(), lambda it: st.lists(it) | st.dictionaries(st.text(), it)
    )
)
def test_json_holds_no_nan(value: Any) -> None:
    def expected(value: Any) -> Any:
        if isinstance(value, float):
            return value if np.isfinite(value) else None
        if isinstance(value, dict):
            return {key: expected(entry) for key, entry in value.items()}
        return [expected(entry) for entry in value] if isinstance(value, list) else value

    assert json.loads(json_text(value), parse_constant=pytest.fail) == expected(value)


def test_numpy_numbers_that_are_none_become_null() -> None:
    assert json_text({"a": np.float32("nan"), "b": np.array([1.0, np.inf]), "c": Path("x")}) == (
        '{"a": null, "b": [1.0, null], "c": "x"}'
    )


@pytest.mark.parametrize("line", ["pretrain coco", "finetune --task vqa --data coco"])
def test_a_run_without_steps_says_null(trained_workspace: Path, line: str) -> None:
    command = (*line.split(), "--epochs", "0", "--out", "new", "--devices", "cpu")
    outcome = succeeds(*command, "--json", cwd=trained_workspace)
    values = json.loads(outcome.out, parse_constant=pytest.fail)
    assert values["samples_per_second"] is None
    json.loads((trained_workspace / "new/run.json").read_text(), parse_constant=pytest.fail)
    succeeds(*command, cwd=trained_workspace)


def test_texts_are_texts_on_a_terminal(trained_workspace: Path) -> None:
    def name_answers(content: Any) -> None:
        content["id2label"] = {number: f"{HOSTILE}{number}" for number in content["id2label"]}
        content["label2id"] = {}

    rewrite(trained_workspace / VQA / "config.json", name_answers)
    image = f"{HOSTILE.replace('/', '')}.jpg"
    shutil.copy(trained_workspace / "img.jpg", trained_workspace / image)
    line = ("visualize", image, QUESTION, "--checkpoint", VQA, "--devices", "cpu")
    outcome = succeeds(*line, cwd=trained_workspace)
    shown = outcome.out + outcome.err
    assert not OBEYED.search(shown.replace("\n", ""))
    assert "\\[/x]\\x1b[31m[bold]:dog:\\r\\x08\\u202e\\x9b1m" in outcome.out
    values = json.loads(succeeds(*line, "--json", cwd=trained_workspace).out)
    assert values["answers"][0]["answer"].startswith(HOSTILE) and values["image"] == image
    fails("visualize", f"no{HOSTILE}.jpg", QUESTION, cwd=trained_workspace, code=1, says="no\\[/x]\\x1b[31m")


@given(st.text())
def test_nothing_printable_is_obeyed(text: str) -> None:
    shown = printable(text)
    assert not OBEYED.search(shown)
    assert shown.isprintable() or any(not character.isprintable() for character in text)
    assert printable(shown) == shown


def test_a_terminal_without_utf_8_is_served(trained_workspace: Path) -> None:
    shutil.copy(trained_workspace / "img.jpg", trained_workspace / "größe.jpg")
    line = (
        "visualize",
        "größe.jpg",
        "what color is the größe circle",
        "--checkpoint",
        VQA,
        "--devices",
        "cpu",
    )
    plain = dict.fromkeys(("PYTHONUTF8", "PYTHONCOERCECLOCALE"), "0")
    plain |= {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii"}
    outcome = tbkin_process(*line, "--json", cwd=trained_workspace, **plain)
    assert outcome.code == 0, outcome.err
    values = json.loads(outcome.out)
    assert values["question"] == "what color is the größe circle"
    assert os.fsencode(values["image"]) == "größe.jpg".encode()


# ---- files --------------------------------------------------------------------------------------


def test_files_have_the_mode_of_the_umask(workspace: Path) -> None:
    before = os.umask(0o027)
    try:
        for line in (
            "extract-features coco --workers 0",
            "build-graphs coco --export g.jsonl --networkx g",
            "pretrain coco --epochs 1 --devices cpu",
            "finetune --task vqa --data coco --epochs 9 --devices cpu --max-minutes 0.0001 --predict val",
            "threshold-sweep --task vqa --data coco --thresholds 0,0.5 --devices cpu",
            "visualize img.jpg circle --devices cpu --html --graph",
        ):
            started = set(workspace.rglob("*"))
            succeeds(*line.split(), cwd=workspace)
            made = set(workspace.rglob("*")) - started
            modes = {path: oct(path.stat().st_mode & 0o777) for path in made}
            assert (
                made
                and {
                    path: mode
                    for path, mode in modes.items()
                    if mode != ("0o750" if path.is_dir() else "0o640")
                }
                == {}
            )
    finally:
        os.umask(before)


def test_an_export_writes_where_a_link_leads(trained_workspace: Path) -> None:
    for option, name in (
        ("--export", "graphs.jsonl"),
        ("--networkx", "graphs.graphml"),
        ("--networkx", "many"),
    ):
        (trained_workspace / "elsewhere").mkdir(exist_ok=True)
        target, link = trained_workspace / "elsewhere" / name, trained_workspace / f"link-{name}"
        target.mkdir() if name == "many" else target.touch()
        link.symlink_to(target)
        for _ in range(2):  # an earlier export is replaced
            succeeds("build-graphs", "coco", option, link.name, cwd=trained_workspace)
            assert link.is_symlink() and link.resolve() == target
            assert any(target.iterdir()) if name == "many" else target.stat().st_size > 1000


def test_long_names_of_images_and_questions_are_shortened(trained_workspace: Path) -> None:
    name = "大" * 80 + ".jpg"  # 244 bytes
    shutil.copy(trained_workspace / "img.jpg", trained_workspace / name)
    asked = f"what color is the large circle {'and so on ' * 40}"
    line = ("visualize", name, asked, "--checkpoint", VQA, "--devices", "cpu", "--html", "--json", "--graph")
    values = json.loads(succeeds(*line, cwd=trained_workspace).out)
    assert values["image"] == name and values["question"] == asked.strip()
    assert all((trained_workspace / file).is_file() for file in [*values["files"], values["trace"]])
    succeeds("visualize", values["trace"], "--layer", "1", "--head", "2", "--column", cwd=trained_workspace)
    trace = trained_workspace / f"{'t' * 250}.npz"
    shutil.copy(trained_workspace / values["trace"], trace)
    succeeds("visualize", trace.name, "--layer", "1", "--head", "2", "--column", cwd=trained_workspace)
