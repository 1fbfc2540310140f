import copy

import pytest

from videossl.config import (
    FOLDER,
    Config,
    load_config,
    read_yaml,
    saved_config,
    validate,
    with_overrides,
)
from videossl.engine.build import task_configs
from videossl.errors import UserError

MINIMAL = {"out": "runs/x", "tasks": {"arrow_of_time": {}}}


def test_overrides_are_read_as_yaml_and_reach_nested_keys():
    values = with_overrides(
        MINIMAL, ["train.steps=7", "optim.betas=[0.8, 0.9]", "tasks.arrow_of_time.crop_size=64"]
    )
    config = validate(Config, values)
    assert (config.train.steps, config.optim.betas) == (7, (0.8, 0.9))
    assert config.tasks["arrow_of_time"]["crop_size"] == 64
    assert MINIMAL["tasks"] == {"arrow_of_time": {}}


def test_a_task_is_removed_by_null():
    values = with_overrides(
        {**MINIMAL, "tasks": {"arrow_of_time": {}, "colorization": {}}}, ["tasks.colorization=null"]
    )
    assert list(values["tasks"]) == ["arrow_of_time"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.stepz=3", r"train.stepz is not a setting; did you mean train.steps\?"),
        ("trian.steps=3", r"trian is not a setting; did you mean train\?"),
        ("train.steps=0", r"train.steps: got 0; .*greater than or equal to 1"),
        ("train.steps=many", r"train.steps: got 'many'; .*valid integer"),
        ("device=tpu", r"device: got 'tpu'; .*'auto', 'cpu' or 'cuda'"),
        ("train.steps", r"override 'train.steps' must be key.path=value"),
        ("out.x=3", r"out is a value, not a section"),
    ],
)
def test_a_wrong_setting_fails_with_its_path(override, message):
    with pytest.raises(UserError, match=message):
        validate(Config, with_overrides(MINIMAL, [override]))


def test_a_missing_setting_fails_with_its_name():
    with pytest.raises(UserError, match="out is not set and has no default"):
        validate(Config, {"tasks": {"arrow_of_time": {}}})


def test_a_task_setting_fails_with_its_path():
    with pytest.raises(
        UserError,
        match=r"tasks.arrow_of_time.crop_sise is not a setting; did you mean tasks.arrow_of_time.crop_size\?",
    ):
        task_configs({"arrow_of_time": {"crop_sise": 3}})


def test_an_unknown_task_fails():
    with pytest.raises(
        UserError,
        match="task 'jigsaw' is unknown; allowed: arrow_of_time, clip_order, colorization",
    ):
        task_configs({"jigsaw": {}})


def test_an_unknown_stage_fails():
    with pytest.raises(UserError, match=r"tasks.arrow_of_time.stage: got 'res7'; .*'res2'"):
        task_configs({"arrow_of_time": {"stage": "res7"}})


def test_missing_and_malformed_files_fail(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1,")
    with pytest.raises(UserError, match="is not YAML"):
        read_yaml(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="must hold sections"):
        load_config(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("data.holdout_fraction=0.1", "data.val_fraction"),
        ("tasks.arrow_of_time.hidden=8", "tasks.arrow_of_time.hidden_dim"),
    ],
)
def test_a_former_name_is_refused_and_the_new_one_told(old, new):
    path = FOLDER / "demo.yaml"
    with pytest.raises(UserError, match=f"it is called {new}"):
        task_configs(load_config(path, ["out=x", old]).tasks)


def test_the_config_of_a_run_begun_under_former_names_is_read():
    settings = ["train.best_metric=val/colorization/loss", "tasks.cpc.embed_dim=8"]
    config = load_config(FOLDER / "demo.yaml", ["out=x", *settings])
    now = config.model_dump(mode="json")
    then = copy.deepcopy(now)
    then["data"]["holdout_fraction"] = then["data"].pop("val_fraction")
    then["train"]["evaluate_every"] = then["train"].pop("eval_every")
    then["train"]["best_metric"] = "heldout/colorization/loss"
    for task in then["tasks"].values():
        for new, old in (("hidden_dim", "hidden"), ("embed_dim", "embedding")):
            if new in task:
                task[old] = task.pop(new)
    assert then != now
    assert saved_config(then) == now
