import asyncio
import threading

import pytest
import torch

from deepseek.deploy.service.batching import BatchClock, Batcher
from deepseek.deploy.service.refusal import Refusal


class Model:
    """Doubles numbers, and holds the first batch back until it is told to go on."""

    def __init__(self, holds=False):
        self.sizes = []
        self.go_on = threading.Event()
        if not holds:
            self.go_on.set()

    def __call__(self, batch):
        self.sizes.append(len(batch))
        self.go_on.wait(10)
        return batch * 2


def make(model, **settings):
    return Batcher(model, **{"max_batch": 8, "target_s": 10.0, "max_waiting": 64, **settings})


def one(value):
    return torch.tensor([float(value)])


async def start_all(batcher, values, timeout_s=5.0):
    tasks = [asyncio.create_task(batcher.submit([one(v)], timeout_s)) for v in values]
    await asyncio.sleep(0)
    return tasks


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


def test_a_lonely_sample_does_not_wait_for_others():
    async def run():
        model = Model()
        (row,) = await make(model).submit([one(3)], 5.0)
        assert row.item() == 6
        assert model.sizes == [1]

    asyncio.run(run())


def test_what_waits_is_computed_together_and_everybody_gets_his_own():
    async def run():
        model = Model(holds=True)
        batcher = make(model)
        tasks = await start_all(batcher, range(7))
        await until(lambda: model.sizes)
        model.go_on.set()
        rows = await asyncio.gather(*tasks)
        assert [row.item() for (row,) in rows] == [2 * value for value in range(7)]
        assert sum(model.sizes) == 7
        assert len(model.sizes) <= 2

    asyncio.run(run())


def test_a_batch_has_one_shape_and_no_more_than_the_limit():
    async def run():
        model = Model(holds=True)
        batcher = make(model, max_batch=3)
        first = await start_all(batcher, [0])
        await until(lambda: model.sizes)
        wide = [asyncio.create_task(batcher.submit([torch.ones(2)], 5.0)) for _ in range(2)]
        rest = await start_all(batcher, range(4))
        model.go_on.set()
        rows = await asyncio.gather(*first, *wide, *rest)
        assert [len(row) for (row,) in rows] == [1, 2, 2, 1, 1, 1, 1]
        assert max(model.sizes) <= 3
        assert len(model.sizes) == 4  # alone; two wide; three; one

    asyncio.run(run())


def test_too_many_are_refused_and_told_when_to_come_back():
    async def run():
        model = Model(holds=True)
        batcher = make(model, max_waiting=4)
        tasks = await start_all(batcher, [0])
        await until(lambda: model.sizes)
        tasks += await start_all(batcher, range(4))
        with pytest.raises(Refusal, match="4 samples wait already, the limit is 4") as refused:
            await batcher.submit([one(9)], 5.0)
        assert refused.value.status == 429
        assert int(refused.value.headers()["Retry-After"]) >= 1
        model.go_on.set()
        await asyncio.gather(*tasks)
        assert (await batcher.submit([one(9)], 5.0))[0].item() == 18

    asyncio.run(run())


def test_who_waits_too_long_is_told_and_not_computed():
    async def run():
        model = Model(holds=True)
        batcher = make(model)
        tasks = await start_all(batcher, [0])
        await until(lambda: model.sizes)
        with pytest.raises(Refusal, match=r"no answer within 0\.01 s") as refused:
            await batcher.submit([one(1)], 0.01)
        assert refused.value.status == 504
        model.go_on.set()
        await asyncio.gather(*tasks)
        assert model.sizes == [1]

    asyncio.run(run())


def test_a_model_that_fails_fails_its_batch_and_not_the_next():
    async def run():
        def fail_once(batch, seen=[]):  # noqa: B006 (counts)
            seen.append(1)
            if len(seen) == 1:
                raise RuntimeError("no such row\nand more")
            return batch

        batcher = make(fail_once)
        with pytest.raises(Refusal, match=r"the model failed: no such row$") as refused:
            await batcher.submit([one(1)], 5.0)
        assert refused.value.status == 500
        assert (await batcher.submit([one(1)], 5.0))[0].item() == 1

    asyncio.run(run())


def test_finishing_computes_what_waits_and_a_late_one_too():
    async def run():
        model = Model(holds=True)
        batcher = make(model, max_batch=1)
        tasks = await start_all(batcher, range(3))
        await until(lambda: model.sizes)
        model.go_on.set()
        await batcher.finish()
        assert model.sizes == [1, 1, 1]
        assert [row.item() for (row,) in await asyncio.gather(*tasks)] == [0, 2, 4]
        assert (await batcher.submit([one(9)], 5.0))[0].item() == 18

    asyncio.run(run())


def test_the_clock_finds_the_line_that_times_lie_on():
    clock = BatchClock()
    assert clock.seconds(8) == 0
    assert clock.largest(0.01, 32) == 32  # nothing known: tried
    for count in (1, 4, 16, 2, 32):
        clock.note(count, 0.010 + 0.002 * count)
    assert clock.seconds(8) == pytest.approx(0.026)
    assert clock.largest(0.030, 32) == 10
    assert clock.largest(0.001, 32) == 1


def test_batches_of_one_size_are_taken_as_all_per_sample():
    clock = BatchClock()
    for _ in range(3):
        clock.note(4, 0.4)
    assert clock.seconds(8) == pytest.approx(0.8)
