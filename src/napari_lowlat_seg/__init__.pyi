# The public names, in one place: type checkers read them here, and `lazy_loader` at import.

from .annotation.propagation_run import PropagationRun as PropagationRun
from .annotation.session import Session as Session
from .batch.measure import Measurement as Measurement
from .batch.measure import measure as measure
from .core.frame import Frame as Frame
from .core.labels import ArrayLabels as ArrayLabels
from .core.masks import SoftMask as SoftMask
from .core.prompts import Box as Box
from .core.prompts import Click as Click
from .core.prompts import Mask as Mask
from .core.prompts import Polygon as Polygon
from .core.prompts import Prompt as Prompt
from .core.prompts import Scribble as Scribble
from .core.volume import Plane as Plane
from .core.volume import Volume as Volume
from .inference.prediction import Embedding as Embedding
from .inference.prediction import Prediction as Prediction
from .inference.predictor import Predictor as Predictor
from .inference.predictor import load_predictor as load_predictor
from .io.exports.export import write_export as write_export
from .io.prompt_files import ObjectPrompts as ObjectPrompts
from .io.prompt_files import load_prompts as load_prompts
from .io.prompt_files import save_prompts as save_prompts
from .io.samples import sample_path as sample_path
from .propagation.propagate import propagate as propagate
from .serving.service import PredictionService as PredictionService

__version__: str
