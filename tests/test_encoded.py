"""Batches that are partly still JPEG: decoded on the network's device, they are those that the CPU decodes.

Where there is no GPU, torchvision's decoder of the CPU stands for nvJPEG; the way to it and from it is the same.
"""

import functools
import itertools
import multiprocessing
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from stores import smooth_flow, write_flow

from pipeline import decoding, encoded, jpeg
from pipeline.catalog import Clip
from pipeline.dataset import TrainingSet, stack_items
from pipeline.decoding import PartlyEncoded, partly_encoded
from pipeline.encoded import EncodedBatch, decode
from pipeline.errors import DamagedFile
from pipeline.inputs import ViewBatch, to_inputs
from pipeline.loading import _InReusedMemory, loader, sent_ahead
from pipeline.parallel import ItemSampler, World
from pipeline.specs import StackSpec, StreamSpec
from pipeline.together import TakingTurns
from pipeline.transforms import View

CPU = torch.device("cpu")


def spec(**given) -> StreamSpec:
    stack = StackSpec(**{"length": 3, **given.pop("stack", {})})
    values = {"network": "small", "resize_px": 0, "crop_px": 32, "batch": 6, "steps": 9, "flow_unit_px": 2.0, **given}
    return StreamSpec(stream="temporal", stack=stack, **values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A function that gives the index of a flow store of one clip, 11 fields of 48 x 64 in both directions."""

    @functools.cache
    def written(minmax=False):
        place = tmp_path_factory.mktemp("flow")
        return write_flow(place, smooth_flow(11), backward=smooth_flow(11, seed=1), minmax=minmax)

    return written


def items_of(settings, index) -> TrainingSet:
    return TrainingSet(settings, index, [Clip("a", "a.avi", 1, "right", "anna", "train", 1, 1, "0" * 16)])


def numbers_of(items) -> ItemSampler:
    return ItemSampler(items.spec, World(), 0)


RECIPES = {
    "paper": {},
    "means kept": {"stack": {"subtract_mean": False}},
    "both ways": {"stack": {"length": 4, "direction": "bidirectional"}},
    "longer than the clip": {"stack": {"length": 14, "short": "wrap"}},
    "corners": {"cropping": "corners"},
    "corners, means kept": {"cropping": "corners", "crop_px": 48, "stack": {"subtract_mean": False}},
    "trajectories": {"stack": {"kind": "trajectory"}},
    "trajectories both ways, means kept": {
        "stack": {"length": 6, "kind": "trajectory", "direction": "bidirectional", "subtract_mean": False}
    },
    "trajectories of corners": {"cropping": "corners", "stack": {"kind": "trajectory"}},
    "snippets": {"segments": 3, "batch": 5},
    "snippets of corners": {"segments": 2, "cropping": "corners"},
}


@pytest.mark.parametrize("minmax", [False, True], ids=["bound", "minmax"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_inputs_are_those_that_the_cpu_decodes(folder, recipe, minmax, share):
    settings = spec(**recipe)
    plain = items_of(settings, folder(minmax))
    partly, batch = PartlyEncoded(plain, share, batch=settings.batch), range(settings.batch)
    mirrored = set()
    for first in range(0, 8 * settings.batch, settings.batch):
        made, labels = stack_items([partly[first + k] for k in batch])
        assert isinstance(made, EncodedBatch) and len(made.places) == int(share * settings.batch)
        expected, expected_labels = stack_items([plain[first + k] for k in batch])
        found = made.to(CPU)
        assert isinstance(found, ViewBatch) and found.shape == expected.shape == made.shape
        torch.testing.assert_close(to_inputs(found, CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)
        assert torch.equal(labels, expected_labels)
        mirrored |= {view.mirrored for item in made.views for view in item}
    assert mirrored == {True, False}


def test_two_sets_take_turns_encoded_or_not(folder):
    settings = spec()
    own, other = items_of(settings, folder()), items_of(spec(seed=3), folder())
    turns = TakingTurns(own, other)
    partly = PartlyEncoded(turns, 0.75, batch=12)
    made, _ = stack_items([partly[k] for k in range(12)])
    expected, _ = stack_items([(own, other)[k % 2][k // 2] for k in range(12)])
    assert len(partly) == len(turns) and made.places == [1, 2, 3, 5, 6, 7, 9, 10, 11]
    torch.testing.assert_close(to_inputs(made.to(CPU), CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 0.9, 1.0])
def test_a_share_of_every_batch_is_encoded_evenly_spread(share):
    class Names:
        def encoded(self, number):
            return "encoded", number

        def __getitem__(self, number):
            return "decoded", number

    partly = PartlyEncoded(Names(), share, batch=100)
    for first in (0, 700):
        found = [partly[first + k] for k in range(100)]
        assert [number for _, number in found] == list(range(first, first + 100))
        encoded = [kind == "encoded" for kind, _ in found]
        assert sum(encoded) == round(100 * share)
        for a, b in itertools.combinations(range(0, 101, 7), 2):
            assert abs(sum(encoded[a:b]) - share * (b - a)) < 1


def test_planes_that_are_resized_first_are_decoded_by_the_cpu(folder):
    plain = items_of(spec(resize_px=40), folder())
    view, label = plain.encoded(4)
    assert isinstance(view, View) and label == 1
    assert np.array_equal(view.values, plain[4][0].values)


@pytest.mark.parametrize("workers", [1, 2])
def test_loading_processes_hand_over_both_kinds_in_memory_that_they_use_again(folder, workers, monkeypatch):
    """Where there is no GPU, a copy stands for the pinned batch; torch makes it where it would pin, in a thread."""
    for name, value in {"is_available": True, "current_device_index": 0, "set_device_index": None}.items():
        monkeypatch.setattr(torch.accelerator, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor.clone())
    settings = spec(steps=12)
    plain = items_of(settings, folder())
    partly = PartlyEncoded(plain, 0.5, batch=6)
    batches = loader(partly, range(72), batch=6, workers=workers, pin=True, collate=stack_items)
    for first, (views, _) in zip(range(0, 72, 6), batches, strict=True):
        expected, _ = stack_items([plain[first + k] for k in range(6)])
        torch.testing.assert_close(to_inputs(views.to(CPU), CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)
    assert not multiprocessing.active_children() or workers


def test_both_parts_of_a_batch_have_memory_of_their_own(folder):
    partly = PartlyEncoded(items_of(spec(), folder()), 0.5, batch=6)
    make = _InReusedMemory(stack_items)
    made = [make([partly[k] for k in range(first, first + 6)])[0] for first in (0, 6, 12, 18, 24)]
    data, values = ([t.data_ptr() for t in part] for part in ([m.data for m in made], [m.decoded.values for m in made]))
    assert all(m.data.is_shared() and m.decoded.values.is_shared() for m in made)
    assert not set(data) & set(values) and len(set(values)) == 2 and values[0] == values[2]


class Refusing:
    """torchvision's decoder, were it to know no such JPEG."""

    def __call__(self, data, device):
        raise RuntimeError("Error while decoding JPEG images: nvjpeg failed")


def encoded_batch(folder, count=6):
    plain = items_of(spec(), folder())
    return stack_items([plain.encoded(k) for k in range(count)])[0], stack_items([plain[k] for k in range(count)])[0]


def test_what_the_device_cannot_decode_the_cpu_does(folder, monkeypatch):
    made, expected = encoded_batch(folder)
    monkeypatch.setattr(encoded, "decode", Refusing())
    torch.testing.assert_close(to_inputs(made.to(CPU), CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("broken", [0, 7])
def test_a_damaged_plane_names_its_clip_and_what_to_do(folder, broken):
    made, _ = encoded_batch(folder)
    made.data[sum(made.sizes[:broken]) : sum(made.sizes[: broken + 1])] = 0
    with pytest.raises(
        DamagedFile, match="flow of clip 'a' of .*: .* bytes do not decode as JPEG; `python -m pipeline r"
    ):
        made.to(CPU)


def test_planes_of_another_size_are_damage(folder):
    made, _ = encoded_batch(folder)
    other = torch.from_numpy(np.frombuffer(jpeg.encode(np.zeros((48, 60), np.uint8), quality=90), np.uint8).copy())
    planes = list(made.data.split(made.sizes))
    planes[4] = other
    strange = EncodedBatch(made.shape, None, made.views, made.places, torch.cat(planes), [len(p) for p in planes])
    with pytest.raises(
        DamagedFile, match="flow of clip 'a' of .*: its planes differ in size; `python -m pipeline repair"
    ):
        strange.to(CPU)


@pytest.mark.parametrize("to", [(224, 224), (96, 80), (100, 224)])
@pytest.mark.parametrize("size", [(168, 168), (192, 168), (256, 224), (256, 256)])
def test_resizing_is_that_of_opencv(size, to):
    how, plane = encoded.interpolation(*size, *to), np.random.default_rng(0).random(size, np.float32) * 255
    down, along = (encoded._resizing(a, b, how, CPU) for a, b in zip(size, to, strict=True))
    found = (down @ torch.from_numpy(plane) @ along.T).numpy()
    np.testing.assert_allclose(found, cv2.resize(plane, dsize=to[::-1], interpolation=how), atol=2e-3)


CUDA = torch.device("cuda")


class Speeds:
    """Stands for the stop-watch: items per second of the GPU and of one thread."""

    def __init__(self, monkeypatch, on_gpu, on_cpu):
        rates = iter((on_gpu, on_cpu))
        monkeypatch.setattr(decoding, "decode", lambda data, device: None)
        monkeypatch.setattr(decoding, "_rate", lambda work, count: next(rates))


@pytest.mark.parametrize(
    ("on_gpu", "on_cpu", "workers", "share"),
    [
        (3_500, 250, 16, 0.38),  # 2450 of 2450 + 4000
        (3_500, 250, 4, 0.71),
        (3_500, 250, 0, 0.91),  # a thread loads
        (150, 250, 16, 0.0),  # 2.6 %
    ],
)
def test_the_share_makes_both_take_equally_long(folder, monkeypatch, capsys, on_gpu, on_cpu, workers, share):
    plain = items_of(spec(), folder())
    Speeds(monkeypatch, on_gpu, on_cpu)
    found = partly_encoded(plain.spec, plain, numbers_of(plain), CUDA, workers)
    assert found is plain if share == 0 else (found.share, found.batch, len(found)) == (share, 6, 54)
    said = capsys.readouterr().err
    assert f"temporal: the GPU decodes {share:.0%} of the stacks (alone it makes {on_gpu:,} items/s, " in said
    assert f", {max(1, workers)} loading processes {max(1, workers) * on_cpu:,};" in said


def test_a_share_that_is_given_is_taken(folder, monkeypatch):
    plain = items_of(spec(gpu_decoding=0.25, deterministic=True), folder())
    Speeds(monkeypatch, 1, 1_000_000)
    assert partly_encoded(plain.spec, plain, numbers_of(plain), CUDA, 16).share == 0.25


@pytest.mark.parametrize(
    ("device", "given"),
    [
        (CPU, {"gpu_decoding": 0.5}),
        (CUDA, {"gpu_decoding": 0.0}),
        (CUDA, {"deterministic": True}),
        (CUDA, {"resize_px": 40}),
    ],
    ids=["no GPU", "not wanted", "the share would not repeat", "resized before the crop"],
)
def test_where_the_cpu_decodes_nothing_is_measured(folder, monkeypatch, capsys, device, given):
    plain = items_of(spec(**given), folder())
    monkeypatch.setattr(decoding, "_rate", lambda work, count: pytest.fail("measured"))
    assert partly_encoded(plain.spec, plain, numbers_of(plain), device, 16) is plain
    assert capsys.readouterr().err == ""


def test_without_nvjpeg_the_cpu_decodes_and_that_is_said(folder, monkeypatch, capsys):
    plain = items_of(spec(gpu_decoding=0.5), folder())
    monkeypatch.setattr(decoding, "decode", Refusing())
    assert partly_encoded(plain.spec, plain, numbers_of(plain), CUDA, 16) is plain
    assert (
        "torchvision cannot decode JPEG on this GPU, so the CPU does (Error while decoding" in capsys.readouterr().err
    )


def test_speeds_are_measured_on_the_first_items(folder, monkeypatch):
    plain, sent = items_of(spec(), folder()), []
    to, expected = EncodedBatch.to, stack_items([plain[number] for number in range(32)])[0]

    def on_cpu(batch, device, **how):
        assert device == CUDA
        sent.append(to(batch, CPU, **how))

    monkeypatch.setattr(EncodedBatch, "to", on_cpu)
    monkeypatch.setattr(decoding, "decode", lambda data, device: decode(data, CPU))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    found = partly_encoded(plain.spec, plain, numbers_of(plain), CUDA, 1)
    assert 0 < found.share < 1 and len(sent) == 4
    torch.testing.assert_close(to_inputs(sent[0], CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_nvjpeg_gives_nearly_the_same_inputs(folder, recipe):
    settings = spec(**recipe)
    plain = items_of(settings, folder())
    partly = PartlyEncoded(plain, 0.5, batch=settings.batch)
    numbers = range(8 * settings.batch)
    batches = loader(partly, numbers, batch=settings.batch, workers=0, pin=True, collate=stack_items)
    for first, (views, _) in zip(numbers[:: settings.batch], sent_ahead(batches, CUDA), strict=True):
        expected, _ = stack_items([plain[first + k] for k in range(settings.batch)])
        difference = (to_inputs(views, CUDA).cpu() - to_inputs(expected, CPU)).abs()
        assert difference.max() < 2.5 * expected.scale.abs().max()  # two steps of a byte, and their mean
        assert difference.mean() < 0.5 * expected.scale.abs().max()
