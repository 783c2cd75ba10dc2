"""Which clips share a shard."""

from pipeline.catalog import Clip
from pipeline.preprocess.sharding import plan_shards


def clips(n, *, size=100):
    return [Clip(f"v{i:05}", f"{i}.avi", 0, "c", "g", "train", size, 0, "0" * 16) for i in range(n)]


def test_every_clip_is_in_exactly_one_shard_within_bounds():
    plan = plan_shards(clips(1000), most_clips=8, most_bytes=10**9)
    assert sorted(c.id for shard in plan.values() for c in shard) == [c.id for c in clips(1000)]
    assert max(map(len, plan.values())) <= 8
    assert 1000 / len(plan) > 4  # not many small ones
    by_size = plan_shards(clips(1000), most_clips=10**6, most_bytes=500)
    assert max(map(len, by_size.values())) <= 5


def test_one_clip_may_be_larger_than_a_shard():
    assert len(plan_shards(clips(3, size=10**9), most_clips=8, most_bytes=1)) == 3


def test_an_added_clip_touches_only_its_own_shard():
    before = plan_shards(clips(500), most_clips=8, most_bytes=10**9)
    after = plan_shards(clips(501), most_clips=8, most_bytes=10**9)
    changed = {name for name in before | after if before.get(name) != after.get(name)}
    home = {name for name, inside in after.items() if clips(501)[-1] in inside}
    assert home <= changed and len(changed) <= 3  # its own, or the two that its own was split into


def test_the_plan_does_not_depend_on_the_order():
    assert plan_shards(clips(99)[::-1], most_clips=4, most_bytes=10**9) == plan_shards(
        clips(99), most_clips=4, most_bytes=10**9
    )
    assert list(plan_shards(clips(2), most_clips=4, most_bytes=10**9)) == ["shard-all"]
