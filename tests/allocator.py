"""What the allocator of a CPU gives out, from its events."""

from torch.profiler import ProfilerActivity, profile


def most_allocated(act):
    """Return the most bytes that are allocated within `act()`, beyond those before."""
    with profile(
        activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        act()
    total = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            total += event.nbytes()
            peak = max(peak, total)
    return peak
