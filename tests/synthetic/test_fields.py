"""Fields that images are made of: smooth steps, interpolation and noise."""

import numpy as np

from medvill_pl.synthetic.fields import grain, interpolation, pixel_grid, smooth_step, texture
from medvill_pl.synthetic.study import Draw


def test_a_step_is_0_outside_1_inside_and_a_half_at_the_edge() -> None:
    distance = np.array([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=np.float32)
    np.testing.assert_allclose(smooth_step(distance, 0.5), [0, 0, 0.5, 1, 1])
    assert smooth_step(distance, 0.5).dtype == np.float32


def test_the_grid_holds_the_centres_of_the_pixels() -> None:
    x, y = pixel_grid(4)
    assert x[0].tolist() == y[:, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    np.testing.assert_array_equal(x, y.T)


def test_interpolation_keeps_a_constant_and_passes_from_the_first_to_the_last_node() -> None:
    weights = interpolation(50, 6)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    values = weights @ np.arange(6, dtype=np.float32)
    assert (np.diff(values) >= 0).all()
    assert values[0] < 0.1
    assert values[-1] > 4.9


def test_noise_is_standard_normal_and_follows_from_the_draw() -> None:
    noise = grain(20_000, Draw("noise"))
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    np.testing.assert_array_equal(noise, grain(20_000, Draw("noise")))
    assert (noise[:10] != grain(10, Draw("other noise"))).any()
    assert grain((1 << 21) + 5, Draw("noise")).shape == ((1 << 21) + 5,)  # more than the bank holds


def test_texture_is_smooth() -> None:
    smooth = texture(64, 5, Draw("noise"))
    assert smooth.shape == (64, 64)
    assert np.abs(np.diff(smooth, axis=0)).max() < 0.5 * np.ptp(smooth)
