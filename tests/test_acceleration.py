"""What makes a GPU fast, as far as a CPU can tell: vectors by row, batches made ahead, compiled layers."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from command_line import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from tbkin_core.features.vectors import Vectors, VectorTable
from tbkin_core.modeling import TbkinConfig, TbkinForVqa
from tbkin_core.modeling.acceleration import _compiler_problem, accelerate
from tbkin_core.selection import RULES, Selection
from tbkin_core.support.workers import made_ahead
from tbkin_core.tasks.inputs import to_device

CPU = torch.device("cpu")

# ---- vectors by row -----------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_vectors_are_those_of_their_rows(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any))
    chance = np.random.default_rng(sum(lengths))
    table = VectorTable([chance.standard_normal((n, 8)).astype(np.float16) for n in lengths])
    shape = data.draw(st.sampled_from([(0,), (5,), (3, 1), (2, 6), (2, 0), (2, 2, 3)]))
    # Runs, as images have them, broken by hidden and exchanged regions.
    rows = np.arange(np.prod(shape, dtype=int)).reshape(shape) + data.draw(st.integers(0, 3))
    rows %= len(table)
    for _ in range(data.draw(st.integers(0, 4)) if rows.size else 0):
        place = data.draw(st.integers(0, rows.size - 1))
        rows.reshape(-1)[place] = data.draw(st.integers(-1, len(table) - 1))
    everything = np.concatenate([*table.shards, np.zeros((1, 8), np.float16)])
    vectors = Vectors(table, rows)
    assert vectors.shape == (*shape, 8) and len(vectors) == shape[0]
    np.testing.assert_array_equal(np.asarray(vectors), everything[rows].astype(np.float32))
    np.testing.assert_array_equal(table.take(rows, half=True), everything[rows])
    np.testing.assert_array_equal(vectors.to(CPU).numpy(), everything[rows])
    assert table.keep_on(CPU, most=10**6) == everything.nbytes
    np.testing.assert_array_equal(vectors.to(CPU).numpy(), everything[rows])
    if len(shape) == 2 and shape[1]:
        np.testing.assert_array_equal(np.asarray(vectors[:, :1]), everything[rows[:, :1]])


def test_vectors_that_are_released_while_they_are_read_are_those_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = VectorTable([np.arange(24, dtype=np.float16).reshape(3, 8)])
    table.keep_on(CPU, most=10**6)
    monkeypatch.setattr("tbkin_core.features.vectors.moved", lambda it, _: (table.release(), it)[1])
    np.testing.assert_array_equal(table.tensor(np.array([2, -1]), CPU)[0], np.arange(16, 24))


# ---- made ahead ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_what_is_made_ahead_comes_in_order(threads: int) -> None:
    def slow(number: int) -> int:
        time.sleep(0.003 * (number % 3))
        return number * number

    assert list(made_ahead(slow, range(20), threads)) == [number * number for number in range(20)]
    assert list(made_ahead(slow, [], threads)) == []


def test_each_thread_is_one_ahead_and_none_goes_on_when_nobody_asks() -> None:
    begun: list[int] = []
    with closing(made_ahead(begun.append, itertools.count(), threads=2)) as made:
        next(made)
        time.sleep(0.05)
        assert begun == [0, 1, 2]
    time.sleep(0.05)
    assert begun == [0, 1, 2]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_an_error_of_a_thread_is_that_of_its_item() -> None:
    made = made_ahead(lambda number: 1 // number, [2, 1, 0, 3], threads=3)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)


# ---- compiled layers ----------------------------------------------------------------------------


def tiny(layers: int) -> TbkinForVqa:
    torch.manual_seed(0)
    config = TbkinConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=32,
        region_feature_size=6, num_answers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return TbkinForVqa(config)


def drawn(batch: int, tokens: int, regions: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(batch)
    some = partial(torch.randint, generator=generator)
    return {
        "input_ids": some(0, 50, (batch, tokens)),
        "attention_mask": torch.arange(tokens) < some(1, tokens + 1, (batch, 1)),
        "region_features": torch.randn(batch, regions, 6, generator=generator),
        "region_geometry": torch.rand(batch, regions, 5, generator=generator),
        "region_mask": torch.arange(regions) < some(1, regions + 1, (batch, 1)),
    }


def test_one_compiled_program_serves_all_layers_lengths_and_thresholds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    eager = tiny(layers=3)
    model = copy.deepcopy(eager)
    counter = CompileCounterWithBackend("aot_eager")
    compile_layer = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda it, **given: compile_layer(it, **given, backend=counter)
    )
    monkeypatch.setattr("tbkin_core.modeling.acceleration._compiler_problem", lambda device: "")
    torch._dynamo.reset()
    accelerate(model, CPU, compiled=True)
    assert model.state_dict().keys() == eager.state_dict().keys()
    for selections, rule in enumerate(("dense", *RULES[:3]), start=1):
        taus = (0.0,) if rule == "dense" else (0.05, 0.1, 0.2)
        for tau, shape in itertools.product(taus, ((4, 7, 5), (3, 6, 9))):
            selection = Selection(rule if tau else "relative", tau)
            found = []
            for it in (eager, model):
                it.zero_grad()
                it.tbkin.selection = selection
                logits = it(**drawn(*shape)).vqa_logits
                logits.square().sum().backward()
                found.append([logits, *(weight.grad for weight in it.parameters())])
            for one, other in zip(*found, strict=True):
                if one is not None:
                    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
        # PyTorch also hands over a graph of nothing.
        programs = sum(len(graph.graph.nodes) > 0 for graph in counter.graphs)
        assert programs == selections, rule
    torch._dynamo.reset()


def test_where_nothing_can_be_compiled_the_model_says_so_and_computes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*arguments: Any, **settings: Any) -> Any:
        raise RuntimeError("no C++ compiler was found\nand more of it")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr("tbkin_core.modeling.acceleration.logger.propagate", True)
    model = tiny(layers=1)
    _compiler_problem.cache_clear()
    with caplog.at_level("WARNING", logger="tbkin"):
        accelerate(model, CPU, compiled=True)
    _compiler_problem.cache_clear()
    assert "no C++ compiler was found): going on without it" in caplog.text
    assert not model.tbkin.encoder.compiled
    assert model(**drawn(2, 3, 4)).vqa_logits.shape == (2, 4)


# ---- nothing that a device would have to wait for -----------------------------------------------


@pytest.fixture(scope="module")
def checked_world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The data of the check for GPUs, and what makes models and objectives of it."""
    with pytest.MonkeyPatch.context() as patch:
        for folder in ("cuda", "benchmarks"):
            patch.syspath_prepend(REPOSITORY / "tests" / folder)
        from checking import world

        shape = world.Shape(4, 2, feature_size=8, vocabulary=60, answers=5, fewest_regions=2, fewest_words=3)
        yield world, world.make_world(tmp_path_factory.mktemp("checked") / "features", shape)


@pytest.mark.parametrize("rule", ["dense", "relative", "topk"])
@pytest.mark.parametrize("name", ["pretraining", "vqa", "rec"])
def test_losses_and_gradients_need_no_number_of_the_device(
    checked_world: Any, name: str, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors on the meta device have no numbers: whatever asks for one, or mixes devices, raises."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta knows none
    world, data = checked_world
    objective = world.OBJECTIVES[name](data)
    model = world.make_model(data, name, "tiny").to("meta")
    model.tbkin.selection = Selection("relative" if rule == "dense" else rule, 2.0 * (rule == "topk") or 0.1)
    if rule == "dense":
        model.tbkin.selection = Selection()
    arrays = objective.collate(np.arange(6), 0)
    batch = {name: value.to("meta") for name, value in to_device(arrays, CPU).items()}
    losses = objective.losses(model, batch, 0)
    torch.stack([loss / 2 for loss in losses.values()]).sum().backward()
    assert set(losses) == set(objective.targets(arrays, 0))
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    assert norm.device.type == "meta"
    with pytest.raises(Exception, match="meta"):
        bool(norm > 0)
