"""Training together with another dataset: losses and gradients in plain torch, which clips and classes take part."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes import FakeStore, second_set, two_classes
from torch.nn.functional import cross_entropy
from trainings import assert_same_weights, interrupt_after, scores_of_test_part, spec, without_batch_norm

from pipeline import training
from pipeline.catalog import NO_VIDEO, Catalog
from pipeline.dataset import TrainingSet
from pipeline.networks import build
from pipeline.networks.checkpoint import clips_seen, load_checkpoint
from pipeline.training import train, train_step
from pipeline.training.state import TrainingState
from pipeline.training.together import (
    OtherDataset,
    other_classes,
    refuse_overlap,
    refuse_start_that_saw,
    same_classes,
    say_shared_groups,
    seen_by,
    training_set,
)

CPU = torch.device("cpu")
HEADS = {"with_dataset": "more", "with_how": "heads"}
CLASSES = {"with_dataset": "more", "with_how": "classes"}


@pytest.fixture
def sets(monkeypatch):
    """A function that installs two stores, "own" and "more"; returns the first's catalog, and the other set."""

    def install(kind="frames"):
        (own, own_store), (more, more_store) = two_classes(kind), second_set(kind)
        stores = {"own": own_store, "more": more_store}
        for name in ("open_frames", "open_flow"):
            monkeypatch.setattr(
                f"pipeline.dataset.pictures.store.{name}", lambda path: stores.get(str(path), own_store)
            )
        return own, OtherDataset("more", "more", more)

    return install


def run(settings, catalog, other, folder):
    given = {"other": other} if settings.with_how in ("heads", "classes") else {}
    train(settings, store_path="own", catalog=catalog, folder=folder, inputs_key="in", device="cpu", **given)
    return load_checkpoint(folder / "checkpoint.pt")


def exact(settings, num_classes=2, other_classes=3):
    """A training in float64."""
    now = TrainingState(settings, num_classes, CPU, other_classes=other_classes)
    now.network.double()
    return now


# --- one body, two heads


def test_the_loss_is_the_sum_of_both_means_and_each_head_learns_from_its_own_clips():
    torch.manual_seed(0)
    given = {"dropout": 0.0, "momentum": 0.0, "weight_decay": 0.0, "learning_rate": 0.1, "milestones": ()}
    settings = without_batch_norm(**given, label_smoothing=0.2, **HEADS)
    now, inputs = exact(settings), torch.randn(8, 3, 40, 40, dtype=torch.float64)
    own, other = torch.tensor([0, 1, 1, 0]), torch.tensor([2, 0, 1, 2])
    plain = build(settings, 2, 3).double()
    plain.load_state_dict(now.network.state_dict())
    losses = [
        cross_entropy(head(plain.body(inputs[first::2])), labels, label_smoothing=0.2)
        for first, head, labels in ((0, plain.head, own), (1, plain.other_head, other))
    ]
    heads = [plain.head.weight, plain.other_head.weight]
    slopes = [torch.autograd.grad(loss, head, retain_graph=True)[0] for loss, head in zip(losses, heads, strict=True)]
    labels = torch.stack([own, other], 1).flatten()
    assert train_step(now, inputs, labels) == pytest.approx(sum(losses).item(), rel=1e-12)
    sum(losses).backward()
    torch.testing.assert_close(now.network.head.weight.grad, slopes[0])
    torch.testing.assert_close(now.network.other_head.weight.grad, slopes[1])
    for name, weight in plain.named_parameters():
        moved = weight.detach() - 0.1 * weight.grad
        torch.testing.assert_close(now.network.get_parameter(name).detach(), moved, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("consensus", ["average", "max"])
def test_each_set_has_the_consensus_of_its_own_snippets(consensus):
    network = build(without_batch_norm(segments=2, consensus=consensus, **HEADS), 2, 3).eval()
    snippets = torch.randn(6, 2, 3, 40, 40)
    for logits, first, head in zip(
        network(snippets, both=True), (0, 1), (network.head, network.other_head), strict=True
    ):
        each = torch.stack([head(network.body(snippets[first::2, k])) for k in (0, 1)])
        expected = each.mean(0) if consensus == "average" else each.max(0).values
        torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_makes_the_same_step(parts):
    inputs, labels = torch.randn(8, 3, 40, 40, dtype=torch.float64), torch.tensor([0, 2, 1, 0, 1, 1, 0, 2])
    settings = without_batch_norm(learning_rate=1e-3, **HEADS)
    whole, cut = (exact(replace(settings, accumulate=n)) for n in (1, parts))
    for _ in range(3):
        assert train_step(cut, inputs, labels) == pytest.approx(train_step(whole, inputs, labels), abs=1e-12)
        whole.step = cut.step = whole.step + 1
    for name, value in cut.network.state_dict().items():
        torch.testing.assert_close(value, whole.network.state_dict()[name], rtol=1e-9, atol=1e-12)


def test_items_take_turns_and_this_sets_are_those_of_a_training_alone(sets):
    catalog, other = sets()
    settings = spec(**HEADS)
    both, alone = training_set(settings, "own", catalog, other), TrainingSet(spec(), "own", catalog.part("train"))
    assert len(both) == 2 * len(alone) == 2 * 12 * 4
    for n in range(16):
        (view, label), (expected, expected_label) = both[2 * n], alone[n]
        assert label == expected_label and all(map(np.array_equal, view, expected))
    assert Counter(both[2 * n + 1][1] for n in range(15)) == {0: 5, 1: 5, 2: 5}


@pytest.mark.parametrize("how", [HEADS, CLASSES])
def test_of_the_other_set_only_training_clips_are_used(sets, monkeypatch, how):
    catalog, other = sets()
    assert {clip.part for clip in other.catalog.clips} == {"train", "val", "test"}
    given = []
    monkeypatch.setattr("pipeline.training.together.TrainingSet", lambda *arguments: given.append(arguments))
    training_set(spec(**how), "own", catalog, other)
    of_other = given[0][2] if how == HEADS else given[0][3][1]
    assert {clip.part for clip in of_other} == {clip.part for clip in given[-1][2]} == {"train"}


def test_what_is_drawn_of_one_set_says_nothing_of_the_other(sets):
    catalog, _ = sets()
    twin = OtherDataset("twin", "own", catalog)
    both = training_set(spec(**HEADS), "own", catalog, twin)
    same = [np.array_equal(both[2 * n][0].values, both[2 * n + 1][0].values) for n in range(20)]
    assert sum(same) <= 2


@pytest.mark.parametrize("seed", [*range(8), 2**63 - 1])
def test_every_seed_draws_the_items_of_both_sets(sets, seed):
    catalog, other = sets()
    both = training_set(spec(**HEADS, seed=seed), "own", catalog, other)
    for of_one in both.sets:
        assert of_one.spec.seed < 2**63 and of_one[0][1] in (0, 1, 2)


@pytest.mark.parametrize("how", [HEADS, CLASSES])
@pytest.mark.parametrize(("stream", "stop"), [("spatial", 9), ("temporal", 3)])
def test_an_interrupted_training_ends_with_the_same_bits(sets, tmp_path, monkeypatch, how, stream, stop):
    catalog, other = sets("frames" if stream == "spatial" else "flow")
    settings = spec(stream, **how)
    whole = run(settings, catalog, other, tmp_path / "whole")
    real = interrupt_after(monkeypatch, stop)
    with pytest.raises(ZeroDivisionError):
        run(settings, catalog, other, tmp_path / "parts")
    monkeypatch.setattr(training, "train_step", real)
    parts = run(settings, catalog, other, tmp_path / "parts")
    assert_same_weights(whole.network.state_dict(), parts.network.state_dict())


def test_a_training_with_other_classes_does_not_go_on_from_this_ones(sets, tmp_path, monkeypatch, capsys):
    catalog, other = sets()
    real = interrupt_after(monkeypatch, 9)
    with pytest.raises(ZeroDivisionError):
        run(spec(**HEADS), catalog, other, tmp_path)
    monkeypatch.setattr(training, "train_step", real)
    clips = tuple(replace(clip, class_name=clip.class_name.title()) for clip in other.catalog.clips)
    run(spec(**HEADS), catalog, other._replace(catalog=Catalog(clips, ("Left", "Down", "Up"), "1", ())), tmp_path)
    assert "spatial: training starts over" in capsys.readouterr().err


@pytest.mark.parametrize("how", [HEADS, CLASSES])
def test_scores_are_of_this_sets_classes_and_its_validation_alone_chooses(sets, tmp_path, monkeypatch, how):
    catalog, other = sets("flow")
    seen, real = [], training.validation.evaluate
    monkeypatch.setattr(
        training.validation, "evaluate", lambda n, test_set, **o: seen.append(test_set.clips) or real(n, test_set, **o)
    )
    settings = spec("temporal", steps=30, milestones=(20,), **how)
    found = run(settings, catalog, other, tmp_path)
    assert seen and all(tuple(clips) == catalog.part("val") for clips in seen)
    assert found.classes == ("left", "right")
    assert found.other_classes == (("LEFT", "down", "up") if how is HEADS else ("down", "up"))
    scores = scores_of_test_part(tmp_path, catalog)
    assert scores.classes == ("left", "right") and scores.probabilities.shape == (4, 2)
    assert scores.top1() == 1.0


# --- the other's classes added


def test_names_mean_the_same_but_for_case_and_punctuation_or_if_a_pair_says_so():
    own, other = ("ride_bike", "ride_horse", "shoot ball", "wave"), ("Basketball", "Biking", "RideHorse", "Surfing")
    assert same_classes(own, other) == {"RideHorse": "ride_horse"}
    pairs = ("ride_bike:Biking", "shoot ball:Basketball", "ride_bike:Surfing")
    expected = {"Basketball": "shoot ball", "Biking": "ride_bike", "RideHorse": "ride_horse", "Surfing": "ride_bike"}
    assert same_classes(own, other, pairs) == expected
    with pytest.raises(
        ValueError, match="'wave:Bikin': class 'Bikin' of the other set does not exist; did you mean 'Bik"
    ):
        same_classes(own, other, ("wave:Bikin",))
    with pytest.raises(
        ValueError, match="'weave:Biking': class 'weave' of this set does not exist; did you mean 'wave'"
    ):
        same_classes(own, other, ("weave:Biking",))


def test_names_differ_by_vowel_signs_and_not_by_how_an_accent_is_written():
    assert same_classes(["\u092a\u093e\u0928\u093e"], ["\u092a\u093e\u0928\u0940"]) == {}  # to get, water
    assert same_classes(["caf\u00e9"], ["Cafe\u0301"]) == {"Cafe\u0301": "caf\u00e9"}
    assert same_classes(["+"], ["-", "+"]) == {"+": "+"}


def test_added_classes_come_as_often_as_this_sets(sets, capsys):
    catalog, other = sets()
    found = training_set(spec(**CLASSES), "own", catalog, other)
    assert Counter(found[n][1] for n in range(40)) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert {found.clips[found.choose(n)].class_name for n in range(40)} == {"left", "right", "down", "up"}
    said = capsys.readouterr().err
    assert "2 of the 3 classes of more are added; not added, as classes of this set: LEFT = left" in said
    stores = {clip.class_name: id(pictures.store) for clip, pictures in zip(found.clips, found.pictures, strict=True)}
    assert stores["left"] == stores["right"] != stores["up"] == stores["down"]


def test_probabilities_are_those_of_all_outputs_renormalized_over_this_sets_classes():
    network = build(spec(**CLASSES), 2, 3)
    network.head.weight.data *= 30
    features = torch.randn(5, 128)
    logits = (features @ network.head.weight.T + network.head.bias).detach().double().numpy()
    assert logits.shape == (5, 5) and network.num_classes == 2
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = shares[:, :2] / shares[:, :2].sum(1, keepdims=True)
    np.testing.assert_allclose(network.probabilities(features).detach().numpy(), expected, rtol=1e-4, atol=1e-6)


def test_a_set_that_adds_nothing_is_refused(sets):
    catalog, other = sets()
    settings = spec(**CLASSES, with_same=("left:up", "right:down"))
    with pytest.raises(
        ValueError, match=r"\[spatial\] with_how is classes, but every class of more is a class of this"
    ):
        other_classes(settings, catalog, other)
    added = {clip.class_name for clip in other.catalog.clips} - set(catalog.classes)
    tested = tuple(replace(clip, part="test") if clip.class_name in added else clip for clip in other.catalog.clips)
    other = other._replace(catalog=replace(other.catalog, clips=tested))
    with pytest.raises(ValueError, match=r"but more has no training clip of the classes that it would add: "):
        other_classes(spec(**CLASSES), catalog, other)


@pytest.mark.parametrize("how", [HEADS, CLASSES])
def test_what_is_validated_or_tested_here_is_not_trained_on_there(sets, capsys, how):
    catalog, other = sets()
    marked = [replace(clip, content=f"{n:016x}") for n, clip in enumerate(catalog.clips, 1)]
    tested, trained = (next(clip.content for clip in marked if clip.part == part) for part in ("test", "train"))
    copies = {"right_1": tested, "right_0": trained}  # what both sets train on stays
    clips = [replace(clip, content=copies.get(clip.id, "f" * 16)) for clip in other.catalog.clips]
    other = other._replace(catalog=replace(other.catalog, clips=tuple(clips)))
    found = training_set(spec(**how), "own", replace(catalog, clips=tuple(marked)), other)
    used = found.sets[1].clips if how is HEADS else found.clips[8:]
    assert "right_1" not in {clip.id for clip in used} and "right_0" in {clip.id for clip in used}
    assert (
        "1 training clips of more are validation or test clips here, and are left out: 'right_1'"
        in capsys.readouterr().err
    )


def apart(catalog):
    """The catalog with a group, and contents of their own, for each part: anna, ben and cleo."""
    named = {"train": "anna", "val": "ben", "test": "cleo"}
    clips = enumerate(catalog.clips, 1)
    return replace(catalog, clips=tuple(replace(c, group=named[c.part], content=f"{n:016x}") for n, c in clips))


def test_groups_of_clips_that_are_left_out_are_not_reported(sets, capsys):
    catalog, other = sets()
    own, clips = apart(catalog), [replace(c, group="dora", content="f" * 16) for c in other.catalog.clips]
    first = next(n for n, c in enumerate(clips) if c.part == "train")
    clips[first] = replace(clips[first], group="cleo", content=own.part("test")[0].content)
    say_shared_groups(spec(**HEADS), own, other._replace(catalog=replace(other.catalog, clips=tuple(clips))))
    assert capsys.readouterr().err == ""


def test_groups_of_classes_that_are_not_added_are_not_reported(sets, capsys):
    catalog, other = sets()
    same = same_classes(catalog.classes, other.catalog.classes)
    clips = tuple(replace(c, group="cleo" if c.class_name in same else "dora") for c in other.catalog.clips)
    say_shared_groups(spec(**CLASSES), apart(catalog), other._replace(catalog=replace(other.catalog, clips=clips)))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("how", ["heads", "classes", "start"])
def test_groups_held_out_here_and_trained_on_there_are_reported(sets, capsys, how):
    catalog, other = sets()
    own, settings = apart(catalog), spec(with_dataset="more", with_how=how)

    def told(*groups):
        clips = [replace(c, group=groups[n % len(groups)]) for n, c in enumerate(other.catalog.clips)]
        say_shared_groups(settings, own, other._replace(catalog=replace(other.catalog, clips=tuple(clips))))
        return capsys.readouterr().err

    assert (
        "2 groups that are held out here have training clips in more, by their names: 'ben', 'cleo'; if they"
        in told("anna", "ben", "cleo")
    )
    assert told("anna", "dora") == ""
    tested = [
        replace(c, group="cleo", part="test") if n % 2 else replace(c, group="dora")
        for n, c in enumerate(other.catalog.clips)
    ]
    say_shared_groups(settings, own, other._replace(catalog=replace(other.catalog, clips=tuple(tested))))
    assert capsys.readouterr().err == ""


def test_a_start_from_what_is_validated_or_tested_here_is_refused(sets):
    catalog, other = sets()
    own = [replace(clip, content=f"{n:016x}") for n, clip in enumerate(catalog.clips)]
    tested = next(clip for clip in own if clip.part == "test")
    trained = next(clip for clip in own if clip.part == "train")

    def with_content(content, part="train"):
        clips = [
            replace(c, content=content, part=part) if c.id == "right_1" else replace(c, content="f" * 16)
            for c in other.catalog.clips
        ]
        return other._replace(catalog=replace(other.catalog, clips=tuple(clips)))

    settings, catalog = spec(with_dataset="more", with_how="start"), replace(catalog, clips=tuple(own))
    message = (
        r"with_how is start, but 1 training or validation clips of more are validation or test clips of this set: "
        "'right_1'; take"
    )
    for part in ("train", "val"):  # by its validation clips that training chooses its weights
        with pytest.raises(ValueError, match=message):
            refuse_overlap(settings, catalog, with_content(tested.content, part))
    refuse_overlap(settings, catalog, with_content(tested.content, "test"))
    refuse_overlap(settings, catalog, with_content(trained.content))
    for none in NO_VIDEO:  # files without a video are not copies of each other
        empty = replace(catalog, clips=tuple(replace(clip, content=none) for clip in own))
        refuse_overlap(settings, empty, with_content(none))


def test_a_checkpoint_names_the_clips_of_the_other_set_that_were_trained_on_and_no_others(sets, tmp_path):
    catalog, other = sets()
    clips = [replace(clip, content=f"{n:016x}") for n, clip in enumerate(other.catalog.clips, 1)]
    other = other._replace(catalog=replace(other.catalog, clips=tuple(clips)))
    own = {clip.content for clip in catalog.part("train")}
    theirs = {clip.content: clip.class_name for clip in clips if clip.part == "train"}
    assert set(theirs.values()) == {"LEFT", "down", "up"}
    for how, used in ((HEADS, {"LEFT", "down", "up"}), (CLASSES, {"down", "up"})):  # LEFT is a class of this set
        run(spec(steps=1, milestones=(), **how), catalog, other, tmp_path / how["with_how"])
        trained, _ = clips_seen(tmp_path / how["with_how"] / "checkpoint.pt")
        assert trained - own == {content for content, name in theirs.items() if name in used}


def test_weights_of_another_split_that_saw_the_clips_held_out_here_are_refused(sets, tmp_path):
    catalog, other = sets()
    clips = [replace(clip, content=f"{n + 1:016x}") for n, clip in enumerate(catalog.clips)]
    one = replace(catalog, clips=tuple(clips))
    other = other._replace(catalog=replace(other.catalog, clips=(replace(other.catalog.clips[0], content="e" * 16),)))
    run(spec(steps=1, milestones=()), one, None, tmp_path)
    run(spec(steps=1, milestones=(), **HEADS), one, sets()[1]._replace(catalog=other.catalog), tmp_path / "both")
    start = spec(start=str(tmp_path / "checkpoint.pt"), steps=1, milestones=())
    taken = {part: next(clip.id for clip in one.part(part)) for part in ("train", "val", "test")}

    def moved(video_id, part, **changes):
        parts = {video_id: {"part": part, **changes}}
        return replace(one, clips=tuple(replace(clip, **parts.get(clip.id, {})) for clip in clips), split_name="2")

    told = (
        r"start: the weights in '.*checkpoint.pt' were trained or chosen on 1 clips that are validation or test clips "
    )
    for video_id, part in ((taken["train"], "test"), (taken["train"], "val"), (taken["val"], "test")):
        with pytest.raises(ValueError, match=f"{told}of split 2: '{video_id}'; start from weights that did not see"):
            train(
                start,
                store_path="own",
                catalog=moved(video_id, part),
                folder=tmp_path / "no",
                inputs_key="in",
                device="cpu",
            )
    assert not (tmp_path / "no").exists()
    both = replace(start, start=str(tmp_path / "both/checkpoint.pt"))
    with pytest.raises(ValueError, match=told):
        refuse_start_that_saw(both, moved(taken["test"], "test", content="e" * 16), both.start_file)
    for harmless in (one, moved(taken["test"], "train"), moved(taken["val"], "train")):
        refuse_start_that_saw(start, harmless, start.start_file)
    copy = moved(taken["test"], "test", content=clips[0].content)  # of a training clip
    refuse_start_that_saw(start, copy, start.start_file)
    copied = moved(taken["test"], "test", content="e" * 16)  # a clip of the other set, which is left out there
    assert "e" * 16 in seen_by(start, one, other, None)["trained_on"]
    assert "e" * 16 not in seen_by(start, copied, other, None)["trained_on"]
    torch.save(build(start, 2).state_dict(), tmp_path / "others.pth")  # which do not say what they saw
    refuse_start_that_saw(start, moved(taken["train"], "test"), tmp_path / "others.pth")


@pytest.mark.parametrize("how", ["a file", "the other set's training"])
def test_weights_know_what_those_had_seen_from_which_they_began(sets, tmp_path, how):
    catalog = sets()[0]
    first, second, third = (
        replace(
            catalog, clips=tuple(replace(clip, content=f"{n + 100 * k:016x}") for n, clip in enumerate(catalog.clips))
        )
        for k in range(3)
    )

    def from_weights_of(name):
        path = tmp_path / name / "checkpoint.pt"
        return ({"start": str(path)}, None) if how == "a file" else ({"with_dataset": "x", "with_how": "start"}, path)

    given = {"store_path": "own", "inputs_key": "in", "device": "cpu"}
    train(spec(steps=1, milestones=()), catalog=first, folder=tmp_path / "first", **given)
    for before, name, clips in (("first", "second", second), ("second", "third", third)):
        settings, path = from_weights_of(before)
        train(spec(steps=1, milestones=(), **settings), catalog=clips, folder=tmp_path / name, start=path, **given)
    seen = clips_seen(tmp_path / "third" / "checkpoint.pt")
    for kind, part in zip(seen, ("train", "val"), strict=True):
        assert kind == {clip.content for clips in (first, second, third) for clip in clips.part(part)}
    other_part = {"train": "test", "val": "train", "test": "val"}
    turned = replace(first, clips=tuple(replace(clip, part=other_part[clip.part]) for clip in first.clips))
    settings, path = from_weights_of("third")
    with pytest.raises(ValueError, match=r"trained or chosen on \d+ clips that are validation or test clips of split"):
        train(spec(steps=1, milestones=(), **settings), catalog=turned, folder=tmp_path / "no", start=path, **given)


def test_a_set_without_clips_in_its_store_is_refused(sets, monkeypatch):
    catalog, other = sets()
    own = two_classes("frames")[1]
    monkeypatch.setattr(
        "pipeline.dataset.pictures.store.open_frames", lambda path: own if path == "own" else FakeStore({})
    )
    for how in (HEADS, CLASSES):
        with pytest.raises(ValueError, match="none of the .* training clips is in more"):
            training_set(spec(**how), "own", catalog, other)


# --- from the other's weights, and what goes through files


def test_a_training_starts_from_the_others_body_with_a_new_head(sets, tmp_path):
    catalog, other = sets()
    first = run(spec(**HEADS), catalog, other, tmp_path / "first").network  # of whatever kind it was
    settings = spec(with_dataset="more", with_how="start", train_layers="last", start="scratch")
    start = tmp_path / "first/checkpoint.pt"
    given = {"store_path": "own", "catalog": catalog, "inputs_key": "in", "device": "cpu"}
    train(settings, folder=tmp_path / "second", start=start, **given)
    second = load_checkpoint(tmp_path / "second/checkpoint.pt").network
    assert_same_weights(second.body.state_dict(), first.body.state_dict())
    assert not torch.equal(second.head.weight, first.head.weight) and second.other_head is None


@pytest.mark.parametrize(
    ("how", "given"),
    [("", ("other",)), ("", ("start",)), ("heads", ()), ("heads", ("other", "start")), ("start", ()), ("classes", ())],
)
def test_what_does_not_fit_the_settings_is_refused(sets, tmp_path, how, given):
    catalog, other = sets()
    settings = spec(with_dataset="more" if how else "", with_how=how)
    values = {name: {"other": other, "start": tmp_path}[name] for name in given}
    with pytest.raises(ValueError, match=f"with_how is '{how}', which does not fit what train\\(\\) was given"):
        train(settings, store_path="own", catalog=catalog, folder=tmp_path, inputs_key="in", device="cpu", **values)
    assert not list(tmp_path.iterdir())


@pytest.mark.needs_cuda
@pytest.mark.parametrize("how", [HEADS, CLASSES])
def test_mixed_precision_on_cuda_learns_and_resumes(sets, tmp_path, monkeypatch, how):
    catalog, other = sets("flow")
    settings = spec("temporal", steps=60, milestones=(40,), loader_workers=0, accumulate=2, **how)
    given = {"store_path": "own", "catalog": catalog, "folder": tmp_path, "inputs_key": "in", "device": "cuda"}
    real = interrupt_after(monkeypatch, 13)
    with pytest.raises(ZeroDivisionError):
        train(settings, other=other, **given)
    monkeypatch.setattr(training, "train_step", real)
    train(settings, other=other, **given)
    assert scores_of_test_part(tmp_path, catalog).top1() >= 0.75  # dropout masks are others on a GPU
