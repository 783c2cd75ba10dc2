"""Steps against SGD written out, selection on validation clips, and what stops a training."""

import errno
import re
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import FakeStore, two_classes, use_store
from trainings import assert_same_weights, interrupt_after, run, scores_of_test_part, spec

from pipeline import training
from pipeline.dataset import EvalSet, TrainingSet
from pipeline.networks import build
from pipeline.networks.checkpoint import load_checkpoint
from pipeline.system.errors import StageFailed
from pipeline.training import TrainingDiverged, state, train, train_step, validation
from pipeline.training.parallel import World
from pipeline.training.state import Curve, TrainingState
from pipeline.training.validation import validate, validation_set

CPU = torch.device("cpu")


@pytest.mark.parametrize("stream", ["spatial", "temporal"])
def test_a_stream_learns_and_its_files_are_complete(data, tmp_path, stream):
    catalog = data("frames" if stream == "spatial" else "flow")
    settings = spec(stream, steps=30, milestones=(20,))
    found, curve = run(settings, catalog, tmp_path)
    assert found.spec == settings and found.classes == catalog.classes
    assert found.record["catalog_key"] == catalog.key and found.record["inputs"] == "in"
    assert curve["steps"] == list(range(1, 31)) and len(curve["loss"]) == 30
    assert curve["learning_rate"] == [0.05] * 20 + [pytest.approx(0.005)] * 10
    assert [point["step"] for point in curve["validation"]] == [5, 10, 15, 20, 25, 30]
    assert curve["best_step"] == found.record["best_step"] and curve["seconds"] > 0
    assert np.mean(curve["loss"][-5:]) < 0.5 * np.mean(curve["loss"][:3])
    assert not (tmp_path / "resume.pt").exists() and not list(tmp_path.glob(".*tmp*"))
    assert scores_of_test_part(tmp_path, catalog).top1() == 1.0


def test_flow_stored_as_bytes_trains_as_its_floats_do(data, tmp_path):
    """Bytes go as bytes up to the network; what they mean is within half a step, 0.04 px, of the floats."""
    curves, dtypes = [], []
    for bound_px in (None, 10.0):
        catalog = data("flow", bound_px=bound_px)
        settings = spec("temporal", dropout=0.0, steps=30, milestones=(20,))
        views = TrainingSet(settings, "i", catalog.part("train"))[0][0]
        dtypes.append(views.values.dtype)
        folder = tmp_path / str(bound_px)
        curves.append(run(settings, catalog, folder)[1])
        assert scores_of_test_part(folder, catalog).top1() == 1.0
    assert dtypes == [np.float32, np.uint8]
    assert curves[1]["loss"][0] == pytest.approx(curves[0]["loss"][0], rel=1e-2)


def test_a_step_refuses_a_batch_that_has_no_equal_parts():
    settings = spec(accumulate=4, batch=8)
    now = TrainingState(settings, 2, CPU)
    with pytest.raises(ValueError, match=r"a batch of 6 cannot be cut into 4 equal parts \(accumulate\)"):
        train_step(now, torch.randn(6, 3, 24, 24), torch.zeros(6, dtype=int))


def test_a_step_is_sgd_with_momentum_and_weight_decay(data):
    data("frames")
    given = {"momentum": 0.9, "weight_decay": 0.5, "train_layers": "last", "label_smoothing": 0.1}
    settings = spec(dropout=0.0, milestones=(1, 2), **given)
    now = TrainingState(settings, 2, CPU)
    inputs, labels = torch.randn(4, 3, 24, 24), torch.tensor([0, 1, 1, 0])
    features = now.network.eval().features(inputs).detach().double().numpy()
    weight, bias = (value.detach().double().numpy().copy() for value in now.network.head.parameters())
    targets = np.eye(2)[labels.numpy()] * 0.9 + 0.05
    momentum_weight, momentum_bias = np.zeros_like(weight), np.zeros_like(bias)
    for rate in (0.05, 0.005, 0.0005):  # a tenth from each milestone on
        logits = features @ weight.T + bias
        logits -= np.log(np.exp(logits).sum(1, keepdims=True))
        expected_loss = -(targets * logits).sum(1).mean()
        slope = (np.exp(logits) - targets) / 4
        momentum_weight = 0.9 * momentum_weight + slope.T @ features + 0.5 * weight
        momentum_bias = 0.9 * momentum_bias + slope.sum(0) + 0.5 * bias
        weight, bias = weight - rate * momentum_weight, bias - rate * momentum_bias
        assert train_step(now, inputs, labels) == pytest.approx(expected_loss, rel=1e-4)
        now.step += 1
    np.testing.assert_allclose(now.network.head.weight.detach().numpy(), weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(now.network.head.bias.detach().numpy(), bias, rtol=1e-3, atol=1e-5)


def test_every_step_drops_other_features():
    settings = spec(dropout=0.9, learning_rate=1e-12, milestones=(), weight_decay=0.0)
    now, inputs, labels = TrainingState(settings, 2, CPU), torch.randn(4, 3, 24, 24), torch.tensor([0, 1, 1, 0])
    losses = []
    for now.step in (0, 1, 2, 1):
        losses.append(train_step(now, inputs, labels))
    assert len(set(losses[:3])) == 3 and losses[3] == pytest.approx(losses[1], rel=1e-6)  # a step again: the same


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_makes_the_same_step(data, parts):
    """Without batch normalization, with dropout; in float64, so that what is left is no matter of rounding."""
    data("frames")
    inputs, labels = torch.randn(4, 3, 40, 40, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    settings = replace(spec(dropout=0.5, learning_rate=1e-3), network="squeezenet1_1", crop_px=40)
    whole, cut = (TrainingState(replace(settings, accumulate=n), 2, CPU) for n in (1, parts))
    for now in (whole, cut):
        now.network.double()
    for _ in range(3):
        assert train_step(cut, inputs, labels) == pytest.approx(train_step(whole, inputs, labels), abs=1e-12)
        whole.step = cut.step = whole.step + 1
    for name, value in cut.network.state_dict().items():
        torch.testing.assert_close(value, whole.network.state_dict()[name], rtol=1e-9, atol=1e-12)


def test_gradients_are_scaled_down_to_their_norm(data):
    data("frames")
    inputs, labels = torch.randn(4, 3, 24, 24), torch.tensor([0, 1, 1, 0])
    moved = {}
    for norm in (0.0, 1e-3, 1e9):
        now = TrainingState(spec(momentum=0.0, weight_decay=0.0, clip_norm=norm), 2, CPU)
        before = [weight.detach().clone() for weight in now.network.parameters()]
        train_step(now, inputs, labels)
        moved[norm] = [(b - a).detach() for a, b in zip(before, now.network.parameters(), strict=True)]
    length = lambda moves: float(torch.cat([move.flatten() for move in moves]).double().norm())
    assert length(moved[1e-3]) == pytest.approx(0.05 * 1e-3, rel=1e-3) and length(moved[0.0]) > 0.05 * 1e-2
    factor = length(moved[1e-3]) / length(moved[0.0])
    for clipped, free, high in zip(moved[1e-3], moved[0.0], moved[1e9], strict=True):
        torch.testing.assert_close(clipped, free * factor, rtol=1e-2, atol=1e-6)
        assert torch.equal(high, free)


def test_bfloat16_rounds_what_the_network_computes(data):
    data("frames")
    inputs, labels = torch.randn(4, 3, 24, 24), torch.tensor([0, 1, 1, 0])
    exact, rounded = (train_step(TrainingState(spec(precision=p), 2, CPU), inputs, labels) for p in ("auto", "bf16"))
    assert rounded != exact and rounded == pytest.approx(exact, rel=0.02)


def test_waiting_and_stepping_are_told_apart(data, tmp_path, capsys):
    catalog, curve = data("frames"), Curve(seconds_waiting=1.0)
    slow = (time.sleep(0.05) or number for number in range(3))
    assert list(training._waited_for(slow, curve)) == [0, 1, 2] and curve.seconds_waiting > 1.15
    _, curve = run(spec(), catalog, tmp_path)
    assert curve["seconds_waiting"] > 0 and curve["seconds_stepping"] > 0
    assert curve["seconds_waiting"] + curve["seconds_stepping"] < curve["seconds"]
    assert re.search(
        r"training, spatial: [\d.]+ clips/s, [\d.]+% of it waiting for data, [\d.]+% saving", capsys.readouterr().err
    )


@pytest.mark.parametrize(("asked", "told"), [("auto", "float32"), ("bf16", "bfloat16")])
def test_it_is_recorded_where_and_how_a_stream_was_trained(data, tmp_path, asked, told):
    _, curve = run(spec(precision=asked, steps=2, milestones=(1,)), data("frames"), tmp_path)
    record = load_checkpoint(tmp_path).record  # the folder stands for the file in it
    threads = torch.get_num_threads()
    for found in (curve, record):
        assert (found["device"], found["precision"]) == (
            f"cpu, {threads} thread{'s' * (threads > 1)}",
            told,
        ) and "imagenet" not in found


def test_slow_saving_takes_two_per_cent_of_the_time_at_most(monkeypatch):
    now, saved, curve = [0.0], [], Curve()
    monkeypatch.setattr(state, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def save(seconds):
        def act():
            saved.append(now[0])
            now[0] += seconds

        return state.Saving(act, curve)

    for seconds, expected in ((0.5, list(range(10, 200, 10))), (4.0, [10])):
        now[0], saved[:] = 0.0, []
        keep = save(seconds)
        for begun in range(10, 200, 10):
            now[0] = max(now[0], float(begun))
            keep()
        assert saved == expected
    now[0] = 215.0  # 4 s are 2 % of the 200 s since the first was done
    keep()
    assert saved == [10, 215] and curve.seconds_saving == pytest.approx(0.5 * 19 + 2 * 4)


def test_a_save_that_fails_for_a_moment_ends_no_training(capsys):
    faults = [OSError(errno.EIO, "gone"), None, OSError(errno.ENOSPC, "full")]

    def save():
        if fault := faults.pop(0):
            raise fault

    saving = state.Saving(save, Curve())
    saving()
    assert "resume.pt cannot be written (Input/output error); training goes on, and tries" in capsys.readouterr().err
    saving()
    assert not capsys.readouterr().err
    with pytest.raises(OSError, match="full"):
        saving()


def test_much_waiting_is_shown_while_it_lasts():
    """At the end of a night it would be known too late, and what was long ago has been mended since."""
    assert training._told(0.5, [(7.0, 9.0)]) == training._told(0.5, [(7, 9), (11, 109)]) == "loss 0.500"
    assert training._told(0.5, [(7, 9), (9, 12), (37, 109)]) == "loss 0.500, 30% of the time waiting for data"


def test_a_training_of_days_on_a_cpu_says_so_at_once(data, tmp_path, monkeypatch, capsys):
    catalog = data("frames")
    run(spec(), catalog, tmp_path / "short")
    assert "on this CPU" not in capsys.readouterr().err
    monkeypatch.setattr(training, "_LONG_S", 0.0)
    run(spec(), catalog, tmp_path / "long")
    said = capsys.readouterr().err
    assert said.count("s to go on this CPU, at 12 steps of 4 clips; configs/laptop.cfg is a recipe for CPUs") == 1


def test_the_seed_decides_everything(data, tmp_path):
    catalog = data("frames")
    torch.manual_seed(1)
    first, _ = run(spec(seed=1), catalog, tmp_path / "a")
    torch.manual_seed(2)
    again, _ = run(spec(seed=1), catalog, tmp_path / "b")
    other, _ = run(spec(seed=2), catalog, tmp_path / "c")
    assert_same_weights(first.network.state_dict(), again.network.state_dict())
    assert not torch.equal(first.network.head.weight, other.network.head.weight)


def test_training_leaves_the_random_state_alone(data, tmp_path):
    catalog, before = data("frames"), torch.random.get_rng_state()
    run(spec(), catalog, tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def validated(monkeypatch, tmp_path, catalog, results):
    """Train with given validation results; returns (best step, weights seen at each validation, checkpoint)."""
    seen, results = [], iter(results)
    labels = np.array([clip.label for clip in catalog.part("val")])

    def evaluate(network, test_set, **_):
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        right, confidence = next(results)
        probabilities = np.full((len(labels), 2), 1 - confidence)
        rows = np.arange(len(labels))
        probabilities[rows, np.where(rows < right, labels, 1 - labels)] = confidence
        return training_evaluation(probabilities)

    monkeypatch.setattr(validation, "evaluate", evaluate)
    found, curve = run(spec(validate_every=3), catalog, tmp_path)
    return curve["best_step"], seen, found


def training_evaluation(probabilities, *, failed=()):
    from pipeline.networks.evaluation import Evaluation

    return Evaluation(probabilities, probabilities, dict.fromkeys(failed, "it failed"))


@pytest.mark.parametrize(
    ("results", "best"),
    [
        ([(1, 0.9), (2, 0.6), (1, 0.9), (0, 0.9)], 6),  # the highest top-1
        ([(2, 0.7), (2, 0.9), (2, 0.8), (1, 0.9)], 6),  # of equals the lowest loss
        ([(2, 0.8), (2, 0.8), (2, 0.8), (2, 0.8)], 3),
    ],  # of all equals the first
)
def test_the_best_validated_weights_are_kept(data, tmp_path, monkeypatch, results, best):
    catalog = data("frames")
    step, seen, found = validated(monkeypatch, tmp_path, catalog, results)
    assert step == best
    assert_same_weights(found.network.state_dict(), seen[best // 3 - 1])


def test_validation_counts_clips_and_their_log_probability(data, monkeypatch):
    catalog = data("frames", val=3)  # left_4 left_5 left_6 right_4 right_5 right_6
    table = np.array([[0.9, 0.1], [0.4, 0.6], [np.nan, np.nan], [0.2, 0.8], [0.7, 0.3], [0.25, 0.75]])
    monkeypatch.setattr(validation, "evaluate", lambda *_, **__: training_evaluation(table, failed=["left_6"]))
    now = TrainingState(spec(), 2, CPU)
    validate(now, EvalSet(spec(), "i", catalog.part("val"), frames=1, crops=1))
    assert now.best.top1 == pytest.approx(3 / 6)  # the clip that failed counts as wrong
    assert now.best.loss == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.3, 0.75]).mean(), rel=1e-6)


def test_validation_looks_at_the_center_of_five_frames_of_this_process_s_clips(data):
    catalog = data("frames", val=3)
    made = validation_set(spec(), "i", catalog, World(1, 2, 2))
    assert made.clips == catalog.part("val")[1::2] and len(made) == 3 * 5
    assert made[0].views.values.shape == (1, 3, 24, 24)


def test_without_validation_clips_the_last_weights_are_kept_and_it_is_said(data, tmp_path, capsys):
    catalog = data("frames", val=0)
    found, curve = run(spec(), catalog, tmp_path)
    assert found.record["best_step"] == curve["best_step"] == 12 and curve["validation"] == []
    assert "no validation clips, so the weights of the last step are kept" in capsys.readouterr().err


def test_if_every_validation_clip_failed_nothing_is_trained(monkeypatch, tmp_path):
    catalog, fake = two_classes("frames", val=2)
    wanted = [clip.id for clip in catalog.part("val")]
    use_store(monkeypatch, FakeStore(fake.clips, {}))
    for rank in range(8):  # some of them without a clip of their own
        validation_set(spec(), "i", catalog, World(rank, 8, 8))
    one = {name: clip for name, clip in fake.clips.items() if name not in wanted[1:]}
    use_store(monkeypatch, FakeStore(one, {}))
    validation_set(spec(), "i", catalog, World(3, 4, 4))  # another process has the one that is left
    without = {name: clip for name, clip in fake.clips.items() if name not in wanted}
    use_store(monkeypatch, FakeStore(without, dict.fromkeys(wanted, "no frame decodes")))
    with pytest.raises(StageFailed, match="all 4 validation clips failed, such as left_4: no frame decodes. Fix the"):
        run(spec(), catalog, tmp_path)
    assert not (tmp_path / "curve.json").exists() and not (tmp_path / "resume.pt").exists()


def test_processes_that_validate_side_by_side_share_memory_and_cores(data, monkeypatch):
    given = []
    evaluation = training_evaluation(np.full((2, 2), 0.5))
    monkeypatch.setattr(validation, "evaluate", lambda *_, **values: given.append(values) or evaluation)
    catalog = data("frames")
    now = TrainingState(spec(loader_workers=3), 2, CPU, World(0, 1, 4))
    validate(now, EvalSet(spec(), "i", catalog.part("val"), frames=1, crops=1))
    assert [(values["workers"], values["sharing"]) for values in given] == [(3, 4)]


def test_what_killed_processes_left_is_removed_at_the_end(data, tmp_path):
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "catalog.h5").write_bytes(b"of a training with two processes")
    run(spec(), data("frames"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "checkpoint.pt", "curve.json"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("another")])
def test_too_little_memory_for_a_step_is_reported_with_what_helps(data, tmp_path, monkeypatch, error):
    def step(*_):
        raise error

    monkeypatch.setattr(training, "train_step", step)
    with pytest.raises(RuntimeError, match=str(error)) as found:
        run(spec(), data("frames"), tmp_path)
    notes = getattr(found.value, "__notes__", [])
    told = "raise [spatial] accumulate (now 1), the parts that a batch is cut into, or lower batch"
    assert notes == ([told] if str(error) != "another" else [])


def test_a_loss_that_is_not_finite_stops_with_step_and_rate(data, tmp_path):
    catalog = data("frames")
    with pytest.raises(TrainingDiverged, match=r"spatial stream is (nan|inf) at step \d+, learning rate 1e\+30"):
        run(spec(learning_rate=1e30, milestones=()), catalog, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("val", "told"),
    [
        (2, r"network of the spatial stream gives NaN after step 12; lower \[spatial\] learning_rate"),
        (0, r"weights of the spatial stream are not finite after the last step; lower \[spatial\] learning_rate"),
    ],
)
def test_a_last_step_that_diverges_is_no_result(data, tmp_path, monkeypatch, val, told):
    """The loss is that before the step, so it tells nothing of the last one."""
    real = training.train_step

    def ruinous(now, inputs, labels):
        loss = real(now, inputs, labels)
        if now.step == now.spec.steps - 1:
            now.network.head.weight.data.fill_(torch.inf)
        return loss

    monkeypatch.setattr(training, "train_step", ruinous)
    with pytest.raises(TrainingDiverged, match=told):
        run(spec(), data("frames", val=val), tmp_path)
    assert not {"checkpoint.pt", "curve.json"} & {path.name for path in tmp_path.iterdir()}


def test_only_the_head_changes_when_only_the_last_layer_is_trained(data, tmp_path):
    catalog = data("frames")
    torch.manual_seed(7)
    torch.save(build(spec(), 2).state_dict(), tmp_path / "start.pth")
    found, _ = run(spec(train_layers="last", start=str(tmp_path / "start.pth")), catalog, tmp_path / "run")
    start = torch.load(tmp_path / "start.pth", weights_only=True)
    changed = {name for name, value in found.network.state_dict().items() if not torch.equal(value, start[name])}
    assert changed == {"head.weight", "head.bias"}


def test_wrong_settings_are_refused_before_any_work(data, tmp_path, monkeypatch):
    catalog = data("frames")
    with pytest.raises(ValueError, match="device is 'gpu'"):
        train(spec(), store_path="i", catalog=catalog, folder=tmp_path, inputs_key="in", device="gpu")
    use_store(monkeypatch, FakeStore({}))
    with pytest.raises(ValueError, match="none of the 8 training clips"):
        run(spec(), catalog, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.needs_cuda
def test_mixed_precision_on_cuda_learns_and_resumes(data, tmp_path, monkeypatch):
    catalog = data("flow")
    settings = spec("temporal", steps=30, milestones=(20,), loader_workers=0)
    real = interrupt_after(monkeypatch, 13)
    with pytest.raises(ZeroDivisionError):
        train(settings, store_path="i", catalog=catalog, folder=tmp_path, inputs_key="in", device="cuda")
    monkeypatch.setattr(training, "train_step", real)
    train(settings, store_path="i", catalog=catalog, folder=tmp_path, inputs_key="in", device="cuda")
    assert scores_of_test_part(tmp_path, catalog).top1() == 1.0


@pytest.mark.needs_cuda
@pytest.mark.parametrize("network", [{}, {"network": "cnn_m_2048", "crop_px": 41, "learning_rate": 1e-3}])
def test_deterministic_training_on_cuda_repeats_its_bits(data, tmp_path, network):
    catalog, found = data("frames", size=48), []
    for name in ("a", "b"):
        settings = replace(spec(deterministic=True, loader_workers=0), **network)
        train(settings, store_path="i", catalog=catalog, folder=tmp_path / name, inputs_key="in", device="cuda")
        found.append(load_checkpoint(tmp_path / name / "checkpoint.pt").network.state_dict())
    assert_same_weights(*found)


@pytest.mark.needs_cuda
def test_float16_with_parts_and_clipping_learns_on_cuda(data, tmp_path):
    catalog = data("flow")
    settings = spec(
        "temporal", steps=40, milestones=(30,), loader_workers=0, precision="float16", accumulate=2, clip_norm=5.0
    )
    train(settings, store_path="i", catalog=catalog, folder=tmp_path, inputs_key="in", device="cuda")
    assert scores_of_test_part(tmp_path, catalog).top1() == 1.0


def test_scaled_gradients_are_clipped_in_their_own_unit():
    """float16 training on a GPU scales its loss; here a scaler of the CPU does."""
    settings = spec(clip_norm=1.0, momentum=0.0, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 0, 1])
    found = []
    for scale in (None, 2.0**12):
        torch.manual_seed(0)
        made = TrainingState(settings, 2, torch.device("cpu"))
        before = [p.detach().clone() for p in made.network.parameters()]
        if scale:
            made.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        train_step(made, inputs, labels)
        moved = [(p - b).flatten() for p, b in zip(made.network.parameters(), before, strict=True)]
        found.append(torch.cat(moved).detach())
    assert found[0].norm() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-7)


def test_a_point_of_a_long_curve_is_the_mean_of_its_losses():
    curve = Curve()
    for step, loss in enumerate((1.0, 2.0, 6.0, 4.0), 1):
        curve.record(loss, spec(steps=3000), step)
    assert (curve.steps, curve.loss, curve.pending) == ([3], [3.0], [4.0])


def test_a_process_without_validation_clips_of_its_own_scores_those_of_the_others(data):
    """Three processes, two clips: the third gets the scores of both, and has none to give."""
    others = [(np.array([k]), np.float32([[0.8, 0.2]]), np.array([False])) for k in (0, 1)]

    class Third(World):
        def gather(self, value):
            assert [len(column) for column in value] == [0, 0, 0]
            return [*others, value]

    now = TrainingState(spec(), 2, torch.device("cpu"))
    now.world = Third(2, 3, 3)
    validate(now, validation_set(spec(), "i", data("frames"), now.world))
    assert now.best.top1 == 0.5 and now.best.loss == pytest.approx(-np.log([0.8, 0.2]).mean(), rel=1e-6)
