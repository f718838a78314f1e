"""Play one fault on a stage: traffic, the fault, more traffic, the count."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.faults.cases import Case
from tests.faults.scene import Count, Scene


def play(case: Case, scene: Scene, beside: Case | None = None) -> Count:
    """Inject the fault under traffic, or two at the same time, and return what came of the events."""
    if case.quiet:
        before = scene.verify()
        case.act(scene)
        with scene.traffic():
            time.sleep(0.2)
        return before.plus(scene.verify(repeats_allowed=case.repeats))
    with scene.traffic():
        time.sleep(0.2)
        with ThreadPoolExecutor(2) as pool:
            for act in [pool.submit(one.act, scene) for one in (case, beside) if one]:
                act.result()
        time.sleep(0.2)
    return scene.verify(repeats_allowed=case.repeats)
