"""luigi.cfg and the presets: every setting is there, and those of the paper hold its constants."""

import configparser
from pathlib import Path

import pytest

from pipeline import specs
from pipeline.training.together import same_classes
from tasks import Flow, Report, checks, settings

pytestmark = pytest.mark.usefixtures("bare_config")

ROOT = Path(__file__).parents[1]


def project_config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "luigi.cfg")
    return parser


def test_luigi_cfg_holds_every_setting_and_nothing_unknown(bare_config):
    parser = project_config()
    bare_config.read_dict(parser)
    for section, spec in settings.SECTIONS.items():
        settings.resolve(section)
        if section != "dataset":
            missing = (
                set(spec.settings())
                - set(parser[section])
                - {"stream", "seed" if section != "demo" else "", "jitter", "flow_unit_px", "gpu_decoding"}
            )
            assert not missing - ({"seed"} if section in ("spatial", "temporal") else set()), section


def test_luigi_cfg_agrees_with_the_defaults_of_the_specs(bare_config):
    bare_config.read_dict(project_config())
    for section in ("run", "demo", "frames", "flow", "stack", "score", "fusion", "cluster"):
        assert settings.resolve(section) == settings.SECTIONS[section](), section


def test_the_readme_names_the_folders_that_the_demo_gets(bare_config):
    bare_config.read_dict(project_config())
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for task in (Report(dataset="demo"), Flow(dataset="demo")):
        assert str(task.folder) in text


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda p: p.stem)
def test_every_preset_overlays_luigi_cfg(bare_config, preset):
    bare_config.read_dict(project_config())
    parser = configparser.ConfigParser()
    parser.read(preset)
    bare_config.read_dict(parser)
    for dataset in settings.datasets():
        for section in settings.SECTIONS:
            if section not in ("spatial", "temporal"):
                settings.resolve(section, dataset)
        assert settings.stream("spatial", dataset).stream == "spatial"
        assert settings.stream("temporal", dataset).channels % 2 == 0


def overlaid(bare_config, preset):
    bare_config.read_dict(project_config())
    parser = configparser.ConfigParser()
    parser.read(ROOT / "configs" / preset)
    bare_config.read_dict(parser)
    return parser


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_the_presets_of_the_paper_say_their_constants_themselves(name):
    """Whatever luigi.cfg has, or will have, and whatever the device."""
    preset = configparser.ConfigParser()
    preset.read(ROOT / "configs" / f"{name}-paper.cfg")
    pinned = {
        "precision",
        "segments",
        "label_smoothing",
        "clip_norm",
        "cropping",
        "partial_bn",
        "dropout",
        "milestones",
    }
    for stream in specs.STREAMS:
        assert pinned <= set(preset[stream])


@pytest.mark.parametrize("name", ["ucf101", "hmdb51"])
def test_the_presets_of_the_paper_hold_its_constants(bare_config, name):
    overlaid(bare_config, f"{name}-paper.cfg")
    assert settings.resolve("run").dataset == name
    for stream in specs.STREAMS:
        spec = settings.stream(stream, name)
        assert (spec.network, spec.dropout, spec.resize_px, spec.crop_px, spec.flip) == (
            "cnn_m_2048",
            0.9,
            256,
            224,
            True,
        )
        assert (spec.batch, spec.steps, spec.milestones, spec.learning_rate) == (256, 80_000, (50_000, 70_000), 0.01)
        assert (spec.optimizer, spec.momentum, spec.schedule, spec.warmup) == ("sgd", 0.9, "step", 0)
        assert (spec.train_layers, spec.segments, spec.partial_bn, spec.cropping) == ("all", 1, False, "random")
        assert (spec.weight_decay, spec.clip_norm, spec.label_smoothing) == (5e-4, 0.0, 0.0)
        assert spec.precision == "float32"
    stack, score = settings.resolve("stack", name), settings.resolve("score", name)
    assert (stack.length, stack.subtract_mean, score.frames, score.crops) == (10, True, 25, 10)
    assert settings.resolve("flow", name).scaling == "minmax"
    assert settings.resolve("frames", name).short_side_px == 256


def test_of_the_classes_of_ucf101_as_many_are_added_to_hmdb51_as_in_the_paper(bare_config, shared):
    overlaid(bare_config, "hmdb51-paper.cfg")
    bare_config.read_dict({"temporal": {"with_dataset": "ucf101", "with_how": "classes"}})
    checks.check("hmdb51")
    checks.check_together("temporal", "hmdb51")
    pairs = settings.stream("temporal", "hmdb51").with_same
    lists = shared / "data" / "splits"
    files = (lists / "testTrainMulti_7030_splits").glob("*_test_split1.txt")
    hmdb51 = sorted(file.name.removesuffix("_test_split1.txt") for file in files)
    ucf101 = [line.split()[1] for line in (lists / "ucfTrainTestlist" / "classInd.txt").read_text().splitlines()]
    assert (len(hmdb51), len(ucf101), len(ucf101) - len(same_classes(hmdb51, ucf101, pairs))) == (51, 101, 78)


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda p: p.stem)
def test_a_preset_is_accepted_as_a_whole_for_its_dataset(bare_config, preset):
    parser = overlaid(bare_config, preset.name)
    checks.check(parser["run"]["dataset"])
    sections = set(parser.sections()) - {f"dataset.{parser['run']['dataset']}"}
    assert sections <= set(settings.SECTIONS)
