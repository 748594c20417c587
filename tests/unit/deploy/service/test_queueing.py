import asyncio

import numpy as np
import pytest

from deepseek.deploy.service.queueing import Queue
from deepseek.deploy.service.refusal import Refusal


class Model:
    """Doubles numbers, once it is let go."""

    facts = None

    def __init__(self, is_up=True, holds=False):
        self.is_up, self.seen = is_up, []
        self.go_on = asyncio.Event()
        if not holds:
            self.go_on.set()

    async def compute(self, samples, expires):
        self.seen.append(len(samples))
        await self.go_on.wait()
        return list(samples * 2)

    def close(self):
        pass


def one(value):
    return [np.array([float(value)])]


async def start(queue, values):
    tasks = [asyncio.create_task(queue.submit(one(value), 5.0)) for value in values]
    await asyncio.sleep(0)
    return tasks


def test_everybody_gets_his_own():
    async def run():
        queue = Queue([Model()], max_waiting=8)
        found = await asyncio.gather(*await start(queue, range(5)))
        assert [rows[0].item() for rows in found] == [0, 2, 4, 6, 8]
        assert queue.num_waiting == 0

    asyncio.run(run())


def test_too_many_are_refused_and_told_when_to_come_back():
    async def run():
        model = Model(holds=True)
        queue = Queue([model], max_waiting=4)
        tasks = await start(queue, range(4))
        with pytest.raises(Refusal, match="4 samples wait already, the limit is 4") as refused:
            await queue.submit(one(9), 5.0)
        assert refused.value.status == 429
        assert int(refused.value.headers()["Retry-After"]) >= 1
        model.go_on.set()
        await asyncio.gather(*tasks)
        assert (await queue.submit(one(9), 5.0))[0].item() == 18

    asyncio.run(run())


def test_what_could_never_wait_is_not_asked_to_come_back():
    async def run():
        queue = Queue([Model()], max_waiting=4)
        with pytest.raises(Refusal, match="5 samples, more than the 4 that may wait") as refused:
            await queue.submit(one(1) * 5, 5.0)
        assert refused.value.status == 413
        assert not refused.value.headers()
        assert "send 4 at most" in refused.value.fix

    asyncio.run(run())


def test_who_waits_too_long_is_told():
    async def run():
        queue = Queue([Model(holds=True)], max_waiting=4)
        with pytest.raises(Refusal, match=r"no answer within 0\.01 s") as refused:
            await queue.submit(one(1), 0.01)
        assert refused.value.status == 504
        assert queue.num_waiting == 0

    asyncio.run(run())


def test_work_goes_to_the_model_with_the_least_of_it_and_not_to_one_that_is_down():
    async def run():
        models = [Model(holds=True), Model(holds=True), Model(is_up=False)]
        queue = Queue(models, max_waiting=8)
        tasks = await start(queue, range(4))
        assert [len(model.seen) for model in models] == [2, 2, 0]
        for model in models:
            model.go_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
