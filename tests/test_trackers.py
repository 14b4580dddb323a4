"""Trackers beside TensorBoard: what reaches them, and how they fail.

Stand-ins take the place of the packages, which need accounts or servers, and keep what is sent to them."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from command_line import fails, succeeds
from tiny_plans import tiny_plan

from tbkin_core.support.console import RunBar
from tbkin_core.training import run as run_module
from tbkin_core.training.trackers import trackers

LINE = ("finetune", "--task", "rec", "--data", "coco", "--epochs", "2", "--devices", "cpu", "--out")


class Service:
    """Keeps what is sent to it."""

    def __init__(self) -> None:
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended: list[str] = []

    def values(self, prefix: str) -> list[tuple[int, dict[str, float]]]:
        return [(step, values) for step, values in self.logged if all(it.startswith(prefix) for it in values)]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()

    def log(values: dict[str, float], step: int) -> None:
        service.logged.append((step, values))

    def init(**settings: Any) -> Any:
        service.begun.append(settings)
        print("a word on stdout")
        return types.SimpleNamespace(log=log, finish=lambda exit_code: service.ended.append(str(exit_code)))

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return service


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    known: dict[str, Any] = {}

    def end_run(status: str) -> None:
        service.ended.append(status)
        print("a word on stdout")

    def start_run(run_id: str = "", run_name: str = "", tags: dict[str, str] | None = None) -> Any:
        service.begun.append({"run_id": run_id, "run_name": run_name, "tags": tags})
        run = types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "new"))
        known.update(dict.fromkeys((tags or {}).values(), run))
        return run

    def search_runs(filter_string: str, output_format: str) -> list[Any]:
        assert output_format == "list"
        return [run for value, run in known.items() if f"'{value}'" in filter_string]

    def log_metrics(values: dict[str, float], step: int, run_id: str) -> None:
        service.logged.append((step, values))

    module = types.ModuleType("mlflow")
    functions = {
        "set_experiment": lambda name: None,
        "search_runs": search_runs,
        "start_run": start_run,
        "log_params": lambda values: service.begun[-1].update(params=values),
        "log_metrics": log_metrics,
        "end_run": end_run,
    }
    for name, function in functions.items():
        setattr(module, name, function)
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return service


def test_numbers_of_a_run_reach_both(
    trained_workspace: Path, wandb: Service, mlflow: Service, tmp_path: Path
) -> None:
    succeeds(*LINE, "runs/one", "--wandb", "--mlflow", cwd=trained_workspace)
    for service in (wandb, mlflow):
        epochs = service.values("epoch/")
        assert [values["epoch/epoch"] for _, values in epochs] == [1, 2]
        assert all("epoch/accuracy" in values and "epoch/loss_box" in values for _, values in epochs)
        assert service.values("step/") and all(step % 10 == 0 for step, _ in service.values("step/"))
        steps = [step for step, _ in service.logged]
        assert steps == sorted(steps), "W&B drops what lies behind"
    assert wandb.begun[0]["name"] == "runs/one" and wandb.begun[0]["config"]["epochs"] == 2
    assert mlflow.begun[0]["run_name"] == "runs/one" and mlflow.begun[0]["params"]["epochs"] == "2"
    assert wandb.ended == ["0"] and mlflow.ended == ["FINISHED"]


def test_a_run_that_goes_on_is_the_same_run_there(
    trained_workspace: Path, wandb: Service, mlflow: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = (*LINE, "runs/two", "--wandb", "--mlflow")
    validate = run_module._Run._validate

    def stopped(self: Any) -> Any:
        found = validate(self)
        if self.where.epoch == 1:
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patch:
        patch.setattr(run_module._Run, "_validate", stopped)
        fails(*line, cwd=trained_workspace, code=130)
    assert mlflow.ended == ["KILLED"] and wandb.ended == ["1"]
    bars: list[Any] = []
    monkeypatch.setattr(run_module, "RunBar", lambda *values: bars.append(values) or RunBar(*values))
    succeeds(*line, cwd=trained_workspace)
    ((label, total, done, _),) = bars
    assert label == "epoch 2/2" and 0 < done == total / 2, "the bar begins where the run goes on"
    assert wandb.begun[0]["id"] == wandb.begun[1]["id"]
    assert mlflow.begun[1]["run_id"] == "new", "found by its tag"
    succeeds(*line, "--overwrite", cwd=trained_workspace)
    assert wandb.begun[2]["id"] != wandb.begun[1]["id"] and not mlflow.begun[2]["run_id"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_is_not_installed_is_named_with_its_pip_line(
    name: str, trained_workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    says = (f"{name}: cannot be loaded", f"pip install 'tbkin[{name}]'", f"omit --{name}")
    fails(*LINE, "runs/three", f"--{name}", cwd=trained_workspace, code=1, says=says)
    assert not (trained_workspace / "runs/three/model.safetensors").exists()


def test_one_that_cannot_begin_costs_nothing(
    trained_workspace: Path, wandb: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(**settings: Any) -> None:
        raise RuntimeError("No API key\nconfigured.")

    monkeypatch.setattr(sys.modules["wandb"], "init", refused)
    says = ("wandb: cannot begin (No API key configured.)", "WANDB_MODE=offline")
    fails(*LINE, "runs/four", "--wandb", cwd=trained_workspace, code=2, says=says)
    succeeds(*LINE, "runs/four", cwd=trained_workspace)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_one_that_fails_on_the_way_costs_nothing_but_its_numbers(
    name: str, trained_workspace: Path, wandb: Service, mlflow: Service
) -> None:
    service = wandb if name == "wandb" else mlflow

    class Full(list[Any]):
        def append(self, entry: Any) -> None:
            if len(self) == 1:
                raise RuntimeError("the server is away")
            super().append(entry)

    service.logged = Full()
    outcome = succeeds(*LINE, "runs/five", f"--{name}", "--json", cwd=trained_workspace)
    assert outcome.err.count("the server is away") == 1 and "goes on without it" in outcome.err
    assert json.loads(outcome.out)["epochs"] == 2, "what the packages print is on stderr"
    assert len(service.logged) == 1 and service.ended


def test_what_somebody_else_began_goes_on(
    trained_workspace: Path, mlflow: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def active(**settings: Any) -> None:
        raise RuntimeError("Run with UUID 7 is already active.")

    monkeypatch.setattr(sys.modules["mlflow"], "start_run", active)
    fails(*LINE, "runs/six", "--mlflow", cwd=trained_workspace, code=2, says="is already active")
    assert not mlflow.ended


@pytest.mark.parametrize(("variable", "asked"), [(None, "tbkin"), ("mine", "mine")])
def test_a_project_of_ones_own_is_kept(
    variable: str | None, asked: str, tmp_path: Path, wandb: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_PROJECT", variable)
    with trackers(tiny_plan(wandb=True), tmp_path, 0):
        pass
    assert wandb.begun[0]["project"] == asked


def test_other_ranks_track_nothing(tmp_path: Path, wandb: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "rank", lambda: 1)
    with run_module._tracked(tiny_plan(wandb=True), tmp_path, 0) as found:
        assert found == [] and not wandb.begun
