"""What is asked of one process and of several alike: `python -m tests.distributed.scenario`.

Rank 0 prints what it heard as one line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mlx_qwenvl import QwenVL, Reply, load
from mlx_qwenvl.engine.grammar import Grammar
from tests.crowds import Listener, Question
from tests.golden.pictures import picture

Heard = dict[str, Any]
FILM = [picture(seed, 56, 84) for seed in range(4)]


def few(vlm: QwenVL) -> Heard:
    """A few tokens about a picture."""
    reply = vlm.generate("Describe it.", images=[picture(0, 84, 56)], temperature=0, max_tokens=4)
    return {"tokens": list(reply.token_ids)}


def all_of_it(vlm: QwenVL) -> Heard:
    """Alone and side by side, greedy and drawn, from caches, withdrawn, and by a grammar."""
    heard: Heard = {}

    def keep(name: str, text: str, **options: Any) -> None:
        pictures = [] if "videos" in options else [picture(0, 84, 56)]
        reply = vlm.generate(text, images=pictures, **options)
        heard[name] = [reply.usage.cached_tokens, *reply.token_ids]

    keep("greedy", "Describe it.", temperature=0, max_tokens=8)
    keep("from the cache", "Describe it again, please.", temperature=0, max_tokens=4)
    keep("drawn", "Describe it.", temperature=1.0, seed=7, max_tokens=6)
    keep("film", "What moves?", temperature=0, max_tokens=3, videos=[FILM])
    keep("packed", "And now?", temperature=0, max_tokens=3, kv_bits=8, kv_group_size=32)
    for chunk in vlm.stream("Say more.", temperature=0, max_tokens=50):
        heard["left early"] = list(chunk.token_ids)
        break
    replies = asyncio.run(_at_once(vlm, "What is it?", "What is it not?"))
    heard["at once"] = [list(reply.token_ids) for reply in replies]
    scheduler = vlm.scheduler(3)
    listener = Listener(scheduler)
    asked = [
        Question("Name it.", [picture(0, 84, 56)], {"temperature": 0, "max_tokens": 5}),
        Question("What else is there to see?", [], {"temperature": 0.8, "seed": 3}),
        Question("A number?", [], {"grammar": Grammar("regex", "[0-9]{3}"), "max_tokens": 6}),
        Question("Nobody waits for this.", [picture(1, 56, 84)], {"max_tokens": 300}),
    ]
    jobs = [one.add(vlm, scheduler, n=n, max_tokens=5) for one, n in zip(asked[:3], (1, 2, 1))]  # noqa: B905
    unwanted = asked[3].add(vlm, scheduler)
    for _ in range(3):
        listener.step()
    scheduler.cancel(unwanted)
    while not scheduler.is_idle:
        listener.step()
    for name, job in zip(("a", "b", "c"), jobs, strict=True):
        for index in range(job.n):
            chunks = listener.chunks[job, index]
            heard[f"{name}{index}"] = [t for chunk in chunks for t in chunk.token_ids]
    assert not listener.errors
    heard["features found"] = vlm.stores.features.hits
    return heard


def by_turns(vlm: QwenVL) -> Heard:
    """Threads that take turns, each with a step under way while the other's is computed."""
    texts = ["Say much.", "Say something else, and say it at length.", "And what is this?"]

    def ask(text: str) -> list[int]:
        return list(vlm.generate(text, temperature=0, max_tokens=40).token_ids)

    with ThreadPoolExecutor(len(texts)) as pool:
        return dict(zip(texts, pool.map(ask, texts), strict=True))


async def _at_once(vlm: QwenVL, *questions: str) -> list[Reply]:
    asked = (vlm.agenerate(text, temperature=0, max_tokens=3) for text in questions)
    return list(await asyncio.gather(*asked))


SCENARIOS = {"few": few, "all": all_of_it, "turns": by_turns}


def main(name: str, model: str, quantize: str) -> int:
    """Run one rank."""
    from mlx_qwenvl.distributed.join import join

    ranks = join()
    assert ranks is not None
    with ranks:
        vlm = load(model, dtype="float32", quantize=quantize, ranks=ranks)
        if not ranks.leads:
            return vlm.follow()
        print(json.dumps(SCENARIOS[name](vlm)))
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
