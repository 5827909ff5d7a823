"""The longer kills on Ray: ten of them, and a Ray that the command started for itself."""

import signal
import time

from tests.end_to_end.test_data_kill import (  # noqa: F401 (fixtures)
    cluster,
    descendants,
    files,
    killed_and_resumed,
    name_of,
    resumed_to_the_end,
    start,
    whole,
    world,
)


def test_killed_at_ten_random_moments_on_ray(world, whole, cluster):  # noqa: F811
    killed_and_resumed(world("killed-ten-times"), whole, 10, cluster)


def test_a_ray_of_its_own_ends_with_the_killed_command(world, whole):  # noqa: F811
    recipe = world("own-ray")
    run = start(recipe, "local")
    while not run.stdout.readline().startswith("did read"):
        pass
    below = {pid: name_of(pid) for pid in descendants(run.pid)}
    # Ray's agents write nothing here, and look for their raylet only now and then.
    writers = [pid for pid, name in below.items() if writes(name)]
    assert any("raylet" in below[pid] for pid in writers) and any("ray::" in below[pid] for pid in writers)
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)
    until = time.monotonic() + 30
    while left := [pid for pid in writers if writes(name_of(pid))]:
        assert time.monotonic() < until, [below[pid] for pid in left]
        time.sleep(0.2)
    assert 0 < resumed_to_the_end(recipe, "local") < whole[1]
    assert files(recipe) == whole[0]


def writes(name):
    """Whether a process of that name is a Ray worker, or what starts them."""
    return "Agent" not in name and ("raylet/raylet" in name or name.startswith("ray::"))
