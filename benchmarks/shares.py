"""Where a call's time goes on a CPU, by kind of work, from torch's profiler."""

import re
import time

from torch.profiler import ProfilerActivity, profile

# The first kind whose pattern an operator's name begins with.
KINDS = {
    "matrix products": r"aten::(mm|addmm|bmm|baddbmm|mv|addmv|dot|linear|_addmm)|mkldnn::.*linear",
    "fused attention": r"aten::_?scaled_dot_product",
    "the rest of torch": r"",
}
PYTHON = "Python"


def shares_of(call) -> dict[str, float]:
    """{kind of work: share of the call's wall time}. The profiler itself makes every operator some
    microseconds slower, so many small ones look dearer than they are."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        began = time.perf_counter()
        call()
        wall = time.perf_counter() - began
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        kind = next(kind for kind, pattern in KINDS.items() if re.match(pattern, event.key))
        spent[kind] += event.self_cpu_time_total / 1e6
    # Operators of backward passes run on a thread of their own, which Python waits for.
    return {kind: seconds / wall for kind, seconds in spent.items()} | {
        PYTHON: max(0.0, 1 - sum(spent.values()) / wall)}


def table(rows: dict[str, dict[str, float]]) -> str:
    """What shares_of gives, by name, in Markdown."""
    lines = [f"| time of | {' | '.join((*KINDS, PYTHON))} |", "|---|" + "--:|" * (len(KINDS) + 1)]
    lines += [f"| {name} | {' | '.join(f'{share:.0%}' for share in shares.values())} |"
              for name, shares in rows.items()]
    return "\n".join(lines)
