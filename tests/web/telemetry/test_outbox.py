import asyncio
import json

from webapp.telemetry.outbox import MAX_CHARACTERS, MAX_FRAMES, Outbox


async def all_of(outbox: Outbox) -> list[str]:
    texts = []
    while True:
        try:
            async with asyncio.timeout(0.01):
                texts.append(await outbox.get())
        except TimeoutError:
            return texts


async def test_what_is_put_comes_out_in_order():
    outbox = Outbox()
    for i in range(MAX_FRAMES):
        outbox.put(str(i))
    assert await all_of(outbox) == [str(i) for i in range(MAX_FRAMES)]


async def test_a_reader_is_woken():
    outbox = Outbox()
    reader = asyncio.create_task(outbox.get())
    await asyncio.sleep(0)
    outbox.put("x")
    assert await reader == "x"


async def test_a_full_backlog_becomes_one_resync():
    outbox = Outbox()
    for i in range(MAX_FRAMES + 3):
        outbox.put(str(i))
    assert [json.loads(text) for text in await all_of(outbox)] == [{"type": "resync"}, MAX_FRAMES + 1, MAX_FRAMES + 2]


async def test_few_large_frames_are_bounded_too():
    outbox = Outbox()
    for _ in range(5):
        outbox.put("x" * (MAX_CHARACTERS // 4))
    assert json.loads((await all_of(outbox))[0]) == {"type": "resync"}
