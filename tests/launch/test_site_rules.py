"""What a site says about runs is in their recipes."""

import re

import pytest

from launch.site import BadStepRules, Site

pytestmark = pytest.mark.usefixtures("nemo")


@pytest.fixture
def recipe(nemo, tmp_path):
    from recipes.nvila import finetune_recipe

    return finetune_recipe(dir=str(tmp_path), stage="sft", size="nano", init_from="x")


def rules_of(recipe):
    import fiddle as fdl

    from recipes.bad_steps import BadSteps

    (rules,) = [fdl.build(one) for one in recipe.trainer.callbacks if one.__fn_or_cls__ is BadSteps]
    return rules


def test_what_the_site_does_not_say_stays(recipe):
    from launch.site_rules import apply_site

    apply_site(recipe, Site(scheduler="local"))
    assert (rules_of(recipe).action, rules_of(recipe).spike_factor) == ("skip", None)
    said = BadStepRules(action="roll_back", spike_factor=3.0)
    apply_site(recipe, Site(scheduler="local", bad_steps=said))
    rules = rules_of(recipe)
    assert (rules.action, rules.spike_factor, rules.window_steps) == ("roll_back", 3.0, 64)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"action": "wait"},
            r"bad_steps.action: 'wait' is unknown; allowed are skip, roll_back\.$",
        ),
        ({"spike_factor": 0.5}, r"bad_steps.spike_factor: 0.5 is not more than 1\.$"),
    ],
)
def test_what_cannot_be_is_refused(said, message, recipe):
    from launch.site_rules import apply_site

    site = Site(scheduler="local", bad_steps=BadStepRules(**said))
    with pytest.raises(ValueError, match=message):
        apply_site(recipe, site)
    recipe.trainer.callbacks.clear()
    with pytest.raises(ValueError, match="bad_steps: .* the recipe has no callback BadSteps"):
        apply_site(recipe, site)


def test_where_curves_go(recipe, tmp_path):
    import fiddle as fdl

    from launch.site_rules import apply_site

    site = Site(
        scheduler="local",
        wandb={"project": "vision", "entity": "team"},
        mlflow={"tracking_uri": "http://tracker", "experiment": "vlm"},
    )
    apply_site(recipe, site)
    wandb = fdl.build(recipe.log.wandb)
    folder = str(tmp_path / "sft")
    assert (wandb.save_dir, wandb.name) == (folder, "vision")  # Lightning's name is the project
    assert wandb._wandb_init["resume"] == "allow"
    assert (wandb._wandb_init["name"], wandb._wandb_init["entity"]) == ("sft", "team")
    assert re.fullmatch(r"sft-[0-9a-f]{8}", wandb.version)
    (mlflow,) = recipe.log.extra_loggers
    assert mlflow.__arguments__ == {
        "experiment_name": "vlm",
        "run_name": "sft",
        "tracking_uri": "http://tracker",
        "tags": {"run_folder": folder},
    }


def test_a_run_has_the_same_name_at_each_start_and_another_one_has_another(nemo, tmp_path):
    from launch.site_rules import apply_site
    from recipes.nvila import finetune_recipe

    site = Site(scheduler="local", wandb={"project": "vision"})
    ids = []
    for folder in ("a", "a", "b"):
        recipe = finetune_recipe(
            dir=str(tmp_path / folder), stage="sft", size="nano", init_from="x"
        )
        apply_site(recipe, site)
        ids.append(recipe.log.wandb.id)
    assert ids[0] == ids[1] != ids[2]


def test_slow_gpus_are_looked_for(recipe):
    import fiddle as fdl
    from nvidia_resiliency_ext.ptl_resiliency import StragglerDetectionCallback

    from launch.site_rules import apply_site

    before = len(recipe.trainer.callbacks)
    said = {"report_minutes": 2, "threshold": 0.8}
    apply_site(recipe, Site(scheduler="local", gpus_per_node=8, stragglers=said))
    assert len(recipe.trainer.callbacks) == before + 1
    callback = fdl.build(recipe.trainer.callbacks[-1])
    assert isinstance(callback, StragglerDetectionCallback)
    assert (callback.report_time_interval, callback.stop_if_detected) == (120.0, False)
    assert callback.gpu_relative_perf_threshold == callback.gpu_individual_perf_threshold == 0.8
    with pytest.raises(ValueError, match="stragglers needs gpus_per_node"):
        Site(scheduler="local", stragglers=said)
