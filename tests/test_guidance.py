"""Guidance against closed forms: of a mixture with classes, conditional, unconditional and guided D are all known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import edmund
from edmund import noise, preconditioning, samplers
from edmund.denoiser import Denoiser, Gaussian, GaussianMixture, Preconditioned, drop_condition
from edmund.errors import InputError
from edmund.guidance import (
    Autoguidance,
    ClassifierFree,
    ClassifierGuidance,
    DynamicThresholding,
    Rescale,
    StaticThresholding,
    Wrapper,
)
from edmund.networks import MLP, UNet
from edmund.training.objective import drop

F64 = torch.float64
SIGMAS = (0.05, 0.7, 10.0)
every_sigma = pytest.mark.parametrize("sigma", SIGMAS)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def level(sigma):
    return torch.tensor(sigma, dtype=F64)


MEANS, WEIGHTS = 1.5 * randn(3, 2, seed=4), torch.tensor([0.2, 0.3, 0.5], dtype=F64)
ROOTS = randn(3, 2, 2, seed=5)
COVARIANCES = ROOTS @ ROOTS.mT / 4 + 0.1 * torch.eye(2, dtype=F64)


class Classes(nn.Module):
    """The exact denoiser of a mixture whose components are classes: labels [B], -1 for none. Counts its calls."""

    def __init__(self, means=MEANS):
        super().__init__()
        self.parts = nn.ModuleList(Gaussian(m, c) for m, c in zip(means, COVARIANCES, strict=True))
        self.all = GaussianMixture(means, weights=WEIGHTS, covariances=COVARIANCES)
        self.calls = []

    def forward(self, x, sigma, labels=None):
        self.calls.append(len(x))
        if labels is None:
            return self.all(x, sigma)
        each = torch.stack([*[part(x, sigma) for part in self.parts], self.all(x, sigma)])
        return each[labels, torch.arange(len(x))]  # -1 is the last

    def log_posterior(self, x, sigma, labels):
        """log p(labels | x; sigma), [B]: Bayes' classifier."""
        joint = torch.stack([p.log_prob(x, sigma) for p in self.parts], dim=1) + torch.log(WEIGHTS)
        return torch.log_softmax(joint, dim=1)[torch.arange(len(x)), labels]


LABELS = torch.tensor([0, 1, 2, 2, 1, 0])
X = 2 * randn(6, 2, seed=8)


def by_density(x, sigma, labels, w):
    """x + sigma^2 grad log (p(x; sigma)^(1-w) p(x | label; sigma)^w), by autograd of the densities."""
    exact = Classes()
    x = x.clone().requires_grad_()
    conditional = torch.stack([p.log_prob(x, sigma) for p in exact.parts], dim=1)[torch.arange(len(x)), labels]
    total = ((1 - w) * exact.all.log_prob(x, sigma) + w * conditional).sum()
    return (x + sigma**2 * torch.autograd.grad(total, x)[0]).detach()


@every_sigma
@pytest.mark.parametrize("w", [0.0, 1.0, 1.5, 4.0, -1.0])
def test_classifier_free_is_the_closed_form(sigma, w):
    guided = ClassifierFree(Classes(), w)(X, level(sigma), labels=LABELS)
    torch.testing.assert_close(guided, by_density(X, sigma, LABELS, w), rtol=1e-9, atol=1e-9)


@every_sigma
@pytest.mark.parametrize("w", [1.0, 2.0, 3.5])
def test_classifier_guidance_is_classifier_free_guidance_with_bayes(sigma, w):
    exact = Classes()
    by_gradient = ClassifierGuidance(exact, exact.log_posterior, w)
    free = ClassifierFree(exact, w)
    expected = free(X, level(sigma), labels=LABELS)
    with torch.no_grad():
        ours = by_gradient(X, level(sigma), labels=LABELS)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    # Around the unconditional denoiser, w = 2 is the conditional one.
    alone = ClassifierGuidance(exact, exact.log_posterior, 2.0, conditional=False)
    torch.testing.assert_close(
        alone(X, level(sigma), labels=LABELS), exact(X, level(sigma), labels=LABELS), rtol=1e-9, atol=1e-9
    )
    # One sigma a sample, and a class of batch 1.
    sigmas = torch.tensor([0.1, 0.2, 0.5, 1.0, 3.0, 20.0], dtype=F64)
    torch.testing.assert_close(
        by_gradient(X, sigmas, labels=LABELS[:1]), free(X, sigmas, labels=LABELS[:1]), rtol=1e-9, atol=1e-9
    )


def test_classifier_guidance_can_be_differentiated():
    exact = Classes()
    x, direction = X.clone().requires_grad_(), randn(6, 2, seed=3)
    gradients = [
        torch.autograd.grad((d(x, level(0.7), labels=LABELS) * direction).sum(), x)[0]
        for d in (ClassifierGuidance(exact, exact.log_posterior, 3.0), ClassifierFree(exact, 3.0))
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)
    _, tangent = torch.func.jvp(
        lambda x: ClassifierGuidance(exact, exact.log_posterior, 3.0)(x, level(0.7), labels=LABELS), (X,), (direction,)
    )
    _, expected = torch.func.jvp(lambda x: ClassifierFree(exact, 3.0)(x, level(0.7), labels=LABELS), (X,), (direction,))
    torch.testing.assert_close(tangent, expected, rtol=1e-9, atol=1e-9)


def test_a_classifier_that_is_a_module_runs_in_its_own_dtype():
    network = nn.Linear(2, 3)
    before = network.weight.detach().clone()

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, sigma, labels):
            return torch.log_softmax(self.network(x), dim=1)[torch.arange(len(x)), labels]

    ours = ClassifierGuidance(Classes(), Classifier(), 3.0)(X, level(0.5), labels=LABELS)
    posterior = torch.softmax(network(X.float()), dim=1)
    gradient = network.weight[LABELS] - posterior @ network.weight
    expected = Classes()(X, level(0.5), labels=LABELS) + 2 * 0.25 * gradient.double()
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-5, atol=1e-5)
    assert ours.dtype == F64 and network.weight.grad is None and torch.equal(network.weight, before)


def test_autoguidance_is_the_formula():
    main, weaker = Classes(), Classes(MEANS + 0.3)
    both = Autoguidance(main, weaker, 2.5)
    sigma = level(0.6)
    D, D_weak = Classes()(X, sigma, labels=LABELS), Classes(MEANS + 0.3)(X, sigma, labels=LABELS)
    torch.testing.assert_close(both(X, sigma, labels=LABELS), D_weak + 2.5 * (D - D_weak), rtol=1e-12, atol=1e-12)
    assert (main.calls, weaker.calls) == ([6], [6])
    # Two Gaussians with one covariance: guidance moves the mean, linearly, and leaves the spread.
    moved = Autoguidance(Gaussian([1.0], [[0.5]]), Gaussian([0.5], [[0.5]]), 3.0)
    torch.testing.assert_close(
        moved(X[:, :1], sigma), Gaussian([2.0], [[0.5]])(X[:, :1], sigma), rtol=1e-12, atol=1e-12
    )


WRAPPED = {
    "free": lambda d, w, interval=None: ClassifierFree(d, w, interval),
    "auto": lambda d, w, interval=None: Autoguidance(d, Classes(MEANS + 0.3), w, interval),
    "classifier": lambda d, w, interval=None: ClassifierGuidance(d, Classes().log_posterior, w, interval),
}
every_guidance = pytest.mark.parametrize("make", WRAPPED.values(), ids=WRAPPED)


@every_guidance
def test_off_at_one(make):
    exact, plain = Classes(), Classes()
    ours = make(exact, 1.0)
    assert torch.equal(ours(X, level(0.5), labels=LABELS), plain(X, level(0.5), labels=LABELS))
    assert exact.calls == plain.calls == [6]
    if hasattr(ours, "weaker"):
        assert ours.weaker.calls == []
    assert torch.equal(ours(X, level(0.5)), plain(X, level(0.5)))  # and needs no condition


@every_guidance
def test_interval(make):
    exact, plain = Classes(), Classes()
    everywhere, limited = make(Classes(), 3.0), make(exact, 3.0, (0.5, 2.0))
    for sigma, inside in ((0.4, False), (0.5, False), (0.500001, True), (2.0, True), (2.1, False)):
        exact.calls.clear()
        ours = limited(X, level(sigma), labels=LABELS)
        expected = (everywhere if inside else plain)(X, level(sigma), labels=LABELS)
        assert torch.equal(ours, expected)
        assert sum(exact.calls) == (12 if inside and isinstance(limited, ClassifierFree) else 6), sigma
    # One level a sample: each as if it were alone.
    sigmas = torch.tensor([0.1, 0.5, 0.7, 2.0, 2.5, 80.0], dtype=F64)
    mixed = limited(X, sigmas, labels=LABELS)
    for k in range(6):
        alone = limited(X[k : k + 1], sigmas[k], labels=LABELS[k : k + 1])
        torch.testing.assert_close(mixed[k : k + 1], alone, rtol=1e-12, atol=1e-13)
    exact.calls.clear()
    assert torch.equal(limited(X, sigmas * 1000, labels=LABELS), plain(X, sigmas * 1000, labels=LABELS))
    assert exact.calls == [6]
    unbounded = make(Classes(), 3.0, (0.5, math.inf))
    assert torch.equal(unbounded(X, level(70.0), labels=LABELS), everywhere(X, level(70.0), labels=LABELS))


def test_the_interval_is_counted_in_calls_while_sampling():
    exact = Classes()
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0], dtype=F64)
    edmund.sample(
        ClassifierFree(exact, 2.0, (0.5, 3.0)),
        (6, 2),
        sampler="euler",
        grid=edmund.grid.Fixed(sigmas),
        condition={"labels": LABELS},
        progress=False,
    )
    assert exact.calls == [6, 12, 12, 6]


def test_both_halves_in_one_call_equal_two():
    exact, apart = Classes(), Classes()
    sigmas = torch.tensor([0.1, 0.2, 0.5, 1.0, 3.0, 20.0], dtype=F64)
    for sigma in (level(0.5), sigmas, sigmas[:1]):
        exact.calls.clear()
        ours = ClassifierFree(exact, 3.0)(X, sigma, labels=LABELS)
        D, D_none = apart(X, sigma, labels=LABELS), apart(X, sigma)
        assert torch.equal(ours, torch.lerp(D_none, D, 3.0))
        assert exact.calls == [12]


def test_negative_conditions():
    exact = Classes()
    away = {"labels": torch.tensor([1])}
    ours = ClassifierFree(exact, 2.5, negative=away)(X, level(0.8), labels=LABELS)
    D, D_negative = (Classes()(X, level(0.8), labels=k) for k in (LABELS, torch.ones(6, dtype=torch.long)))
    torch.testing.assert_close(ours, D_negative + 2.5 * (D - D_negative), rtol=1e-12, atol=1e-12)
    assert exact.calls == [12]
    # Where it is the condition itself, guidance does nothing.
    same = LABELS == 1
    torch.testing.assert_close(ours[same], D[same], rtol=1e-12, atol=1e-12)
    # However the batch is split, by hand or as samples arrive.
    guided, condition = ClassifierFree(exact, 2.5, negative=away), {"labels": LABELS}
    for sampler in ("heun", samplers.Adaptive()):
        options = {"sampler": sampler, "num_steps": 5, "condition": condition, "progress": False}
        parts = edmund.sample(guided, (6, 2), batch_size=4, **options)
        torch.testing.assert_close(parts, edmund.sample(guided, (6, 2), **options), rtol=1e-9, atol=1e-9)
    density = edmund.log_prob(guided, X, condition=condition, progress=False)
    alone = edmund.log_prob(guided, X[3:4], condition={"labels": LABELS[3:4]}, progress=False)
    torch.testing.assert_close(density[3:4], alone, rtol=1e-9, atol=1e-9)


def test_the_last_sample_of_adaptive_steps():
    """Of samples that arrive apart the last has a sigma of [1], and its two halves are each told their own."""
    seen = []

    def strict(x, sigma, labels):
        assert sigma.ndim == 0 or sigma.shape == x.shape[:1]
        seen.append((len(x), sigma.ndim))
        spread = torch.tensor([0.1, 2.0, 1.0], dtype=F64)[labels, None]  # the last: the reference
        return x * spread**2 / (spread**2 + sigma.reshape(-1, 1) ** 2)

    options = {"sampler": samplers.Adaptive(), "num_steps": 3, "progress": False}
    together = edmund.sample(ClassifierFree(strict, 1.5), (2, 2), condition={"labels": torch.tensor([0, 1])}, **options)
    assert (4, 1) in seen and (2, 1) in seen
    alone = edmund.sample(ClassifierFree(strict, 1.5), (1, 2), condition={"labels": torch.tensor([0])}, **options)
    torch.testing.assert_close(together[:1], alone, rtol=1e-9, atol=1e-9)


def randomised(network):
    """The network with every parameter random: outputs start at zero, and so does the null context."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return network.double().eval()


def mlp(**options):
    return Preconditioned(
        randomised(MLP(4, channels=16, blocks=1, **options)),
        preconditioning.EDM(0.5),
    )


def unet(**options):
    return Preconditioned(randomised(UNet(1, channels=8, channel_mult=(1,), **options)), preconditioning.EDM(0.5))


CONDITIONS = {
    "classes": (lambda: mlp(label_dim=3), (4,), {"labels": torch.tensor([0, 2, 1])}),
    "vectors": (lambda: mlp(label_dim=3), (4,), {"labels": randn(3, 3)}),
    "context": (lambda: mlp(context_dim=5), (4,), {"context": randn(3, 5)}),
    "tokens": (lambda: mlp(context_dim=5, label_dim=3), (4,), {"context": randn(3, 7, 5), "labels": randn(3, 3)}),
    "image": (lambda: unet(image_channels=2), (1, 6, 6), {"image": randn(3, 2, 6, 6)}),
    "all": (
        lambda: unet(image_channels=2, context_dim=5, label_dim=3, augment_dim=2),
        (1, 6, 6),
        {
            "image": randn(3, 2, 6, 6),
            "context": randn(3, 5),
            "labels": torch.tensor([0, -1, 1]),
            "augment_labels": randn(3, 2),
        },
    ),
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_the_empty_condition_is_what_training_trains(case):
    """What training takes away from a sample and what guidance does not tell the reference are the same, for each
    network; and that is "none": labels of -1 or zero, the learned null, a zero image.
    """
    make, shape, condition = CONDITIONS[case]
    model, x, sigma = make(), randn(3, *shape, seed=2), level(0.9)
    trained = drop(condition, noise.keys(0, torch.arange(3)), 1.0)
    assert drop_condition(condition, torch.ones(3, dtype=torch.bool)).keys() == trained.keys()
    main, reference = model(x, sigma, **condition), model(x, sigma, **trained)
    assert (main - reference).abs().amax() > 1e-3
    ours = ClassifierFree(model, 2.0)(x, sigma, **condition)
    torch.testing.assert_close(ours, 2 * main - reference, rtol=1e-9, atol=1e-9)
    # Some of a batch dropped in training: the others are as they were.
    some = torch.tensor([True, False, True])
    mixed = model(x, sigma, **drop_condition(condition, some))
    torch.testing.assert_close(mixed[some], reference[some], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(mixed[~some], main[~some], rtol=1e-9, atol=1e-9)
    # "None" said in other words.
    words = {"classes": {"labels": torch.tensor([-1])}, "vectors": {"labels": torch.zeros(1, 3, dtype=F64)}}
    words["image"] = {"image": torch.zeros(1, 2, 6, 6, dtype=F64)}
    if case in words:
        torch.testing.assert_close(model(x, sigma, **words[case]), reference, rtol=1e-9, atol=1e-9)
        negative = ClassifierFree(model, 2.0, negative=words[case])(x, sigma, **condition)
        torch.testing.assert_close(negative, ours, rtol=1e-9, atol=1e-9)
    if case == "classes":
        torch.testing.assert_close(model(x, sigma), reference, rtol=1e-9, atol=1e-9)


def test_what_a_user_drops():
    """Labels alone may be dropped; a negative context leaves the other conditions as they are."""
    make, shape, condition = CONDITIONS["all"]
    model, x, sigma = make(), randn(3, *shape, seed=2), level(0.9)
    main = model(x, sigma, **condition)
    without = model(x, sigma, **{**condition, "labels": torch.tensor([-1])})
    ours = ClassifierFree(model, 2.0, drop=["labels"])(x, sigma, **condition)
    torch.testing.assert_close(ours, 2 * main - without, rtol=1e-9, atol=1e-9)
    context = randn(1, 5, seed=7)
    without = model(x, sigma, **{**condition, "context": context})
    ours = ClassifierFree(model, 2.0, negative={"context": context})(x, sigma, **condition)
    torch.testing.assert_close(ours, 2 * main - without, rtol=1e-9, atol=1e-9)
    # A sample that is told nothing anyway is not guided.
    dropped = torch.tensor([True, False, False])
    ours = ClassifierFree(model, 2.0)(x, sigma, **condition, condition_dropped=dropped)
    expected = model(x, sigma, **condition, condition_dropped=dropped)
    torch.testing.assert_close(ours[:1], expected[:1], rtol=1e-9, atol=1e-9)
    assert (ours - expected)[1:].abs().amax(dim=(1, 2, 3)).min() > 1e-3


def test_static_thresholding():
    far = lambda x, sigma: x  # noqa: E731
    x = torch.tensor([[-3.0, -0.5, 0.2, 1.5]], dtype=F64)
    assert StaticThresholding(far)(x, level(1.0)).tolist() == [[-1.0, -0.5, 0.2, 1.0]]
    assert StaticThresholding(far, 2)(x, level(1.0)).tolist() == [[-2.0, -0.5, 0.2, 1.5]]
    assert StaticThresholding(far, (0.0, math.inf))(x, level(1.0)).tolist() == [[0.0, 0.0, 0.2, 1.5]]


def test_dynamic_thresholding():
    far = lambda x, sigma: x  # noqa: E731
    x = torch.stack([torch.linspace(-0.9, 0.9, 11, dtype=F64), torch.linspace(-5.0, 5.0, 11, dtype=F64)])
    ours = DynamicThresholding(far, 0.5)(x, level(1.0))
    assert torch.equal(ours[0], x[0])  # within the bound: untouched
    # |x| of the second: 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, of which the median is 3.
    torch.testing.assert_close(ours[1], x[1].clamp(-3, 3) / 3)
    assert DynamicThresholding(far, 1.0, bound=2.0)(x, level(1.0))[1].tolist() == pytest.approx((x[1] / 2.5).tolist())
    assert DynamicThresholding(far)(x.to(torch.bfloat16), level(1.0)).dtype == torch.bfloat16


@pytest.mark.parametrize("phi", [0.0, 0.7, 1.0])
def test_rescale(phi):
    make, shape, condition = CONDITIONS["all"]
    model, x, sigma = make(), randn(3, *shape, seed=2), level(2.0)
    guidance = ClassifierFree(model, 5.0)
    guided, main = guidance(x, sigma, **condition), model(x, sigma, **condition)
    ours = Rescale(guidance, phi)(x, sigma, **condition)
    ratio = main.flatten(1).std(1) / guided.flatten(1).std(1)
    expected = phi * ratio.reshape(-1, 1, 1, 1) * guided + (1 - phi) * guided
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    if phi == 1:
        torch.testing.assert_close(ours.flatten(1).std(1), main.flatten(1).std(1), rtol=1e-9, atol=1e-9)
    off = Rescale(ClassifierFree(model, 5.0, (3.0, 9.0)), phi)
    assert torch.equal(off(x, sigma, **condition), main)


def test_rescale_through_other_wrappers():
    """Around thresholding: to the standard deviation of the unguided D, thresholded too."""
    make, shape, condition = CONDITIONS["all"]
    model, x, sigma = make(), randn(3, *shape, seed=2), level(2.0)
    free = ClassifierFree(model, 5.0)
    for around in (lambda d: StaticThresholding(d, 0.5), lambda d: DynamicThresholding(d, 0.7, bound=0.3)):
        guided, main = around(free)(x, sigma, **condition), around(model)(x, sigma, **condition)
        assert (guided - free(x, sigma, **condition)).abs().max() > 1e-2
        ours = Rescale(around(free), 0.5)
        ratio = main.std((1, 2, 3), keepdim=True) / guided.std((1, 2, 3), keepdim=True)
        expected = guided * (0.5 + 0.5 * ratio)
        torch.testing.assert_close(ours(x, sigma, **condition), expected, rtol=1e-9, atol=1e-9)
        # Twice by halves: what the first left is halved again.
        ratio = main.std((1, 2, 3), keepdim=True) / expected.std((1, 2, 3), keepdim=True)
        torch.testing.assert_close(
            Rescale(ours, 0.5)(x, sigma, **condition), expected * (0.5 + 0.5 * ratio), rtol=1e-9, atol=1e-9
        )
        off = Rescale(around(ClassifierFree(model, 5.0, (3.0, 9.0))), 0.5)
        assert torch.equal(off(x, sigma, **condition), main)
    assert not StaticThresholding(model).guides and StaticThresholding(StaticThresholding(free)).guides
    for plain in (StaticThresholding(len), Wrapper(len)):
        with pytest.raises(InputError, match="has no guidance in it"):
            plain.with_main(x, sigma)


def test_rescale_of_a_constant():
    flat = lambda x, sigma, labels=None: torch.ones_like(x) * (2.0 if labels is not None else 1.0)  # noqa: E731
    ours = Rescale(Autoguidance(flat, lambda x, sigma: torch.zeros_like(x), 2.0), 0.7)(X, level(1.0))
    assert torch.equal(ours, torch.full_like(X, 2.0))


NESTS = {
    "auto of free": lambda: Autoguidance(
        ClassifierFree(Classes(), 2.0), ClassifierFree(Classes(MEANS + 0.1), 2.0), 1.5
    ),
    "free of auto": lambda: ClassifierFree(Autoguidance(Classes(), Classes(MEANS + 0.1), 1.5), 2.0),
    "classifier of free": lambda: ClassifierGuidance(ClassifierFree(Classes(), 2.0), Classes().log_posterior, 1.5),
    "all": lambda: DynamicThresholding(
        StaticThresholding(
            Rescale(Autoguidance(ClassifierFree(Classes(), 2.0, (0.1, 9.0)), Classes(MEANS + 0.1), 1.5), 0.5), (-9, 9)
        ),
        0.9,
        bound=4.0,
    ),
    "rescale of threshold": lambda: Rescale(StaticThresholding(ClassifierFree(Classes(), 2.0), 9.0), 0.5),
}


@pytest.mark.parametrize("nest", NESTS)
@pytest.mark.parametrize("sampler", ["heun", samplers.Euler(churn=samplers.Churn(10))])
def test_nests_sample(nest, sampler):
    """Any nesting is a denoiser for any sampler: samples are those of the nest as a plain function, by halves too."""
    guided = NESTS[nest]()
    assert isinstance(guided, Denoiser)
    options = {"sampler": sampler, "num_steps": 6, "progress": False}
    ours = edmund.sample(guided, (6, 2), condition={"labels": LABELS}, **options)
    plain = edmund.sample(lambda x, sigma, labels: guided(x, sigma, labels=labels), (6, 2),
                          condition={"labels": LABELS}, **options)  # fmt: skip
    assert torch.equal(ours, plain) and bool(torch.isfinite(ours).all())
    halves = edmund.sample(guided, (6, 2), condition={"labels": LABELS}, batch_size=4, **options)
    torch.testing.assert_close(halves, ours, rtol=1e-9, atol=1e-9)
    unguided = edmund.sample(Classes(), (6, 2), condition={"labels": LABELS}, **options)
    assert (ours - unguided).abs().max() > 1e-2


def test_guided_gaussians_end_where_the_closed_form_says():
    """Classes of one Gaussian shape: the guided D is a Gaussian's, so the samples' law is known."""

    def two(x, sigma, labels):
        means = torch.tensor([[1.0], [3.0], [0.0]], dtype=F64)[labels]  # the last: the reference
        return means + 0.25 / (0.25 + sigma.reshape(-1, 1) ** 2) * (x - means)

    ours = edmund.sample(
        ClassifierFree(two, 2.0), (2, 1), num_steps=64, progress=False, condition={"labels": torch.tensor([0, 1])}
    )
    expected = torch.cat(
        [
            edmund.sample(Gaussian([mean], [[0.25]]), (1, 1), seeds=[k], num_steps=64, progress=False)
            for k, mean in enumerate((2.0, 6.0))
        ]
    )
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_wrappers_carry_what_they_wrap():
    formulation = edmund.formulation.EDM(0.5)
    network = MLP(4, channels=8, blocks=1, label_dim=3)
    model = Preconditioned(network, preconditioning.IDDPM(), formulation=formulation, sigma_min=0.01, sigma_max=50.0)
    for outer in (
        DynamicThresholding(StaticThresholding(ClassifierFree(model, 2.0))),
        Rescale(Autoguidance(model, Classes(), 2.0), 0.5),
    ):
        assert outer.formulation is formulation and (outer.sigma_min, outer.sigma_max) == (0.01, 50.0)
        assert outer.num_classes == 3 and outer.known_conditions == model.known_conditions
        sigma = level(0.123)
        assert outer.round_sigma(sigma) == model.round_sigma(sigma)
        asked = {"sigma_min": 0.01, "sigma_max": 50.0, "num_steps": 3, "progress": False}
        with pytest.raises(InputError, match="labels holds 7"):
            edmund.sample(outer, (1, 4), condition={"labels": torch.tensor([7])}, **asked)
        with pytest.raises(InputError, match="sigma_max"):
            edmund.sample(outer, (1, 4), sigma_min=0.01, sigma_max=60.0, progress=False)
    plain = StaticThresholding(lambda x, sigma: x)
    assert not any(hasattr(plain, name) for name in ("formulation", "sigma_min", "round_sigma", "check_labels"))
    unconditional = Preconditioned(MLP(4, channels=8, blocks=1), preconditioning.EDM(0.5))
    steered = ClassifierGuidance(
        unconditional, lambda x, sigma, labels: -(x**2).sum(1) * labels, 2.0, conditional=False
    )
    assert edmund.sample(steered, (1, 4), condition={"labels": torch.tensor([7])}, num_steps=3, progress=False).shape
    assert isinstance(plain, Wrapper)


def test_autoguidance_stays_where_both_were_trained():
    def model(low, high):
        return Preconditioned(MLP(4, channels=8, blocks=1), preconditioning.EDM(0.5), sigma_min=low, sigma_max=high)

    def ends(**options):
        guided = Autoguidance(model(0.01, 50.0), model(0.1, 20.0), **options)
        return guided.sigma_min, guided.sigma_max

    assert ends(w=2.0) == (0.1, 20.0)
    assert ends(w=1.0) == (0.01, 50.0)
    assert ends(w=2.0, interval=(0.1, 20.0)) == (0.01, 50.0)
    assert ends(w=2.0, interval=(0.5, 30.0)) == (0.01, 20.0)
    assert Autoguidance(Classes(), model(0.1, 20.0), 2.0).sigma_max == 20.0
    assert Autoguidance(model(0.1, 20.0), Classes(), 2.0).sigma_max == 20.0


def test_modes_are_put_back():
    model = Preconditioned(MLP(4, channels=8, blocks=1, label_dim=3, dropout=0.5), preconditioning.EDM(0.5)).train()
    guided = ClassifierFree(model, 2.0)
    options = {"num_steps": 3, "condition": {"labels": torch.tensor([1])}, "progress": False}
    first = edmund.sample(guided, (2, 4), **options)
    assert torch.equal(edmund.sample(guided, (2, 4), **options), first)  # dropout is off
    assert model.training and model.network.training


def call(guided, **condition):
    return lambda: guided(X, level(0.5), **condition)


CONTEXT = mlp(context_dim=5, label_dim=3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ClassifierFree(Classes(), math.nan), ["w is nan", "finite"]),
        (lambda: ClassifierFree(Classes(), math.inf), ["w is inf"]),
        (lambda: ClassifierFree(Classes(), "2"), ["w is '2'"]),
        (lambda: ClassifierFree(Classes(), True), ["w is True"]),
        (lambda: ClassifierFree(Classes, 2.0), ["denoiser", "Classes"]),
        (lambda: ClassifierFree(3, 2.0), ["denoiser is 3"]),
        (lambda: Autoguidance(Classes(), None, 2.0), ["weaker is None"]),
        (lambda: Autoguidance(Classes(), Classes(), -math.inf), ["w is -inf"]),
        (lambda: ClassifierGuidance(Classes(), 5, 2.0), ["classifier is 5"]),
        (lambda: ClassifierGuidance(Classes(), len, 2.0, conditional=1), ["conditional is 1"]),
        (lambda: ClassifierFree(Classes(), 2.0, (5.0, 0.3)), ["interval is (5.0, 0.3)", "sigma_low < sigma_high"]),
        (lambda: ClassifierFree(Classes(), 2.0, (1.0, 1.0)), ["interval is (1.0, 1.0)"]),
        (lambda: ClassifierFree(Classes(), 2.0, (-1.0, 1.0)), ["interval is (-1.0, 1.0)"]),
        (lambda: ClassifierFree(Classes(), 2.0, (0.0, math.nan)), ["sigma_high", "nan"]),
        (lambda: ClassifierFree(Classes(), 2.0, (1.0,)), ["interval is (1.0,)", "two"]),
        (lambda: ClassifierFree(Classes(), 2.0, 5.0), ["interval is 5.0", "two"]),
        (lambda: ClassifierFree(Classes(), 2.0, "ab"), ["interval is 'ab'"]),
        (lambda: ClassifierFree(Classes(), 2.0, negative={}), ["negative is {}"]),
        (lambda: ClassifierFree(Classes(), 2.0, negative={"labels": 3}), ["negative 'labels' is 3"]),
        (
            lambda: ClassifierFree(Classes(), 2.0, negative={"labels": LABELS[:1]}, drop=["labels"]),
            ["negative and drop"],
        ),
        (lambda: ClassifierFree(CONTEXT, 2.0, negative={"labels": torch.tensor([9])}), ["labels holds 9"]),
        (lambda: ClassifierFree(Classes(), 2.0, drop="labels"), ["drop is 'labels'", "sequence"]),
        (lambda: ClassifierFree(Classes(), 2.0, drop=["label"]), ["'label'", "did you mean 'labels'"]),
        (call(ClassifierFree(Classes(), 2.0)), ["no condition to guide by", "none", "labels"]),
        (call(ClassifierFree(lambda x, sigma, a: x, 2.0), a=X), ["no condition to guide by", "['a']"]),
        (call(ClassifierFree(Classes(), 2.0, negative={"context": X[:1]}), labels=LABELS), ["negative", "'context'"]),
        (
            call(ClassifierFree(Classes(), 2.0, negative={"labels": torch.ones(1, 3)}), labels=LABELS),
            ["negative 'labels'", "(6, 3)", "(6,)"],
        ),
        (
            lambda: ClassifierFree(Classes(), 2.0, negative={"labels": LABELS}),
            ["negative 'labels' has shape (6,)", "must be 1", "a call each"],
        ),
        (
            call(ClassifierFree(lambda x, sigma, context: x, 2.0), context=X),
            ["'context'", "condition_dropped", "negative"],
        ),
        (
            call(ClassifierFree(CONTEXT, 2.0, drop=["context"]), context=randn(6, 5), labels=LABELS),
            ["drop is ['context']", "'labels'"],
        ),
        (call(ClassifierFree(Classes(), 2.0), labels=LABELS[:4]), ["'labels'", "(4,)"]),
        (
            call(ClassifierGuidance(Classes(), lambda x, sigma, labels: x.sum(), 2.0), labels=LABELS),
            ["classifier returned ()", "[6]"],
        ),
        (
            call(ClassifierGuidance(Classes(), lambda x, sigma, labels: x.detach().sum(1), 2.0), labels=LABELS),
            ["no gradient in x"],
        ),
        (lambda: Rescale(Classes(), 0.7), ["guidance is a Classes"]),
        (lambda: Rescale(StaticThresholding(Classes()), 0.7), ["guidance is a StaticThresholding", "unguided D"]),
        (lambda: Rescale(ClassifierFree(Classes(), 2.0), 1.5), ["phi is 1.5", "[0, 1]"]),
        (lambda: Rescale(ClassifierFree(Classes(), 2.0), math.nan), ["phi is nan"]),
        (lambda: Rescale(Autoguidance(len, len, 2.0), 0.7)(X[:, :1], level(1.0)), ["(6, 1)", "standard deviation"]),
        (lambda: StaticThresholding(Classes(), 0.0), ["bound is 0.0"]),
        (lambda: StaticThresholding(Classes(), (1.0, -1.0)), ["bound is (1.0, -1.0)", "low < high"]),
        (lambda: StaticThresholding(Classes(), (-math.inf, math.inf)), ["bound", "infinite"]),
        (lambda: StaticThresholding(Classes(), (0.0, math.nan)), ["bound", "nan"]),
        (lambda: StaticThresholding(Classes(), "ab"), ["bound is 'ab'"]),
        (lambda: StaticThresholding(Classes(), None), ["bound is None"]),
        (lambda: DynamicThresholding(Classes(), 99.5), ["quantile is 99.5", "(0, 1]"]),
        (lambda: DynamicThresholding(Classes(), 0.99, -1.0), ["bound is -1.0"]),
    ],
)
def test_errors(build, words):
    with pytest.raises(InputError) as error:
        build()
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value)
