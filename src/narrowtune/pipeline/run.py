"""What the stages of one run share."""

from __future__ import annotations

from dataclasses import dataclass, field

from narrowtune.core.config import RunConfig
from narrowtune.core.delta_results import DialResult
from narrowtune.core.results import DriftResult, Plan, TaskResult
from narrowtune.core.run_folder import RunFolder
from narrowtune.data.chat import ChatEncoder
from narrowtune.engine.arithmetic import Arithmetic
from narrowtune.engine.features import FeatureStore
from narrowtune.ledger.book import Book
from narrowtune.models.load import LoadedModel
from narrowtune.pipeline.dial import Halves
from narrowtune.pipeline.inputs import Inputs
from narrowtune.pipeline.shared import Shared
from narrowtune.pipeline.stopwatch import Stopwatch
from narrowtune.train.fit import FitResult


@dataclass
class Run:
    """What the stages of one run share, and what they have found so far."""

    config: RunConfig
    folder: RunFolder
    watch: Stopwatch
    loaded: LoadedModel
    base_hashes: dict[str, str]
    inputs: Inputs
    encoder: ChatEncoder
    shared: Shared
    arithmetic: Arithmetic
    features: FeatureStore | None
    book: Book | None = None
    plan: Plan | None = None
    before: list[TaskResult] | None = None
    after: list[TaskResult] | None = None
    fitted: FitResult | None = None
    training_notes: list[str] = field(default_factory=list)
    tuned_fingerprint: str = ""
    drift: DriftResult | None = None
    halves: Halves | None = None
    dial: DialResult | None = None
