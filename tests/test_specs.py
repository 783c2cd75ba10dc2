"""Settings: checked when made, refused by name, and named by a digest of what matters."""

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from pipeline import specs
from pipeline.specs import (
    ClusterSpec,
    DatasetSpec,
    FlowSpec,
    FrameSpec,
    FusionSpec,
    RunSpec,
    ScoreSpec,
    StackSpec,
    StreamSpec,
)
from pipeline.specs.base import Spec
from pipeline.system.errors import UserError


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FrameSpec().jpeg_quality = 3


def test_digest_is_sha256_of_canonical_json():
    import hashlib

    spec = ScoreSpec(frames=7)
    identity = {"crops": 10, "frames": 7, "per_view": False, "version": 2}
    text = json.dumps(["score", identity, ["abc"]], sort_keys=True, separators=(",", ":"))
    assert spec.digest("abc") == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("change", [{"short_side_px": 0}, {"jpeg_quality": 90}, {"min_frames": 3}])
def test_digest_changes_with_what_changes_the_result(change):
    assert FrameSpec(**change).digest() != FrameSpec().digest()


@pytest.mark.parametrize(
    "change", [{"timeout_seconds": 1.0}, {"max_bad_fraction": 0.5}, {"shard_clips": 9}, {"shard_mb": 9}]
)
def test_digest_ignores_what_cannot_change_the_result(change):
    assert FrameSpec(**change).digest() == FrameSpec().digest()


def test_digest_ignores_settings_of_other_flow_methods():
    assert FlowSpec(method="dis_fast", tvl1_warps=9).digest() == FlowSpec(method="dis_fast").digest()
    assert FlowSpec(method="tvl1", tvl1_warps=9).digest() != FlowSpec(method="tvl1").digest()


def test_digest_changes_with_upstream_and_algorithm_version():
    @dataclass(frozen=True, kw_only=True)
    class Newer(FrameSpec):
        VERSION: ClassVar[int] = 2

    assert FrameSpec().digest("a") != FrameSpec().digest("b")
    assert Newer().digest() != FrameSpec().digest()


def test_the_stack_is_part_of_the_stream():
    long, short = (StreamSpec(stream="temporal", stack=StackSpec(length=n)) for n in (10, 5))
    assert long.digest() != short.digest()
    assert (long.channels, short.channels, StreamSpec().channels) == (20, 10, 3)


def test_as_dict_is_plain_json():
    spec = StreamSpec(stream="temporal", stack=StackSpec())
    assert json.loads(json.dumps(spec.as_dict())) == spec.as_dict()
    assert spec.as_dict()["stack"]["length"] == 10


def test_dis_means_its_medium_preset():
    assert FlowSpec(method="dis").method == "dis_medium"


def test_parse_reads_every_type():
    spec = StreamSpec.parse(
        {"steps": " 5 ", "learning_rate": "1e-3", "flip": "No", "milestones": "3, 4", "start": "a b.pth"}
    )
    assert (spec.steps, spec.learning_rate, spec.flip, spec.milestones, spec.start) == (
        5,
        1e-3,
        False,
        (3, 4),
        "a b.pth",
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({"metod": "tvl1"}, r"setting \[flow\] metod does not exist; did you mean 'method'\? allowed: "),
        ({"method": "tvl2"}, r"\[flow\] method is 'tvl2'; allowed: tvl1, .*; did you mean 'tvl1'\?$"),
        ({"method": "TV-L1"}, r"did you mean 'tvl1'\?$"),
        ({"method": "xyz"}, r"nvidia_of$"),
        ({"bound_px": "wide"}, r"\[flow\] bound_px is 'wide', which is not a number"),
        ({"jpeg_quality": "9.5"}, r"\[flow\] jpeg_quality is '9.5', which is not a whole number"),
        ({"backward": "maybe"}, r"\[flow\] backward is 'maybe', which is not true or false"),
        ({"jpeg_quality": "0"}, r"\[flow\] jpeg_quality is 0; it must be at least 1"),
        ({"jpeg_quality": "101"}, r"\[flow\] jpeg_quality is 101; it must be at most 100"),
    ],
)
def test_wrong_settings_are_refused_by_name(texts, message):
    with pytest.raises(ValueError, match=message):
        FlowSpec.parse(texts)


def test_wrong_lists_and_types_are_refused():
    with pytest.raises(
        ValueError, match=r"\[temporal\] milestones is 'a', which is not a list of int, separated by commas"
    ):
        StreamSpec.parse({"milestones": "a"}, section="temporal")
    with pytest.raises(ValueError, match=r"\[score\] frames is 2.5, which is not a whole number"):
        ScoreSpec(frames=2.5)
    with pytest.raises(ValueError, match=r"\[score\] frames is True, which is not a whole number"):
        ScoreSpec(frames=True)


def test_rules_between_settings():
    with pytest.raises(ValueError, match=r"\[temporal\] stack is {'length': 5}; a temporal stream needs a StackSpec"):
        StreamSpec(stream="temporal", stack={"length": 5})
    assert StreamSpec(milestones=[3, 4]) == StreamSpec(milestones=(3, 4))
    with pytest.raises(ValueError, match=r"\[temporal\] stack is None; a temporal stream needs a StackSpec"):
        StreamSpec(stream="temporal")
    with pytest.raises(ValueError, match=r"\[spatial\] crop_px is 224; it must be at most resize_px \(128\)"):
        StreamSpec(resize_px=128)
    with pytest.raises(ValueError, match=r"\[stack\] length is 5; a bidirectional stack needs an even number"):
        StackSpec(length=5, direction="bidirectional")
    with pytest.raises(ValueError, match=r"\[cluster\] address is empty; kind = address needs the scheduler's"):
        ClusterSpec(kind="address")
    for address in ("localhost", "xyz://a:1", "tcp://localhost:abc"):
        with pytest.raises(
            UserError, match=rf"\[cluster\] address is '{address}'; it must be like tcp://127.0.0.1:8786"
        ):
            ClusterSpec(kind="address", address=address)
    for pattern in ("(", "(?P<group>a{99999999999})"):
        with pytest.raises(UserError, match=rf"group_pattern '{re.escape(pattern)}' is no regular expression"):
            DatasetSpec(group_pattern=pattern)
    with pytest.raises(ValueError, match=r"group_pattern 'x' has no \(\?P<group>"):
        DatasetSpec(group_pattern="x")
    with pytest.raises(ValueError, match=r"\[cluster\] address is 'tcp://x:1', which kind = local does not read"):
        ClusterSpec(address="tcp://x:1")
    with pytest.raises(
        ValueError, match=r"\[cluster\] queue is 'gpu', which kind = local does not read; leave it empty"
    ):
        ClusterSpec(queue="gpu")
    with pytest.raises(ValueError, match=r"\[cluster\] queue is 'gpu', which htcondor does not read"):
        ClusterSpec(kind="jobqueue", queue_system="htcondor", queue="gpu")
    assert ClusterSpec(kind="jobqueue", queue="gpu").queue == "gpu"
    with pytest.raises(ValueError, match=r"\[cluster\] workers is 4; kind = address uses all workers of the scheduler"):
        ClusterSpec(kind="address", address="tcp://127.0.0.1:8786", workers=4)


def test_numbers_are_finite_and_have_one_form():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"\[flow\] bound_px is (nan|inf); it must be finite"):
            FlowSpec(bound_px=value)
    assert FlowSpec(bound_px=20) == FlowSpec(bound_px=20.0)
    assert FlowSpec(bound_px=20).digest() == FlowSpec(bound_px=20.0).digest()


def test_numbers_of_numpy_are_numbers():
    spec = FrameSpec(short_side_px=np.int64(64), max_bad_fraction=np.float64(0.5))
    assert spec == FrameSpec(short_side_px=64, max_bad_fraction=0.5) and type(spec.short_side_px) is int
    assert StreamSpec(milestones=(np.int64(3),), steps=9).as_dict()["milestones"] == [3]
    with pytest.raises(ValueError, match=r"short_side_px is np.float64\(64.0\), which is not a whole number"):
        FrameSpec(short_side_px=np.float64(64))


def test_a_device_is_named_as_torch_names_it():
    assert RunSpec(device="cuda:1").device == "cuda:1"
    with pytest.raises(UserError, match=r"\[run\] device is 'cuda:99999'; allowed: auto, cpu, cuda, cuda:0, cuda:1"):
        RunSpec(device="cuda:99999")
    with pytest.raises(ValueError, match=r"\[run\] device is 'gpu'; allowed: auto, cpu, cuda, cuda:0, cuda:1"):
        RunSpec(device="gpu")


def all_specs() -> list[type[Spec]]:
    return [s for s in vars(specs).values() if isinstance(s, type) and issubclass(s, Spec) and s is not Spec]


@pytest.mark.parametrize("spec", all_specs(), ids=lambda spec: spec.__name__)
def test_every_setting_is_described_and_its_default_survives_as_text(spec):
    for name, field in spec.settings().items():
        assert field.metadata["description"]
        text = ", ".join(map(str, field.default)) if isinstance(field.default, tuple) else str(field.default)
        fixed = {"stream": "temporal", "stack": StackSpec()} if spec is StreamSpec and name != "stream" else {}
        assert getattr(spec.parse({name: text}, **fixed), name) == field.default


def test_run_settings_are_where_things_are_put():
    assert RunSpec().artifacts == "data/artifacts"


# --- settings of a stream that nobody would read

TEMPORAL = {"stream": "temporal", "stack": StackSpec()}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {**TEMPORAL, "jitter": 0.1},
            r"\[temporal\] jitter is 0.1; the temporal stream does not read it: leave it at 0$",
        ),
        ({"flow_unit_px": 2.0}, r"\[spatial\] flow_unit_px is 2; the spatial stream does not read it: leave it at 4$"),
        ({**TEMPORAL, "gpu_decoding": -0.3}, r"\[temporal\] gpu_decoding is -0.3; it must be -1, or from 0 to 1$"),
        (
            {**TEMPORAL, "gpu_decoding": 0.3, "deterministic": True},
            r"\[temporal\] gpu_decoding is 0.3 and deterministic is true; .* set gpu_decoding to 0 or -1$",
        ),
        ({"gpu_decoding": 0.5}, r"\[spatial\] gpu_decoding is 0.5; the spatial stream .* leave it at -1$"),
        (
            {"milestones": (7, 5)},
            r"\[spatial\] milestones is '7, 5'; it must hold ascending numbers of steps from 0 up",
        ),
        ({"milestones": (5, 5)}, "milestones is '5, 5'"),
        ({"milestones": (-1, 5)}, "milestones is '-1, 5'"),
    ],
)
def test_what_would_do_nothing_or_make_no_sense_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        StreamSpec(**values)


def test_layers_that_are_kept_as_they_were_drawn_are_doubted():
    assert "[spatial] partial_bn is true and start is scratch" in StreamSpec(partial_bn=True).warning
    last = {"train_layers": "last"}
    assert "[spatial] train_layers is last and start is scratch" in StreamSpec(partial_bn=True, **last).warning
    for start in ({"start": "imagenet"}, {"with_dataset": "more", "with_how": "start"}):
        assert StreamSpec(partial_bn=True, **start).warning == StreamSpec(**last, **start).warning == ""


@pytest.mark.parametrize(("name", "value"), [("batch", 10**20), ("steps", 10**20), ("seed", 2**63)])
def test_numbers_that_no_machine_can_count_to_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"\[spatial\] {name} is {value}"):
        StreamSpec(**{name: value})


@pytest.mark.parametrize("layout", ["folder", "unlabelled"])
def test_lists_that_a_layout_does_not_read_are_refused(layout):
    with pytest.raises(ValueError, match=f"lists is 'own.csv', but layout {layout} reads no lists; set layout = csv"):
        DatasetSpec(layout=layout, lists="own.csv")


@pytest.mark.parametrize("layout", ["ucf101", "hmdb51", "unlabelled"])
def test_a_pattern_that_a_layout_does_not_read_is_refused(layout):
    with pytest.raises(
        ValueError, match=rf"group_pattern is '\(\?P.*', but layout {layout} does not read it .*leave it out"
    ):
        DatasetSpec(layout=layout, group_pattern="(?P<group>.)")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (StreamSpec(start="./w.pth"), StreamSpec(start="/home/me/w.pth")),
        (FlowSpec(method="raft_small", raft_weights="w.pth"), FlowSpec(method="raft_small", raft_weights="/me/w.pth")),
    ],
)
def test_where_a_file_of_weights_lies_is_in_no_digest(one, other):
    assert one.digest() == other.digest() and ".pth" not in json.dumps(one.identity())
    assert one.digest() not in (StreamSpec().digest(), FlowSpec(method="raft_small").digest())


def test_a_grid_that_is_not_searched_is_in_no_digest():
    assert FusionSpec(svm_c=1.0, svm_c_grid=(1.0,)).digest() == FusionSpec(svm_c=1.0).digest()
    assert FusionSpec(svm_c_grid=(1.0,)).digest() != FusionSpec().digest()
    assert FusionSpec(svm_c_grid=(1, 0.5)) == FusionSpec(svm_c_grid=(1.0, 0.5))


def test_milestones_beyond_the_steps_of_a_short_trial_run_are_allowed():
    assert StreamSpec(steps=10).milestones == (50_000, 70_000)
    assert StreamSpec(milestones=()).milestones == ()


@pytest.mark.parametrize(
    ("reader", "other", "change"),
    [
        ({"schedule": "step"}, {"schedule": "cosine"}, {"milestones": (3,)}),
        ({"schedule": "cosine"}, {"schedule": "step"}, {"learning_rate_end": 0.001}),
        ({"segments": 3}, {"segments": 1}, {"consensus": "max"}),
        ({"train_layers": "all"}, {"train_layers": "last"}, {"partial_bn": True}),
    ],
)
def test_the_digest_ignores_what_the_other_settings_do_not_read(reader, other, change):
    def digest(values):
        return StreamSpec(start="imagenet", **values).digest()

    assert digest({**reader, **change}) != digest(reader)
    assert digest({**other, **change}) == digest(other)


def test_how_parts_are_drawn_is_in_no_digest_where_none_are_drawn():
    def changed(**change):
        layouts = {"ucf101", "hmdb51", "folder", "csv", "unlabelled"}
        return {of for of in layouts if DatasetSpec(layout=of, **change).digest() != DatasetSpec(layout=of).digest()}

    assert changed(test_fraction=0.2) == {"folder", "csv"}
    assert changed(val_fraction=0.2) == changed(split_seed=1) == {"folder", "csv", "ucf101", "hmdb51"}


def test_what_identifies_the_defaults_is_every_setting_that_is_read():
    kept = {name: field for name, field in StreamSpec.settings().items() if not field.metadata["neutral"]}
    plain = {name: kept[name].default for name in set(kept) - {"with_same", "consensus", "learning_rate_end"}}
    assert StreamSpec().identity() == json.loads(json.dumps({**plain, "version": StreamSpec.VERSION, "stack": None}))


def test_mirrored_views_of_a_stream_that_never_saw_any_are_warned_of():
    unmirrored = StreamSpec(flip=False)
    for crops in (2, 10):
        said = ScoreSpec(crops=crops).warning(unmirrored)
        assert said.startswith(
            f"[score] crops is {crops}, half of which are mirror images, but [spatial] flip is false"
        )
        assert said.endswith(f"set crops to {crops // 2}") and not ScoreSpec(crops=crops).warning(StreamSpec())
    assert not ScoreSpec(crops=5).warning(unmirrored) and not ScoreSpec(crops=1).warning(unmirrored)


# --- a stream trained together with another dataset

HEADS = {"with_dataset": "more", "with_how": "heads"}
CLASSES = {"with_dataset": "more", "with_how": "classes"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"with_how": "heads"}, r"\[spatial\] with_dataset is '' and with_how is 'heads'; give both"),
        ({"with_dataset": "more"}, r"with_dataset is 'more' and with_how is ''; give both"),
        ({**CLASSES, "with_same": ("a:b", "ab")}, r"with_same holds 'ab'; allowed: a class of this set, a colon"),
        ({**CLASSES, "with_same": ("a:b:c",)}, r"with_same holds 'a:b:c'"),
        ({**HEADS, "with_how": "both"}, r"with_how is 'both'; allowed: , heads, classes, start"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        StreamSpec(**values)


def test_training_together_as_text_and_in_the_digest():
    settings = StreamSpec.parse({**CLASSES, "with_same": "ride bike:Biking , a:b"})
    assert settings.with_same == ("ride bike:Biking", "a:b")
    assert settings.alone() == StreamSpec() and settings.digest() != settings.alone().digest()
    assert StreamSpec(**HEADS, with_same=("a:b",)).digest() == StreamSpec(**HEADS).digest()
    assert StreamSpec(**CLASSES, with_same=("a:b",)).digest() != StreamSpec(**CLASSES).digest()
    assert (settings.items_per_step, StreamSpec(**HEADS).items_per_step) == (256, 512)


def test_a_changed_method_makes_its_own_stores_again_and_no_others(monkeypatch):
    before = {method: FlowSpec(method=method).digest() for method in ("tvl1", "dis_fast")}
    monkeypatch.setitem(FlowSpec.METHOD_CHANGES, "tvl1", 99)
    assert FlowSpec().digest() != before["tvl1"] and FlowSpec(method="dis_fast").digest() == before["dis_fast"]


def test_a_bound_that_nothing_uses_makes_no_other_flow():
    plain, minmax = FlowSpec(bound_px=10.0), FlowSpec(scaling="minmax", bound_px=10.0)
    assert plain.digest() != FlowSpec().digest()
    assert minmax.digest() == FlowSpec(scaling="minmax").digest() != plain.digest()
