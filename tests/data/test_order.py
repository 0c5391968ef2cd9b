import numpy as np

from crosschannel.data.order import epoch_order, mix, uniforms


def splitmix64(seed: int, count: int) -> list[int]:
    """The reference sequence of Steele, Lea and Flood, from a plain state."""
    mask, out = (1 << 64) - 1, []
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = seed
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        out.append(z ^ (z >> 31))
    return out


def test_mix_is_splitmix64():
    assert mix(1234567) == splitmix64(1234567, 1)[0] == 6457827717110365317  # published test vector


def test_an_epoch_visits_every_image_once_and_differs_from_the_next():
    orders = [epoch_order(1000, 7, epoch) for epoch in range(3)]
    for order in orders:
        assert np.array_equal(np.sort(order), np.arange(1000))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    assert np.array_equal(orders[1], epoch_order(1000, 7, 1))
    assert not np.array_equal(orders[0], epoch_order(1000, 8, 0))


def test_an_order_mixes_near_and_far():
    order = epoch_order(100_000, 0, 0)
    assert abs(np.corrcoef(order, np.arange(100_000))[0, 1]) < 0.02
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02


def test_uniforms_are_uniform_and_independent_of_each_other():
    draws = np.array([uniforms(4, 3, 0, position, 0) for position in range(20_000)])
    assert draws.min() >= 0 and draws.max() < 1
    assert np.abs(draws.mean(0) - 0.5).max() < 0.01 and np.abs(draws.var(0) - 1 / 12).max() < 0.002
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03


def test_the_order_of_keys_matters():
    assert mix(1, 2) != mix(2, 1) and mix(0, 0) != mix(0)
