"""From luigi.cfg and the command line to specs: who wins, and what is refused."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest
from luigi.cmdline_parser import CmdlineParser
from luigi.configuration import get_config

from pipeline import specs
from pipeline.training.together import same_classes
from tasks import checks, settings
from tasks.listing import DemoVideos

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def config():
    """An empty configuration; the one of the project comes back afterwards."""
    config = get_config()
    before = {section: dict(config.items(section)) for section in config.sections()}
    config.clear()
    yield config
    config.clear()
    config.read_dict(before)


def test_defaults_come_from_the_specs():
    assert settings.resolve("flow") == specs.FlowSpec()
    assert settings.stream("spatial", "", 3) == specs.StreamSpec(seed=3)
    assert settings.stream("temporal", "", 0).stack == specs.StackSpec()


def test_stage_then_dataset_then_command_line(config):
    config.read_dict({"flow": {"method": "farneback", "bound_px": "9"}, "dataset.mine": {"flow_method": "dis_fast"}})
    assert settings.resolve("flow").method == "farneback"
    assert settings.resolve("flow", "mine").method == "dis_fast"
    assert settings.resolve("flow", "mine").bound_px == 9
    with CmdlineParser.global_instance(["Flow", "--flow-method", "dis_ultrafast"], allow_override=True):
        assert settings.resolve("flow", "mine").method == "dis_ultrafast"
        assert settings.resolve("flow", "mine").bound_px == 9


def test_settings_of_a_dataset_are_told_from_overrides_of_stages(config):
    section = {"layout": "ucf101", "split_seed": "4", "spatial_steps": "7", "stack_length": "3", "score_frames": "2"}
    config.read_dict({"dataset.mine": section})
    assert settings.resolve("dataset", "mine") == specs.DatasetSpec(layout="ucf101", split_seed=4)
    assert settings.stream("spatial", "mine", 0).steps == 7
    assert settings.stream("temporal", "mine", 0).stack.length == 3
    assert settings.stream("temporal", "mine", 0).steps == specs.StreamSpec().steps
    assert settings.datasets() == ["mine"]


def test_a_stream_may_have_its_own_seed(config):
    config.read_dict({"spatial": {"seed": "9"}})
    assert settings.stream("spatial", "", 1).seed == 9
    assert settings.stream("temporal", "", 1).seed == 1
    assert settings.stream("spatial", "", 1, asked=True).seed == 1  # --seed


def test_bidirectional_stacks_need_backward_flow(config):
    config.read_dict({"stack": {"direction": "bidirectional"}})
    with pytest.raises(
        ValueError, match=r"direction is bidirectional, which needs backward flow; set \[flow\] backward"
    ):
        checks.check("")
    config.set("flow", "backward", "true") if config.has_section("flow") else config.read_dict(
        {"flow": {"backward": "true"}}
    )
    checks.check("")


@pytest.mark.parametrize("name", ["run_seed", "dataset_videos"])
def test_a_dataset_overrides_stages_only(config, name):
    config.read_dict({"dataset.mine": {name: "1"}})
    with pytest.raises(ValueError, match=rf"setting \[dataset.mine\] {name} does not exist"):
        checks.check_dataset("mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"flwo": {"method": "tvl1"}}, r"section \[flwo\] does not exist; did you mean 'flow'\?"),
        ({"flow": {"metod": "tvl1"}}, r"setting \[flow\] metod does not exist; did you mean 'method'\?"),
        ({"flow": {"method": "x"}}, r"\[flow\] method is 'x'; allowed: "),
        ({"dataset.mine": {"vidoes": "x"}}, r"setting \[dataset.mine\] vidoes does not exist; did you mean 'videos'\?"),
        ({"dataset.mine": {"flow_metod": "x"}}, r"setting \[flow\] metod does not exist"),
        ({"data": {"layout": "csv"}}, r"section \[data\] does not exist; did you mean 'dataset'\?"),
        (
            {"Flow": {"method": "tvl1"}},
            r"parameter method of task Flow, whose settings are in sections such as \[flow\]",
        ),
    ],
)
def test_what_does_not_exist_is_refused(config, content, message):
    config.read_dict(content)
    config.read_dict({"dataset.mine": {}})
    with pytest.raises(ValueError, match=message):
        checks.check_dataset("mine")
        checks.check("mine")


def test_an_unknown_section_is_refused_by_the_demo_too(config, tmp_path):
    config.read_dict({"dataset.demo": {}, "flwo": {}})
    with pytest.raises(ValueError, match=r"section \[flwo\] does not exist"):
        DemoVideos(folder=str(tmp_path / "videos"), dataset="demo").complete()


def test_a_percent_sign_that_is_not_doubled(config):
    config.read_string("[dataset.mine]\nvideos = a\n[dataset.other]\nvideos = 50%/v\n")
    with pytest.raises(ValueError, match=r"\[dataset.other\] '%' must be followed by .*; a percent sign is written %%"):
        checks.check_sections()


def test_the_section_dataset_is_for_all_data_sets(config):
    """Messages name settings by it, such as [dataset] partial."""
    config.read_dict(
        {"dataset": {"partial": "true", "split": "2"}, "dataset.mine": {"split": "3"}, "Flow": {"device": "cpu"}}
    )
    assert settings.resolve("dataset", "mine").partial and settings.resolve("dataset", "mine").split == "3"
    config.read_dict({"dataset": {"partail": "true"}})
    with pytest.raises(ValueError, match=r"setting \[dataset\] partail does not exist; did you mean 'partial'\?"):
        settings.resolve("dataset", "mine")


@pytest.mark.parametrize("flag", ["--data-videos", "--data-lists"])
def test_videos_of_the_users_own_are_never_those_that_the_pipeline_writes(config, flag):
    config.read_dict({"dataset.demo": {"generator": "demo"}, "dataset.folder": {}, "dataset.mine": {}})
    config.read_dict({f"dataset.{name}": {"layout": "csv"} for name in ("demo", "folder")})
    checks.check("demo")
    with CmdlineParser.global_instance(["Flow", flag, "x"], allow_override=True):
        checks.check("folder")
        with pytest.raises(ValueError, match="'demo' are written by the pipeline; give --dataset as well: folder or m"):
            checks.check("demo")


def test_a_folder_is_one_data_set_however_its_path_is_written(config, tmp_path, monkeypatch):
    config.read_dict({"dataset.mine": {"layout": "csv", "videos": "~/videos", "lists": "~/lists"}})
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    spec, wanted = settings.resolve("dataset", "mine"), str(tmp_path / "videos")
    assert (spec.videos, spec.lists) == (wanted, str(tmp_path / "lists"))
    for path in (wanted, "../videos", "~/videos", "../here/../videos/"):
        with CmdlineParser.global_instance(["Flow", f"--data-videos={path}"], allow_override=True):
            assert settings.videos_on_command_line() == [wanted]


def test_settings_that_were_not_read_are_refused(config, tmp_path, monkeypatch):
    monkeypatch.delenv("LUIGI_CONFIG_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"there is no luigi.cfg in '{tmp_path}'; run from the project's root"):
        checks.check_dataset("demo")
    config.read_dict({"dataset.mine": {}})
    checks.check_dataset("mine")
    with pytest.raises(ValueError, match="dataset 'demo' does not exist; allowed: mine"):
        checks.check_dataset("demo")
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "none.cfg")
    with pytest.raises(FileNotFoundError, match="LUIGI_CONFIG_PATH is 'none.cfg', and there is no such file"):
        checks.check_dataset("mine")
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "empty.cfg")
    (tmp_path / "empty.cfg").write_text("# [run]\n")
    with pytest.raises(ValueError, match="LUIGI_CONFIG_PATH is 'empty.cfg', which holds no settings"):
        checks.check_dataset("mine")
    (tmp_path / "empty.cfg").write_text("# mine\n[run]\n")
    checks.check_dataset("mine")


@pytest.mark.parametrize("name", ["luigi.cfg", "mine.cfg"])
def test_settings_that_may_not_be_read_are_refused(config, tmp_path, monkeypatch, name):
    config.read_dict({"dataset.mine": {}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "mine.cfg")
    (tmp_path / "mine.cfg").write_text("[run]\n")
    (tmp_path / "luigi.cfg").write_text("[run]\n")
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: 1 / 0 if path.name == name else real(path, **how))
    with pytest.raises(ZeroDivisionError):  # root may read anything, so no file can be closed to it
        checks.check_dataset("mine")


@pytest.mark.parametrize("task", ["FullPipeline", "PaperTable", "ScoreVideos", "AllSplits", "DemoVideos"])
@pytest.mark.parametrize("asked", ["--help", "--help-all"])
def test_help_lists_the_flags(capsys, task, asked):
    with pytest.raises(SystemExit) as ended, CmdlineParser.global_instance([task, asked], allow_override=True):
        pass
    assert not ended.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert "--artifacts" in shown or task == "DemoVideos"
    for section, spec in settings.SECTIONS.items():
        for name in spec.settings() if asked == "--help-all" and section != "run" else ():
            flag = f"--{settings._flag_family(section)}-{name.replace('_', '-')} "
            assert flag in shown or name == "stream"


def test_an_unknown_flag_is_refused(capsys):
    with pytest.raises(SystemExit), CmdlineParser.global_instance(["Flow", "--flow-metod", "x"], allow_override=True):
        pass
    assert "unrecognized arguments: --flow-metod" in capsys.readouterr().err


def project_config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "luigi.cfg")
    return parser


def test_luigi_cfg_holds_every_setting_and_nothing_unknown(config):
    parser = project_config()
    config.read_dict(parser)
    for section, spec in settings.SECTIONS.items():
        settings.resolve(section)
        if section != "dataset":
            missing = (
                set(spec.settings())
                - set(parser[section])
                - {"stream", "seed" if section != "demo" else "", "jitter", "flow_unit_px", "gpu_decoding"}
            )
            assert not missing - ({"seed"} if section in ("spatial", "temporal") else set()), section


def test_luigi_cfg_agrees_with_the_defaults_of_the_specs(config):
    config.read_dict(project_config())
    for section in ("run", "demo", "frames", "flow", "stack", "score", "fusion", "cluster"):
        assert settings.resolve(section) == settings.SECTIONS[section](), section


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda p: p.stem)
def test_every_preset_overlays_luigi_cfg(config, preset):
    config.read_dict(project_config())
    parser = configparser.ConfigParser()
    parser.read(preset)
    config.read_dict(parser)
    for dataset in settings.datasets():
        for section in settings.SECTIONS:
            if section not in ("spatial", "temporal"):
                settings.resolve(section, dataset)
        assert settings.stream("spatial", dataset, 0).stream == "spatial"
        assert settings.stream("temporal", dataset, 0).channels % 2 == 0


def overlaid(config, preset):
    config.read_dict(project_config())
    parser = configparser.ConfigParser()
    parser.read(ROOT / "configs" / preset)
    config.read_dict(parser)
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
def test_the_presets_of_the_paper_hold_its_constants(config, name):
    overlaid(config, f"{name}-paper.cfg")
    assert settings.resolve("run").dataset == name
    for stream in specs.STREAMS:
        spec = settings.stream(stream, name, 0)
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


def test_of_the_classes_of_ucf101_as_many_are_added_to_hmdb51_as_in_the_paper(config, shared):
    overlaid(config, "hmdb51-paper.cfg")
    config.read_dict({"temporal": {"with_dataset": "ucf101", "with_how": "classes"}})
    checks.check("hmdb51")
    checks.check_together("temporal", "hmdb51")
    pairs = settings.stream("temporal", "hmdb51", 0).with_same
    lists = shared / "data" / "splits"
    files = (lists / "testTrainMulti_7030_splits").glob("*_test_split1.txt")
    hmdb51 = sorted(file.name.removesuffix("_test_split1.txt") for file in files)
    ucf101 = [line.split()[1] for line in (lists / "ucfTrainTestlist" / "classInd.txt").read_text().splitlines()]
    assert (len(hmdb51), len(ucf101), len(ucf101) - len(same_classes(hmdb51, ucf101, pairs))) == (51, 101, 78)


@pytest.mark.parametrize("preset", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda p: p.stem)
def test_a_preset_is_accepted_as_a_whole_for_its_dataset(config, preset):
    parser = overlaid(config, preset.name)
    checks.check(parser["run"]["dataset"])
    sections = set(parser.sections()) - {f"dataset.{parser['run']['dataset']}"}
    assert sections <= set(settings.SECTIONS)


@pytest.mark.parametrize(
    ("given", "count"), [({}, "40000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_that_wait_leave_the_cores_to_others(given, count):
    code = "import os, sys, tasks; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**kept, **given})
    assert done.stdout.split() == [count, "False"], done.stderr
