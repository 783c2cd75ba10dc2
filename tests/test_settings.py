"""From luigi.cfg and the command line to specs: who wins, and what is refused."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from luigi.cmdline_parser import CmdlineParser

from pipeline import specs
from tasks import checks, settings
from tasks.listing import DemoVideos

pytestmark = pytest.mark.usefixtures("bare_config")

ROOT = Path(__file__).parents[1]


def test_defaults_come_from_the_specs():
    assert settings.resolve("flow") == specs.FlowSpec()
    assert settings.stream("spatial", "", seed=3) == specs.StreamSpec(seed=3)
    assert settings.stream("temporal", "").stack == specs.StackSpec()


def test_stage_then_dataset_then_command_line(bare_config):
    bare_config.read_dict(
        {"flow": {"method": "farneback", "bound_px": "9"}, "dataset.mine": {"flow_method": "dis_fast"}}
    )
    assert settings.resolve("flow").method == "farneback"
    assert settings.resolve("flow", "mine").method == "dis_fast"
    assert settings.resolve("flow", "mine").bound_px == 9
    with CmdlineParser.global_instance(["Flow", "--flow-method", "dis_ultrafast"], allow_override=True):
        assert settings.resolve("flow", "mine").method == "dis_ultrafast"
        assert settings.resolve("flow", "mine").bound_px == 9


def test_settings_of_a_dataset_are_told_from_overrides_of_stages(bare_config):
    section = {"layout": "ucf101", "split_seed": "4", "spatial_steps": "7", "stack_length": "3", "score_frames": "2"}
    bare_config.read_dict({"dataset.mine": section})
    assert settings.resolve("dataset", "mine") == specs.DatasetSpec(layout="ucf101", split_seed=4)
    assert settings.stream("spatial", "mine").steps == 7
    assert settings.stream("temporal", "mine").stack.length == 3
    assert settings.stream("temporal", "mine").steps == specs.StreamSpec().steps
    assert settings.datasets() == ["mine"]


def test_a_stream_may_have_its_own_seed(bare_config):
    bare_config.read_dict({"spatial": {"seed": "9"}})
    assert settings.stream("spatial", "", seed=1).seed == 9
    assert settings.stream("temporal", "", seed=1).seed == 1
    assert settings.stream("spatial", "", seed=1, asked=True).seed == 1  # --seed


def test_bidirectional_stacks_need_backward_flow(bare_config):
    bare_config.read_dict({"stack": {"direction": "bidirectional"}})
    with pytest.raises(
        ValueError, match=r"direction is bidirectional, which needs backward flow; set \[flow\] backward"
    ):
        checks.check("")
    bare_config.set("flow", "backward", "true") if bare_config.has_section("flow") else bare_config.read_dict(
        {"flow": {"backward": "true"}}
    )
    checks.check("")


@pytest.mark.parametrize("name", ["run_seed", "dataset_videos"])
def test_a_dataset_overrides_stages_only(bare_config, name):
    bare_config.read_dict({"dataset.mine": {name: "1"}})
    with pytest.raises(ValueError, match=rf"setting \[dataset.mine\] {name} does not exist"):
        checks.check_dataset("mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"flwo": {"method": "tvl1"}}, r"section \[flwo\] does not exist; did you mean 'flow'\?"),
        ({"flow": {"metod": "tvl1"}}, r"setting \[flow\] metod does not exist; did you mean 'method'\?"),
        ({"flow": {"method": "x"}}, r"\[flow\] method is 'x'; allowed: "),
        ({"dataset.mine": {"vidoes": "x"}}, r"setting \[dataset.mine\] vidoes does not exist; did you mean 'videos'\?"),
        (
            {"dataset.other": {"flow_metod": "x"}},
            r"setting \[dataset.other\] flow_metod does not exist; did you mean 'flow_method'\?",
        ),
        (
            {"dataset.demo": {"demo_clipz": "x"}},
            r"setting \[dataset.demo\] demo_clipz does not exist; did you mean 'demo_",
        ),
        (
            {"core": {"local_schedular": "true"}},
            r"setting \[core\] local_schedular does not exist; did you mean 'local_scheduler'\?",
        ),
        (
            {"retcode": {"task-faild": "3"}},
            r"setting \[retcode\] task-faild does not exist; did you mean 'task_failed'\?",
        ),
        ({"data": {"layout": "csv"}}, r"section \[data\] does not exist; did you mean 'dataset'\?"),
        (
            {"Flow": {"method": "tvl1"}},
            r"section \[Flow\] has no effect or a wrong one: other tasks give Flow .*; settings of stages are in .* \[flow\]",
        ),
        ({"AllSplits": {"seed": "1"}}, r"parameter seed of task AllSplits does not exist; did you mean 'seeds'\?"),
    ],
)
def test_what_does_not_exist_is_refused(bare_config, content, message):
    bare_config.read_dict(content)
    bare_config.read_dict({"dataset.mine": {}})
    with pytest.raises(ValueError, match=message):
        checks.check_dataset("mine")
        checks.check("mine")


def test_a_settings_file_without_exit_statuses_is_not_called_absent(bare_config, tmp_path, monkeypatch):
    monkeypatch.delenv("LUIGI_CONFIG_PATH", raising=False)
    monkeypatch.setattr(settings, "from_command_line", lambda: True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "luigi.cfg").write_text("[dataset.mine]\n")
    bare_config.read_dict({"dataset.mine": {}})
    with pytest.raises(
        ValueError, match=r"luigi.cfg has no section \[retcode\], without which a failed task would end"
    ):
        checks.check_dataset("mine")
    bare_config.read_dict({"retcodes": {}})
    with pytest.raises(ValueError, match=r"section \[retcodes\] does not exist"):
        checks.check_dataset("mine")


def test_an_unknown_section_is_refused_by_the_demo_too(bare_config, tmp_path):
    bare_config.read_dict({"dataset.demo": {}, "flwo": {}})
    with pytest.raises(ValueError, match=r"section \[flwo\] does not exist"):
        DemoVideos(folder=str(tmp_path / "videos"), dataset="demo").complete()


def test_what_all_sections_share_is_no_setting_of_theirs(bare_config):
    bare_config.read_string("[DEFAULT]\nroot = /data\n[dataset.mine]\nvideos = %(root)s/v\n[flow]\nbound_px = 9\n")
    bare_config.read_dict({"cors": {"enabled": "true"}, "AllSplits": {"seeds": "0,1"}})
    checks.check_dataset("mine")
    assert settings.resolve("dataset", "mine").videos == "/data/v" and settings.resolve("flow", "mine").bound_px == 9


@pytest.mark.parametrize(
    ("variable", "value"), [("LUIGI_CONFIG_PARSER", "toml"), ("LUIGI_CONFIG_PATH", "a/luigi.toml")]
)
def test_settings_of_another_format_are_refused(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValueError, match=f"{variable} is '{value}'; settings are read from .cfg files only"):
        checks.check_dataset("demo")


def test_changes_that_are_no_settings_are_refused():
    with pytest.raises(ValueError, match=r"--changes is \(1,\); it must be settings and their values, as {"):
        checks.check("", (1,))


def test_a_percent_sign_that_is_not_doubled(bare_config):
    bare_config.read_string("[dataset.mine]\nvideos = a\n[dataset.other]\nvideos = 50%/v\n")
    with pytest.raises(ValueError, match=r"\[dataset.other\] '%' must be followed by .*; a percent sign is written %%"):
        checks.check_sections()


def test_the_section_dataset_is_for_all_data_sets(bare_config):
    """Messages name settings by it, such as [dataset] partial."""
    bare_config.read_dict({"dataset": {"partial": "true", "split": "2"}, "dataset.mine": {"split": "3"}})
    assert settings.resolve("dataset", "mine").partial and settings.resolve("dataset", "mine").split == "3"
    bare_config.read_dict({"dataset": {"partail": "true"}})
    with pytest.raises(ValueError, match=r"setting \[dataset\] partail does not exist; did you mean 'partial'\?"):
        settings.resolve("dataset", "mine")


@pytest.mark.parametrize("flag", ["--data-videos", "--data-lists"])
def test_videos_of_the_users_own_are_never_those_that_the_pipeline_writes(bare_config, flag):
    bare_config.read_dict({"dataset.demo": {"generator": "demo"}, "dataset.folder": {}, "dataset.mine": {}})
    bare_config.read_dict({f"dataset.{name}": {"layout": "csv"} for name in ("demo", "folder")})
    checks.check("demo")
    with CmdlineParser.global_instance(["Flow", flag, "x"], allow_override=True):
        checks.check("folder")
        with pytest.raises(ValueError, match="'demo' are written by the pipeline; give --dataset as well: folder or m"):
            checks.check("demo")


def test_a_folder_is_one_data_set_however_its_path_is_written(bare_config, tmp_path, monkeypatch):
    bare_config.read_dict({"dataset.mine": {"layout": "csv", "videos": "~/videos", "lists": "~/lists"}})
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    spec, wanted = settings.resolve("dataset", "mine"), str(tmp_path / "videos")
    assert (spec.videos, spec.lists) == (wanted, str(tmp_path / "lists"))
    for path in (wanted, "../videos", "~/videos", "../here/../videos/"):
        with CmdlineParser.global_instance(["Flow", f"--data-videos={path}"], allow_override=True):
            assert settings.videos_on_command_line() == [wanted]


def test_a_tilde_is_the_home_folder_in_every_path(bare_config, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    bare_config.read_dict(
        {
            "run": {"artifacts": "~/made"},
            "spatial": {"start": "~/weights.pth"},
            "flow": {"method": "raft_small", "raft_weights": "~/raft.pth"},
            "dataset.mine": {"temporal_start": "~/flow.pth", "videos": "~/videos", "group_pattern": "~/(?P<group>.)"},
        }
    )
    assert settings.resolve("run").artifacts == str(tmp_path / "made")
    assert settings.resolve("run", artifacts="~/else").artifacts == str(tmp_path / "else")
    assert settings.stream("spatial", "mine").start_file == tmp_path / "weights.pth"
    assert settings.stream("temporal", "mine").start_file == tmp_path / "flow.pth"
    assert settings.resolve("flow", "mine").weights_file == tmp_path / "raft.pth"
    mine = settings.resolve("dataset", "mine")
    assert mine.videos == str(tmp_path / "videos") and mine.group_pattern == "~/(?P<group>.)"


def test_settings_that_were_not_read_are_refused(bare_config, tmp_path, monkeypatch):
    monkeypatch.delenv("LUIGI_CONFIG_PATH", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"there is no luigi.cfg in '{tmp_path}'; run from the project's root"):
        checks.check_dataset("demo")
    bare_config.read_dict({"dataset.mine": {}})
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
def test_settings_that_may_not_be_read_are_refused(bare_config, tmp_path, monkeypatch, name):
    bare_config.read_dict({"dataset.mine": {}})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "mine.cfg")
    (tmp_path / "mine.cfg").write_text("[run]\n")
    (tmp_path / "luigi.cfg").write_text("[run]\n")
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **how: 1 / 0 if path.name == name else real(path, **how))
    with pytest.raises(ZeroDivisionError):  # root may read anything, so no file can be closed to it
        checks.check_dataset("mine")


def test_the_command_that_runs_as_one_may_type_it_again(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/luigi", "--module", "tasks", "Flow", "--dataset", "my videos"])
    monkeypatch.setenv("LUIGI_CONFIG_PATH", "my presets/one.cfg")
    assert settings.command_line() == ""  # a program
    with CmdlineParser.global_instance(["Flow"], allow_override=True):
        told = "luigi --module tasks Flow --dataset 'my videos'"
        assert settings.command_line() == f"LUIGI_CONFIG_PATH='my presets/one.cfg' {told}"
        monkeypatch.delenv("LUIGI_CONFIG_PATH")
        assert settings.command_line() == told


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "Flow --flow-metod tvl1",
            "flag --flow-metod does not exist; did you mean '--flow-method'?.* tasks Flow --help",
        ),
        ("PaperTable --tabel=1b", "flag --tabel does not exist; did you mean '--table'?"),
        ("Flow --table 1b", "flag --table does not exist"),  # another task's
        ("FullPipeline --steps 9", "--steps does not exist; did you mean --spatial-steps or --temporal-steps?"),
        (
            "FullPipeline --frames 3",
            "flag --frames does not exist; did you mean --demo-frames or --frames-min-frames or --score-frames",
        ),
        ("FullPipeline --videos x", "flag --videos does not exist; did you mean --data-videos?"),
        ("FullPipeline --ssl 1", "--ssl does not exist; did you mean '--split'?"),  # not Luigi's --smtp-ssl
        ("FullPipelin --dataset demo", "task 'FullPipelin' does not exist; did you mean 'FullPipeline'?"),
        ("--module tasks PaperTables --table 1b", "task 'PaperTables' does not exist; did you mean 'PaperTable'?"),
        ("FullPipeline --TrainStream-seed 5", "flag --TrainStream-seed has no effect or a wrong one: .*; give --seed"),
        ("Flow --Frames-videos=x", "flag --Frames-videos has .*: Flow gives Frames its parameters; give --videos"),
        ("FullPipeline --Flow-videos x", "flag --Flow-videos has .*: FullPipeline gives Flow its parameters$"),
        ("--workrs 2", "flag --workrs does not exist; did you mean '--workers'?.* tasks TASK --help-all` lists all"),
    ],
)
def test_an_unknown_flag_is_refused(words, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        checks.check_flags(words.split())


@pytest.mark.parametrize(
    "words",
    [
        "--module tasks Flow --flow-method tvl1 --split=1 --data-videos data --dataset demo",  # names of Luigi's classes
        "FullPipeline --flow-meth tvl1 --FullPipeline-split 2 --workers 2 --help-all -x",  # argparse takes abbreviations
        "AllSplits --seeds 0,1 --local-scheduler",
        "",
    ],
)
def test_known_flags_are_accepted(words):
    checks.check_flags(words.split())


def test_a_command_with_an_unknown_flag_ends_with_one_line():
    words = [sys.executable, "-m", "luigi", "--module", "tasks", "Flow", "--flow-metod", "x"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: flag --flow-metod does not exist; did you mean '--flow-method'?")
    assert done.returncode == 2 and not done.stdout


def test_a_module_of_the_users_may_have_flags_of_its_own(tmp_path):
    code = """
        import luigi
        from tasks import Flow

        class Mine(luigi.Task):
            my_flag, done = luigi.Parameter(), False

            def run(self):
                Mine.done = print("flag:", self.my_flag) is None

            def complete(self):
                return Mine.done
    """
    (tmp_path / "mine.py").write_text(textwrap.dedent(code))
    words = [sys.executable, "-m", "luigi", "--module", "mine", "Mine", "--my-flag", "x"]
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": path})
    assert (done.returncode, done.stdout) == (0, "flag: x\n"), done.stderr


def test_looking_for_a_gpu_leaves_cuda_to_the_workers_that_luigi_forks():
    code = """
        import os
        import tasks
        import torch
        from pipeline.networks import resolve_device

        torch.cuda._device_count_nvml = lambda: 1  # stands for a driver that has a GPU
        found = resolve_device("auto").type
        child = os.fork()
        if not child:
            os._exit(torch._C._cuda_isInBadFork())
        print(found, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "cuda 0\n", done.stderr


@pytest.mark.parametrize(
    ("given", "count"), [({}, "40000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_threads_that_wait_leave_the_cores_to_others(given, count):
    code = "import os, sys, tasks; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**kept, **given})
    assert done.stdout.split() == [count, "False"], done.stderr
