"""Training: a model and a data set in, a run folder with checkpoints and the trained model out; the same call goes on
with an interrupted run.
"""

from edmund.training.options import TrainingOptions
from edmund.training.snapshots import reconstruct
from edmund.training.trainer import Preview, Trainer, TrainingDiverged, TrainingResult

__all__ = ["Preview", "Trainer", "TrainingDiverged", "TrainingOptions", "TrainingResult", "reconstruct"]
