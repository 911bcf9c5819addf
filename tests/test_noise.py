"""Counter-based noise: an independent implementation in plain integers, pinned values, and the laws it must follow."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from edmund import noise
from edmund.errors import InputError

stats = pytest.importorskip("scipy.stats")
F64 = torch.float64
MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
PINNED_LATENTS = [
    [0.008734977588086501, -1.4573274686706776, 0.22845069621334188],
    [-0.984965693988613, 0.01279341457569689, 0.11260044516609304],
]
PINNED_STEP = [
    [1.3786170322608147, -0.2148540544804037, -0.011541339809866281],
    [-0.009867407492034378, -0.6107955345142528, 1.9495276951827771],
]
PINNED_UNIFORM = [0.9742055017055836, 0.611758220364076]


# SplitMix64 and Box-Muller again, in Python's unsigned integers.


def mix(z):
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def plain_key(seed, index):
    return mix((mix(((index + 1) * GOLDEN) & MASK) + mix((seed + 1) & MASK)) & MASK)


def plain_words(seed, index, stream, count):
    start = mix((plain_key(seed, index) + (stream + 1) * 0xD1B54A32D192ED03) & MASK)
    return [mix((start + (i + 1) * GOLDEN) & MASK) for i in range(count)]


def plain_normal(seed, index, stream, size):
    pairs = (size + 1) // 2
    words = plain_words(seed, index, stream, 2 * pairs)
    radius = [math.sqrt(-2 * math.log(((word >> 11) + 1) / 2**53)) for word in words[0::2]]
    angle = [2 * math.pi * (word >> 11) / 2**53 for word in words[1::2]]
    cosines = [r * math.cos(a) for r, a in zip(radius, angle, strict=True)]
    sines = [r * math.sin(a) for r, a in zip(radius, angle, strict=True)]
    return (cosines + sines)[:size]


def test_the_hash_is_splitmix64():
    """The generator's published first outputs for seed 1234567: its i-th word is mix(seed + i golden)."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [mix((1234567 + (i + 1) * GOLDEN) & MASK) for i in range(5)] == published
    ours = (
        noise._words(torch.tensor([1234567]), 1, 3)[0].tolist()
        + noise._words(torch.tensor([1234567]), 2, 2)[0].tolist()
    )
    assert [word % 2**64 for word in ours] == [*published[0::2], *published[1::2]]


@pytest.mark.parametrize(("seed", "index", "stream"), [(0, 0, 0), (0, 1, 7), (3, 2**62 + 1, 65537), (2**63 - 1, 5, -2)])
def test_against_plain_integers(seed, index, stream):
    key = noise.keys(seed, torch.tensor([index]))
    assert key.item() % 2**64 == plain_key(seed, index)
    for size in (1, 2, 5, 8):
        expected = torch.tensor([plain_normal(seed, index, stream, size)], dtype=F64)
        torch.testing.assert_close(noise.normal(key, (size,), stream), expected, rtol=1e-13, atol=1e-15)
    bits = plain_words(seed, index, stream, 1)[0] >> 12
    assert noise.uniform(key, stream).item() == (bits + 0.5) / 2**52


def test_pinned_values():
    """Samples that people have published by their seeds stay what they are."""
    seeds = noise.Seeded([0, 1])
    expected = torch.tensor(PINNED_LATENTS, dtype=F64)
    torch.testing.assert_close(seeds.latents((3,), dtype=F64, device=torch.device("cpu")), expected, rtol=1e-14, atol=0)
    step = seeds(torch.zeros(2, 3, dtype=F64), 4, 1.0, 2.0, draw=1)
    torch.testing.assert_close(step, torch.tensor(PINNED_STEP, dtype=F64), rtol=1e-14, atol=0)
    assert noise.uniform(noise.keys(0, torch.arange(2)), 0).tolist() == PINNED_UNIFORM


def test_streams_of_seeded():
    """What the pinned numbers are made of: key (0, seed), stream 0 to start, 1 + 65536 step + draw after that."""
    source = noise.Seeded([5])
    x = torch.zeros(1, 4, dtype=F64)
    latents = source.latents((4,), dtype=F64, device=torch.device("cpu"))
    torch.testing.assert_close(latents[0], torch.tensor(plain_normal(0, 5, 0, 4), dtype=F64), rtol=1e-13, atol=1e-15)
    for step, draw in ((0, 0), (3, 0), (3, 2)):
        expected = torch.tensor(plain_normal(0, 5, 1 + step * 65536 + draw, 4), dtype=F64)
        torch.testing.assert_close(source(x, step, 2.0, 1.0, draw)[0], expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (3, 5, 7)])
def test_same_numbers_in_any_batch_and_order(shape, device):
    seeds = [3, 1, 4, 1, 5, 9, 2, 6]
    all_at_once = noise.Seeded(seeds)
    latents = all_at_once.latents(shape, dtype=F64, device=device)
    x = torch.zeros(8, *shape, dtype=F64, device=device)
    steps = all_at_once(x, 2, 1.0, 2.0)
    for k, seed in enumerate(seeds):
        alone = noise.Seeded([seed])
        assert torch.equal(alone.latents(shape, dtype=F64, device=device)[0], latents[k])
        assert torch.equal(alone(x[:1], 2, 1.0, 2.0)[0], steps[k])
    part = all_at_once.rows(2, 5)
    assert len(part) == 3
    assert torch.equal(part.latents(shape, dtype=F64, device=device), latents[2:5])
    assert torch.equal(part.rows(1, 2)(x[:1], 2, 1.0, 2.0), steps[3:4])
    order = torch.tensor([7, 0, 3, 1, 2, 6, 5, 4])
    permuted = noise.Seeded([seeds[k] for k in order])
    assert torch.equal(permuted.latents(shape, dtype=F64, device=device), latents[order.to(device)])


def test_same_numbers_on_every_device(device):
    keys = noise.keys(7, torch.arange(100))
    cpu, there = noise.normal(keys, (33,), 5), noise.normal(keys.to(device), (33,), 5).cpu()
    torch.testing.assert_close(there, cpu, rtol=1e-13, atol=1e-14)
    assert torch.equal(noise.uniform(keys.to(device), 1).cpu(), noise.uniform(keys, 1))


def test_same_numbers_in_any_dtype():
    keys = noise.keys(0, torch.arange(50))
    full = noise.normal(keys, (7,), 0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(noise.normal(keys, (7,), 0, dtype=dtype), full.to(dtype))


def test_seeds_of_any_kind_are_the_same():
    numpy = pytest.importorskip("numpy")
    expected = noise.Seeded([2, 3, 4])._keys
    for seeds in (range(2, 5), torch.tensor([2, 3, 4]), (2, 3, 4), numpy.arange(2, 5), torch.tensor([2, 3, 4]).int()):
        assert torch.equal(noise.Seeded(seeds)._keys, expected)


def test_normal_law():
    """Moments and Kolmogorov-Smirnov over a million draws of many seeds and positions."""
    values = noise.normal(noise.keys(0, torch.arange(10_000)), (100,), 0).flatten()
    count = values.numel()
    assert abs(values.mean().item()) < 4 / math.sqrt(count)
    assert abs(values.var().item() - 1) < 4 * math.sqrt(2 / count)
    assert abs((values**3).mean().item()) < 4 * math.sqrt(15 / count)
    assert abs((values**4).mean().item() - 3) < 4 * math.sqrt(96 / count)
    assert stats.kstest(values[:200_000].numpy(), "norm").pvalue > 1e-3
    # The tail that 53 bits must reach: of 1e6 normals 63 lie beyond 4 in the mean, and the largest is near 4.9.
    assert 30 < (values.abs() > 4).sum() < 100
    assert 4.3 < values.abs().max() < 6.5


def z_scores(a, b):
    """The correlation of two sets of unit normals in units of its standard error."""
    return ((a * b).mean() * math.sqrt(a.numel())).item()


def test_independence():
    """Adjacent seeds, steps, draws and positions, the latents against the steps, cosine against sine: no correlation.

    Of values as well as of squares (the radius that Box-Muller's pair has in common must not show).
    """
    source = noise.Seeded(range(4000))
    x = torch.zeros(4000, 32, dtype=F64)
    latents = source.latents((32,), dtype=F64, device=torch.device("cpu"))
    step_0, step_1 = source(x, 0, 2.0, 1.0), source(x, 1, 1.0, 0.5)
    draw_1 = source(x, 0, 2.0, 1.0, draw=1)
    other = noise.normal(noise.keys(1, torch.arange(4000)), (32,), 0)
    pairs = [
        (latents[1:], latents[:-1]),
        (latents[2:], latents[:-2]),
        (latents[:, 1:], latents[:, :-1]),
        (latents[:, :16], latents[:, 16:]),
        (latents, step_0),
        (step_0, step_1),
        (step_0[1:], step_1[:-1]),
        (step_0, draw_1),
        (draw_1, step_1),
        (latents, other),
        (latents[1:], other[:-1]),
    ]
    for a, b in pairs:
        assert abs(z_scores(a, b)) < 4
        squares = (a**2 - 1) / math.sqrt(2), (b**2 - 1) / math.sqrt(2)
        assert abs(z_scores(*squares)) < 4.5


def test_all_seeds_and_positions_look_alike():
    """The whole correlation matrix between positions, and between seeds, is the unit matrix within its error."""
    values = noise.normal(noise.keys(0, torch.arange(5000)), (20,), 0)
    between = values.T @ values / 5000 - torch.eye(20, dtype=F64)
    assert between.abs().max() < 5.5 / math.sqrt(5000)
    wide = noise.normal(noise.keys(0, torch.arange(40)), (5000,), 0)
    between = wide @ wide.T / 5000 - torch.eye(40, dtype=F64)
    assert between.abs().max() < 5.5 / math.sqrt(5000)


def test_uniform_law():
    keys = noise.keys(0, torch.arange(200_000))
    u = noise.uniform(keys, 0)
    assert u.min() > 0 and u.max() < 1
    assert 1e-3 < stats.chisquare(torch.histc(u, 1000, 0, 1).numpy()).pvalue < 1 - 1e-3
    v = noise.uniform(keys, 1)
    joint = torch.histc((u * 20).floor() * 20 + (v * 20).floor(), 400, 0, 400)
    assert 1e-3 < stats.chisquare(joint.numpy()).pvalue < 1 - 1e-3
    neighbours = torch.histc((u[1:] * 20).floor() * 20 + (u[:-1] * 20).floor(), 400, 0, 400)
    assert 1e-3 < stats.chisquare(neighbours.numpy()).pvalue < 1 - 1e-3


def test_bits_of_the_words_are_balanced():
    words = noise._words(noise.keys(0, torch.arange(2000)), 1, 50).flatten()
    for bit in range(64):
        share = ((words >> bit) & 1).double().mean().item()
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(100_000)


def test_keys_do_not_collide():
    keys = torch.cat([noise.keys(seed, torch.arange(20_000)) for seed in range(10)])
    assert keys.unique().numel() == 200_000


def test_no_global_randomness():
    before = torch.get_rng_state()
    noise.normal(noise.keys(0, torch.arange(3)), (5,), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_recorded():
    array = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    source = noise.Recorded(array)
    x = torch.zeros(5, 2)
    assert torch.equal(source(x, 1, 2.0, 1.0), array[1].float())
    assert torch.equal(source.rows(2, 4)(x[:2].double(), 2, 2.0, 1.0), array[2, 2:4])
    for arguments, words in (((x, 3, 2.0, 1.0), ["step 3"]), ((x, 0, 2.0, 1.0, 1), ["draw 1"])):
        with pytest.raises(InputError) as error:
            source(*arguments)
        assert all(word in str(error.value) for word in words)
    with pytest.raises(InputError, match=r"\(5, 2\).*\(4, 2\)"):
        source(x[:4], 0, 2.0, 1.0)
    with pytest.raises(InputError, match="array has shape"):
        noise.Recorded(torch.zeros(3))


def test_sources_satisfy_the_protocol():
    assert isinstance(noise.Seeded([0]), noise.NoiseSource)
    assert isinstance(noise.Brownian([0]), noise.NoiseSource)
    assert isinstance(noise.Recorded(torch.zeros(1, 1, 1)), noise.NoiseSource)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "7", None])
def test_bad_seeds(seed):
    with pytest.raises(InputError, match="seeds holds") as error:
        noise.Seeded([0, seed])
    assert repr(seed) in str(error.value)


def test_wrong_batch():
    with pytest.raises(InputError, match=r"2 seeds.*3 samples"):
        noise.Seeded([0, 1])(torch.zeros(3, 2), 0, 2.0, 1.0)


# Brownian: one path a seed, whose increments the draws are.


class Weights(noise.Brownian):
    """A Brownian source whose normals are unit vectors: a draw is its own weights of all normals used so far."""

    def __init__(self):
        super().__init__([0])
        self.numbers = {}

    def _units(self, terms, like):
        units = torch.zeros(len(terms), *like.shape, dtype=F64)
        for k, (cell, number, _) in enumerate(terms):
            units[k, 0, self.numbers.setdefault((cell, number), len(self.numbers))] = 1
        return units


def lengths(sigmas):
    return -torch.as_tensor(sigmas, dtype=F64).log().diff()


EDGES = {
    "coarse": [3e12, 80.0, 5.0, 0.3, 1e-3, 1e-12],
    "fine": torch.linspace(2.72, 2.71, 40, dtype=F64).tolist(),  # across ln sigma = 1
    "finest": torch.exp(-torch.arange(0.3, 0.3 + 30 * 2**-16, 2**-16, dtype=F64)).tolist(),
    "on the lattice": torch.exp(torch.tensor([3.0, 2.0, 1.5, 1.25, 1.0, 0.0, -1.0, -1.0625], dtype=F64)).tolist(),
    "powers of two": [8.0, 4.0, 2.0, 1.0, 0.5, 0.25],
    "random": (torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=F64) * 12 - 6)
    .exp()
    .sort(descending=True)[0]
    .tolist(),
}


@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
def test_brownian_law_is_exact(edges):
    """Written in the independent normals that it is made of: unit variance, and no covariance of disjoint intervals."""
    source, x = Weights(), torch.zeros(1, 2000, dtype=F64)
    draws = torch.cat([source(x, 0, *pair) for pair in itertools.pairwise(edges)])
    torch.testing.assert_close(draws @ draws.T, torch.eye(len(draws), dtype=F64), rtol=0, atol=2e-9)
    whole = source(x, 0, edges[0], edges[-1])[0]
    torch.testing.assert_close(whole @ whole, torch.ones((), dtype=F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("edges", EDGES.values(), ids=EDGES)
def test_brownian_increments_add_up(edges):
    """Whatever the order in which they are asked."""
    source, x = noise.Brownian(range(5)), torch.zeros(5, 3, dtype=F64)
    pairs = list(itertools.pairwise(edges))
    draws = torch.stack([source(x, 0, *pair) for pair in pairs])
    whole = source(x, 7, edges[0], edges[-1], draw=3)
    scaled = (draws * lengths(edges).sqrt()[:, None, None]).sum(0) / lengths([edges[0], edges[-1]]).sqrt()
    torch.testing.assert_close(scaled, whole, rtol=1e-9, atol=1e-9)
    backwards = torch.stack([source(x, 0, *pair) for pair in pairs[::-1]]).flip(0)
    torch.testing.assert_close(backwards, draws, rtol=0, atol=0)


def test_brownian_law():
    """Of the numbers themselves: normal, and uncorrelated between intervals, seeds, positions and with the latents."""
    source, x = noise.Brownian(range(4000)), torch.zeros(4000, 16, dtype=F64)
    a, b, c = source(x, 0, 5.0, 2.0), source(x, 0, 2.0, 1.9), source(x, 0, 1.9, 0.01)
    latents = source.latents((16,), dtype=F64, device=torch.device("cpu"))
    white = noise.Seeded(range(4000))(x, 0, 5.0, 2.0)
    for draw in (a, b, c):
        assert stats.kstest(draw.flatten().numpy(), "norm").pvalue > 1e-3
        assert abs(z_scores(draw[1:], draw[:-1])) < 4 and abs(z_scores(draw[:, 1:], draw[:, :-1])) < 4
        assert abs(z_scores(draw, latents)) < 4 and abs(z_scores(draw, white)) < 4
    for first, second in ((a, b), (b, c), (a, c)):
        assert abs(z_scores(first, second)) < 4
        assert abs(z_scores((first**2 - 1) / math.sqrt(2), (second**2 - 1) / math.sqrt(2))) < 4.5


def test_brownian_streams():
    """What the numbers are made of, in plain integers: W at the middle of a cell, and over two cells."""
    base = -(2**40) - (1024 << 17)  # of the cell [0, 1) of -ln sigma

    def plain(cell, number):
        return torch.tensor(plain_normal(0, 5, base - (cell << 17) - number, 3), dtype=F64)

    source, x = noise.Brownian([5]), torch.zeros(1, 3, dtype=F64)
    half = source(x, 0, 1.0, math.exp(-0.5))[0] * math.sqrt(0.5)
    torch.testing.assert_close(half, plain(0, 0) / 2 + plain(0, 1) / 2, rtol=1e-7, atol=1e-7)
    cells = source(x, 0, math.e, math.exp(-1))[0] * math.sqrt(2)
    torch.testing.assert_close(cells, plain(-1, 0) + plain(0, 0), rtol=1e-7, atol=1e-7)


def test_brownian_streams_are_its_own():
    """No two intervals of a path share a stream, and none has one of `Seeded`'s."""
    edges = [690.0, 0.3, -0.3, -700.0, *torch.linspace(-0.99, 1.99, 300, dtype=F64).tolist()]
    numbers = {(cell, number) for time in edges for cell, number, _ in noise._terms(time)}
    assert len(numbers) > 300 * 8
    assert all(0 <= number < 2**17 and -1024 < cell < 1024 for cell, number in numbers)


@pytest.mark.parametrize("shape", [(1,), (3, 5, 7)])
def test_brownian_in_any_batch_and_order(shape, device):
    seeds = [3, 1, 4, 1, 5, 9, 2, 6]
    together, x = noise.Brownian(seeds), torch.zeros(8, *shape, dtype=F64, device=device)
    draws = [together(x, 0, 2.0, 1.0), together(x, 1, 1.0, 0.3)]
    assert draws[0].device.type == device.type and torch.equal(draws[0][1], draws[0][3])
    for k, seed in enumerate(seeds):
        alone = noise.Brownian([seed])
        assert torch.equal(alone(x[:1], 5, 1.0, 0.3)[0], draws[1][k])  # without the interval before it
        assert torch.equal(alone(x[:1], 5, 2.0, 1.0, draw=1)[0], draws[0][k])
    part = together.rows(2, 5)
    assert isinstance(part, noise.Brownian) and len(part) == 3
    assert torch.equal(part(x[:3], 0, 1.0, 0.3), draws[1][2:5])
    latents = noise.Seeded(seeds).latents(shape, dtype=F64, device=device)
    assert torch.equal(together.latents(shape, dtype=F64, device=device), latents)


def test_brownian_in_any_shape_and_dtype():
    """What is kept of the last interval is that of its own shape, and is not written to."""
    source = noise.Brownian([0, 1])
    wide, narrow = torch.zeros(2, 4, dtype=F64), torch.zeros(2, 2)
    first = source(wide, 0, 2.0, 1.5)
    assert source(narrow, 0, 1.5, 1.0).dtype == torch.float32
    second = source(wide, 0, 1.5, 1.0)
    assert torch.equal(second, noise.Brownian([0, 1])(wide, 0, 1.5, 1.0))
    assert torch.equal(second.float(), noise.Brownian([0, 1])(wide.float(), 0, 1.5, 1.0))
    second.zero_()
    assert torch.equal(source(wide, 0, 2.0, 1.5), first)
    large = torch.zeros(2, noise._BROWNIAN_ELEMENTS // 4, dtype=F64)  # drawn two at a time
    alone = torch.zeros(1, noise._BROWNIAN_ELEMENTS // 4, dtype=F64)
    assert torch.equal(source(large, 0, 2.0, 1.5)[1:], noise.Brownian([1])(alone, 0, 2.0, 1.5))
    assert (source(wide, 0, 1.0, 0.9) - noise.Brownian([0, 1])(wide, 0, 1.0, 0.9)).abs().max() == 0


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ((1.0, 0.0), ["1.0 to 0.0"]),
        ((1.0, 1.0), ["1.0 to 1.0"]),
        ((1.0, 2.0), ["1.0 to 2.0", "churn"]),
        ((math.inf, 2.0), ["inf"]),
        ((2.5, 2.5 * (1 - 1e-7)), ["2\\^-16", "fewer steps"]),
    ],
)
def test_brownian_needs_a_falling_interval(ends, words):
    for word in words:
        with pytest.raises(InputError, match=word):
            noise.Brownian([0])(torch.zeros(1, 2), 0, *ends)
    with pytest.raises(InputError, match=r"1 seeds.*2 samples"):
        noise.Brownian([0])(torch.zeros(2, 2), 0, 2.0, 1.0)
