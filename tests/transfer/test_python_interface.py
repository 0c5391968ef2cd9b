"""`import transfer` as one meets it in a notebook: names, configs by name and keyword, results that show themselves."""

import ast
import importlib
import inspect
from pathlib import Path

import pytest
from trained_runs import assert_same_result

import transfer
from crosschannel import UserError
from crosschannel.config.keys import items
from crosschannel.config.load import override
from crosschannel.runs.result import load_result
from transfer.protocol import as_config
from transfer.protocols import PROTOCOLS

RANDOM = "random:alexnet,fc=0,size=64,resize=72"


def test_all_names_are_listed_once_and_can_be_had():
    assert set(dir(transfer)) == set(transfer.__all__)
    tree = ast.parse(Path(transfer.__file__).read_text())
    (typed,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: statement.module for statement in typed.body for alias in statement.names}
    assert seen.keys() == set(transfer.__all__)  # what editors are told is what is imported
    for name, module in seen.items():
        assert getattr(transfer, name) is getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_config_can_be_made_without_what_it_ignores(name):
    config = PROTOCOLS[name].load().config()
    assert override(config, {"seed": 3}).seed == 3
    assert as_config(PROTOCOLS[name].load(), None) == config


@pytest.mark.parametrize("name", PROTOCOLS)
def test_help_names_every_key(name):
    function = PROTOCOLS[name].load()
    taken = inspect.signature(function).parameters
    by_place = {key for key, parameter in taken.items() if parameter.kind is not parameter.KEYWORD_ONLY}
    left_out = by_place | {"backbone", "data"} | ({"layer"} if "layers" in by_place else set())
    found = {key.name: value for key, value in items(PROTOCOLS[name].load().config()) if key.name not in left_out}
    last = {key: key.rpartition(".")[2] for key in found}
    for key, value in found.items():
        short = last[key] if list(last.values()).count(last[key]) == 1 else key
        assert f"\n    {short} (default {value!r}): " in function.__doc__
        assert short == key != last[key] or taken[short].default == value
    assert "k (default [20]): numbers of neighbours that vote" in transfer.knn.__doc__


def test_keys_of_groups_go_by_their_last_part():
    config = as_config(PROTOCOLS["linear-probe"].load(), "paper")
    changed = override(config, {"epochs": 5, "lr": 0.1, "crop.size": 64, "schedule": {"warmup": 0.2}, "layer": "a"})
    assert (changed.train.epochs, changed.optim.lr, changed.crop.size) == (5, 0.1, 64)
    assert changed.schedule.warmup == 0.2 and changed.layer == "a" and config.layer != "a"
    assert changed.crop.kind == config.crop.kind
    for key, words in (
        ("kind", "ambiguous key 'kind': schedule.kind or crop.kind"),
        ("epoch", "did you mean epochs"),
        ("foo", "unknown key"),
    ):
        with pytest.raises(UserError, match=words):
            override(config, {key: 1})


@pytest.mark.parametrize("protocol", [transfer.knn, transfer.few_shot], ids=["knn", "few-shot"])
def test_the_returned_result_is_the_stored_one(protocol, photo_folder, tmp_path):
    keys = {"shots": [1], "draws": 2} if protocol is transfer.few_shot else {"k": [1]}
    for _ in range(2):  # measured, and loaded
        returned = protocol(RANDOM, str(photo_folder), "conv1", out=tmp_path / "run", workers=0, **keys)
        assert_same_result(returned, load_result(tmp_path / "run"))


def test_a_call_of_wrong_arguments_is_a_type_error():
    for arguments, keywords in (
        ((), {}),
        ((RANDOM, "x", "conv1", None, None, True, 3), {}),
        ((RANDOM,), {"data": "x", "backbone": RANDOM}),
    ):
        with pytest.raises(TypeError):
            transfer.knn(*arguments, **keywords)


def test_a_protocol_takes_keywords_and_shows_its_result(photo_folder):
    result = transfer.knn(RANDOM, str(photo_folder), "conv1,conv2", k=[1, 3], workers=0)
    assert set(result.metrics) == {f"conv{i}/knn{k}" for i in (1, 2) for k in (1, 3)}
    lines = repr(result).splitlines()
    assert lines[0] == f"knn of {RANDOM} on {photo_folder}, {result.n} images"
    assert lines[1].split() == ["knn1", "knn3"]
    assert lines[3].split() == ["conv2", *(f"{result.metrics[f'conv2/knn{k}']:.4g}" for k in (1, 3))]
    with pytest.raises(UserError, match="batch must be at least 1"):
        transfer.knn(RANDOM, str(photo_folder), "conv1", batch=0)
    probe = transfer.linear_probe(RANDOM, str(photo_folder), "conv1", "quickstart", epochs=1, workers=0)
    assert probe.config["train"]["epochs"] == 1 and probe.config["train"]["batch"] == 32
