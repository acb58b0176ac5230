"""LoRA (arXiv 2106.09685) on the matrices of a recipe, merged into them afterwards.

For comparisons: peft trains the adapters, and what is left is an ordinary tuned model, with an
ordinary delta.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from narrowtune.core.errors import SelectionError
from narrowtune.core.extras import require
from narrowtune.core.study_settings import LoraSettings
from narrowtune.models.families import find_family
from narrowtune.models.select import Selection


@contextmanager
def low_rank(
    model: PreTrainedModel, selection: Selection, settings: LoraSettings
) -> Iterator[Selection]:
    """Put adapters beside a selection's linear layers, and merge them at the end of the block.

    Inside, what is yielded selects the adapters' own matrices. Afterwards every parameter has its
    name again; after an error, its value too. A mixture's experts get none, nor do the MLPs of its
    layers without experts, beside which peft would put those of experts.

    Raises:
        UsageError: peft is not installed.
        SelectionError: nothing in the selection is the matrix of a linear layer.
    """
    require("lora", "peft", asked="LoRA")
    from peft import LoraConfig, get_peft_model

    family = find_family(model)
    layers = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and f"{name}.weight" in selection.names
        and not family.is_in_place_of_experts(f"{name}.weight")
    ]
    if not layers:
        raise SelectionError(
            asked=f"LoRA on {selection.recipe}",
            found="no linear layer among what the recipe trains",
            do="choose a recipe of matrices, such as language_model",
        )
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft only divides it by the rank
        lora_dropout=settings.dropout,
        target_modules=layers,
    )
    wrapped = get_peft_model(model, config)
    try:
        names = tuple(name for name, _ in model.named_parameters() if ".lora_" in name)
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        yield replace(
            selection,
            names=names,
            disk_names={},
            fused=(),
            num_parameters=sum(sizes[name] for name in names),
        )
    except BaseException:
        wrapped.unload()
        raise
    wrapped.merge_and_unload(safe_merge=True)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
