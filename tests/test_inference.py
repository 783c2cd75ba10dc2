"""Scores against the plain numpy mean of softmax over views; failed clips; foreign checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import BrokenClip, FakeStore, two_classes, use_store

from pipeline.catalog import UNREADABLE, Catalog
from pipeline.dataset import EvalSet
from pipeline.inference import score, score_to
from pipeline.networks import build
from pipeline.networks.checkpoint import clips_seen, load_checkpoint, refuse_unfit, save_checkpoint, save_tensors
from pipeline.networks.evaluation import evaluate
from pipeline.networks.starting import CHECKPOINT_FORMAT
from pipeline.scores import Scores
from pipeline.specs import ScoreSpec, StackSpec, StreamSpec
from pipeline.system.errors import StageFailed


def spec(stream="spatial", **values):
    stack = StackSpec(length=3) if stream == "temporal" else None
    defaults = {"network": "small", "resize_px": 0, "crop_px": 32, "dropout": 0.5}
    defaults |= {"flow_unit_px": 2.0} if stream == "temporal" else {}
    return StreamSpec(stream=stream, stack=stack, **{**defaults, **values})


def save_untrained(path, settings, catalog):
    torch.manual_seed(0)
    network = build(settings, len(catalog.classes))
    network.head.weight.data *= 30  # far from equal probabilities, so that a mean of logits would differ
    save_checkpoint(path, network.state_dict(), settings, catalog, inputs="i", best_step=3)
    return network.eval()


def fail(fake, video_id, reason):
    del fake.clips[video_id]
    fake.failed[video_id] = reason


def softmax(logits):
    exponents = np.exp(logits - logits.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def test_scores_are_the_mean_softmax_over_frames_and_crops(monkeypatch, tmp_path):
    catalog, fake = two_classes("frames", frames=9)
    use_store(monkeypatch, fake)
    network = save_untrained(tmp_path / "c.pt", spec(), catalog)
    state = torch.random.get_rng_state()
    made = score(tmp_path / "c.pt", store_path="i", catalog=catalog, part="test", spec=ScoreSpec(frames=3, crops=10))

    assert torch.equal(state, torch.random.get_rng_state())
    assert made.video_ids == tuple(clip.id for clip in catalog.part("test")) and made.labels.tolist() == [0, 0, 1, 1]
    assert made.classes == catalog.classes and made.groups == ("g",) * 4
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for row, clip in enumerate(catalog.part("test")):
        views = []
        for frame in (0, 4, 8):  # 40 x 48 pixels
            for top, left in ((0, 0), (0, 16), (8, 0), (8, 16), (4, 8)):
                view = fake[clip.id]._frames[frame][top : top + 32, left : left + 32]
                views += [view, view[:, ::-1]]
        inputs = ((np.stack(views) / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
        with torch.no_grad():
            features = network.features(torch.from_numpy(inputs))
            logits = network.head(features).numpy()
        np.testing.assert_allclose(made.probabilities[row], softmax(logits).mean(0), atol=1e-5)
        np.testing.assert_allclose(made.features[row], features.numpy().mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), MemoryError("no 12 GiB")],
)
def test_views_that_do_not_fit_into_memory_take_several_passes(monkeypatch, error):
    catalog, fake = two_classes("frames")
    use_store(monkeypatch, fake)
    views = EvalSet(spec(), "i", catalog.part("test"), frames=3, crops=5)  # 4 clips: 60 views
    network = build(spec(), 2).eval()
    expected = evaluate(network, views, device=torch.device("cpu"))
    features, sizes = network.features, []

    def with_little_memory(inputs):
        sizes.append(len(inputs))
        if len(inputs) > most:
            raise error
        return features(inputs)

    monkeypatch.setattr(network, "features", with_little_memory)
    most = 10
    found = evaluate(network, views, device=torch.device("cpu"), batch=30)
    assert sizes == [30, 15, *[8, 8, 8, 6] * 2]  # what did not fit is not tried again
    np.testing.assert_allclose(found.probabilities, expected.probabilities, rtol=1e-5)
    np.testing.assert_allclose(found.features, expected.features, rtol=1e-4, atol=1e-6)
    most = 0
    with pytest.raises(type(error), match=str(error)):
        evaluate(network, views, device=torch.device("cpu"), batch=30)
    assert sizes[-1] == 1


def test_a_network_in_training_is_evaluated_without_dropout_and_by_its_running_statistics(monkeypatch):
    catalog, fake = two_classes("frames")
    use_store(monkeypatch, fake)
    torch.manual_seed(0)
    network = build(spec(), 2)
    views = EvalSet(spec(), "i", catalog.part("test"), frames=2, crops=1)
    expected = evaluate(network.eval(), views, device=torch.device("cpu"))
    found = evaluate(network.train(), views, device=torch.device("cpu"))
    np.testing.assert_array_equal(found.probabilities, expected.probabilities)
    np.testing.assert_array_equal(found.features, expected.features)


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_batch_changes_nothing(monkeypatch, tmp_path, batch):
    catalog, fake = two_classes("flow")
    use_store(monkeypatch, fake)
    save_untrained(tmp_path / "c.pt", spec("temporal"), catalog)
    made = [
        score(
            tmp_path / "c.pt", store_path="i", catalog=catalog, part="test", spec=ScoreSpec(frames=4, crops=2, batch=b)
        )
        for b in (0, batch)
    ]
    np.testing.assert_allclose(made[1].probabilities, made[0].probabilities, atol=1e-6)
    assert made[1].features.shape == (4, 128)


def test_clips_that_failed_in_the_store_become_nan_and_are_said(monkeypatch, tmp_path, capsys):
    catalog, fake = two_classes("frames")
    fail(fake, "left_5", "takes more than 60 s")
    fail(fake, "right_5", "decodes no frame")
    use_store(monkeypatch, fake)
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    made = score(tmp_path / "c.pt", store_path="i", catalog=catalog, part="test", spec=ScoreSpec(frames=2, crops=1))
    assert made.failed == ("left_5", "right_5")
    assert np.isnan(made.features[0]).all() and np.isfinite(made.features[1]).all()
    said = capsys.readouterr().err
    assert "2 of 4 clips failed and count as wrong: left_5: takes more than 60 s; right_5: decodes no frame" in said


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_store_holds_and_cannot_be_read_ends_the_scoring(monkeypatch, tmp_path, workers):
    """A damaged store or a disk that fails is no clip's fault."""
    catalog, fake = two_classes("frames")
    fail(fake, "right_5", "decodes no frame")
    fake.clips["left_5"] = BrokenClip("frames", fake.clips["left_5"]._frames)
    use_store(monkeypatch, fake)
    views = EvalSet(spec(), "i", catalog.part("test"), frames=2, crops=1)
    network = build(spec(), 2)
    with pytest.raises(OSError, match="bad JPEG") as raised:
        evaluate(network, views, device=torch.device("cpu"), workers=workers)
    assert raised.value.__notes__ == ["while reading test clip 'left_5'"]


def test_scores_are_true_float32_on_gpus_with_tf32(monkeypatch):
    catalog, fake = two_classes("frames")
    use_store(monkeypatch, fake)
    network, seen = build(spec(), 2), []
    of_features = network.features
    libraries = torch.backends.cudnn, torch.backends.cuda.matmul
    monkeypatch.setattr(
        network, "features", lambda x: seen.extend(each.allow_tf32 for each in libraries) or of_features(x)
    )
    before = [library.allow_tf32 for library in libraries]  # monkeypatch would try to delete what is in no __dict__
    for library in libraries:
        library.allow_tf32 = True
    evaluate(network, EvalSet(spec(), "i", catalog.part("test"), frames=1, crops=1), device=torch.device("cpu"))
    assert seen and not any(seen) and all(library.allow_tf32 for library in libraries)
    for library, allowed in zip(libraries, before, strict=True):
        library.allow_tf32 = allowed


def test_unlabeled_clips_get_the_classes_of_the_stream(monkeypatch, tmp_path, capsys):
    catalog, fake = two_classes("frames")
    fail(fake, "left_5", "decodes no frame")
    use_store(monkeypatch, fake)
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    views = {"store_path": "i", "part": "test", "spec": ScoreSpec(frames=2, crops=1)}
    labeled = score(tmp_path / "c.pt", catalog=catalog, **views)
    assert "1 of 4 clips failed and count as wrong: left_5" in capsys.readouterr().err
    clips = [replace(clip, label=-1, class_name="") for clip in catalog.clips]
    made = score(tmp_path / "c.pt", catalog=Catalog(tuple(clips), (), "1", ()), **views)
    assert made.classes == catalog.classes and made.labels.tolist() == [-1] * 4
    np.testing.assert_array_equal(made.probabilities, labeled.probabilities)
    assert "1 of 4 clips failed: left_5" in capsys.readouterr().err


def test_clips_that_the_weights_know_are_named(monkeypatch, tmp_path, capsys):
    catalog, fake = two_classes("frames")
    use_store(monkeypatch, fake)
    known = {"train": "a" * 16, "val": "b" * 16, "test": UNREADABLE}
    catalog = replace(catalog, clips=tuple(replace(clip, content=known[clip.part]) for clip in catalog.clips))
    network = save_untrained(tmp_path / "c.pt", spec(), catalog)
    record = {"trained_on": ["a" * 16, UNREADABLE], "chosen_on": ["b" * 16]}
    save_checkpoint(tmp_path / "c.pt", network.state_dict(), spec(), catalog, inputs="i", best_step=3, **record)

    def told(catalog, part):
        score(tmp_path / "c.pt", store_path="i", catalog=catalog, part=part, spec=ScoreSpec(frames=1, crops=1))
        return [line for line in capsys.readouterr().err.splitlines() if "trained or chosen" in line]

    assert told(catalog, "train") == told(catalog, "val") == told(catalog, "test") == []
    first, *rest = catalog.part("train")
    parts = {first.id: "test", rest[0].id: "val", catalog.part("val")[0].id: "test"}
    other = replace(catalog, clips=tuple(replace(clip, part=parts.get(clip.id, clip.part)) for clip in catalog.clips))
    of = "the weights were trained or chosen on"
    assert told(other, "val") == [
        f"spatial scores of val: {of} 1 of 2 clips: '{rest[0].id}'; an accuracy on clips already seen says little"
    ]
    (line,) = told(other, "test")
    assert f"scores of test: {of} 2 of 6 clips: " in line and f"'{first.id}'" in line
    unlabeled = replace(other, clips=tuple(replace(clip, label=-1, class_name="") for clip in other.clips), classes=())
    assert told(unlabeled, "test") == [line]  # someone may compute an accuracy from the names of folders


def test_if_every_clip_fails_it_is_an_error(monkeypatch, tmp_path):
    catalog, _ = two_classes("frames")
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    views = {"store_path": "i", "part": "test", "spec": ScoreSpec(frames=2, crops=1)}
    ids = [clip.id for clip in catalog.part("test")]
    unlabeled = Catalog(tuple(replace(clip, label=-1, class_name="") for clip in catalog.clips), (), "1", ())
    use_store(monkeypatch, FakeStore({}, dict.fromkeys(ids[1:], "no frame decodes")))
    with pytest.raises(KeyError, match=ids[0]):
        score(tmp_path / "c.pt", catalog=unlabeled, **views)
    use_store(monkeypatch, FakeStore({}, dict.fromkeys(ids, "no frame decodes")))
    assert score(tmp_path / "c.pt", catalog=unlabeled, **views).failed == tuple(ids)
    with pytest.raises(StageFailed, match="spatial scores of test: all 4 clips failed, such as left_5: no frame d"):
        score(tmp_path / "c.pt", catalog=catalog, **views)


def test_a_part_without_clips_gives_an_empty_table(monkeypatch, tmp_path):
    catalog, fake = two_classes("frames", val=0)
    use_store(monkeypatch, fake)
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    made = score(tmp_path / "c.pt", store_path="i", catalog=catalog, part="val", spec=ScoreSpec(frames=2, crops=1))
    assert made.probabilities.shape == (0, 2)


def test_data_made_by_other_settings_than_those_of_the_training_is_refused(monkeypatch, tmp_path):
    catalog, fake = two_classes("frames")
    use_store(monkeypatch, fake)
    network = build(spec(), 2)
    views = {"store_path": "i", "catalog": catalog, "part": "test", "spec": ScoreSpec(frames=2, crops=1)}
    tables = []
    for trained_on, given in (("", "abc"), ("abc", ""), ("abc", "abc")):
        fake.attrs["digest"] = given
        save_checkpoint(tmp_path / "c.pt", network.state_dict(), spec(), catalog, data_digest=trained_on)
        tables.append(score(tmp_path / "c.pt", **views).probabilities)
    assert all(np.array_equal(table, tables[0]) for table in tables)
    fake.attrs["digest"] = "xyz"
    with pytest.raises(
        ValueError, match=r"c.pt was trained on data made with other settings \(digest abc\) than these \(x"
    ):
        score(tmp_path / "c.pt", **views)


def test_a_checkpoint_of_the_other_stream_is_refused(tmp_path):
    catalog, _ = two_classes("frames")
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    refuse_unfit(tmp_path / "c.pt", "spatial", "")
    with pytest.raises(ValueError, match="c.pt is a trained spatial stream, not the temporal one"):
        refuse_unfit(tmp_path / "c.pt", "temporal", "")
    with pytest.raises(FileNotFoundError, match="none.pt does not exist; train the stream first"):
        refuse_unfit(tmp_path / "none.pt", "temporal", "")


def test_a_checkpoint_carries_its_settings(tmp_path):
    catalog, _ = two_classes("flow")
    settings = spec("temporal", milestones=(3, 5))
    network = save_untrained(tmp_path / "c.pt", settings, catalog)
    state = torch.random.get_rng_state()
    found = load_checkpoint(tmp_path / "c.pt", classes=catalog.classes)
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.spec == settings and found.classes == ("left", "right") and not found.network.training
    assert found.record["best_step"] == 3 and found.record["catalog_key"] == catalog.key
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in found.network.state_dict().items())


def test_a_checkpoint_does_not_need_the_weights_file_it_started_from(tmp_path):
    catalog, _ = two_classes("frames")
    network = build(spec(), 2)
    gone = spec(start=str(tmp_path / "gone.pth"))
    save_checkpoint(tmp_path / "c.pt", network.state_dict(), gone, catalog)
    assert load_checkpoint(tmp_path / "c.pt").spec == gone


def test_other_classes_are_refused_naming_both(tmp_path):
    catalog, _ = two_classes("frames")
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    other = Catalog((), ("up", "down", "left"), "1", ())
    with pytest.raises(ValueError, match=r"on 2 classes \('left', 'right'\); expected 3 classes \('up', "):
        score(tmp_path / "c.pt", store_path="i", catalog=other, part="test", spec=ScoreSpec())
    refuse_unfit(tmp_path / "c.pt", "spatial", "", catalog.classes)
    with pytest.raises(ValueError, match=r"on 2 classes \('left', 'right'\); expected 3 classes \('up', "):
        refuse_unfit(tmp_path / "c.pt", "spatial", "", other.classes)


def test_foreign_old_and_damaged_checkpoints_are_refused(tmp_path):
    path = tmp_path / "c.pt"
    with pytest.raises(FileNotFoundError, match="c.pt does not exist; train the stream first"):
        load_checkpoint(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="weights_only=True .*delete it and run the same command again to retrain"):
        load_checkpoint(path)
    save_tensors(path, {"state_dict": {}})
    with pytest.raises(ValueError, match="holds 'no format', not 'two-stream-checkpoint'"):
        load_checkpoint(path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds 'list', not 'two-stream-checkpoint'"):
        load_checkpoint(path)
    save_tensors(path, {"format": CHECKPOINT_FORMAT, "format_version": 0})
    with pytest.raises(ValueError, match="has format version 0; this code reads 1"):
        load_checkpoint(path)
    save_tensors(path, {"format": CHECKPOINT_FORMAT, "format_version": torch.ones(2)})
    with pytest.raises(ValueError, match=r"has format version tensor\(\[1., 1.\]\); this code reads 1"):
        load_checkpoint(path)


@pytest.mark.parametrize("seen", [3, "abc", [["abc"]], [3]])
def test_clips_seen_must_be_contents_of_clips(tmp_path, seen):
    save_tensors(tmp_path / "c.pt", {"format": CHECKPOINT_FORMAT, "chosen_on": seen})
    with pytest.raises(ValueError, match="c.pt does not say plainly which clips it was trained and chosen on"):
        clips_seen(tmp_path / "c.pt")


def test_settings_and_weights_that_do_not_fit_are_refused(tmp_path):
    catalog, _ = two_classes("frames")
    about = {"format": CHECKPOINT_FORMAT, "format_version": 1, "classes": ["left", "right"], "other_classes": []}
    save_tensors(tmp_path / "c.pt", {**about, "stream_spec": {**spec().as_dict(), "color": 3}, "state": {}})
    with pytest.raises(ValueError, match="has settings that this code does not know .*color"):
        load_checkpoint(tmp_path / "c.pt")
    wrong = build(spec("temporal"), 2).state_dict()
    save_checkpoint(tmp_path / "c.pt", wrong, spec(), catalog)
    with pytest.raises(ValueError, match=r"the weights in .*c.pt do not fit its network 'small'"):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize(
    "part",
    [
        {"stream_spec": "spatial"},
        {"stream_spec": {}},
        {"classes": [1, 2]},
        {"classes": None},
        {"state": [1]},
        {"other_classes": "x"},
        {"other_classes": None},
    ],
)
def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, part):
    about = {"format": CHECKPOINT_FORMAT, "format_version": 1, "classes": ["left", "right"], "other_classes": []}
    save_tensors(tmp_path / "c.pt", {**about, "stream_spec": spec().as_dict(), "state": {}, **part})
    for read in (load_checkpoint, lambda path: refuse_unfit(path, "spatial", "")):
        with pytest.raises(ValueError, match="lacks the settings, the classes or the weights of a trained stream"):
            read(tmp_path / "c.pt")


def test_a_network_that_answers_nan_is_no_failed_clip(monkeypatch, tmp_path):
    catalog, fake = two_classes("frames")
    use_store(monkeypatch, fake)
    network = build(spec(), len(catalog.classes))
    network.head.bias.data[0] = float("nan")
    save_checkpoint(tmp_path / "c.pt", network.state_dict(), spec(), catalog)
    with pytest.raises(
        ValueError, match=r"the network of .*c.pt gives NaN for 4 of 4 clips, such as '.*train it again"
    ):
        score(tmp_path / "c.pt", store_path="i", catalog=catalog, part="test", spec=ScoreSpec(frames=2))


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    torch.save({"format": CHECKPOINT_FORMAT, "format_version": 1, "state": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="weights_only=True"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_every_view_is_kept_on_request(monkeypatch, tmp_path):
    catalog, fake = two_classes("frames", frames=9)
    use_store(monkeypatch, fake)
    network = save_untrained(tmp_path / "c.pt", spec(), catalog)
    made = score_to(
        tmp_path / "scores.h5",
        {"inputs": "i"},
        checkpoint=tmp_path / "c.pt",
        store_path="i",
        catalog=catalog,
        part="test",
        spec=ScoreSpec(frames=2, crops=2, per_view=True, batch=3),
    )
    found = Scores.read(tmp_path / "scores.h5")
    np.testing.assert_array_equal(found.probabilities, made.probabilities)
    assert list(found.views) == list(found.video_ids)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    for row, clip in enumerate(catalog.part("test")):
        views = []
        for frame in (0, 8):  # 40 x 48 pixels, the center and its mirror image
            view = fake[clip.id]._frames[frame][4:36, 8:40]
            views += [view, view[:, ::-1]]
        inputs = ((np.stack(views) / 255 - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
        with torch.no_grad():
            features = network.features(torch.from_numpy(inputs))
            logits = network.head(features).numpy()
        kept = found.views[clip.id]
        np.testing.assert_allclose(kept.probabilities, softmax(logits), atol=1e-5)
        np.testing.assert_allclose(kept.features, features.numpy(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(kept.probabilities.mean(0), found.probabilities[row], atol=1e-6)


def test_views_of_a_clip_that_failed_are_nan(monkeypatch, tmp_path):
    catalog, fake = two_classes("frames")
    fail(fake, "left_5", "decodes no frame")
    use_store(monkeypatch, fake)
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    about = {"checkpoint": tmp_path / "c.pt", "store_path": "i", "catalog": catalog, "part": "test"}
    score_to(tmp_path / "s.h5", {}, spec=ScoreSpec(frames=2, crops=1, per_view=True), **about)
    found = Scores.read(tmp_path / "s.h5")
    assert found.failed == ("left_5",) and np.isnan(found.views["left_5"].probabilities).all()
    assert found.take([2]).views["right_5"].features.shape == (2, 128)
    score_to(tmp_path / "s.h5", {}, spec=ScoreSpec(frames=2, crops=1), **about)
    with pytest.raises(ValueError, match=r"s.h5 holds no views; score again with \[score\] per_view = true"):
        _ = Scores.read(tmp_path / "s.h5").views


def test_views_where_no_clip_could_be_scored(monkeypatch, tmp_path):
    catalog, fake = two_classes("frames")
    for clip in catalog.clips:
        fail(fake, clip.id, "decodes no frame")
    use_store(monkeypatch, fake)
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    unlabeled = Catalog(tuple(replace(clip, label=-1, class_name="") for clip in catalog.clips), (), "1", ())
    about = {"checkpoint": tmp_path / "c.pt", "store_path": "i", "catalog": unlabeled, "part": "test"}
    score_to(tmp_path / "s.h5", {}, spec=ScoreSpec(frames=2, crops=1, per_view=True), **about)
    with pytest.raises(ValueError, match="s.h5 holds no views, because none of its clips could be scored"):
        _ = Scores.read(tmp_path / "s.h5").views


def test_views_of_a_part_without_clips_are_none(monkeypatch, tmp_path):
    catalog, fake = two_classes("frames", val=0)
    use_store(monkeypatch, fake)
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    about = {"checkpoint": tmp_path / "c.pt", "store_path": "i", "catalog": catalog, "part": "val"}
    score_to(tmp_path / "s.h5", {}, spec=ScoreSpec(frames=2, crops=1, per_view=True), **about)
    found = Scores.read(tmp_path / "s.h5").views
    assert len(found) == 0 and list(found) == [] and dict(found) == {}


def test_a_scoring_that_breaks_off_leaves_no_file(monkeypatch, tmp_path):
    catalog, _ = two_classes("frames")
    use_store(monkeypatch, FakeStore({}, {}))
    save_untrained(tmp_path / "c.pt", spec(), catalog)
    about = {"checkpoint": tmp_path / "c.pt", "store_path": "i", "catalog": catalog, "part": "test"}
    with pytest.raises(KeyError, match="left_5"):
        score_to(tmp_path / "s.h5", {}, spec=ScoreSpec(frames=2, crops=1, per_view=True), **about)
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]
