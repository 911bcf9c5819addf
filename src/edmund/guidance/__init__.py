r"""Guidance: denoisers made of denoisers, for samples that show their condition more clearly.

One formula serves all of it (Ho & Salimans 2022; Karras et al. 2024): from a main denoiser and a reference that is
worse in the respect to be improved,

    D_guided(x; sigma) = D_ref + w (D_main - D_ref) = D_main + (w - 1) (D_main - D_ref),

so that **w = 1 is off** everywhere: exactly the main denoiser, at its cost. `ClassifierFree` takes the main model
without its condition as the reference (or with a negative one), `Autoguidance` a weaker model, and `ClassifierGuidance`
has the difference from Bayes: D(x | c) - D(x) = sigma^2 grad log p(c | x; sigma). Each may be limited to an interval
sigma_low < sigma <= sigma_high (Kynkaanniemi et al. 2024, arXiv 2404.07724), outside of which it is off.

Large w drives D out of the data's range: `StaticThresholding` and `DynamicThresholding` pull it back, `Rescale`
restores its contrast. Every one is a denoiser again, and carries the range, the levels and the formulation of the one
it wraps: they nest in any order (`Rescale` needs a guidance somewhere inside) and work with every sampler.
"""

from edmund.guidance._base import Guidance, Wrapper
from edmund.guidance.autoguidance import Autoguidance
from edmund.guidance.classifier import ClassifierGuidance
from edmund.guidance.classifier_free import ClassifierFree
from edmund.guidance.rescale import Rescale
from edmund.guidance.thresholding import DynamicThresholding, StaticThresholding

__all__ = [
    "Autoguidance",
    "ClassifierFree",
    "ClassifierGuidance",
    "DynamicThresholding",
    "Guidance",
    "Rescale",
    "StaticThresholding",
    "Wrapper",
]
