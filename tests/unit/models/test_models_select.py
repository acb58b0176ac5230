"""Every family under every recipe: the names are those written here, by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from narrowtune.core.errors import SelectionError, UsageError
from narrowtune.core.recipes import RECIPES, Recipe
from narrowtune.models.load import load_model
from narrowtune.models.select import resolve, select
from tiny_models import FAMILIES, VISION_FAMILIES

Q, K, V, O = (f"self_attn.{m}_proj.weight" for m in "qkvo")  # noqa: E741
QKV_BIASES = ["self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias"]
GATE, UP, DOWN = "mlp.gate_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.weight"
NORMS = ["input_layernorm.weight", "post_attention_layernorm.weight"]
QK_NORMS = ["self_attn.q_norm.weight", "self_attn.k_norm.weight"]
GEMMA_NORMS = ["pre_feedforward_layernorm.weight", "post_feedforward_layernorm.weight"]

# What trains in each of the two decoder layers, for the recipes that choose matrices.
PLAIN = {
    "sa_proj": [Q, K, V, O],
    "sa_qkv": [Q, K, V],
    "sa_o": [O],
    "mlp": [GATE, UP, DOWN],
    "mlp_gate_up": [GATE, UP],
    "mlp_down": [DOWN],
    "sa_proj+mlp_gate_up": [Q, K, V, O, GATE, UP],
}
WITH_BIASES = {
    "sa_proj": [Q, K, V, O, *QKV_BIASES],
    "sa_qkv": [Q, K, V, *QKV_BIASES],
    "sa_o": [O],
    "mlp": [GATE, UP, DOWN],
    "mlp_gate_up": [GATE, UP],
    "mlp_down": [DOWN],
    "sa_proj+mlp_gate_up": [Q, K, V, O, *QKV_BIASES, GATE, UP],
}
FUSED = {
    "sa_proj": ["self_attn.qkv_proj.weight", "self_attn.o_proj.weight"],
    "sa_qkv": ["self_attn.qkv_proj.weight"],
    "sa_o": ["self_attn.o_proj.weight"],
    "mlp": ["mlp.gate_up_proj.weight", "mlp.down_proj.weight"],
    "mlp_gate_up": ["mlp.gate_up_proj.weight"],
    "mlp_down": ["mlp.down_proj.weight"],
    "sa_proj+mlp_gate_up": [
        "self_attn.qkv_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.gate_up_proj.weight",
    ],
}
# The matrices of all experts of a layer are one tensor. `mlp.gate` is the router.
EXPERTS_GATE_UP, EXPERTS_DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
ROUTER = "mlp.gate.weight"
EXPERTS = {
    "sa_proj": [Q, K, V, O],
    "sa_qkv": [Q, K, V],
    "sa_o": [O],
    "mlp": [EXPERTS_GATE_UP, EXPERTS_DOWN],
    "mlp_gate_up": [EXPERTS_GATE_UP],
    "mlp_down": [EXPERTS_DOWN],
    "sa_proj+mlp_gate_up": [Q, K, V, O, EXPERTS_GATE_UP],
}
# Beside the experts an MLP that all tokens go through, its sum weighed by a gate of its own.
SHARED_GATE, SHARED_UP = "mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight"
SHARED_DOWN = "mlp.shared_expert.down_proj.weight"
SHARED_MATRICES = {
    "mlp": [EXPERTS_GATE_UP, EXPERTS_DOWN, SHARED_GATE, SHARED_UP, SHARED_DOWN],
    "mlp_gate_up": [EXPERTS_GATE_UP, SHARED_GATE, SHARED_UP],
    "mlp_down": [EXPERTS_DOWN, SHARED_DOWN],
}
SHARED = {
    "sa_proj": [Q, K, V, O],
    "sa_qkv": [Q, K, V],
    "sa_o": [O],
    **SHARED_MATRICES,
    "sa_proj+mlp_gate_up": [Q, K, V, O, EXPERTS_GATE_UP, SHARED_GATE, SHARED_UP],
}
MATRICES = {
    "llama": PLAIN,
    "qwen3_moe": EXPERTS,
    "mixtral": EXPERTS,
    "qwen3_vl_moe": EXPERTS,
    "qwen3_5_moe": SHARED,
    "mistral": PLAIN,
    "qwen2": WITH_BIASES,
    "qwen3": PLAIN,
    "gemma3_text": PLAIN,
    "granite": PLAIN,
    "olmo2": PLAIN,
    "smollm3": PLAIN,
    "phi3": FUSED,
    "llava": PLAIN,
    "llava_next": PLAIN,
    "llava_onevision": WITH_BIASES,
    "qwen2_vl": WITH_BIASES,
    "qwen2_5_vl": WITH_BIASES,
    "qwen3_vl": PLAIN,
    "qwen3_5": PLAIN,
    "qwen3_5_text": PLAIN,
    "gemma3": PLAIN,
    "internvl": WITH_BIASES,
    "idefics3": PLAIN,
    "smolvlm": PLAIN,
}
# Of Qwen3.5's two layers the first keeps a state, and the second attends.
STATE_QKV, STATE_OUT = "linear_attn.in_proj_qkv.weight", "linear_attn.out_proj.weight"
WITH_STATE = {
    "sa_proj": [STATE_QKV, STATE_OUT],
    "sa_qkv": [STATE_QKV],
    "sa_o": [STATE_OUT],
    "mlp": [GATE, UP, DOWN],
    "mlp_gate_up": [GATE, UP],
    "mlp_down": [DOWN],
    "sa_proj+mlp_gate_up": [STATE_QKV, STATE_OUT, GATE, UP],
}
WHOLE_STATE = [
    STATE_QKV,
    STATE_OUT,
    "linear_attn.in_proj_z.weight",
    "linear_attn.in_proj_a.weight",
    "linear_attn.in_proj_b.weight",
    "linear_attn.conv1d.weight",
    "linear_attn.norm.weight",
    "linear_attn.A_log",
    "linear_attn.dt_bias",
    GATE,
    UP,
    DOWN,
    *NORMS,
]
MIXED = [EXPERTS_GATE_UP, EXPERTS_DOWN, ROUTER]
MIXED_SHARED = [*MIXED, *SHARED_MATRICES["mlp"][2:], "mlp.shared_expert_gate.weight"]
# Families of which the first layer is of another kind than the second: its matrices by recipe, and
# everything in it.
FIRST_LAYER = {
    "qwen3_5": (WITH_STATE, WHOLE_STATE),
    "qwen3_5_text": (WITH_STATE, WHOLE_STATE),
    "qwen3_5_moe": (
        {
            **WITH_STATE,
            **SHARED_MATRICES,
            "sa_proj+mlp_gate_up": [STATE_QKV, STATE_OUT, *SHARED_MATRICES["mlp_gate_up"]],
        },
        [name for name in WHOLE_STATE if name not in (GATE, UP, DOWN)] + MIXED_SHARED,
    ),
    "qwen3_moe": (PLAIN, [Q, K, V, O, *QK_NORMS, GATE, UP, DOWN, *NORMS]),
}
# Everything in one decoder layer.
WHOLE_LAYER = {
    "qwen3_moe": [Q, K, V, O, *QK_NORMS, *MIXED, *NORMS],
    "mixtral": [Q, K, V, O, *MIXED, *NORMS],
    "qwen3_vl_moe": [Q, K, V, O, *QK_NORMS, *MIXED, *NORMS],
    "qwen3_5_moe": [Q, K, V, O, *QK_NORMS, *MIXED_SHARED, *NORMS],
    "llama": [Q, K, V, O, GATE, UP, DOWN, *NORMS],
    "mistral": [Q, K, V, O, GATE, UP, DOWN, *NORMS],
    "qwen2": [Q, K, V, O, *QKV_BIASES, GATE, UP, DOWN, *NORMS],
    "qwen3": [Q, K, V, O, *QK_NORMS, GATE, UP, DOWN, *NORMS],
    "gemma3_text": [Q, K, V, O, *QK_NORMS, GATE, UP, DOWN, *NORMS, *GEMMA_NORMS],
    "granite": [Q, K, V, O, GATE, UP, DOWN, *NORMS],
    "olmo2": [Q, K, V, O, *QK_NORMS, GATE, UP, DOWN, NORMS[1], GEMMA_NORMS[1]],
    "smollm3": [Q, K, V, O, GATE, UP, DOWN, *NORMS],
    "phi3": [
        "self_attn.qkv_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.gate_up_proj.weight",
        "mlp.down_proj.weight",
        *NORMS,
    ],
    "llava": [Q, K, V, O, GATE, UP, DOWN, *NORMS],
    "llava_next": [Q, K, V, O, GATE, UP, DOWN, *NORMS],
    "llava_onevision": [Q, K, V, O, *QKV_BIASES, GATE, UP, DOWN, *NORMS],
    "qwen2_vl": [Q, K, V, O, *QKV_BIASES, GATE, UP, DOWN, *NORMS],
    "qwen2_5_vl": [Q, K, V, O, *QKV_BIASES, GATE, UP, DOWN, *NORMS],
    "qwen3_vl": [Q, K, V, O, *QK_NORMS, GATE, UP, DOWN, *NORMS],
    "qwen3_5": [Q, K, V, O, *QK_NORMS, GATE, UP, DOWN, *NORMS],
    "qwen3_5_text": [Q, K, V, O, *QK_NORMS, GATE, UP, DOWN, *NORMS],
    "gemma3": [Q, K, V, O, *QK_NORMS, GATE, UP, DOWN, *NORMS, *GEMMA_NORMS],
    "internvl": [Q, K, V, O, *QKV_BIASES, GATE, UP, DOWN, *NORMS],
    "idefics3": [Q, K, V, O, GATE, UP, DOWN, *NORMS],
    "smolvlm": [Q, K, V, O, GATE, UP, DOWN, *NORMS],
}
TIED = ["model.embed_tokens.weight", "model.norm.weight"]
UNTIED = [*TIED, "lm_head.weight"]
MULTIMODAL = [
    "model.language_model.embed_tokens.weight",
    "model.language_model.norm.weight",
    "lm_head.weight",
]
OUTSIDE_LAYERS = {
    "llama": TIED,
    "mistral": UNTIED,
    "qwen2": TIED,
    "qwen3": UNTIED,
    "qwen3_moe": UNTIED,
    "mixtral": UNTIED,
    "qwen3_vl_moe": MULTIMODAL,
    "qwen3_5_moe": MULTIMODAL,
    "gemma3_text": TIED,
    "granite": UNTIED,
    "olmo2": UNTIED,
    "smollm3": UNTIED,
    "phi3": UNTIED,
    "llava": MULTIMODAL,
    "llava_next": MULTIMODAL,
    "llava_onevision": MULTIMODAL,
    "qwen2_vl": MULTIMODAL,
    "qwen2_5_vl": MULTIMODAL,
    "qwen3_vl": MULTIMODAL,
    "qwen3_5": MULTIMODAL,
    "qwen3_5_text": TIED,
    "gemma3": MULTIMODAL[:2],
    "internvl": MULTIMODAL,
    "idefics3": [name.replace("language_model", "text_model") for name in MULTIMODAL],
    "smolvlm": [name.replace("language_model", "text_model") for name in MULTIMODAL],
}
LINEARS = [
    "model.multi_modal_projector.linear_1.weight",
    "model.multi_modal_projector.linear_1.bias",
    "model.multi_modal_projector.linear_2.weight",
    "model.multi_modal_projector.linear_2.bias",
]
PROJECTOR = {
    "llava": LINEARS,
    "llava_next": [*LINEARS, "model.image_newline"],
    "llava_onevision": [*LINEARS, "model.image_newline"],
    "qwen2_vl": [
        "model.visual.merger.ln_q.weight",
        "model.visual.merger.ln_q.bias",
        "model.visual.merger.mlp.0.weight",
        "model.visual.merger.mlp.0.bias",
        "model.visual.merger.mlp.2.weight",
        "model.visual.merger.mlp.2.bias",
    ],
    "qwen2_5_vl": [
        "model.visual.merger.ln_q.weight",
        "model.visual.merger.mlp.0.weight",
        "model.visual.merger.mlp.0.bias",
        "model.visual.merger.mlp.2.weight",
        "model.visual.merger.mlp.2.bias",
    ],
    "qwen3_vl": [
        f"model.visual.{merger}.{module}.{kind}"
        for merger in ("merger", "deepstack_merger_list.0")
        for module in ("norm", "linear_fc1", "linear_fc2")
        for kind in ("weight", "bias")
    ],
    "qwen3_5": [
        f"model.visual.merger.{module}.{kind}"
        for module in ("norm", "linear_fc1", "linear_fc2")
        for kind in ("weight", "bias")
    ],
    "gemma3": [
        "model.multi_modal_projector.mm_input_projection_weight",
        "model.multi_modal_projector.mm_soft_emb_norm.weight",
    ],
    "internvl": [
        f"model.multi_modal_projector.{module}.{kind}"
        for module in ("layer_norm", "linear_1", "linear_2")
        for kind in ("weight", "bias")
    ],
    "idefics3": ["model.connector.modality_projection.proj.weight"],
    "smolvlm": ["model.connector.modality_projection.proj.weight"],
}
TOWER_LAYER = [
    f"{module}.{kind}"
    for module in (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.out_proj",
        "layer_norm1",
        "layer_norm2",
        "mlp.fc1",
        "mlp.fc2",
    )
    for kind in ("weight", "bias")
]
QWEN_BLOCK = [
    "norm1.weight",
    "norm2.weight",
    "attn.qkv.weight",
    "attn.qkv.bias",
    "attn.proj.weight",
    "attn.proj.bias",
    "mlp.gate_proj.weight",
    "mlp.gate_proj.bias",
    "mlp.up_proj.weight",
    "mlp.up_proj.bias",
    "mlp.down_proj.weight",
    "mlp.down_proj.bias",
]
QWEN2_BLOCK = [
    f"{module}.{kind}"
    for module in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    for kind in ("weight", "bias")
]
QWEN3_BLOCK = [name.replace("mlp.fc", "mlp.linear_fc") for name in QWEN2_BLOCK]
INTERN_LAYER = [
    "lambda_1",
    "lambda_2",
    "attention.q_proj.weight",
    "attention.k_proj.weight",
    "attention.v_proj.weight",
    *(
        f"{module}.{kind}"
        for module in (
            "attention.projection_layer",
            "layernorm_before",
            "layernorm_after",
            "mlp.fc1",
            "mlp.fc2",
        )
        for kind in ("weight", "bias")
    ),
]
# The CLIP towers have three layers and are read before the last; the SigLIP tower has two.
CLIP_TOWER = [
    "model.vision_tower.embeddings.class_embedding",
    "model.vision_tower.embeddings.patch_embedding.weight",
    "model.vision_tower.embeddings.position_embedding.weight",
    "model.vision_tower.pre_layrnorm.weight",
    "model.vision_tower.pre_layrnorm.bias",
    *(f"model.vision_tower.encoder.layers.0.{name}" for name in TOWER_LAYER),
    *(f"model.vision_tower.encoder.layers.1.{name}" for name in TOWER_LAYER),
]
POST_NORM = [
    "model.vision_tower.post_layernorm.weight",
    "model.vision_tower.post_layernorm.bias",
]
IDEFICS_TOWER = [
    "model.vision_model.embeddings.patch_embedding.weight",
    "model.vision_model.embeddings.patch_embedding.bias",
    "model.vision_model.embeddings.position_embedding.weight",
    *(f"model.vision_model.encoder.layers.0.{name}" for name in TOWER_LAYER),
    *(f"model.vision_model.encoder.layers.1.{name}" for name in TOWER_LAYER),
    "model.vision_model.post_layernorm.weight",
    "model.vision_model.post_layernorm.bias",
]
TOWER = {
    "llava": CLIP_TOWER,
    "llava_next": CLIP_TOWER,
    "llava_onevision": [
        "model.vision_tower.embeddings.patch_embedding.weight",
        "model.vision_tower.embeddings.patch_embedding.bias",
        "model.vision_tower.embeddings.position_embedding.weight",
        *(f"model.vision_tower.encoder.layers.0.{name}" for name in TOWER_LAYER),
        *(f"model.vision_tower.encoder.layers.1.{name}" for name in TOWER_LAYER),
    ],
    "qwen2_vl": [
        "model.visual.patch_embed.proj.weight",
        *(f"model.visual.blocks.0.{name}" for name in QWEN2_BLOCK),
        *(f"model.visual.blocks.1.{name}" for name in QWEN2_BLOCK),
    ],
    "qwen2_5_vl": [
        "model.visual.patch_embed.proj.weight",
        *(f"model.visual.blocks.0.{name}" for name in QWEN_BLOCK),
        *(f"model.visual.blocks.1.{name}" for name in QWEN_BLOCK),
    ],
    "qwen3_vl": [
        "model.visual.patch_embed.proj.weight",
        "model.visual.patch_embed.proj.bias",
        "model.visual.pos_embed.weight",
        *(f"model.visual.blocks.0.{name}" for name in QWEN3_BLOCK),
        *(f"model.visual.blocks.1.{name}" for name in QWEN3_BLOCK),
    ],
    "qwen3_5": [
        "model.visual.patch_embed.proj.weight",
        "model.visual.patch_embed.proj.bias",
        "model.visual.pos_embed.weight",
        *(f"model.visual.blocks.0.{name}" for name in QWEN3_BLOCK),
        *(f"model.visual.blocks.1.{name}" for name in QWEN3_BLOCK),
    ],
    "gemma3": [
        "model.vision_tower.embeddings.patch_embedding.weight",
        "model.vision_tower.embeddings.patch_embedding.bias",
        "model.vision_tower.embeddings.position_embedding.weight",
        *(f"model.vision_tower.encoder.layers.0.{name}" for name in TOWER_LAYER),
        *(f"model.vision_tower.encoder.layers.1.{name}" for name in TOWER_LAYER),
        *POST_NORM,
    ],
    "internvl": [
        "model.vision_tower.embeddings.cls_token",
        "model.vision_tower.embeddings.position_embeddings",
        "model.vision_tower.embeddings.patch_embeddings.projection.weight",
        "model.vision_tower.embeddings.patch_embeddings.projection.bias",
        *(f"model.vision_tower.encoder.layer.0.{name}" for name in INTERN_LAYER),
        *(f"model.vision_tower.encoder.layer.1.{name}" for name in INTERN_LAYER),
    ],
    "idefics3": IDEFICS_TOWER,
    "smolvlm": IDEFICS_TOWER,
}
TOWER |= {"qwen3_vl_moe": TOWER["qwen3_vl"], "qwen3_5_moe": TOWER["qwen3_5"]}
PROJECTOR |= {"qwen3_vl_moe": PROJECTOR["qwen3_vl"], "qwen3_5_moe": PROJECTOR["qwen3_5"]}
EXCLUDED = {
    "llava": [f"model.vision_tower.encoder.layers.2.{name}" for name in TOWER_LAYER] + POST_NORM,
    "llava_next": [f"model.vision_tower.encoder.layers.2.{name}" for name in TOWER_LAYER]
    + POST_NORM,
    "llava_onevision": POST_NORM,
    "qwen2_vl": [],
    "qwen2_5_vl": [],
    "qwen3_vl": [],
    "qwen3_vl_moe": [],
    "qwen3_5": [],
    "qwen3_5_moe": [],
    "gemma3": [],
    "internvl": [],
    "idefics3": [],
    "smolvlm": [],
}


def expected_names(family: str, recipe: str) -> list[str]:
    """The names, put together from the lists above."""
    layers = "model.language_model.layers" if family in VISION_FAMILIES else "model.layers"
    if family in ("idefics3", "smolvlm"):
        layers = "model.text_model.layers"
    if recipe in MATRICES[family]:
        second = MATRICES[family][recipe]
        first = FIRST_LAYER[family][0][recipe] if family in FIRST_LAYER else second
        return [f"{layers}.0.{s}" for s in first] + [f"{layers}.1.{s}" for s in second]
    second = WHOLE_LAYER[family]
    first = FIRST_LAYER[family][1] if family in FIRST_LAYER else second
    language_model = [
        *OUTSIDE_LAYERS[family],
        *(f"{layers}.0.{s}" for s in first),
        *(f"{layers}.1.{s}" for s in second),
    ]
    if recipe == "language_model":
        return language_model
    if recipe == "projector":
        return PROJECTOR[family]
    if recipe == "vision_tower":
        return TOWER[family]
    assert recipe == "full"
    return language_model + PROJECTOR.get(family, []) + TOWER.get(family, [])


@pytest.fixture(scope="module")
def load(tiny):
    loaded = {}

    def get(family: str):
        if family not in loaded:
            loaded[family] = load_model(str(tiny(family)), device="cpu")
        return loaded[family].model

    return get


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_names_are_those_written_by_hand(load, family: str, recipe: str) -> None:
    model = load(family)
    if recipe in ("projector", "vision_tower") and family not in VISION_FAMILIES:
        with pytest.raises(SelectionError, match="text model, without"):
            resolve(model, recipe)
        return

    selection = resolve(model, recipe)

    assert len(set(selection.names)) == len(selection.names)
    assert set(selection.names) == set(expected_names(family, recipe))
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert selection.num_parameters == sum(sizes[name] for name in selection.names)
    assert sum(c.num_parameters for c in selection.components) == sum(sizes.values())
    assert sum(c.num_trainable for c in selection.components) == selection.num_parameters
    assert sum(layer.num_trainable for layer in selection.layers) == selection.num_parameters
    in_tower = recipe in ("vision_tower", "full") and family in VISION_FAMILIES
    assert set(selection.excluded) == (set(EXCLUDED[family]) if in_tower else set())


@pytest.mark.parametrize(
    ("family", "recipe", "told"),
    [
        ("mixtral", "mlp_gate_up", True),
        ("qwen3_5_moe", "language_model", True),
        ("mixtral", "sa_proj", False),
        ("qwen3", "mlp_gate_up", False),
    ],
)
def test_training_all_experts_is_said(load, family: str, recipe: str, told: bool) -> None:
    model = load(family)
    notes = [note for note in resolve(model, recipe).notes if "experts of a mixture" in note]
    assert len(notes) == told
    if recipe == "mlp_gate_up" and told:
        sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
        experts = sum(n for name, n in sizes.items() if name.endswith("experts.gate_up_proj"))
        assert f"{100 * experts / sum(sizes.values()):.0f} % of the model" in notes[0]


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_no_tower_or_projector_tensor_under_a_language_model_recipe(load, family: str) -> None:
    model = load(family)
    forbidden = set(TOWER[family]) | set(PROJECTOR[family]) | set(EXCLUDED[family])
    for recipe in RECIPES.values():
        if recipe.components == ("language_model",):
            assert not forbidden & set(resolve(model, recipe.name).names)


def test_select_sets_requires_grad_on_exactly_the_names(load) -> None:
    model = load("qwen2_5_vl")
    selection = select(model, "mlp_gate_up")
    on = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert on == set(selection.names)
    resolve(model, "full")
    assert on == {name for name, p in model.named_parameters() if p.requires_grad}
    model.requires_grad_(True)


def test_fused_matrices_are_named_and_never_trained_in_part(load) -> None:
    selection = resolve(load("phi3"), "sa_qkv")
    assert selection.fused == ("self_attn.qkv_proj = q, k, v",)
    assert "which trains whole" in selection.notes[0]
    only_q = Recipe("only_q", ("language_model",), ("q",), "q alone")
    with pytest.raises(SelectionError, match="stores q, k, v in one matrix"):
        resolve(load("phi3"), only_q)
    assert resolve(load("llama"), only_q).names == (
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
    )


def test_tied_head_trains_once_and_says_so(load) -> None:
    tied = resolve(load("llama"), "language_model")
    assert "lm_head.weight" not in tied.names
    assert any("lm_head.weight is the same tensor" in note for note in tied.notes)
    assert not any("tied" in note for note in resolve(load("mistral"), "language_model").notes)
    assert not any("tied" in note for note in resolve(load("llama"), "sa_proj").notes)


def test_table_for_people(load) -> None:
    text = str(resolve(load("llava"), "full"))
    assert "model.language_model.layers.0 … 1" in text
    assert "18 tensors left out: never used" in text
    assert "vision_feature_layer = -2" in text


@pytest.mark.parametrize(
    ("setting", "unused_layers"),
    [(-1, set()), (-2, {2}), (1, {1, 2}), ([-3, 1], {1, 2}), ([0, -1], set())],
)
def test_unused_layers_follow_the_feature_layer(load, setting, unused_layers) -> None:
    model = load("llava")
    kept = model.config.vision_feature_layer
    model.config.vision_feature_layer = setting
    try:
        excluded = resolve(model, "vision_tower").excluded
    finally:
        model.config.vision_feature_layer = kept
    in_layers = {name.split(".")[4] for name in excluded if ".encoder.layers." in name}
    assert in_layers == {str(index) for index in unused_layers}
    assert "model.vision_tower.post_layernorm.weight" in excluded


def test_a_missing_module_is_refused_with_the_names_there(tiny) -> None:
    model = load_model(str(tiny("llama"))).model
    del model.model.layers[1].mlp.up_proj
    with pytest.raises(SelectionError, match=r"no mlp\.up_proj\.weight in model\.layers\.1") as e:
        resolve(model, "mlp_gate_up")
    assert "mlp.gate_proj.weight" in e.value.found


def test_strange_structure_is_refused(tiny) -> None:
    model = load_model(str(tiny("llama"))).model
    model.audio_tower = torch.nn.Linear(2, 2)
    with pytest.raises(SelectionError, match="audio_tower"):
        resolve(model, "sa_proj")
    del model.audio_tower
    model.model.layers[0].self_attn.q_proj.lora_A = torch.nn.Linear(2, 2)
    with pytest.raises(SelectionError, match="more than a weight and a bias"):
        resolve(model, "sa_proj")


def test_quantised_models_and_unknown_recipes_are_refused(tiny) -> None:
    model = load_model(str(tiny("llama"))).model
    with pytest.raises(UsageError, match="no recipe"):
        resolve(model, "sa")
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(SelectionError, match="quantised"):
        resolve(model, "sa_proj")


def test_a_table_that_leads_into_the_tower_is_caught(load, monkeypatch) -> None:
    """Even a wrong entry in the table can't make a language-model recipe train the tower."""
    from narrowtune.models import select as module

    model = load("llava")
    monkeypatch.setattr(
        module,
        "find_projections",
        lambda *_: ["model.vision_tower.encoder.layers.0.self_attn.q_proj.weight"],
    )
    with pytest.raises(SelectionError, match="parameters of another part"):
        resolve(model, "sa_proj")


def test_tiny_folders_are_what_the_hand_lists_assume(tiny) -> None:
    assert set(MATRICES) == set(FAMILIES) == set(WHOLE_LAYER) == set(OUTSIDE_LAYERS)
    assert Path(tiny("llama"), "model.safetensors").is_file()


def test_towers_of_older_transformers_have_one_more_level(tiny) -> None:
    model = load_model(str(tiny("llava"))).model
    today = resolve(model, "full")
    older = torch.nn.Module()
    older.vision_model = model.model.vision_tower
    model.model.vision_tower = older

    selection = resolve(model, "full")

    tower, inner = "model.vision_tower.", "model.vision_tower.vision_model."
    assert set(selection.names) == {name.replace(tower, inner) for name in today.names}
    assert set(selection.excluded) == {name.replace(tower, inner) for name in today.excluded}
    assert set(selection.disk_names.values()) == set(today.disk_names.values())
