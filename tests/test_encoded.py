"""Batches that are partly still JPEG: decoded on the network's device, they are those that the CPU decodes.

Where there is no GPU, torchvision's decoder of the CPU stands for nvJPEG; the way to it and from it is the same.
"""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from one_clip import CPU, CUDA, Refusing, items_of, spec

from pipeline.dataset import encoded, stack_items
from pipeline.dataset.encoded import EncodedBatch, decode
from pipeline.dataset.inputs import ViewBatch, to_inputs
from pipeline.dataset.loading import _InReusedMemory, loader, sent_ahead
from pipeline.system.errors import DamagedFile
from pipeline.training.feeding import PartlyEncoded
from pipeline.training.together import TakingTurns
from pipeline.transforms import View
from pipeline.video import jpeg

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
def test_inputs_are_those_that_the_cpu_decodes(flow_index, monkeypatch, recipe, minmax, share):
    monkeypatch.setattr(encoded, "_AT_ONCE", 2)  # so that a batch takes several calls
    settings = spec(**recipe)
    plain = items_of(settings, flow_index(minmax))
    partly, batch = PartlyEncoded(plain, share, batch=settings.batch), range(settings.batch)
    mirrored = set()
    for first in range(0, 8 * settings.batch, settings.batch):
        made, labels = stack_items([partly[first + k] for k in batch])
        assert isinstance(made, EncodedBatch) and len(made.places) == round(share * settings.batch)
        expected, expected_labels = stack_items([plain[first + k] for k in batch])
        found = made.to(CPU)
        assert isinstance(found, ViewBatch) and found.shape == expected.shape == made.shape
        torch.testing.assert_close(to_inputs(found, CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)
        assert torch.equal(labels, expected_labels)
        mirrored |= {view.mirrored for item in made.views for view in item}
    assert mirrored == {True, False}


def test_two_sets_take_turns_encoded_or_not(flow_index):
    settings = spec()
    own, other = items_of(settings, flow_index()), items_of(spec(seed=3), flow_index())
    turns = TakingTurns(own, other)
    partly = PartlyEncoded(turns, 0.5, batch=12, sets=2)
    made, _ = stack_items([partly[k] for k in range(12)])
    expected, _ = stack_items([(own, other)[k % 2][k // 2] for k in range(12)])
    assert len(partly) == len(turns) and made.places == [2, 3, 6, 7, 10, 11]  # as many of one set as of the other
    torch.testing.assert_close(to_inputs(made.to(CPU), CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


def test_planes_that_are_resized_first_are_decoded_by_the_cpu(flow_index):
    plain = items_of(spec(resize_px=40), flow_index())
    view, label = plain.encoded(4)
    assert isinstance(view, View) and label == 1
    assert np.array_equal(view.values, plain[4][0].values)


@pytest.mark.parametrize("workers", [1, 2])
def test_loading_processes_hand_over_both_kinds_in_memory_that_they_use_again(flow_index, workers, monkeypatch):
    """Where there is no GPU, a copy stands for the pinned batch; torch makes it where it would pin, in a thread."""
    for name, value in {"is_available": True, "current_device_index": 0, "set_device_index": None}.items():
        monkeypatch.setattr(torch.accelerator, name, lambda *_, value=value: value)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_: torch.device("cuda"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor.clone())
    settings = spec(steps=12)
    plain = items_of(settings, flow_index())
    partly = PartlyEncoded(plain, 0.5, batch=6)
    batches = loader(partly, range(72), batch=6, workers=workers, pin=True, collate=stack_items)
    for first, (views, _) in zip(range(0, 72, 6), batches, strict=True):
        expected, _ = stack_items([plain[first + k] for k in range(6)])
        torch.testing.assert_close(to_inputs(views.to(CPU), CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


def test_both_parts_of_a_batch_have_memory_of_their_own(flow_index):
    partly = PartlyEncoded(items_of(spec(), flow_index()), 0.5, batch=6)
    make = _InReusedMemory(stack_items)
    made = [make([partly[k] for k in range(first, first + 6)])[0] for first in (0, 6, 12, 18, 24)]
    data, values = ([t.data_ptr() for t in part] for part in ([m.data for m in made], [m.decoded.values for m in made]))
    assert all(m.data.is_shared() and m.decoded.values.is_shared() for m in made)
    assert not set(data) & set(values) and len(set(values)) == 2 and values[0] == values[2]


def encoded_batch(flow_index, count=6):
    plain = items_of(spec(), flow_index())
    return stack_items([plain.encoded(k) for k in range(count)])[0], stack_items([plain[k] for k in range(count)])[0]


def test_what_the_device_cannot_decode_the_cpu_does_and_that_is_said_once(flow_index, monkeypatch, capsys):
    made, expected = encoded_batch(flow_index)
    encoded.say_once.cache_clear()
    monkeypatch.setattr(encoded, "decode", Refusing())
    for _ in range(2):
        torch.testing.assert_close(to_inputs(made.to(CPU), CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)
    said = (
        "the GPU did not decode some planes of flow, so the CPU does, which is slower (Error while decoding JPEG images"
    )
    assert capsys.readouterr().err.count(said) == 1


def test_a_gpu_is_waited_for_before_nvjpeg_writes_to_its_memory(monkeypatch):
    """Also after an error, when it may still be writing to memory that it has given back."""
    done, planes = [], [torch.zeros(5, dtype=torch.uint8)]
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: done.append(1))
    )
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda data, mode, device: done.append((data, mode.name, device)))
    decode(planes, CUDA)
    assert done == [1, (planes, "GRAY", CUDA)]
    monkeypatch.setattr("torchvision.io.decode_jpeg", lambda data, mode, device: Refusing()(data, device))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: done.append(device))
    with pytest.raises(RuntimeError, match="Error while decoding JPEG images"):
        decode(planes, CUDA)
    assert done[2:] == [1, CUDA]


def test_too_little_memory_of_the_device_is_no_matter_of_the_decoder(flow_index, monkeypatch):
    def refuse(data, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoded, "decode", refuse)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        encoded_batch(flow_index)[0].to(CPU)


@pytest.mark.parametrize("broken", [0, 7])
def test_a_damaged_plane_names_its_clip_and_what_to_do(flow_index, broken):
    made, _ = encoded_batch(flow_index)
    made.data[sum(made.sizes[:broken]) : sum(made.sizes[: broken + 1])] = 0
    with pytest.raises(
        DamagedFile, match="flow of clip 'a' of .*: .* bytes do not decode as JPEG; `python -m pipeline r"
    ):
        made.to(CPU)


def test_planes_of_another_size_are_damage(flow_index):
    made, _ = encoded_batch(flow_index)
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
    how, plane = encoded.interpolation(size, to), np.random.default_rng(0).random(size, np.float32) * 255
    down, along = (encoded._resizing(a, b, how, CPU) for a, b in zip(size, to, strict=True))
    found = (down @ torch.from_numpy(plane) @ along.T).numpy()
    np.testing.assert_allclose(found, cv2.resize(plane, dsize=to[::-1], interpolation=how), atol=2e-3)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_nvjpeg_gives_nearly_the_same_inputs(flow_index, recipe):
    settings = spec(**recipe)
    plain = items_of(settings, flow_index())
    partly = PartlyEncoded(plain, 0.5, batch=settings.batch)
    numbers = range(8 * settings.batch)
    batches = loader(partly, numbers, batch=settings.batch, workers=0, pin=True, collate=stack_items)
    for first, (views, _) in zip(numbers[:: settings.batch], sent_ahead(batches, CUDA), strict=True):
        expected, _ = stack_items([plain[first + k] for k in range(settings.batch)])
        difference = (to_inputs(views, CUDA).cpu() - to_inputs(expected, CPU)).abs()
        assert difference.max() < 2.5 * expected.scale.abs().max()  # two steps of a byte, and their mean
        assert difference.mean() < 0.5 * expected.scale.abs().max()


def test_a_single_item_of_a_batch_may_be_encoded(flow_index):
    plain = items_of(spec(), flow_index())
    partly = PartlyEncoded(plain, 0.17, batch=6)
    made, _ = stack_items([partly[k] for k in range(6)])
    expected, _ = stack_items([plain[k] for k in range(6)])
    assert len(made.places) == 1
    torch.testing.assert_close(to_inputs(made.to(CPU), CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("plane", "clip"), [(5, "a"), (6, "b"), (11, "b")])
@pytest.mark.parametrize("content", ["no JPEG", "another size"])
def test_a_damaged_plane_is_of_the_clip_whose_view_holds_it(flow_index, plane, clip, content):
    """Three fields a view: planes 0 to 5 are of the first view, here of clip a, 6 to 11 of the second, of clip b."""
    made, _ = encoded_batch(flow_index)
    stack = made.views[1][0].stack
    second = made.views[1][0]._replace(stack=stack._replace(source=("b", stack.source[1])))
    views = [made.views[0], [second], *made.views[2:]]
    other = jpeg.encode(np.zeros((48, 60), np.uint8), quality=90) if content == "another size" else bytes(9)
    planes = list(made.data.split(made.sizes))
    planes[plane] = torch.from_numpy(np.frombuffer(other, np.uint8).copy())
    strange = EncodedBatch(made.shape, None, views, made.places, torch.cat(planes), [len(p) for p in planes])
    with pytest.raises(DamagedFile, match=f"flow of clip '{clip}' of "):
        strange.to(CPU)
