"""The samplers of benchmarks/samplers.py: each name with what runs it here and in each library that has it.

All are run as `method(denoise, latents, sigmas)`: unit normals in, samples out, through the same noise levels
sigma_0 > ... > sigma_{N-1} > 0. denoise(z, sigma) is E[y | z] of the unscaled z = y + sigma n. The schedules of
diffusers and azula are tables of numbers; they are filled with these levels in float64, and what a scheduler expects of
a network (noise, data, v, EDM's F, in its own scaling) is computed from E[y | z]. What cannot take the final 0 stops at
sigma_{N-1} and takes the step to 0 as one more call of the denoiser, which counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, NamedTuple

import torch
from _peers import k_diffusion_sampling
from torch import Tensor

from edmund import noise, process, samplers

LIBRARIES = ("edmund", "k-diffusion", "diffusers", "azula")
Denoise = Callable[[Tensor, Tensor], Tensor]
Method = Callable[[Denoise, Tensor, Tensor], Tensor]
CHURN = (40.0, 0.05, 50.0, 1.003)
NOISE_SEED = 20
adapting = {"seconds": 0.0}
"""What the translation for diffusers' schedulers took so far: the benchmark's own time, which is not theirs."""


@dataclass(frozen=True)
class Row:
    """A sampler by its name here, and the methods of the libraries that have it.

    stochastic: judged by the law of its samples. least: the fewest steps that all of its methods can take. log_uniform:
    k-diffusion's dpm_fast knows no levels but those uniform in ln sigma; ours is given the same.
    """

    name: str
    methods: dict[str, Method] = field(repr=False)
    stochastic: bool = False
    least: int = 1
    log_uniform: bool = False


def edmund(sampler: samplers.Sampler, path: process.Process | None = None) -> Method:
    """Ours; without another process on EDM's (sigma = t, s = 1), as all k-diffusion's are."""
    path = path or process.EDM()

    def run(denoise: Denoise, latents: Tensor, sigmas: Tensor) -> Tensor:
        source = noise.Seeded(range(2**33, 2**33 + len(latents)))
        start, end = path.s(path.t(sigmas[[0, -1]])).tolist()
        z = latents * sigmas[0] * start
        return sampler(denoise, z, sigmas, process=path, noise=source) / end

    return run


def k_diffusion(name: str, **arguments: object) -> Method:
    """k-diffusion's sample_{name}."""
    function = getattr(k_diffusion_sampling(), f"sample_{name}")

    def run(denoise: Denoise, latents: Tensor, sigmas: Tensor) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(NOISE_SEED)
            return function(denoise, latents * sigmas[0], sigmas, disable=True, **arguments)

    return run


def _k_diffusion_fast(denoise: Denoise, latents: Tensor, sigmas: Tensor) -> Tensor:
    low, high = sigmas[-2].item(), sigmas[0].item()
    function = k_diffusion_sampling().sample_dpm_fast
    z = function(denoise, latents * high, low, high, _fast_calls(len(sigmas) - 1), disable=True)
    return denoise(z, sigmas[-2])


def _fast_calls(num_steps: int) -> int:
    """k-diffusion's n of dpm_fast for N - 1 steps between positive levels, the most of the three possible."""
    return 3 * (num_steps - 2) + 2


class Scaled(NamedTuple):
    """How a scheduler of diffusers sees the state: "ve": z, "vp": z / sqrt(1 + sigma^2); and what it expects of a
    network: "sample", "epsilon", "v" or "edm".
    """

    state: str
    output: str
    sigma_data: float = 0.5

    def scale(self, sigma: Tensor) -> Tensor:
        """What z is multiplied with."""
        return torch.rsqrt(1 + sigma**2) if self.state == "vp" else torch.ones_like(sigma)

    def of(self, image: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
        """The network's output that means the image."""
        if self.output == "epsilon":
            return (z - image) / sigma
        if self.output == "v":
            return (z - image - sigma**2 * image) / sigma * torch.rsqrt(1 + sigma**2)
        if self.output == "edm":
            total = sigma**2 + self.sigma_data**2
            return (image - self.sigma_data**2 / total * z) * total.sqrt() / (sigma * self.sigma_data)
        return image


Plan = tuple[Any, list[Any], list[float]]
"""A scheduler filled with the levels, the timesteps for its calls, the sigmas of these calls."""


def diffusers(make: Callable[[Tensor], Plan], scaled: Scaled, stops: bool = False) -> Method:
    """A scheduler in the loop that its documentation shows. stops: it cannot take the final 0."""

    def run(denoise: Denoise, latents: Tensor, sigmas: Tensor) -> Tensor:
        begun = perf_counter()
        scheduler, timesteps, levels = make(sigmas[:-1] if stops else sigmas)
        generator = torch.Generator().manual_seed(NOISE_SEED)
        draws = "generator" in scheduler.step.__code__.co_varnames
        begin = sigmas[0]
        state = latents * begin * scaled.scale(begin)
        for timestep, level in zip(timesteps, levels, strict=True):
            sigma = torch.tensor(level, dtype=torch.float64)
            z = state / scaled.scale(sigma)
            adapting["seconds"] += perf_counter() - begun
            image = denoise(z, sigma)
            begun = perf_counter()
            output = scaled.of(image, z, sigma)
            scheduler.is_scale_input_called = True  # the scaling of the input is done above
            options = {"generator": generator} if draws else {}
            adapting["seconds"] += perf_counter() - begun
            state = scheduler.step(output, timestep, state, **options).prev_sample
            begun = perf_counter()
        if not stops:
            return state
        return denoise(state / scaled.scale(sigmas[-2]), sigmas[-2])

    return run


def _scheduler(name: str, **config: object) -> Any:
    import diffusers as library

    library.logging.set_verbosity_error()
    return getattr(library, name)(**config)


def _plain(name: str, **config: object) -> Callable[[Tensor], Plan]:
    """Schedulers with one sigma a step, in `sigmas`."""

    def make(sigmas: Tensor) -> Plan:
        scheduler = _scheduler(name, **config)
        steps = len(sigmas) - 1
        scheduler.set_timesteps(steps)
        scheduler.sigmas = sigmas.clone()
        scheduler.timesteps = torch.arange(steps, 0, -1, dtype=torch.float64)
        scheduler.set_begin_index(0)
        return scheduler, list(scheduler.timesteps), sigmas[:-1].tolist()

    return make


def _heun(sigmas: Tensor) -> Plan:
    scheduler = _scheduler("HeunDiscreteScheduler", prediction_type="sample")
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.set_begin_index(0)
    calls = scheduler.sigmas[:-1].tolist()
    return scheduler, [0.0] * len(calls), calls


def _middles(name: str) -> Callable[[Tensor], Plan]:
    """DPM-2 and its ancestral form: the sigmas between nodes are a table of their own, made as set_timesteps does."""

    def make(sigmas: Tensor) -> Plan:
        scheduler = _scheduler(name, prediction_type="epsilon")
        steps = len(sigmas) - 1
        scheduler.set_timesteps(steps)
        ancestral = hasattr(scheduler, "sigmas_up")

        def doubled(table: Tensor) -> Tensor:
            return torch.cat([table[:1], table[1:].repeat_interleave(2), table[-1:]])

        scheduler.sigmas = doubled(sigmas)
        if ancestral:
            following = torch.cat([sigmas[1:], sigmas[-1:] * 0])
            up = (following**2 * (sigmas**2 - following**2) / sigmas**2).nan_to_num().sqrt()
            down = (following**2 - up**2).sqrt()
            down[-1] = 0.0
            middle = sigmas.log().lerp(down.log(), 0.5).exp()
            middle[-2:] = 0.0
            scheduler.sigmas_up, scheduler.sigmas_down = doubled(up), doubled(down)
            between = middle[:-2]
        else:
            middle = sigmas.log().lerp(sigmas.roll(1).log(), 0.5).exp()
            between = middle[1:-1]
        scheduler.sigmas_interpol = doubled(middle)
        scheduler.set_begin_index(0)
        calls = [sigmas[0].item(), *torch.stack([between, sigmas[1:-1]], 1).flatten().tolist()]
        # The last step, to 0, has one call only: the caller stops before the second.
        return scheduler, [0.0] * len(calls), calls

    return make


def _sde(sigmas: Tensor) -> Plan:
    scheduler = _scheduler("DPMSolverSDEScheduler", prediction_type="epsilon", noise_sampler_seed=NOISE_SEED)
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    scheduler.set_begin_index(0)
    middle = (sigmas[:-2] * sigmas[1:-1]).sqrt()
    calls = [*torch.stack([sigmas[:-2], middle], 1).flatten().tolist(), sigmas[-2].item()]
    return scheduler, [0.0] * len(calls), calls


def _table(name: str, **config: object) -> Callable[[Tensor], Plan]:
    """DDIM and DDPM: a model of N discrete steps whose levels are ours, all of them visited."""

    def make(sigmas: Tensor) -> Plan:
        steps = len(sigmas) - 1
        scheduler = _scheduler(name, num_train_timesteps=steps, prediction_type="sample", clip_sample=False, **config)
        scheduler.set_timesteps(steps)
        scheduler.alphas_cumprod = 1 / (1 + sigmas[:-1].flip(0) ** 2)
        scheduler.final_alpha_cumprod = scheduler.one = torch.ones((), dtype=torch.float64)
        return scheduler, list(range(steps - 1, -1, -1)), sigmas[:-1].tolist()

    return make


def _pndm(sigmas: Tensor) -> Plan:
    """As DDIM's, with a level amid each two, which the Runge-Kutta start asks for."""
    steps = len(sigmas) - 1
    scheduler = _scheduler("PNDMScheduler", num_train_timesteps=2 * steps, timestep_spacing="leading")
    scheduler.set_timesteps(steps)
    rising = sigmas[:-1].flip(0)
    amid = torch.cat([(rising[:-1] + rising[1:]) / 2, rising[-1:]])
    levels = torch.stack([rising, amid], 1).flatten()
    scheduler.alphas_cumprod = 1 / (1 + levels**2)
    scheduler.final_alpha_cumprod = torch.ones((), dtype=torch.float64)
    timesteps = [int(step) for step in scheduler.timesteps]
    return scheduler, timesteps, levels[timesteps].tolist()


def _ipndm(sigmas: Tensor) -> Plan:
    scheduler = _scheduler("IPNDMScheduler")
    scheduler.set_timesteps(len(sigmas) - 1)
    scheduler.alphas = torch.rsqrt(1 + sigmas**2)
    scheduler.betas = sigmas * scheduler.alphas
    scheduler.set_begin_index(0)
    calls = sigmas[:-1].tolist()
    return scheduler, [0.0] * len(calls), calls


def azula(name: str, takes_zero: bool = False, **arguments: object) -> Method:
    """azula's {name}, with a schedule (alpha = 1) that has the levels at its evenly spaced times."""

    def run(denoise: Denoise, latents: Tensor, sigmas: Tensor) -> Tensor:
        import azula.sample
        from azula.denoise import Denoiser, DiracPosterior

        nodes = sigmas if takes_zero else sigmas[:-1]
        steps = len(nodes) - 1

        class Given(Denoiser):
            def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
                return torch.ones_like(t), nodes[((1 - t) * steps).round().long()]

            def forward(self, x_t: Tensor, t: Tensor) -> DiracPosterior:
                return DiracPosterior(denoise(x_t, self.schedule(t)[1]))

        state = latents * sigmas[0]
        if steps > 0:
            kind = getattr(azula.sample, name)
            solver = kind(Given(), steps=steps, silent=True, dtype=torch.float64, **arguments)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(NOISE_SEED)
                state = solver(state)
        return state if takes_zero else denoise(state, sigmas[-2])

    return run


def _vp(name: str, **config: object) -> Method:
    stops = name in ("DEISMultistepScheduler", "SASolverScheduler")
    return diffusers(_plain(name, prediction_type="sample", **config), Scaled("vp", "sample"), stops)


def _edm(name: str, **config: object) -> Method:
    return diffusers(_plain(name, **config), Scaled("ve", "edm"))


def rows() -> list[Row]:
    """Every sampler of ours, under its name, with its peers; and what only peers have."""
    from edmund.samplers import Churn

    named = samplers.named()
    churn = Churn(*CHURN)
    k_churn = dict(zip(("s_churn", "s_tmin", "s_tmax", "s_noise"), CHURN, strict=True))
    dpm = "EDMDPMSolverMultistepScheduler"
    sde = {"algorithm_type": "sde-dpmsolver++"}

    def ours(name: str, **arguments: object) -> Method:
        return edmund(named[name](**arguments))

    def row(name: str, mine: Method | None, k: Method | None = None, d: Method | None = None, a: Method | None = None,
            **options: Any) -> Row:  # fmt: skip
        columns = zip(LIBRARIES, (mine, k, d, a), strict=True)
        return Row(name, {library: method for library, method in columns if method is not None}, **options)

    ve = Scaled("ve", "epsilon")
    deterministic = [
        row("euler", ours("euler"), k_diffusion("euler"), _edm("EDMEulerScheduler"), azula("EulerSampler", True)),
        row("ddim", ours("ddim"), None, diffusers(_table("DDIMScheduler"), Scaled("vp", "sample")),
            azula("DDIMSampler", True)),
        row("heun", ours("heun"), k_diffusion("heun"), diffusers(_heun, Scaled("ve", "sample")), azula("HeunSampler")),
        row("midpoint", ours("midpoint")),
        row("ralston", ours("ralston")),
        row("dpm_2", ours("dpm_2"), k_diffusion("dpm_2"), diffusers(_middles("KDPM2DiscreteScheduler"), ve)),
        row("dpmpp_2s", ours("dpmpp_2s"), k_diffusion("dpmpp_2s_ancestral", eta=0.0),
            _vp("DPMSolverSinglestepScheduler", lower_order_final=True)),
        row("lms", ours("lms"), k_diffusion("lms"),
            diffusers(_plain("LMSDiscreteScheduler", prediction_type="sample"), Scaled("ve", "sample")),
            azula("zABSampler", True, order=4)),
        row("lms order 3", ours("lms", order=3), k_diffusion("lms", order=3), None, azula("zABSampler", True, order=3)),
        row("lms order 2", ours("lms", order=2), k_diffusion("lms", order=2), None, azula("zABSampler", True, order=2)),
        *(
            row(f"lms order {order}, flow", edmund(samplers.LMS(order=order), process.RectifiedFlow()), None, None,
                azula("vABSampler", True, order=order))
            for order in (2, 3, 4)
        ),
        row("lms log_sigma 2", ours("lms", over="log_sigma", order=2)),
        row("lms log_sigma 3", ours("lms", over="log_sigma", order=3)),
        row("lms log_sigma 4", ours("lms", over="log_sigma", order=4)),
        row("deis order 2", ours("deis", order=2), None, _vp("DEISMultistepScheduler", solver_order=2),
            azula("zEABSampler", order=2)),
        row("deis", ours("deis"), None, _vp("DEISMultistepScheduler", solver_order=3), azula("zEABSampler", order=3)),
        row("deis order 4", ours("deis", order=4), None, None, azula("zEABSampler", order=4)),
        row("dpmpp_2m", ours("dpmpp_2m"), k_diffusion("dpmpp_2m"), _edm(dpm)),
        row("dpmpp_2m heun", ours("dpmpp_2m", solver_type="heun"), None, _edm(dpm, solver_type="heun"),
            azula("xEABSampler", order=2)),
        row("dpmpp_3m half", ours("dpmpp_3m", curvature="half"), k_diffusion("dpmpp_3m_sde", eta=0.0),
            _edm(dpm, solver_order=3), least=2),
        row("dpmpp_3m", ours("dpmpp_3m"), k_diffusion("dpmpp_3m_sde", eta=0.0), _edm(dpm, solver_order=3),
            azula("xEABSampler", order=3), least=2),
        row("unipc order 1", ours("unipc", predictor_order=1), None, _vp("UniPCMultistepScheduler", solver_order=1)),
        row("unipc order 2", ours("unipc", predictor_order=2), None, _vp("UniPCMultistepScheduler", solver_order=2)),
        row("unipc", ours("unipc"), None, _vp("UniPCMultistepScheduler", solver_order=3)),
        row("ipndm", ours("ipndm"), None, diffusers(_ipndm, Scaled("vp", "v"))),
        row("pndm", ours("pndm"), None, diffusers(_pndm, Scaled("vp", "epsilon")), least=4),
        row("dpm_fast", ours("dpm_fast", remainder=2), _k_diffusion_fast, log_uniform=True, least=3),
        row("REAB 2", None, None, None, azula("REABSampler", order=2)),
        row("REAB 3", None, None, None, azula("REABSampler", order=3)),
    ]  # fmt: skip
    drawing = [
        row("euler + churn", ours("euler", churn=churn), k_diffusion("euler", **k_churn)),
        row("heun + churn", ours("heun", churn=churn), k_diffusion("heun", **k_churn)),
        row("euler_ancestral", ours("euler_ancestral"), k_diffusion("euler_ancestral"),
            diffusers(_plain("EulerAncestralDiscreteScheduler", prediction_type="epsilon"), ve)),
        row("ddpm", ours("ddpm"), None, diffusers(_table("DDPMScheduler"), Scaled("vp", "sample")),
            azula("DDPMSampler", True)),
        row("dpm_2_ancestral", ours("dpm_2_ancestral"), k_diffusion("dpm_2_ancestral"),
            diffusers(_middles("KDPM2AncestralDiscreteScheduler"), ve)),
        row("dpmpp_2s_ancestral", ours("dpmpp_2s_ancestral"), k_diffusion("dpmpp_2s_ancestral")),
        row("dpmpp_sde", ours("dpmpp_sde"), k_diffusion("dpmpp_sde"), diffusers(_sde, ve)),
        row("dpmpp_2m_sde", ours("dpmpp_2m_sde"), k_diffusion("dpmpp_2m_sde"), _edm(dpm, **sde),
            least=2),
        row("dpmpp_3m_sde", ours("dpmpp_3m_sde"), k_diffusion("dpmpp_3m_sde"),
            _vp("DPMSolverMultistepScheduler", solver_order=3, **sde), least=2),
        row("sa_solver", ours("sa_solver"), None,
            _vp("SASolverScheduler", predictor_order=3, corrector_order=4, tau_func=lambda t: 1.0)),
        row("euler_maruyama", ours("euler_maruyama"), None, None, azula("ItoSampler", True)),
        row("sde_heun", ours("sde_heun")),
        row("predictor_corrector", ours("predictor_corrector"), None, None, azula("PCSampler", True)),
        row("restart", ours("restart"), least=2),
    ]  # fmt: skip
    return deterministic + [Row(r.name, r.methods, True, r.least) for r in drawing]


def levels(row: Row, num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's grid of num_steps steps, the last one to 0, or for log_uniform rows the one that is even in ln sigma."""
    if num_steps == 1:
        nodes = torch.tensor([sigma_max], dtype=torch.float64)
    else:
        ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        if row.log_uniform:
            nodes = (math.log(sigma_max) + ramp * math.log(sigma_min / sigma_max)).exp()
        else:
            nodes = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
        nodes[0], nodes[-1] = sigma_max, sigma_min
    return torch.cat([nodes, torch.zeros(1, dtype=torch.float64)])


def calls(method: Method, sigmas: Tensor) -> int:
    """How often it calls the denoiser."""
    count = 0

    def denoise(z: Tensor, sigma: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return z / (1 + torch.as_tensor(sigma, dtype=z.dtype).reshape(-1, *(1,) * (z.ndim - 1)) ** 2)

    method(denoise, torch.ones(1, 2, dtype=torch.float64), sigmas)
    return count


def most_steps(row: Row, method: Method, budgets: Sequence[int]) -> dict[int, tuple[int, int] | None]:
    """For each budget of NFE the most steps that fit, and their NFE; None where not even the fewest do."""
    found: dict[int, tuple[int, int] | None] = {}
    for budget in budgets:
        few, many = row.least, budget + 1  # the fewest may fit; budget + 1 steps cannot
        if calls(method, levels(row, few)) > budget:
            found[budget] = None
            continue
        while many - few > 1:
            middle = (few + many) // 2
            if calls(method, levels(row, middle)) <= budget:
                few = middle
            else:
                many = middle
        found[budget] = few, calls(method, levels(row, few))
    return found
