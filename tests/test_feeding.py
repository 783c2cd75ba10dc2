"""Which items of a training a GPU decodes: as many as take it as long as the loading processes need for the others."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from one_clip import CPU, CUDA, Refusing, items_of, numbers_of, spec

from pipeline.dataset import stack_items
from pipeline.dataset.encoded import EncodedBatch, decode
from pipeline.dataset.inputs import to_inputs
from pipeline.training import feeding
from pipeline.training.feeding import PartlyEncoded, partly_encoded, training_batches
from pipeline.training.parallel import ItemSampler, World
from pipeline.training.together import TakingTurns


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
def test_the_share_makes_both_take_equally_long(flow_index, on_cuda, capsys, gpu, loading, workers, share):
    plain = items_of(spec(), flow_index())
    on_cuda(gpu, loading)
    found = partly_encoded(plain, numbers_of(plain), CUDA, workers)
    assert found is plain if share == 0 else (found.share, found.batch, len(found)) == (share, 6, 54)
    said, processes = capsys.readouterr().err, max(1, workers)
    assert f"[temporal] the GPU decodes {share:.0%} of the stacks (alone it makes {1 / gpu:,.0f} items/s, " in said
    assert f", {processes} loading processes {processes / loading:,.0f}; gpu_decoding sets another share)" in said


def test_a_share_that_is_given_is_taken_of_both_sets(flow_index, on_cuda):
    settings = spec(gpu_decoding=0.25, with_dataset="other", with_how="heads")
    turns = TakingTurns(items_of(settings, flow_index()), items_of(settings, flow_index()))
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
def test_where_the_cpu_decodes_nothing_is_measured(flow_index, monkeypatch, capsys, device, given, said):
    plain = items_of(spec(**given), flow_index())
    monkeypatch.setattr(feeding, "_seconds", lambda work: pytest.fail("measured"))
    assert partly_encoded(plain, numbers_of(plain), device, 16) is plain
    told = capsys.readouterr().err
    assert told.startswith(said) if said else not told


def test_a_training_that_is_done_has_nothing_to_measure(flow_index):
    plain = items_of(spec(), flow_index())
    assert partly_encoded(plain, ItemSampler(plain.spec, World(), plain.spec.steps), CUDA, 16) is plain


def test_without_nvjpeg_the_cpu_decodes_and_the_first_process_says_so(flow_index, monkeypatch, capsys):
    plain = items_of(spec(gpu_decoding=0.5), flow_index())
    monkeypatch.setattr(feeding, "decode", Refusing())
    for rank, said in (
        (0, "[temporal] JPEG is not decoded on this GPU, but on the CPU (Error while decoding"),
        (1, ""),
    ):
        numbers = ItemSampler(plain.spec, World(rank, 2), 0)
        assert partly_encoded(plain, numbers, CUDA, 16) is plain
        assert capsys.readouterr().err.startswith(said) if said else not capsys.readouterr().err


@pytest.mark.parametrize(("wrong", "used"), [(0, True), (2, True), (9, False), (200, False)])
def test_a_gpu_that_decodes_wrongly_is_not_used(flow_index, on_cuda, monkeypatch, capsys, wrong, used):
    """Of all planes one pixel is wrong; rounding is not."""
    plain = items_of(spec(), flow_index())
    on_cuda(1 / 3500, 4e-3)

    def almost(data, device):
        planes = decode(data, CPU)
        planes[7][0, 20, 30] = (int(planes[7][0, 20, 30]) + wrong) % 256
        return planes

    monkeypatch.setattr(feeding, "decode", almost)
    found = partly_encoded(plain, numbers_of(plain), CUDA, 16)
    assert isinstance(found, PartlyEncoded) if used else found is plain
    said = capsys.readouterr().err
    assert ("its planes differ from those of the CPU by up to " in said) != used


def test_speeds_are_measured_on_the_first_items(flow_index, monkeypatch):
    plain, sent = items_of(spec(), flow_index()), []
    to, expected = EncodedBatch.to, stack_items([plain[number] for number in range(32)])[0]

    def on_cpu(batch, device, **how):
        assert device == CUDA
        sent.append(to(batch, CPU, **how))

    monkeypatch.setattr(EncodedBatch, "to", on_cpu)
    monkeypatch.setattr(feeding, "decode", lambda data, device: decode(data, CPU))
    speeds = []
    monkeypatch.setattr(feeding, "balanced_share", lambda *seconds: speeds.append(seconds) or 0.3)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(synchronize=lambda: None))
    found = partly_encoded(plain, numbers_of(plain), CUDA, 1)
    assert found.share == 0.3 and len(sent) == 4 and all(0 < seconds < 10 for seconds in speeds[0])
    torch.testing.assert_close(to_inputs(sent[0], CPU), to_inputs(expected, CPU), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("heads", [False, True])
def test_a_training_reads_what_is_partly_encoded(flow_index, monkeypatch, heads):
    settings = spec(loader_workers=0, **({"with_dataset": "x", "with_how": "heads"} if heads else {}))
    plain = items_of(settings, flow_index())
    plain = TakingTurns(plain, items_of(settings, flow_index())) if heads else plain
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
def test_a_training_on_cuda_decodes_there_while_the_gpu_is_busy(flow_index, monkeypatch):
    """Kernels that take long wait on both streams, so that memory that is used again too early would be seen."""
    settings, calls = spec(loader_workers=0, gpu_decoding=0.5, batch=16), []
    plain, to = items_of(settings, flow_index()), EncodedBatch.to

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
