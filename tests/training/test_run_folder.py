import multiprocessing
import time
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import yaml

from crosschannel import UserError
from crosschannel.config.keys import keys_of
from crosschannel.config.training import OptimConfig, RuntimeConfig
from crosschannel.config.types import RUNTIME
from crosschannel.runs.folder import RunFolder, read_metrics


@dataclass
class Config:
    data: Annotated[str, RUNTIME] = "x"
    seed: int = 0
    optim: OptimConfig = field(default_factory=OptimConfig)
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig)


def begin(path) -> RunFolder:
    run = RunFolder(path, "pretrain")
    run.write_config(Config())
    run.log_metrics(1, loss=1.0)  # else nothing was saved, and the folder is gone with its run
    run.close()
    return run


def test_runtime_keys_are_those_declared_so():
    keys = {key.name for key in keys_of(Config) if key.is_runtime}
    assert {"data", "runtime.workers", "runtime.keep"} <= keys
    assert not {"seed", "optim.lr", "optim.betas"} & keys


def test_the_config_file_is_complete_and_plain_yaml(tmp_path):
    begin(tmp_path / "run")
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert stored["optim"]["betas"] == [0.9, 0.999] and stored["runtime"]["workers"] == 2 and stored["seed"] == 0


def test_another_science_key_is_refused_with_the_difference(tmp_path):
    run = begin(tmp_path / "run")
    run.check_fixed_keys(Config())
    run.check_fixed_keys(Config(data="elsewhere", runtime=RuntimeConfig(workers=7)))
    with pytest.raises(UserError, match=r"optim\.lr was 0\.001 and is now 0\.5.*; choose another --out"):
        run.check_fixed_keys(Config(optim=OptimConfig(lr=0.5)))


def test_a_key_that_an_older_file_lacks_is_no_difference(tmp_path):
    run = begin(tmp_path / "run")
    path = tmp_path / "run" / "config.yaml"
    path.write_text(path.read_text().replace("  clip: 0.0\n", ""))
    run.check_fixed_keys(Config())  # what such a run did is what the key's default does
    with pytest.raises(UserError, match=r"optim\.clip was 0\.0 and is now 3\.0"):
        run.check_fixed_keys(Config(optim=OptimConfig(clip=3.0)))


@pytest.mark.parametrize("name", ["notes.txt", "config.yaml"])
def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path, name):
    (tmp_path / name).write_text("mine: 1\n")
    with pytest.raises(UserError, match="not empty and not a run"):
        RunFolder(tmp_path, "pretrain")
    assert [p.name for p in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine: 1\n"


def test_a_start_killed_while_it_wrote_its_config_can_start_again(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "config.yaml.part").write_text("half")
    assert not RunFolder(tmp_path, "pretrain").resuming


def test_a_run_of_another_command_is_refused(tmp_path):
    begin(tmp_path / "run")
    with pytest.raises(UserError, match="not a run of `linear-probe`"):
        RunFolder(tmp_path / "run", "linear-probe")


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="is a file"):
        RunFolder(tmp_path / "out", "pretrain")


def hold(path, ready):
    run = RunFolder(path, "pretrain")
    ready.set()
    time.sleep(60)
    del run


def test_one_process_holds_a_folder_and_a_dead_one_does_not(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=hold, args=(tmp_path / "run", ready))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(UserError, match=f"in use by process {holder.pid}"):
            RunFolder(tmp_path / "run", "pretrain")
    finally:
        holder.kill()
        holder.join()
    RunFolder(tmp_path / "run", "pretrain")


def test_metrics_of_steps_to_be_done_again_are_forgotten(tmp_path):
    run = RunFolder(tmp_path / "run", "pretrain")
    for step in (10, 20, 30):
        run.log_metrics(step, loss=step / 10)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    run.forget_metrics_after(20)
    assert read_metrics(run.path) == [{"step": 10, "loss": 1.0}, {"step": 20, "loss": 2.0}]


def test_an_evaluation_that_is_done_again_is_logged_once(tmp_path):
    run = RunFolder(tmp_path / "run", "pretrain")
    for step, values in ((5, {"train/loss": 1.0}), (5, {"val/loss": 2.0}), (6, {"train/loss": 1.0})):
        run.log_metrics(step, **values)
    run.forget_metrics_after(5, evaluated=False)
    assert read_metrics(run.path) == [{"step": 5, "train/loss": 1.0}]


def test_a_file_system_without_locks_is_not_taken_for_another_process(tmp_path, monkeypatch):
    import errno
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(UserError, match=r"cannot lock .*No locks available"):
        RunFolder(tmp_path / "run", "pretrain")
