"""Functions that tests give to workers, which import them by name."""


def double(job):
    return 2 * job


def fail_on_three(job):
    if job == 3:
        raise ValueError("three is refused")
    return job
