"""Batches that are partly still JPEG: decoded on the network's device, they are those that the CPU decodes.

Where there is no GPU, torchvision's decoder of the CPU stands for nvJPEG; the way to it and from it is the same.
"""

import functools
import itertools
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from stores import smooth_flow, write_flow

from pipeline import encoded, feeding, jpeg
from pipeline.catalog import Clip
from pipeline.dataset import TrainingSet, stack_items
from pipeline.encoded import EncodedBatch, decode
from pipeline.errors import DamagedFile
from pipeline.feeding import PartlyEncoded, partly_encoded, training_batches
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
def test_inputs_are_those_that_the_cpu_decodes(folder, monkeypatch, recipe, minmax, share):
    monkeypatch.setattr(encoded, "_AT_ONCE", 2)  # so that a batch takes several calls
    settings = spec(**recipe)
    plain = items_of(settings, folder(minmax))
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


def test_two_sets_take_turns_encoded_or_not(folder):
    settings = spec()
    own, other = items_of(settings, folder()), items_of(spec(seed=3), folder())
    turns = TakingTurns(own, other)
    partly = PartlyEncoded(turns, 0.5, batch=12, sets=2)
    made, _ = stack_items([partly[k] for k in range(12)])
    expected, _ = stack_items([(own, other)[k % 2][k // 2] for k in range(12)])
    assert len(partly) == len(turns) and made.places == [2, 3, 6, 7, 10, 11]  # as many of one set as of the other
    torch.testing.assert_close(to_inputs(made.to(CPU), CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.29, 0.37, 0.5, 0.57, 0.9, 1.0])
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
            assert abs(sum(encoded[a:b]) - share * (b - a)) < 1.001


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


def test_what_the_device_cannot_decode_the_cpu_does_and_that_is_said_once(folder, monkeypatch, capsys):
    made, expected = encoded_batch(folder)
    encoded._say_once.cache_clear()
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


def test_too_little_memory_of_the_device_is_no_matter_of_the_decoder(folder, monkeypatch):
    def refuse(data, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(encoded, "decode", refuse)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        encoded_batch(folder)[0].to(CPU)


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


@pytest.fixture
def on_cuda(monkeypatch):
    """A function that has the CPU stand for the GPU, and the seconds of each measured work be these."""

    def measured(gpu, loading, leaving=0.25e-3):
        seconds = iter((32 * gpu, 32 * loading, 32 * leaving))
        monkeypatch.setattr(feeding, "decode", lambda data, device: decode(data, CPU))
        monkeypatch.setattr(feeding, "_finished", lambda batch, device: batch.to(CPU))

        def timed(work):
            work()
            return next(seconds)

        monkeypatch.setattr(feeding, "_seconds", timed)
        monkeypatch.setattr(feeding, "speed_of", lambda processes: processes)

    return measured


@pytest.mark.parametrize(
    ("gpu", "loading", "workers", "share"),
    [
        (1 / 3500, 4e-3, 16, 0.48),  # 0.48 / 3500 is (0.52 * 4 ms + 0.48 * 0.25 ms) / 16
        (1 / 3500, 4e-3, 4, 0.82),
        (1 / 3500, 4e-3, 0, 0.99),  # a thread loads
        (1 / 3500, 20e-3, 16, 0.82),  # trajectories
        (1 / 200, 4e-3, 16, 0.0),  # 5 %
        (1 / 200, 0.2e-3, 1, 0.0),  # to leave an item encoded saves nothing
    ],
)
def test_the_share_makes_both_take_equally_long(folder, on_cuda, capsys, gpu, loading, workers, share):
    plain = items_of(spec(), folder())
    on_cuda(gpu, loading)
    found = partly_encoded(plain, numbers_of(plain), CUDA, workers)
    assert found is plain if share == 0 else (found.share, found.batch, len(found)) == (share, 6, 54)
    said, processes = capsys.readouterr().err, max(1, workers)
    assert f"[temporal] the GPU decodes {share:.0%} of the stacks (alone it makes {1 / gpu:,.0f} items/s, " in said
    assert f", {processes} loading processes {processes / loading:,.0f}; gpu_decoding sets another share)" in said


def test_a_share_that_is_given_is_taken_of_both_sets(folder, on_cuda):
    settings = spec(gpu_decoding=0.25, with_dataset="other", with_how="heads")
    turns = TakingTurns(items_of(settings, folder()), items_of(settings, folder()))
    on_cuda(1.0, 1e-6)
    found = partly_encoded(turns, numbers_of(turns.sets[0]), CUDA, 16)
    assert (found.share, found.batch, found.sets) == (0.25, 12, 2)


@pytest.mark.parametrize(
    ("device", "given", "said"),
    [
        (CPU, {"gpu_decoding": 0.5}, ""),
        (CUDA, {"gpu_decoding": 0.0}, ""),
        (CUDA, {"deterministic": True}, ""),
        (CUDA, {"resize_px": 40}, ""),
        (CUDA, {"resize_px": 40, "gpu_decoding": 0.5}, "[temporal] planes that are resized before the crop are dec"),
    ],
    ids=["no GPU", "not wanted", "the share would not repeat", "resized first", "resized first, but wanted"],
)
def test_where_the_cpu_decodes_nothing_is_measured(folder, monkeypatch, capsys, device, given, said):
    plain = items_of(spec(**given), folder())
    monkeypatch.setattr(feeding, "_seconds", lambda work: pytest.fail("measured"))
    assert partly_encoded(plain, numbers_of(plain), device, 16) is plain
    assert capsys.readouterr().err.startswith(said) and (said or not capsys.readouterr().err)


def test_a_training_that_is_done_has_nothing_to_measure(folder):
    plain = items_of(spec(), folder())
    assert partly_encoded(plain, ItemSampler(plain.spec, World(), plain.spec.steps), CUDA, 16) is plain


def test_without_nvjpeg_the_cpu_decodes_and_the_first_process_says_so(folder, monkeypatch, capsys):
    plain = items_of(spec(gpu_decoding=0.5), folder())
    monkeypatch.setattr(feeding, "decode", Refusing())
    for rank, said in (
        (0, "[temporal] JPEG is not decoded on this GPU, but on the CPU (Error while decoding"),
        (1, ""),
    ):
        numbers = ItemSampler(plain.spec, World(rank, 2), 0)
        assert partly_encoded(plain, numbers, CUDA, 16) is plain
        assert capsys.readouterr().err.startswith(said) if said else not capsys.readouterr().err


def test_speeds_are_measured_on_the_first_items(folder, monkeypatch):
    plain, sent = items_of(spec(), folder()), []
    to, expected = EncodedBatch.to, stack_items([plain[number] for number in range(32)])[0]

    def on_cpu(batch, device, **how):
        assert device == CUDA
        sent.append(to(batch, CPU, **how))

    monkeypatch.setattr(EncodedBatch, "to", on_cpu)
    monkeypatch.setattr(feeding, "decode", lambda data, device: decode(data, CPU))
    monkeypatch.setattr(feeding, "_LEAST_SHARE", 0.0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    found = partly_encoded(plain, numbers_of(plain), CUDA, 1)
    assert found is plain or 0 < found.share <= 1
    assert len(sent) == 4
    torch.testing.assert_close(to_inputs(sent[0], CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("heads", [False, True])
def test_a_training_reads_what_is_partly_encoded(folder, monkeypatch, heads):
    settings = spec(loader_workers=0, **({"with_dataset": "x", "with_how": "heads"} if heads else {}))
    plain = items_of(settings, folder())
    plain = TakingTurns(plain, items_of(settings, folder())) if heads else plain
    given = []

    def partly(items, numbers, device, workers):
        given.append((items, device, workers))
        return PartlyEncoded(items, 0.5, batch=settings.items_per_step, sets=1 + heads)

    monkeypatch.setattr(feeding, "partly_encoded", partly)
    batches = training_batches(plain, ItemSampler(settings, World(), 2), CPU)
    made, labels = next(batches)
    size, first = settings.items_per_step, 2 * settings.items_per_step
    assert given == [(plain, CPU, 0)] and len(made) == len(labels) == size and len(made.places) == size // 2
    expected, _ = stack_items([plain[first + k] for k in range(size)])
    torch.testing.assert_close(to_inputs(made.to(CPU), CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


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


@pytest.mark.needs_cuda
def test_a_training_on_cuda_decodes_there_while_the_gpu_is_busy(folder, monkeypatch):
    """Kernels that take long wait on both streams, so that memory that is used again too early would be seen."""
    settings, calls = spec(loader_workers=0, gpu_decoding=0.5, batch=16), []
    plain, to = items_of(settings, folder()), EncodedBatch.to

    def slow(batch, device, **how):
        calls.append(len(batch.places))
        made = to(batch, device, **how)
        torch.cuda._sleep(20_000_000)
        return made

    monkeypatch.setattr(EncodedBatch, "to", slow)
    batches = training_batches(plain, ItemSampler(settings, World(), 0), CUDA)
    for first, (views, _) in zip(range(0, len(plain), 16), batches, strict=True):
        torch.cuda._sleep(20_000_000)
        found, more = to_inputs(views, CUDA), torch.rand_like(views.values, dtype=torch.float32)
        expected, _ = stack_items([plain[first + k] for k in range(16)])
        assert (found.cpu() - to_inputs(expected, CPU)).abs().max() < 2.5 * expected.scale.abs().max()
        del views, more
    assert calls[:4] == [32] * 4 and set(calls[4:]) == {8}  # the measurement first
