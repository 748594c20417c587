"""Models of tables against references of ten lines, and what each promises beside its logits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from deepseek.datasets import FeatureEncoder, InteractionDataset
from deepseek.errors import ConfigError
from deepseek.models import ModelEngine
from deepseek.recsys.interest_network import Dice
from deepseek.recsys.joint_models import logit_of_product
from deepseek.recsys.two_tower import ItemFrequency, TwoTower
from deepseek.trainer import Trainer

SMALL = {
    "dcn": {"embedding_dim": 3, "hidden_dims": [5]},
    "dcn_v2": {"embedding_dim": 3, "hidden_dims": [5]},
    "deepfm": {"embedding_dim": 3, "hidden_dims": [5]},
    "din": {"embedding_dim": 3, "attention_dims": [4], "hidden_dims": [5]},
    "esmm": {"embedding_dim": 3, "hidden_dims": [5]},
    "mmoe": {"embedding_dim": 3, "num_experts": 3, "expert_dims": [5], "tower_dims": [4]},
    "ple": {"embedding_dim": 3, "expert_dims": [5], "tower_dims": [4]},
    "sasrec": {"dim": 6, "heads": 2, "max_length": 4},
    "two_tower": {"embedding_dim": 3, "hidden_dims": [5], "dim": 4},
}
JOINT = ["esmm", "mmoe", "ple"]


def table(num=300, seed=0):
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 6, num), rng.integers(0, 5, num)
    click = (user + item) % 2
    return {
        "user_id": user,
        "item_id": item,
        "price": [None if n % 9 == 0 else float(v) for n, v in enumerate(rng.normal(size=num))],
        "history": [rng.integers(0, 5, n % 4).tolist() for n in range(num)],
        "click": click.tolist(),
        "buy": (click * (item > 2)).tolist(),
    }


FEATURES = {
    "sparse": {"user_id": {}, "item_id": {}},
    "dense": {"price": {}},
    "sequence": {"history": {"shares": "item_id", "max_length": 4}},
    "cross": {"pair": {"of": ["user_id", "item_id"], "buckets": 500}},
    "label": {"click": {}},
}


@pytest.fixture(scope="module")
def data():
    return InteractionDataset(table(), FEATURES)


@pytest.fixture(scope="module")
def joint_data():
    return InteractionDataset(table(), {**FEATURES, "label": {"click": {}, "buy": {}}})


@pytest.fixture
def model_of(data, joint_data):
    """A model with random weights that are not small, its batch, and its weights by name."""

    def make(name, num=8, **args):
        torch.manual_seed(0)
        used = joint_data if name in JOINT else data
        engine = ModelEngine(name, **{**SMALL[name], **args})
        engine.bind(used.spec)
        for weight in engine.parameters():
            nn.init.normal_(weight, std=0.5)
        batch, _ = used.get_batch(range(num), 0)
        model = engine.eval().module
        return model, batch, model.state_dict()

    return make


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def count(model):
    return sum(weight.numel() for weight in model.parameters())


ROWS = 8 + 7 + 502  # users, items (with the history), pairs
FIELDS, WIDTH, EMBEDDED = 6, 4 * 3 + 2, 3 * ROWS  # 2 numbers: the price, and that it lacks


def test_deepfm(model_of):
    model, batch, w = model_of("deepfm")
    v, first = model.embedder(batch), model.linear.embedder(batch)
    want = w["linear.bias"] + first.sum((1, 2))
    for i in range(FIELDS):
        for j in range(i):
            want = want + (v[:, i] * v[:, j]).sum(1)
    hidden = linear(v.flatten(1), w, "layers.0").relu()
    want = want + linear(hidden, w, "output")[:, 0]
    torch.testing.assert_close(model(batch), want)
    deep = FIELDS * 3 * 5 + 5 + 5 + 1
    assert count(model) == 4 * (ROWS + 2) + 1 + deep


def test_crosses_of_2017(model_of):
    model, batch, w = model_of("dcn")
    x = x0 = model.embedder.flat(batch)
    for layer in range(2):
        x = torch.stack(
            [
                (torch.outer(x0[b], x[b]) @ w["crosses.weights"][layer])
                + w["crosses.biases"][layer]
                + x[b]
                for b in range(len(x))
            ]
        )
    deep = linear(x0, w, "layers.0").relu()
    want = linear(torch.cat([x, deep], 1), w, "output")[:, 0]
    torch.testing.assert_close(model(batch), want)
    assert count(model) == EMBEDDED + 2 * 2 * WIDTH + WIDTH * 5 + 5 + WIDTH + 5 + 1


@pytest.mark.parametrize("structure", ["parallel", "stacked"])
def test_crosses_of_2021(model_of, structure):
    model, batch, w = model_of("dcn_v2", structure=structure)
    x = x0 = model.embedder.flat(batch)
    for layer in range(2):
        x = x0 * linear(x, w, f"crosses.layers.{layer}") + x
    if structure == "parallel":
        last = torch.cat([x, linear(x0, w, "layers.0").relu()], 1)
    else:
        last = linear(x, w, "layers.0").relu()
    torch.testing.assert_close(model(batch), linear(last, w, "output")[:, 0])
    crosses = 2 * (WIDTH * WIDTH + WIDTH)
    assert count(model) == EMBEDDED + crosses + WIDTH * 5 + 5 + last.shape[1] + 1


def test_crosses_of_low_rank(model_of):
    model, batch, w = model_of("dcn_v2", rank=2, num_experts=3, num_layers=1, hidden_dims=[])
    x = model.embedder.flat(batch)
    gates = (x @ w["crosses.layers.0.gate.weight"].T).softmax(1)
    down, middle, up = (w[f"crosses.layers.0.{name}"] for name in ("down", "middle", "up"))
    want = x
    for k in range(3):
        narrow = torch.tanh(torch.tanh(x @ down[k].T) @ middle[k].T)
        want = want + gates[:, [k]] * x * (narrow @ up[k].T + w["crosses.layers.0.bias"])
    torch.testing.assert_close(model(batch), linear(want, w, "output")[:, 0])
    crosses = 3 * (2 * WIDTH * 2 + 4) + WIDTH + 3 * WIDTH
    assert count(model) == EMBEDDED + crosses + WIDTH + 1


def dice(x, w, name):
    share = ((x - w[f"{name}.mean"]) / (w[f"{name}.variance"] + 1e-8).sqrt()).sigmoid()
    return share * x + (1 - share) * w[f"{name}.slope"] * x


def test_din(model_of):
    model, batch, w = model_of("din")
    sparse, (history, _) = model.embedder.sparse(batch), model.embedder.sequence(batch, "history")
    pooled, name = torch.zeros(8, 3), "attention.0.layers"
    for b in range(8):
        for place in range(int(batch["length.history"][b])):
            q, k = sparse[b, 1], history[b, place]
            x = torch.cat([q, k, q - k, q * k])
            x = dice(linear(x, w, f"{name}.linears.0"), w, f"{name}.dices.0")
            pooled[b] += linear(x, w, f"{name}.output") * k
    x = torch.cat([sparse.flatten(1), pooled, batch["dense"]], 1)
    x = dice(linear(x, w, "layers.linears.0"), w, "layers.dices.0")
    torch.testing.assert_close(model(batch), linear(x, w, "layers.output")[:, 0])
    attention = 12 * 4 + 4 + 4 + 4 + 1
    assert count(model) == EMBEDDED + attention + WIDTH * 5 + 5 + 5 + 5 + 1


def test_dice_bends_at_the_mean_of_what_is_there():
    layer, x = Dice(1), torch.tensor([[1.0], [3.0], [99.0]])
    found = layer(x, torch.tensor([True, True, False]))
    assert float(layer.mean) == pytest.approx(0.1 * 2)  # the mean of 1 and 3, a tenth of the way
    assert float(layer.variance) == pytest.approx(0.9 + 0.1 * 1)
    share = 1 / (1 + math.exp(1))
    assert found[:2, 0].tolist() == pytest.approx([share, 3 * (1 - share)])
    layer.slope.data.fill_(1.0)
    assert torch.allclose(layer(x), x)


def test_esmm(model_of):
    model, batch, w = model_of("esmm")
    x = model.embedder.flat(batch)
    click, conversion = (
        linear(linear(x, w, f"{name}.layers.0").relu(), w, f"{name}.output")[:, 0].sigmoid()
        for name in ("click", "conversion")
    )
    found = model(batch)
    torch.testing.assert_close(found["click"].sigmoid(), click)
    torch.testing.assert_close(found["buy"].sigmoid(), click * conversion)
    torch.testing.assert_close(model.conversion_rate(batch), conversion)
    assert count(model) == EMBEDDED + 2 * (WIDTH * 5 + 5 + 5 + 1)
    extreme = torch.tensor([-90.0, 0.0, 90.0])
    product = logit_of_product(extreme, torch.full((3,), 90.0))
    torch.testing.assert_close(product, torch.tensor([-90.0, 0.0, 90 - math.log(2)]))


def expert_of(x, w, name):
    return linear(x, w, f"{name}.0").relu()


def tower_of(x, w, number):
    hidden = linear(x, w, f"towers.{number}.layers.0").relu()
    return linear(hidden, w, f"towers.{number}.output")[:, 0]


def test_mmoe(model_of):
    model, batch, w = model_of("mmoe")
    x = model.embedder.flat(batch)
    experts = [expert_of(x, w, f"experts.{k}") for k in range(3)]
    for number, name in enumerate(("click", "buy")):
        gate = (x @ w[f"gates.{number}.linear.weight"].T).softmax(1)
        mixed = sum(gate[:, [k]] * experts[k] for k in range(3))
        torch.testing.assert_close(model(batch)[name], tower_of(mixed, w, number))
    each = 3 * WIDTH + 5 * 4 + 4 + 4 + 1
    assert count(model) == EMBEDDED + 3 * (WIDTH * 5 + 5) + 2 * each


def mixed_of(x, experts, w, name):
    shares = (x @ w[f"{name}.linear.weight"].T).softmax(1)
    return sum(shares[:, [k]] * experts[k] for k in range(len(experts)))


def test_ple(model_of):
    model, batch, w = model_of("ple")
    common = model.embedder.flat(batch)
    each = [common, common]
    for number in range(2):
        at = f"levels.{number}"
        shared = [expert_of(common, w, f"{at}.shared.{k}") for k in range(2)]
        own = [[expert_of(each[t], w, f"{at}.own.{t}.{k}") for k in range(2)] for t in range(2)]
        each = [mixed_of(each[t], own[t] + shared, w, f"{at}.gates.{t}") for t in range(2)]
        if number == 0:
            common = mixed_of(common, own[0] + own[1] + shared, w, f"{at}.shared_gate")
    for number, name in enumerate(("click", "buy")):
        torch.testing.assert_close(model(batch)[name], tower_of(each[number], w, number))
    first = 6 * (WIDTH * 5 + 5) + 2 * 4 * WIDTH + 6 * WIDTH
    second = 6 * (5 * 5 + 5) + 2 * 4 * 5
    assert count(model) == EMBEDDED + first + second + 2 * (5 * 4 + 4 + 4 + 1)


def test_two_towers(model_of):
    model, batch, w = model_of("two_tower")
    sparse, pooled = model.embedder.sparse(batch), model.embedder.pooled(batch, "history")
    of_user = torch.cat([sparse[:, 0], sparse[:, 2], pooled, batch["dense"]], 1)
    vectors = []
    for side, given in (("user", of_user), ("item", sparse[:, 1])):
        hidden = linear(given, w, f"{side}_tower.0.0").relu()
        vectors.append(F.normalize(linear(hidden, w, f"{side}_tower.1")))
    user, item = (each.detach() for each in vectors)
    torch.testing.assert_close(model(batch), (user * item).sum(1) / 0.1)
    model.train()
    logits = model(batch)  # every item was met first in this, the first batch: certain
    ids = batch["sparse"][:, 1]
    for i in range(8):
        for j in range(8):
            hidden = i != j and ids[i] == ids[j]
            want = -math.inf if hidden else float(user[i] @ item[j]) / 0.1
            assert float(logits[i, j].detach()) == pytest.approx(want, abs=1e-4)
    assert count(model) == EMBEDDED + (9 + 2) * 5 + 5 + 3 * 5 + 5 + 2 * (5 * 4 + 4)


def test_that_a_number_of_an_item_is_missing_is_the_items(data, tmp_path):
    engine = ModelEngine("two_tower", **SMALL["two_tower"], item=["item_id", "price"])
    engine.bind(data.spec)
    assert engine.config["item"] == ["item_id", "price", "price.missing"]
    encoder = FeatureEncoder(data.spec.features)
    row = {"user_id": 1, "item_id": 2, "history": [3]}
    batch = encoder.encode_rows([{**row, "price": None}, {**row, "price": 3.0}]).batch()
    users, items = (
        getattr(engine.eval().module, f"{of}_vectors")(batch) for of in ("user", "item")
    )
    assert torch.equal(users[0], users[1])
    assert not torch.equal(items[0], items[1])
    engine.save(tmp_path / "model.bin")
    loaded = ModelEngine.load(tmp_path / "model.bin")
    assert torch.equal(loaded.eval().module.user_vectors(batch), users)
    # as files of older versions say it
    config = {**engine.config, "item": ["item_id", "price"]}
    old = TwoTower(**config)
    assert old.users[-1] == "price.missing"
    before = ModelEngine.wrap(old, data.spec)
    before.save(tmp_path / "old.bin")
    again = ModelEngine.load(tmp_path / "old.bin")
    assert again.config == config
    again.bind(data.spec)
    assert torch.equal(again.eval()(batch), before.eval()(batch))


def test_the_frequency_of_an_item_is_learnt_from_gaps():
    frequency, rng = ItemFrequency(4, rate=0.01), np.random.default_rng(0)
    shares = torch.tensor([1.0, 0.5, 0.1, 0.02])
    found = []
    for number in range(3000):
        seen = torch.from_numpy(rng.random(4) < shares.numpy()).nonzero()[:, 0]
        frequency.update(seen.repeat(2))
        if number >= 1000:
            found.append(frequency.log_probability(torch.arange(4)).exp())
    assert torch.allclose(torch.stack(found).mean(0), shares, rtol=0.15)


def test_sasrec(model_of):
    model, batch, w = model_of("sasrec")
    history, lengths = batch["sequence.history"], batch["length.history"]
    items = w["embedder.table.weight"]
    want = []
    for ids, length, candidate in zip(history, lengths, batch["sparse"][:, 1], strict=True):
        n = int(length)
        x = items[ids[:n]] * 6**0.5 + w["places.weight"][:n].flip(0)
        for k in range(2):
            at = f"blocks.{k}"
            norm = F.layer_norm(x, (6,), w[f"{at}.norm1.weight"], w[f"{at}.norm1.bias"])
            q, key, v = linear(norm, w, f"{at}.qkv").view(n, 3, 2, 3).permute(1, 2, 0, 3)
            scores = q @ key.mT / 3**0.5
            scores = scores.masked_fill(torch.ones(n, n).triu(1) == 1, -math.inf)
            seen = (scores.softmax(-1) @ v).transpose(0, 1).reshape(n, 6)
            x = x + linear(seen, w, f"{at}.proj")
            norm = F.layer_norm(x, (6,), w[f"{at}.norm2.weight"], w[f"{at}.norm2.bias"])
            x = x + linear(linear(norm, w, f"{at}.fc1").relu(), w, f"{at}.fc2")
        x = F.layer_norm(x, (6,), w["norm.weight"], w["norm.bias"])
        want.append(float(x[-1] @ items[candidate]) if n else 0.0)
    torch.testing.assert_close(model(batch), torch.tensor(want))
    everything = model.scores_of_all(batch)
    own = everything.gather(1, batch["sparse"][:, [1]])[:, 0]
    torch.testing.assert_close(own, model(batch))
    block = 4 * 6 + (6 * 18 + 18) + 3 * (6 * 6 + 6)
    assert count(model) == 7 * 6 + 4 * 6 + 2 * block + 12


def test_sasrec_learns_the_next_item_at_every_place(data):
    torch.manual_seed(0)
    trainer_task = Trainer(ModelEngine("sasrec", **SMALL["sasrec"]), data, max_steps=1).task
    batch, _ = data.get_batch(range(40), 0)
    lengths = batch["length.history"]
    positive = (batch["targets"] == 1) & (lengths > 0)
    assert trainer_task.count_items(batch) == int((lengths - 1).clamp(min=0).sum() + positive.sum())
    logits = torch.zeros(40, batch["sequence.history"].shape[1], 2)
    loss = trainer_task.loss(logits, batch)
    assert float(loss) == pytest.approx(trainer_task.count_items(batch) * 2 * math.log(2))


def test_in_batch_loss_counts_positive_rows_alone(data):
    task = Trainer(ModelEngine("two_tower", **SMALL["two_tower"]), data, max_steps=1).task
    batch = {"targets": torch.tensor([1.0, 0.0, 1.0])}
    logits = torch.tensor([[2.0, 1.0, 0.0], [9.0, 9.0, 9.0], [0.0, 0.0, 0.0]])
    want = math.log(sum(math.exp(x) for x in (0, -1, -2))) + math.log(3)
    assert task.count_items(batch) == 2
    assert float(task.loss(logits, batch)) == pytest.approx(want)
    as_rows = Trainer(ModelEngine("two_tower", objective="binary"), data, max_steps=1).task
    assert as_rows.count_items({"targets": torch.tensor([1.0, 0.0])}) == 2


@pytest.mark.parametrize("name", SMALL)
def test_every_weight_learns_and_a_model_is_kept_whole(name, model_of, joint_data, data, tmp_path):
    model, _, _ = model_of(name)
    used = joint_data if name in JOINT else data
    task = Trainer(model, used, max_steps=1).task
    model.train()
    batch, _ = used.get_batch(range(200), 0)
    outputs = model(batch)
    task.loss(outputs, batch).backward()
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        assert weight.grad.isfinite().all(), key
        assert weight.grad.any(), key
    engine = ModelEngine(name, **SMALL[name])
    engine.bind(used.spec)
    engine.save(tmp_path / "model.bin")
    again = ModelEngine.load(tmp_path / "model.bin").eval()
    few, _ = used.get_batch(range(6), 0)
    before, after = engine.eval()(few), again(few)
    if name in JOINT:
        assert list(before) == ["click", "buy"]
        before, after = (torch.stack(list(each.values())) for each in (before, after))
    assert torch.equal(before, after)
    names = {key for key, _ in engine.module.named_parameters()}
    assert any("embedder" in key for key in engine.module.hints.no_weight_decay)
    assert set(engine.module.hints.no_weight_decay) <= names


@pytest.mark.parametrize("name", ["din", "ple", "two_tower"])
def test_a_model_trains(name, data, joint_data, tmp_path):
    used = joint_data if name in JOINT else data
    trainer = Trainer(
        ModelEngine(name, **SMALL[name]), used, used, batch_size=50, epochs=8, lr=0.05,
        run_dir=tmp_path / "run", num_workers=0, loggers=["jsonl"], warmup=0,
    )  # fmt: skip
    best = trainer.fit().best
    reached = best["val_score" if name in JOINT else "val_auc"]
    assert reached > (0.8 if name == "two_tower" else 0.95)  # a cosine, and positive rows alone


def test_what_does_not_fit_is_refused(data, joint_data):
    with pytest.raises(ConfigError, match="have 1 labels"):
        ModelEngine("esmm").bind(data.spec)
    for name in ("mmoe", "ple"):
        with pytest.raises(ConfigError, match="several labels"):
            ModelEngine(name).bind(data.spec)
    for name in ("deepfm", "dcn", "dcn_v2", "din", "two_tower", "sasrec"):
        with pytest.raises(ConfigError, match="labels click, buy"):
            ModelEngine(name).bind(joint_data.spec)
    no_history = InteractionDataset(table(), {**FEATURES, "sequence": {}})
    for name in ("din", "sasrec"):
        with pytest.raises(ConfigError, match="shares the ids"):
            ModelEngine(name).bind(no_history.spec)
    with pytest.raises(ConfigError, match="'title'"):
        ModelEngine("two_tower", item=["title"]).bind(data.spec)
    short = ModelEngine("sasrec", max_length=2)
    short.bind(data.spec)
    with pytest.raises(ConfigError, match="do not fit"):
        short(data.get_batch(range(8), 0)[0])
    for name, args, message in (
        ("dcn_v2", {"structure": "round"}, "structure='round'"),
        ("dcn_v2", {"rank": 0}, "rank=0"),
        ("dcn", {"hidden_dims": [0]}, r"hidden_dims\[0\]=0"),
        ("mmoe", {"expert_dims": []}, "expert_dims is empty"),
        ("sasrec", {"heads": 7}, "heads=7"),
        ("two_tower", {"temperature": 0}, "temperature=0"),
        ("two_tower", {"objective": "x"}, "objective='x'"),
    ):
        with pytest.raises(ConfigError, match=message):
            ModelEngine(name, **args)
