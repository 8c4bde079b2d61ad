"""Every distillation loss, one function each, in LOSSES: (student, teacher, batch, **hyper) → scalar.

A loss is the teacher's part alone: what the labels say is added by `distill`, (1 − α)·labels + α·Σ weight·loss. Losses
whose values are small by nature carry the scale of their paper (`scale`), so that weights near 1 are sensible ones."""

from abridged.distillation.contrast import contrast as contrast
from abridged.distillation.features import attention as attention
from abridged.distillation.features import feature_norm as feature_norm
from abridged.distillation.features import fsp as fsp
from abridged.distillation.features import heads as heads
from abridged.distillation.features import hidden as hidden
from abridged.distillation.features import hint as hint
from abridged.distillation.features import vid as vid
from abridged.distillation.language import sequence as sequence
from abridged.distillation.language import token as token
from abridged.distillation.logits import dist as dist
from abridged.distillation.logits import dkd as dkd
from abridged.distillation.logits import kd as kd
from abridged.distillation.logits import mimic as mimic
from abridged.distillation.logits import standardized as standardized
from abridged.distillation.relations import rkd_angle as rkd_angle
from abridged.distillation.relations import rkd_distance as rkd_distance
from abridged.distillation.relations import similarity as similarity
from abridged.distillation.selftaught import deep_to_shallow as deep_to_shallow
from abridged.distillation.table import LOSSES as LOSSES
from abridged.distillation.table import Outputs as Outputs
