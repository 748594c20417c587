"""What is asked of a Hugging Face model before any process meets another, and how it is cut."""

import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from deepseek.config.parallel import ParallelConfig
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.models.hints import ParallelHints
from deepseek.models.pretrained import find_transformers_model
from deepseek.parallel.plan import BatchFacts, facts_of, resolve_plan

transformers = pytest.importorskip("transformers", reason="needs the extra text: transformers")

from tests.distributed.huggingface_models import (  # noqa: E402
    SIZES,
    VOCABULARY,
    LanguageModel,
    make_pretrained,
)

from deepseek.parallel.huggingface import (  # noqa: E402
    cut_pretrained,
    layer_lists,
    pretrained_facts,
)


def facts(kind="llama", prepare=lambda hf: None, **changes):
    hf = make_pretrained(kind, **changes)
    prepare(hf)
    return facts_of(LanguageModel(hf), ParallelHints())


def refused(plan, size, model, **batch):
    with pytest.raises(ConfigError) as caught:
        resolve_plan(
            ParallelConfig.model_validate(plan), size, model, BatchFacts(batch_size=16, **batch)
        )
    return str(caught.value)


# -- facts -----------------------------------------------------------------------------------


def test_a_model_is_found_in_what_a_user_writes_around_it():
    hf = make_pretrained("llama")
    assert find_transformers_model(hf) == ("", hf)
    assert find_transformers_model(LanguageModel(hf)) == ("hf", hf)
    assert find_transformers_model(nn.Linear(2, 2)) is None
    assert pretrained_facts(nn.Linear(2, 2)) is None
    assert layer_lists(LanguageModel(hf)) == ("hf.model.layers",)
    assert layer_lists(nn.Linear(2, 2)) == ()


def test_transformers_is_not_imported_to_look_for_its_models():
    code = (
        "import sys; from torch import nn; from deepseek.models.pretrained import"
        " find_transformers_model as find; assert find(nn.Linear(1, 1)) is None;"
        " assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_facts_are_those_of_the_config(kind):
    found = facts(kind)
    assert (found.heads, found.key_value_heads, found.num_blocks) == (4, 2, 4)
    assert (found.no_tp, found.no_pp, found.is_pretrained) == ("", "", True)
    assert dict(found.widths) == {
        "model.layers.*.self_attn.q_proj": 32,
        "model.layers.*.self_attn.k_proj": 16,
        "model.layers.*.self_attn.v_proj": 16,
        "model.layers.*.self_attn.o_proj": 32,
        "model.layers.*.mlp.gate_proj": 48,
        "model.layers.*.mlp.up_proj": 48,
        "model.layers.*.mlp.down_proj": 48,
    }


def test_heads_that_every_rank_has_all_of_need_not_be_divided():
    assert facts("phi3").heads == facts("phi3").key_value_heads == 0


# -- refusals --------------------------------------------------------------------------------


def test_every_number_that_tp_does_not_divide_is_named():
    text = refused("tp4", 4, facts(intermediate_size=50))
    assert "tp=4 does not divide key_value_heads=2" in text
    assert "tp=4 does not divide the 50 features of model.layers.*.mlp.down_proj" in text
    assert "heads=4" not in text
    assert "tp=3 does not divide heads=4" in refused("tp3", 3, facts())


def test_more_stages_than_layers():
    text = refused("pp8", 8, facts())
    assert "8 stages (8 ranks x 1) for 4 blocks" in text


def gpt2():
    config = transformers.GPT2Config(
        n_embd=32, n_head=4, n_layer=2, vocab_size=66, bos_token_id=None, eos_token_id=None
    )
    return facts_of(LanguageModel(transformers.GPT2LMHeadModel(config)), ParallelHints())


def test_a_model_without_plans_works_on_the_data_axes():
    text = refused("tp2", 2, gpt2())
    assert "tp=2: GPT2LMHeadModel has no tp plan" in text
    assert "dp2 or fsdp2" in text
    assert "pp=2: GPT2LMHeadModel has no pp plan" in refused("pp2", 2, gpt2())


def test_a_style_that_is_not_supported_is_named():
    sizes = {key: value for key, value in SIZES.items() if key != "head_dim"}
    config = transformers.MixtralConfig(**sizes, num_local_experts=2)
    model = facts_of(LanguageModel(transformers.MixtralForCausalLM(config)), ParallelHints())
    text = refused("tp2", 2, model)
    assert "the tp plan of MixtralForCausalLM has model.layers.*.mlp.experts" in text
    assert "in the unsupported style moe_tp_experts" in text
    assert model.no_pp == ""


@pytest.mark.parametrize(
    ("kind", "missing", "beside"),
    [
        ("llama", "mlp.down_proj (Linear)", "mlp.gate_proj"),
        ("llama", "self_attn.k_proj (Linear)", "self_attn.q_proj"),
        ("qwen3", "self_attn.q_norm (Qwen3RMSNorm)", "self_attn.q_proj"),
    ],
)
def test_an_entry_that_a_tp_plan_lacks_is_named(kind, missing, beside):
    entry = f"model.layers.*.{missing.partition(' ')[0]}"
    text = refused("tp2", 2, facts(kind, lambda hf: hf.tp_plan.pop(entry)))
    name = type(make_pretrained(kind)).__name__
    assert f"the tp plan of {name} has no entry for model.layers.*.{missing}" in text
    assert f"beside model.layers.*.{beside}, which it divides" in text


def test_a_tied_head_that_a_tp_plan_lacks_is_named():
    model = facts("qwen2", lambda hf: hf.tp_plan.pop("lm_head"), tie_word_embeddings=True)
    text = refused("tp2", 2, model)
    assert "no entry for lm_head (of the same weight), beside model.embed_tokens" in text
    assert facts("qwen2", lambda hf: hf.tp_plan.pop("lm_head")).no_tp == ""  # a weight of its own


def test_an_entry_for_another_kind_of_module_is_refused():
    model = facts(prepare=lambda hf: hf.tp_plan.update({"model.norm": "colwise"}))
    assert "has model.norm in the style colwise, and it is a LlamaRMSNorm" in model.no_tp


def test_an_entry_for_a_bare_parameter_is_refused():
    model = facts(prepare=lambda hf: hf.tp_plan.update({"lm_head.weight": "colwise"}))
    assert "divides lm_head.weight, which is no module" in model.no_tp


def test_a_plan_for_the_vocabulary_alone_is_refused():
    def only_head(hf):
        hf._tp_plan = {"lm_head": "colwise_gather_output"}

    assert "divides nothing in a layer" in facts(prepare=only_head).no_tp


def test_a_pp_plan_that_leaves_something_out_is_refused():
    model = facts(prepare=lambda hf: hf.pp_plan.pop("model.norm"))
    assert "the pp plan of LlamaForCausalLM has no entry for model.norm.weight" in refused(
        "pp2", 2, model
    ).replace("hf.", "")
    model = facts(prepare=lambda hf: hf.pp_plan.pop("model.layers"))
    assert "names 0 lists of layers, not one" in model.no_pp


def test_layers_that_share_a_weight_are_not_cut():
    def share(hf):
        hf.model.layers[3].mlp.up_proj.weight = hf.model.layers[0].mlp.up_proj.weight

    assert "are one weight, in two stages" in facts(prepare=share).no_pp


def test_settings_that_a_tp_plan_cannot_follow_are_refused():
    assert "graph=static with tp=2 for a Hugging Face model" in refused(
        "tp2", 2, facts(), graph="static"
    )
    plan = {"tp": 2, "sequence_parallel": True}
    assert "a tp plan of Hugging Face divides no tokens" in refused(plan, 2, facts())


# -- stages ----------------------------------------------------------------------------------


def stages_of(engine, *ranges):
    return [
        cut_pretrained(engine, blocks, is_first=index == 0, is_last=index == len(ranges) - 1)
        for index, blocks in enumerate(ranges)
    ]


@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma3", "phi3"])
@pytest.mark.parametrize("ranges", [(range(2), range(2, 4)), (range(1), range(1, 3), range(3, 4))])
def test_stages_one_after_the_other_are_the_model(kind, ranges):
    engine = ModelEngine.wrap(LanguageModel(make_pretrained(kind), pad=7))
    tokens = torch.randint(0, VOCABULARY, (3, 8), generator=torch.Generator().manual_seed(0))
    expected = engine(tokens)
    expected.square().mean().backward()
    gradients = {name: p.grad.clone() for name, p in engine.module.named_parameters()}
    engine.zero_grad()
    x = tokens
    for stage in stages_of(engine, *ranges):
        x = stage(x, tokens=tokens)
    torch.testing.assert_close(x, expected, rtol=0, atol=0)
    x.square().mean().backward()
    for name, parameter in engine.module.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])


def test_a_stage_has_its_weights_only_by_their_names_in_the_model():
    engine = ModelEngine.wrap(LanguageModel(make_pretrained("llama")))
    whole = dict(engine.module.named_parameters())
    first, last = stages_of(engine, range(2), range(2, 4))
    held = [dict(stage.model.named_parameters()) for stage in (first, last)]
    assert held[0].keys() | held[1].keys() == whole.keys()
    assert not held[0].keys() & held[1].keys()
    assert all(whole[name] is parameter for part in held for name, parameter in part.items())
    assert {n for n in held[0] if ".layers." not in n} == {"hf.model.embed_tokens.weight"}
    assert {n for n in held[1] if ".layers." not in n} == {
        "hf.model.norm.weight",
        "hf.lm_head.weight",
    }
    assert first.blocks == list(engine.module.hf.model.layers[:2])
    assert last.blocks == list(engine.module.hf.model.layers[2:])


def test_neighbours_on_one_rank_do_not_share_what_they_are_given():
    engine = ModelEngine.wrap(LanguageModel(make_pretrained("llama")))
    tokens = torch.arange(8)[None]
    expected = engine(tokens)
    first, middle, last = stages_of(engine, range(1), range(1, 2), range(2, 4))
    hidden = middle(first(tokens, tokens=tokens), tokens=tokens)
    torch.testing.assert_close(last(hidden, tokens=tokens), expected, rtol=0, atol=0)


class UsesEmbeddings(LanguageModel):
    """Adds something of the embeddings to the logits."""

    def forward(self, tokens):
        embeddings = self.hf.model.embed_tokens(tokens)
        return self.hf(tokens).logits + embeddings.mean()


def test_what_goes_past_the_stream_is_not_a_number():
    engine = ModelEngine.wrap(UsesEmbeddings(make_pretrained("llama")))
    tokens = torch.arange(8)[None]
    first, last = stages_of(engine, range(2), range(2, 4))
    logits = last(first(tokens, tokens=tokens), tokens=tokens)
    assert torch.isnan(logits).all()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated:FutureWarning")
@pytest.mark.parametrize("trains", [True, False])
def test_caches_and_recomputation_of_transformers_are_left_as_they_are(trains):
    hf = make_pretrained("llama", use_cache=True)
    if trains:
        hf.gradient_checkpointing_enable()
    engine = ModelEngine.wrap(LanguageModel(hf))
    engine.train(trains)
    tokens = torch.arange(8)[None]
    with nullcontext() if trains else torch.no_grad():
        expected = engine(tokens)
        first, last = stages_of(engine, range(2), range(2, 4))
        found = last(first(tokens, tokens=tokens), tokens=tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
