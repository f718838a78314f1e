"""Run one fault in an environment: traffic, the fault, more traffic, the account."""

import time
from concurrent.futures import ThreadPoolExecutor

from tests.faults.cases import Case
from tests.faults.environment import Count, Environment


def run(case: Case, env: Environment, beside: Case | None = None, burst: int = 0) -> Count:
    """Inject the fault under traffic, or a second one while the first lasts, and return what came of the events."""
    cases = [one for one in (case, beside) if one]
    env.is_strict = len(cases) == 1
    if case.quiet and env.is_strict:
        before = env.account()
        case.inject(env)
        with env.traffic():
            time.sleep(0.2)
    else:
        before = Count()
        may_forget = any(one.forgets or (one.kills and beside) for one in cases)
        env.forgotten = None if may_forget else set()
        with env.traffic(burst=burst):
            time.sleep(0.1)
            with ThreadPoolExecutor(2) as pool:
                injections = []
                for one in cases:
                    injections.append(pool.submit(one.inject, env))
                    time.sleep(env.random.uniform(0, 0.8) if beside else 0)
                for injection in injections:
                    injection.result()
            time.sleep(0.1)
    codes = env.heal()
    assert not codes or (set(codes) == {1} and any(one.fatal for one in cases)), f"ended with {codes}:\n{env.output}"
    return before.plus(env.account())
