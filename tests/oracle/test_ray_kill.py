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
    assert any("raylet" in name for name in below.values())
    run.send_signal(signal.SIGKILL)
    run.communicate(timeout=60)
    until = time.monotonic() + 60
    while left := [
        pid for pid, name in below.items() if name_of(pid).split(" ")[0] == name.split(" ")[0] != ""
    ]:
        assert time.monotonic() < until, [below[pid] for pid in left]
        time.sleep(0.2)
    assert 0 < resumed_to_the_end(recipe, "local") < whole[1]
    assert files(recipe) == whole[0]
