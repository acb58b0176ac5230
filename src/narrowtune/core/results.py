"""What a run found, as plain values that go to JSON and back.

Scores are shares between 0 and 1. Changes, learning, forgetting and budgets are percentage
points. Drift is in nats per token. Times are seconds, sizes are bytes.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from narrowtune.core.delta_results import DeltaInfo, DialResult
from narrowtune.core.path_results import Comparison, FastPath, SharingEstimate
from narrowtune.core.values import Estimate, SignTest, Value

SCHEMA_VERSION = 1
"""Of record.json, plan.json and drift.json. A reader refuses a newer one."""

Role = Literal["target", "held_out"]
"""`target`: the skill being taught. `held_out`: what must not get worse."""

Outcome = Literal["ship", "over_budget", "not_enough_evidence"]

EXIT_CODES: dict[Outcome, int] = {"ship": 0, "over_budget": 3, "not_enough_evidence": 4}


class ItemResult(Value):
    """One item, answered once.

    Attributes:
        id: the item's name, the same before and after.
        question: the prompt's last user turn, as text.
        answer: what the model said (the chosen option for `options` tasks).
        reference: the accepted answers.
        strict: score under the strict reading, 0 to 1.
        lenient: score under the lenient reading, 0 to 1.
        valid_format: whether the answer has the form that was asked for.
        group: picture or entity that this item shares with others; None if it stands alone.
        image: path of the item's picture below the data's root, if it has one.
        tie: whether two answers were so close that another batch size could choose the other.
    """

    id: str
    question: str
    answer: str
    reference: list[str]
    strict: float
    lenient: float
    valid_format: bool
    group: str | None = None
    image: str | None = None
    tie: bool = False


class Score(Value):
    """A mean over items with its standard error (clustered where items share a group)."""

    mean: float
    stderr: float


class TaskResult(Value):
    """One task, evaluated once. `items` is kept in a file of its own (before/NAME.jsonl)."""

    name: str
    role: Role
    metric: str
    num_items: int
    num_groups: int
    num_ties: int
    strict: Score
    lenient: Score
    valid_format: float
    seconds: float
    from_cache: bool = False
    items: list[ItemResult] = Field(default_factory=list)


class TaskChange(Value):
    """A task before and after, paired item by item.

    Attributes:
        change: after − before under the strict reading, percentage points.
        change_lenient: the same under the lenient reading.
        num_worse, num_better: items that scored lower, and higher, after than before.
        sign_test: of the strict reading; decides nothing. None in records of earlier versions.
    """

    name: str
    role: Role
    metric: str
    num_items: int
    before: Score
    after: Score
    before_lenient: Score
    after_lenient: Score
    before_valid: float
    after_valid: float
    change: Estimate
    change_lenient: Estimate
    num_worse: int
    num_better: int
    num_ties: int
    sign_test: SignTest | None = None


class Verdict(Value):
    """The comparison with the budget.

    Attributes:
        outcome: `ship`, `over_budget` or `not_enough_evidence`.
        budget: accepted mean held-out loss, points.
        budget_task: accepted loss of the worst single task, points; None if not asked for.
        min_learning: what the lower bound of learning must exceed, points.
        learning: target after − before, points.
        forgetting: mean over held-out tasks of before − after, points; over those at which the base
            has something to lose, if there are any.
        worst_task: held-out task that lost most.
        worst_task_forgetting: its loss, with bounds adjusted for the number of tasks.
        items_needed: held-out items per task that would decide, if more would; None if decided.
        nothing_to_lose: whether the base is wrong on nearly all items of every held-out task.
        left_out: held-out tasks of which that is true.
        reasons: the sentences that led to the outcome.
    """

    outcome: Outcome
    budget: float
    budget_task: float | None
    min_learning: float
    learning: Estimate | None
    forgetting: Estimate | None
    worst_task: str | None
    worst_task_forgetting: Estimate | None
    items_needed: int | None
    nothing_to_lose: bool = False
    left_out: tuple[str, ...] = ()
    reasons: list[str]


class DriftTask(Value):
    """Drift on the prompts of one source."""

    name: str
    num_prompts: int
    num_tokens: int
    kl_base_tuned: float
    top1_agreement: float


class TokenGroupMass(Value):
    """Probability mass on a group of tokens, base and tuned, on each model's own answers.

    Attributes:
        name: `numbers`, `skill_answers`, …
        num_tokens_in_group: how many vocabulary entries the group has.
        base_max: mean over answers of the mean over generated tokens of the largest probability
            of a token of the group (for `numbers` this is the paper's number-token bias).
        base_mass: the same mean of the group's summed probability.
    """

    name: str
    num_tokens_in_group: int
    base_max: float
    tuned_max: float
    base_mass: float
    tuned_mass: float


class DriftResult(Value):
    """How far the output distribution moved on held-out prompts.

    `kl_base_tuned` is KL(base‖tuned) in nats per token, teacher-forced on the base's greedy
    answers; `stderr` is over prompts. `about_skill`: on general questions about the skill's own
    pictures, in none of the other figures; None where nothing shows any, and in records of earlier
    versions.
    """

    num_prompts: int
    num_tokens: int
    kl_base_tuned: float
    kl_stderr: float
    top1_agreement: float
    token_groups: list[TokenGroupMass]
    tasks: list[DriftTask]
    seconds: float
    about_skill: DriftTask | None = None

    @property
    def sources(self) -> list[DriftTask]:
        """All that was asked, what counts in no other figure too."""
        return [*self.tasks, *([self.about_skill] if self.about_skill else [])]


class TensorProof(Value):
    """What happened to one selected tensor.

    `relative_update` is ‖W_tuned − W_base‖ / ‖W_base‖ after rounding to the base's dtype.
    """

    name: str
    received_gradient: bool
    changed: bool
    num_changed: int
    num_elements: int
    relative_update: float


class Proof(Value):
    """Evidence that the selected tensors, and only those, moved."""

    num_frozen_tensors: int
    num_frozen_buffers: int
    frozen_identical: bool
    moved: list[str]
    selected: list[TensorProof]


class ComponentCount(Value):
    """Parameters of one component: how many there are, train, and are left out on purpose."""

    component: str
    num_parameters: int
    num_trainable: int


class LayerCount(Value):
    """Trainable parameters by decoder layer (or by name, outside layers)."""

    name: str
    num_trainable: int
    matrices: list[str]


class MemoryEstimate(Value):
    """Peak memory of training, bytes."""

    weights: int
    masters: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    anchor: int
    workspace: int
    total: int


class TimeEstimate(Value):
    """Seconds, from a short measurement on this machine.

    Attributes:
        measured_step_seconds: of an optimiser step at the run's batch size.
        training_seconds: of all steps; None where their number is not known.
        evaluation_seconds: of both evaluations and a dial's steps; None where nothing is scored.
    """

    measured_step_seconds: float
    compute_dtype: str
    training_seconds: float | None
    evaluation_seconds: float | None


class CostEstimate(Value):
    """Energy, emissions and money, where the factors were given."""

    power_watts: float | None = None
    energy_kwh: float | None = None
    co2_kg: float | None = None
    money: float | None = None
    currency: str | None = None
    source: str = ""


class Plan(Value):
    """What would train, and what it costs. Making it changes nothing."""

    schema_version: int = SCHEMA_VERSION
    model: str
    family: str
    dtype: str
    recipe: str
    num_parameters: int
    num_trainable: int
    num_tensors: int
    components: list[ComponentCount]
    layers: list[LayerCount]
    excluded: dict[str, str]
    fused: list[str]
    notes: list[str]
    per_device_train_batch_size: int
    tokens_per_sample: float
    labels_per_sample: float
    num_samples: int | None
    num_steps: int | None
    flops_per_token: float
    flops_per_token_full: float
    flops_total: float | None
    sharing: SharingEstimate | None = None
    fast_path: FastPath | None = None
    memory: MemoryEstimate
    time: TimeEstimate | None
    delta_bytes: int
    smallest_budget: float | None
    cost: CostEstimate | None


class TrainingSummary(Value):
    """What the training stage did; of a resumed run, in all its parts.

    Attributes:
        seconds: of training; what was done again after a stop counts once.
        peak_memory_bytes: of the part that took most.
        final_loss: cross-entropy at the last step that was logged, nats per answer token; in
            records of earlier versions the whole loss, an anchor's term among it.
        energy_kwh: measured, of the whole machine; None unless `cost.measure_energy`.
        energy_source: what measured it, or why there is no figure.
        anchor_skill_pictures: wanted questions of the anchor about the skill's own pictures.
        pull_to_base: e-folds of the pull back to the base, had all planned steps been taken.
        pulled: those that the weights which it ended with got: fewer where drift stopped it, or
            they are of an earlier step. None without a pull, and in records of earlier versions.
        step_owner: setting with which `anchor.projection` and the pull are refused; None without,
            and in records of earlier versions.
        compilation: compiled layers, in the last part; None unless `training.torch_compile`.
        first_step: layouts, attention and looked-up pictures, in the last part; None where they are
            off or could not be compared, and in records of earlier versions.
    """

    num_steps: int
    num_epochs: float
    num_samples: int
    num_tokens: int
    num_labels: int
    seconds: float
    samples_per_second: float
    peak_memory_bytes: int | None
    compute_dtype: str
    num_processes: int
    global_batch_size: int
    learning_rate: float
    final_loss: float | None
    best_step: int | None
    anchor_weight: float | None
    anchor_seconds: float | None
    resumed_from: str | None
    energy_kwh: float | None = None
    energy_source: str | None = None
    compilation: Comparison | None = None
    first_step: Comparison | None = None
    anchor_projection: float | None = None
    drift_seconds: float | None = None
    anchor_top_k: int | None = None
    anchor_skill_pictures: int | None = None
    pull_to_base: float | None = None
    pulled: float | None = None
    step_owner: str | None = None


class DataSummary(Value):
    """Rows that went in, and rows that did not."""

    name: str
    role: str
    path: str
    sha256: str
    num_rows: int
    num_used: int
    num_refused: int
    splits: dict[str, int]
    notes: list[str]
    metric: str = ""  # what tells a user's own from others


class RunRecord(Value):
    """Everything that the report needs, and everything that a second run would need."""

    schema_version: int = SCHEMA_VERSION
    name: str
    created: str
    versions: dict[str, str]
    hardware: dict[str, Any]
    git: dict[str, Any] | None
    seed: int
    model: dict[str, Any]
    recipe: str
    plan: Plan | None
    data: list[DataSummary]
    training: TrainingSummary | None
    proof: Proof | None
    delta: DeltaInfo | None
    tasks: list[TaskChange]
    drift: DriftResult | None
    verdict: Verdict | None
    dial: DialResult | None = None
    cost: CostEstimate | None
    seconds: dict[str, float]
    notes: list[str]
