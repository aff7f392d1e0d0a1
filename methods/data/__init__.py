"""This package reads, draws and checks calibration samples and training text, which are the same for every method of a grid."""

from prunebench.methods.data.calibration import CalibrationConfig, PruningData, build_pruning_data
from prunebench.methods.data.training_text import Example, TrainingConfig, TrainingText

__all__ = ["CalibrationConfig", "Example", "PruningData", "TrainingConfig", "TrainingText", "build_pruning_data"]
